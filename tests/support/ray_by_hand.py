"""A Ray cluster that was started by hand, as a stranger would: `ray start` in a home and folder of its own, ended by pid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
ATOLL = str(Path(sys.executable).parent / "atoll")


class HandStarted:
    """`ray start --head` on fixed ports, which can be started again after a crash."""

    def __init__(self, home: Path) -> None:
        from atoll.control_plane.fs_cluster import free_port

        self.home = home
        self.port, self.dashboard, self.job_agent = (free_port("127.0.0.1") for _ in range(3))
        inherited = os.environ.items()  # noqa: TID251 - a stranger's shell, less what this one says of Ray and Atoll
        self.env = {k: v for k, v in inherited if not k.startswith(("RAY_", "ATOLL_"))} | {
            "HOME": str(home),
            "ATOLL_HOME": str(home / "atoll"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.address = ""

    @classmethod
    def fresh(cls) -> HandStarted:
        """With a home that has a short path: Unix sockets lie below it."""
        return cls(Path(tempfile.mkdtemp(prefix="atoll-h-", dir="/tmp")))

    def start(self) -> None:
        command = [RAY, "start", "--head", "--port", str(self.port), "--dashboard-port", str(self.dashboard)]
        # Another Ray on this machine may hold the default port of the job agent.
        command += ["--dashboard-agent-listen-port", str(self.job_agent)]
        command += ["--num-cpus", "2", "--temp-dir", str(self.home / "r"), "--disable-usage-stats"]
        out = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=90, check=False)
        assert out.returncode == 0, out.stdout + out.stderr
        found = re.search(r"--address='([^']+)'", re.sub(r"\x1b\[[0-9;]*m", "", out.stdout))
        assert found, out.stdout
        self.address = found[1]

    def processes(self) -> list[psutil.Process]:
        return [
            p for p in psutil.process_iter(["cmdline"]) if any(str(self.home) in w for w in p.info["cmdline"] or ())
        ]

    def gcs(self) -> psutil.Process:
        return next(p for p in self.processes() if "gcs_server" in p.info["cmdline"][0])

    def end(self) -> None:
        left = self.processes()
        for process in left:
            with_kill(process)
        psutil.wait_procs(left, timeout=10)

    def down(self) -> None:
        """End Atoll and Ray; nothing may be left."""
        subprocess.run([ATOLL, "down"], env=self.env, capture_output=True, timeout=60, check=False)
        self.end()
        left = [" ".join(p.info["cmdline"])[:200] for p in self.processes()]
        shutil.rmtree(self.home, ignore_errors=True)
        assert left == []


def with_kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
