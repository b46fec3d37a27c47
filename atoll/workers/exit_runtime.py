"""Proof of death: which trainer ended, and with what status.

A pidfd becomes readable when its process ends, whoever its parent is: that is the proof. The status comes from whoever
reaps the process, the zygote or (for orphans of a dead zygote) the agent itself. Proof without a status is passed on
after a moment: then a parent died that nobody can ask.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from atoll.schema.ids import TrainerId
from atoll.workers.proc_runtime import end_session, open_pidfd

# The zygote reaps within milliseconds; on a machine with no core to spare, within this.
STATUS_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    trainer: TrainerId
    pid: int
    start_ticks: int
    pidfd: int | None


class Exits:
    """Watches trainers' processes and calls `on_end(trainer, status)` once for each. Lives on the event loop."""

    def __init__(self, on_end: Callable[[TrainerId, int | None], None]) -> None:
        self._on_end = on_end
        self._watched: dict[int, _Watched] = {}
        self._late: dict[int, asyncio.TimerHandle] = {}

    def watch(self, trainer: TrainerId, pid: int, start_ticks: int) -> None:
        """Report the end of this process, also if it is over already."""
        pidfd = open_pidfd(pid, start_ticks)
        self._watched[pid] = _Watched(trainer=trainer, pid=pid, start_ticks=start_ticks, pidfd=pidfd)
        if pidfd is None:
            self._gone(pid)
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._gone, pid)

    def reaped(self, pid: int, status: int) -> None:
        """A parent reaped `pid`."""
        self._finish(pid, status)

    def close(self) -> None:
        """Watch nothing any more."""
        for watched in self._watched.values():
            _unwatch(watched)
        self._watched.clear()
        for handle in self._late.values():
            handle.cancel()

    def _gone(self, pid: int) -> None:
        watched = self._watched[pid]
        if watched.pidfd is not None:
            asyncio.get_running_loop().remove_reader(watched.pidfd)
        self._late[pid] = asyncio.get_running_loop().call_later(STATUS_S, self._finish, pid, None)

    def _finish(self, pid: int, status: int | None) -> None:
        watched = self._watched.pop(pid, None)
        if watched is None:
            return
        if (late := self._late.pop(pid, None)) is not None:
            late.cancel()
        _unwatch(watched)
        end_session(pid, watched.start_ticks)
        self._on_end(watched.trainer, status)


def _unwatch(watched: _Watched) -> None:
    if watched.pidfd is not None:
        asyncio.get_running_loop().remove_reader(watched.pidfd)
        os.close(watched.pidfd)
