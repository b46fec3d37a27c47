"""The folder of a cluster under ATOLL_HOME: who it is, where it listens, and the secret of its parts.

`cluster.json` outlives Ray and the control plane: ports and secret stay the same, so that agents which lived through a
crash find the control plane that comes back. Written by rename, readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.errors import ClusterError, ConnectError, PortInUse, SchemaError
from atoll.schema.codec import decode_as, to_plain

DEFAULT_WEB_PORT = 8799


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The embedded Ray: the process that holds it, and its folder for temporary files."""

    pid: int
    start_ticks: int
    temp_dir: str
    cpus: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """`cluster.json`. `token_file` is Ray's own, where Ray asks for one."""

    rest_url: str
    ray_address: str
    control: str
    web_host: str
    web_port: int
    node: str
    embedded: bool
    token_file: str = ""
    head: Head | None = None

    def with_head(self, head: Head | None) -> ClusterRecord:
        """The same cluster with another embedded Ray."""
        return replace(self, head=head)


def private_dir(path: Path) -> Path:
    """`path`, made if need be, closed to others. Raises `ClusterError` where it cannot be made or written."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = "" if os.access(path, os.W_OK | os.X_OK) else "it is not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ClusterError(f"cannot keep state in {path}: {problem}; set ATOLL_HOME to a directory that is yours")
    return path


def write_private(path: Path, data: str) -> None:
    """Replace `path` by `data`, mode 0600, all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def secret_file(path: Path) -> str:
    """The secret in `path`, made at the first call."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text().strip()


def save(cluster_dir: Path, record: ClusterRecord) -> None:
    """Write `cluster.json`."""
    write_private(cluster_dir / "cluster.json", json.dumps(to_plain(record), indent=2) + "\n")


def load(cluster_dir: Path) -> ClusterRecord | None:
    """The cluster described there, or None where no readable description is."""
    return _read(cluster_dir / "cluster.json")


def _read(file: Path) -> ClusterRecord | None:
    try:
        return decode_as(ClusterRecord, file.read_bytes())
    except (OSError, SchemaError):
        return None


def all_clusters(home: Path) -> list[tuple[Path, ClusterRecord]]:
    """Every cluster under `home`, the one used last first."""
    found = [(p.stat().st_mtime, p.parent) for p in home.glob("clusters/*/cluster.json")]
    return [(d, record) for _, d in sorted(found, reverse=True) if (record := load(d)) is not None]


def retire(cluster_dir: Path) -> None:
    """The cluster went down on purpose: clients find it no more, and the next one here takes over its runs."""
    with contextlib.suppress(FileNotFoundError):
        (cluster_dir / "cluster.json").replace(cluster_dir / "last.json")


def last_embedded(home: Path) -> tuple[Path, ClusterRecord] | None:
    """The embedded cluster used last, running or not."""
    files = [*home.glob("clusters/*/cluster.json"), *home.glob("clusters/*/last.json")]
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        record = _read(file)
        if record is not None and record.embedded:
            return file.parent, record
    return None


def free_port(host: str) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """True where `port` can be bound now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def listens(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """True where something accepts connections."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def web_port(host: str, asked: int | None) -> int:
    """The dashboard's port: the one asked for, else the default if free, else any. Raises `PortInUse`."""
    if asked is None:
        return DEFAULT_WEB_PORT if is_free(host, DEFAULT_WEB_PORT) else free_port(host)
    if not is_free(host, asked):
        raise PortInUse(f"port {asked} on {host} belongs to another process; end it, or choose another with --port")
    return asked


@contextlib.contextmanager
def starting_lock(home: Path, deadline_s: float) -> Iterator[None]:
    """Held while a cluster is started or ended, so that two commands do not start two. Raises `ConnectError`."""
    path = private_dir(home / "clusters") / ".lock"
    until = time.monotonic() + deadline_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise ConnectError(
                        f"another command is starting a cluster under {home} for over {deadline_s:.0f} s; "
                        "wait for it, or end it"
                    ) from None
                time.sleep(0.1)
        yield


def tail(path: Path, chars: int = 800) -> str:
    """The end of a log, on one line."""
    try:
        text: Any = path.read_text(errors="replace")
    except OSError:
        return f"({path} cannot be read)"
    return " | ".join(line for line in text[-chars:].splitlines() if line.strip())
