"""The agent's side of its zygote: starts it, starts it again, asks it for forks.

Requests wait while no zygote runs. Those that a dying zygote had been given and not answered are reported as failed: the
process may or may not exist, and its name is never used again, so one that does show up is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from atoll.schema.codec import Registry, encode
from atoll.schema.ids import TrainerId
from atoll.workers.fork_messages import (
    ZYGOTE_REPORTS,
    ChildEnded,
    ForkRefused,
    ForkTrainer,
    ZygoteReport,
    ZygoteWarm,
)
from atoll.workers.proc_runtime import send_signal, spawn_module, start_ticks
from atoll.workers.silence import Backoff

MODULE = "atoll.workers.zygote_runtime"
_REPORTS = Registry(ZYGOTE_REPORTS)


class ZygoteKeeper:
    """One zygote at a time. `on_report` gets what it says; a `ForkRefused` may also come from here.

    It and its trainers run at `niceness`.
    """

    def __init__(self, log: Path, on_report: Callable[[ZygoteReport], None], niceness: int) -> None:
        self._log = log
        self._niceness = niceness
        self._on_report = on_report
        self._waiting: list[ForkTrainer] = []
        self._asked: set[TrainerId] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._backoff = Backoff(first_s=0.1, last_s=10.0)
        self.pid = 0
        self._start_ticks = 0
        self.warm: ZygoteWarm | None = None
        self._became_warm = asyncio.Event()
        self.ends = 0

    async def run(self) -> None:
        """Keep a zygote until cancelled."""
        while True:
            await self._live()
            self.ends += 1
            self._fail_asked()
            await asyncio.sleep(self._backoff.next())

    def fork(self, request: ForkTrainer) -> None:
        """Ask for a trainer; the answer is `TrainerForked` or `ForkRefused`."""
        if self._writer is None:
            self._waiting.append(request)
            return
        self._asked.add(request.start.trainer)
        self._writer.write(encode(request) + b"\n")

    async def warmed(self, limit_s: float) -> ZygoteWarm | None:
        """What it said when torch was imported; None if that takes longer than `limit_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._became_warm.wait(), limit_s)
        return self.warm

    def kill(self) -> None:
        """End the zygote; the agent reaps it."""
        send_signal(self.pid, self._start_ticks, signal.SIGKILL)

    async def _live(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid = spawn_module(MODULE, config=theirs.fileno(), log=self._log)
        finally:
            theirs.close()
        self._start_ticks = start_ticks(self.pid)
        # Before it has a second thread: its trainers do not push aside the agent that watches them.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, self._niceness)
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        try:
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self.fork(request)
            while line := await reader.readline():
                self._take(line)
        except ConnectionError:
            pass
        finally:
            writer, self._writer, self.warm = self._writer, None, None
            self._became_warm.clear()
            self.kill()  # without its line it would end by itself, once its import is done
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _take(self, line: bytes) -> None:
        report: ZygoteReport = _REPORTS.decode(line)
        if isinstance(report, ZygoteWarm):
            self.warm = report
            self._became_warm.set()
            self._backoff.reset()
        elif not isinstance(report, ChildEnded):
            self._asked.discard(report.trainer)
        self._on_report(report)

    def _fail_asked(self) -> None:
        asked, self._asked = self._asked, set()
        for trainer in asked:
            self._on_report(ForkRefused(trainer=trainer, problem="the zygote died before it answered"))
