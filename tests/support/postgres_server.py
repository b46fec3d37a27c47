"""A PostgreSQL server for a test session, where its programs and a driver are installed: on a Unix socket, ended by pid."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT_UID = 0


def missing() -> str:
    """Why no server can be had here, or ''."""
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        return "no PostgreSQL on this machine"
    return "" if importlib.util.find_spec("psycopg") else "no psycopg installed"


class PostgresServer:
    """One server; `url(name)` makes a database of its own."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="atoll-pg-"))
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("nobody").pw_name if os.getuid() == ROOT_UID else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "atoll", "-A", "trust", "--no-sync")
        command = ["postgres", "-D", str(self._data), "-k", str(self._folder), "-c", "listen_addresses=", "-F"]
        self._process = subprocess.Popen(
            command, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._await()

    def url(self, name: str) -> str:
        """An empty database."""
        self._run("createdb", "-h", str(self._folder), "-U", "atoll", name)
        return f"postgresql://atoll@/{name}?host={self._folder}"

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGINT)  # does not wait for clients
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await(self) -> None:
        until = time.monotonic() + 30
        while True:
            ready = subprocess.run(["pg_isready", "-q", "-h", str(self._folder)], check=False, timeout=10)
            if ready.returncode == 0:
                return
            assert time.monotonic() < until, "PostgreSQL did not start"
            time.sleep(0.1)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command,
            user=self._user,
            cwd=self._folder,
            check=True,
            capture_output=True,
            timeout=60,
            env={**os.environ},  # noqa: TID251
        )
