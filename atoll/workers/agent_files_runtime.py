"""The agent's files: its lock, its record, and logs of trainers.

One agent serves a state directory: it holds `agent.lock` for as long as it lives. `agent.json` names it and holds what
the next one has to know; it is replaced in one step, never written in place.
"""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import __version__
from atoll.errors import SchemaError, SpecError
from atoll.schema.codec import decode_as, encode
from atoll.schema.ids import NodeId
from atoll.schema.messages import LogChunk, ReadLog
from atoll.workers.agent_messages import Saved

CHUNK_BYTES = 1 << 20
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WebAddress:
    """Where the web process listens, and whose files it reads."""

    host: str
    port: int
    cluster_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent is told on standard input. `secret` is the cluster's, in hex."""

    node: NodeId
    address: str
    state_dir: str
    home: str
    control: str
    secret: str
    head: bool = False
    web: WebAddress | None = None
    ray_address: str = ""

    def fingerprint(self) -> str:
        """Differs between clusters and builds: an agent of another one is not to be left in place."""
        return hashlib.sha256(f"{self.control}|{self.secret}|{self.node}|{__version__}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """`agent.json`."""

    pid: int
    start_ticks: int
    fingerprint: str
    saved: Saved


def supervised_config(config: AgentConfig) -> dict[str, Any]:
    """What the web process and the re-creation of the control plane are told on standard input."""
    web = config.web
    return {
        "host": web.host if web else "",
        "port": web.port if web else 0,
        "cluster_dir": web.cluster_dir if web else "",
        "home": config.home,
        "control": config.control,
        "secret": config.secret,
        "ray_address": config.ray_address,
        "node": config.node,
        "address": config.address,
    }


def take_lock(state_dir: Path) -> int | None:
    """The lock of a state directory as a descriptor to keep open; None where a living agent holds it."""
    fd = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def read_record(state_dir: Path) -> AgentRecord | None:
    """The record of the last agent, if there is a readable one."""
    try:
        return decode_as(AgentRecord, (state_dir / "agent.json").read_bytes())
    except (FileNotFoundError, SchemaError):
        return None


def write_record(state_dir: Path, record: AgentRecord) -> None:
    """Replace the record. Not synced: with the machine its trainers are gone too."""
    fresh = state_dir / "agent.json.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(encode(record))
    fresh.replace(state_dir / "agent.json")


def read_log(question: ReadLog, path: Path) -> LogChunk:
    """A part of a log. Bytes of a character that is not complete yet are left for the next chunk."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = min(question.offset, size) if question.offset >= 0 else max(0, size + question.offset)
            file.seek(start)
            data = file.read(max(0, min(question.limit, CHUNK_BYTES)))
    except OSError as error:
        problem = f"no log of {question.trainer}: {error.strerror} ({path})"
        return LogChunk(request=question.request, text="", next_offset=max(question.offset, 0), problem=problem)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    unread = len(decoder.getstate()[0])
    return LogChunk(request=question.request, text=text, next_offset=start + len(data) - unread)


def log_tail(path: Path) -> str:
    """The last lines of a log, for the story of a death."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def private_dir(path: Path) -> Path:
    """`path` as a directory that only its owner enters. Raises `SpecError` where it is somebody else's."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    stat = path.stat()
    if stat.st_uid != os.geteuid():
        raise SpecError(f"{path} belongs to user {stat.st_uid}, not to {os.geteuid()}; remove it or set ATOLL_HOME")
    path.chmod(0o700)
    return path
