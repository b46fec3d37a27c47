"""Ranks: processes forked from this warm one, each in its host, that do what they are told over a pipe.

torch is imported once, before the forks. A command is a function of an imported module with its arguments as JSON; its
answer comes back the same way. A rank passes a gate where all ranks must begin together: the last one to come opens it
for a moment shortly after, on the clock that all processes of a machine share, so nothing crosses the network for it.
Every wait has a deadline, and ranks die with their parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

# From the opening of a gate to the beginning, so that all ranks have heard of it and sleep.
_GATE_S = 0.004
_PR_SET_PDEATHSIG = 1
_GOODBYE_S = 5.0
_LINE = 1 << 16


class RankFailed(RuntimeError):
    """A rank raised, ended or did not answer in time; the message holds its words."""


class Rank:
    """A rank as its own functions see it. `things` live from one command to the next."""

    def __init__(self, number: int, hosts: Sequence[str], lines: TextIO, pipe: socket.socket) -> None:
        self.number, self.size, self.host = number, len(hosts), hosts[number]
        self.hosts = tuple(hosts)
        self.things: dict[Any, Any] = {}
        self._lines, self._pipe = lines, pipe

    def gate(self) -> float:
        """Wait for all ranks; returns the moment at which they begin."""
        self.say({"gate": True})
        begin = float(json.loads(self._lines.readline())["go"])
        time.sleep(max(0.0, begin - time.monotonic()))
        return begin

    def say(self, message: dict[str, Any]) -> None:
        """To the parent."""
        self._pipe.sendall(json.dumps(message).encode() + b"\n")


class Crew:
    """All ranks, as the parent sees them."""

    def __init__(self, hosts: Sequence[str], enter: Callable[[str], None]) -> None:
        self.hosts = tuple(hosts)
        self.pids: list[int] = []
        self._pipes: list[socket.socket] = []
        self._heard: list[bytes] = []
        self._gone: set[int] = set()
        self._at_gate: set[int] = set()
        for number in range(len(hosts)):
            self._fork(number, enter)

    def call(self, function: Callable[..., Any], *, limit_s: float = 60.0, **arguments: Any) -> list[Any]:
        """`function(rank, **arguments)` on all ranks; their answers in rank order."""
        everyone = range(len(self.hosts))
        self.begin(function, everyone, **arguments)
        found = self.gather(everyone, limit_s=limit_s)
        return [found[rank] for rank in everyone]

    def begin(self, function: Callable[..., Any], ranks: Iterable[int], **arguments: Any) -> None:
        """Tell these ranks to call `function`."""
        asked = {"module": function.__module__, "function": function.__qualname__, "arguments": arguments}
        for rank in ranks:
            self._pipes[rank].sendall(json.dumps(asked).encode() + b"\n")

    def gather(
        self,
        ranks: Iterable[int],
        *,
        limit_s: float,
        lost: Iterable[int] = (),
        opened: Callable[[float], None] | None = None,
    ) -> dict[int, Any]:
        """The answers of `ranks`, opening gates meanwhile; `opened(begin)` is called after each.

        Ranks in `lost` pass gates too but need not answer. Raises `RankFailed` for any other that fails or is late.
        """
        missing, lost = set(ranks), set(lost)
        found: dict[int, Any] = {}
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            for rank in missing | lost:
                if rank not in self._gone:
                    selector.register(self._pipes[rank], selectors.EVENT_READ, rank)
            while missing:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    late = ", ".join(f"{r} on {self.hosts[r]}" for r in sorted(missing))
                    raise RankFailed(f"no answer within {limit_s:g} s from ranks {late}")
                for key, _ in ready:
                    for message in self._read(key.data, selector, lost):
                        self._take(key.data, message, found)
                missing -= found.keys()
                if self._at_gate >= missing | (lost - self._gone) and self._at_gate:
                    self._open(opened)
        return found

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send one rank a signal."""
        os.kill(self.pids[rank], number)

    def close(self) -> None:
        """End all ranks."""
        for rank, pipe in enumerate(self._pipes):
            with suppress(OSError):
                os.kill(self.pids[rank], signal.SIGCONT)
            pipe.close()
        deadline = time.monotonic() + _GOODBYE_S
        for pid in self.pids:
            _reap(pid, deadline)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _fork(self, number: int, enter: Callable[[str], None]) -> None:
        mine, theirs = socket.socketpair()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            self.pids.append(pid)
            self._pipes.append(mine)
            self._heard.append(b"")
            return
        code = 1
        try:
            for other in (mine, *self._pipes):
                other.close()
            _serve(number, self.hosts, theirs, enter)
            code = 0
        finally:
            os._exit(code)

    def _read(self, rank: int, selector: selectors.BaseSelector, lost: set[int]) -> list[dict[str, Any]]:
        try:
            more = self._pipes[rank].recv(_LINE)
        except ConnectionResetError:
            more = b""
        if not more:
            selector.unregister(self._pipes[rank])
            self._gone.add(rank)
            self._at_gate.discard(rank)
            if rank in lost:
                return []
            raise RankFailed(f"rank {rank} on {self.hosts[rank]} ended without an answer")
        *lines, self._heard[rank] = (self._heard[rank] + more).split(b"\n")
        return [json.loads(line) for line in lines]

    def _take(self, rank: int, message: dict[str, Any], found: dict[int, Any]) -> None:
        if "gate" in message:
            self._at_gate.add(rank)
        elif "error" in message:
            raise RankFailed(f"rank {rank} on {self.hosts[rank]}: {message['error']}")
        else:
            found[rank] = message["answer"]

    def _open(self, opened: Callable[[float], None] | None) -> None:
        begin = time.monotonic() + _GATE_S
        for rank in self._at_gate:
            self._pipes[rank].sendall(json.dumps({"go": begin}).encode() + b"\n")
        self._at_gate.clear()
        if opened is not None:
            opened(begin)


def _serve(number: int, hosts: Sequence[str], pipe: socket.socket, enter: Callable[[str], None]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to hear; it ends its ranks
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    enter(hosts[number])
    lines = pipe.makefile()
    rank = Rank(number, hosts, lines, pipe)
    for line in lines:
        asked = json.loads(line)
        try:
            function = getattr(sys.modules[asked["module"]], asked["function"])
            rank.say({"answer": function(rank, **asked["arguments"])})
        except Exception:  # noqa: BLE001 - the rank's outer edge
            rank.say({"error": traceback.format_exc()})


def _reap(pid: int, deadline: float) -> None:
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)
