"""The head's agent as supervisor: the web process, the watchdog of the control plane, and its re-creation.

`supervision.py` decides, this executes. The processes are sessions of their own and outlive the agent; they are written
down by (pid, start time), and the next agent of this node takes them over.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from atoll.errors import SchemaError
from atoll.schema.codec import decode_as, encode
from atoll.workers.control_link_runtime import ControlLink
from atoll.workers.proc_runtime import fence, lives, read_stat, send_signal, spawn_module, start_ticks
from atoll.workers.supervision import SILENT_S, STOPPED_S, Action, Seen, Supervision

WEB = "atoll.control_plane.web_server"
# The web process touches it each second, in the directory of its log.
WEB_BEAT = "web.beat"
ENSURE = "atoll.control_plane.ray_ensure"
# 5 s in all: the web process ends its streams within 2 s of SIGTERM.
LEAVE_LOOKS, LEAVE_LOOK_S = 100, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that this agent, or the one before it, started."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The record on disk: by module."""

    children: dict[str, Child] = field(default_factory=dict)


class Supervisor:
    """Looks at its processes when told to. `configuration` goes to both on standard input."""

    def __init__(
        self,
        state_dir: Path,
        log_dir: Path,
        configuration: dict[str, Any],
        link: ControlLink,
        monotonic: Callable[[], float],
    ) -> None:
        self._record = state_dir / "children.json"
        self._log_dir = log_dir
        self._configuration = json.dumps(configuration).encode() + b"\n"
        self._link = link
        self._monotonic = monotonic
        self._supervision = Supervision()
        self._children = dict(_read(self._record).children)

    def look(self) -> None:
        """Look once and act."""
        seen = Seen(
            attached=self._link.attached,
            stream=self._link.streams,
            beating=self._link.beating,
            frames=self._link.frames,
            web_lives=self._lives(WEB),
            ensure_lives=self._lives(ENSURE),
            stopped=self._stopped(),
            web_beat=self._web_beat(),
        )
        for action in self._supervision.look(seen, now=self._monotonic()):
            self._act(action)

    async def close(self) -> None:
        """End both processes."""
        for child in self._children.values():
            send_signal(child.pid, child.start_ticks, signal.SIGTERM)
        for _ in range(LEAVE_LOOKS):
            if not any(map(self._lives, self._children)):
                break
            await asyncio.sleep(LEAVE_LOOK_S)
        for child in self._children.values():
            fence(child.pid, child.start_ticks)
        self._record.unlink(missing_ok=True)
        (self._log_dir / WEB_BEAT).unlink(missing_ok=True)

    def _act(self, action: Action) -> None:
        match action:
            case Action.KILL_STOPPED_CONTROL:
                self._kill_control(f"stopped by a signal and silent for {STOPPED_S:g} s")
            case Action.KILL_SILENT_CONTROL:
                self._kill_control(f"silent for {SILENT_S:g} s")
            case Action.START_ENSURE:
                self._start(ENSURE, "ensure.log")
            case Action.KILL_ENSURE:
                fence(self._children[ENSURE].pid, self._children[ENSURE].start_ticks)
            case Action.START_WEB:
                self._start(WEB, "web.log")
            case Action.KILL_WEB:
                web = self._children[WEB]
                _log(f"the web process (pid {web.pid}) hung for 10 s; killed: {fence(web.pid, web.start_ticks)}")
            case _:
                assert_never(action)

    def _kill_control(self, why: str) -> None:
        peer = self._link.peer
        if peer is not None:
            killed = send_signal(peer.pid, peer.start_ticks, signal.SIGKILL)
            _log(f"the control plane (pid {peer.pid}) was {why}; killed: {killed}")

    def _stopped(self) -> bool:
        peer = self._link.peer
        stat = read_stat(peer.pid) if peer is not None and peer.pid > 0 else None
        return peer is not None and stat is not None and stat.start_ticks == peer.start_ticks and stat.state == "T"

    def _start(self, module: str, log: str) -> None:
        pid = spawn_module(module, config=self._configuration, log=self._log_dir / log)
        self._children[module] = Child(pid=pid, start_ticks=start_ticks(pid))
        self._record.write_bytes(encode(Children(children=self._children)))
        _log(f"started {module} as pid {pid}")

    def _web_beat(self) -> int:
        try:
            return (self._log_dir / WEB_BEAT).stat().st_mtime_ns
        except OSError:
            return 0

    def _lives(self, module: str) -> bool:
        child = self._children.get(module)
        return child is not None and lives(child.pid, child.start_ticks)


def _read(path: Path) -> Children:
    try:
        return decode_as(Children, path.read_bytes())
    except (FileNotFoundError, SchemaError):
        return Children()


def _log(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr)  # noqa: T201 - the agent's log
