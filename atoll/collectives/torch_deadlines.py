"""One thread of this process that looks after overdue operations of all its groups.

torch's C++ waits for futures without a limit, so a limit must be enforced from outside: the thread sleeps until the
oldest open operation of any group is due and hands it to its group. Operations of one group have one limit, so a younger
one is never due first and starting one wakes nobody.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

# A look takes as long as a roll call at most.
_JOIN_S = 5.0


class Watched(Protocol):
    """A group with operations in flight."""

    def due_s(self, now: float) -> float:
        """When to look again, in monotonic seconds: the deadline of the oldest operation, or `now` plus the limit."""

    def look(self, now: float) -> None:
        """End what is overdue."""


class Deadlines:
    """The thread lives while groups are watched."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._groups: list[Watched] = []
        self._thread: threading.Thread | None = None

    def watch(self, group: Watched) -> None:
        """Begin."""
        with self._changed:
            self._groups.append(group)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="atoll-deadlines", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def nudge(self) -> None:
        """A limit has become shorter."""
        with self._changed:
            self._changed.notify_all()

    def leave(self, group: Watched) -> None:
        """Look after it no more; with the last group the thread ends."""
        with self._changed:
            if group in self._groups:
                self._groups.remove(group)
            thread = None
            if not self._groups:
                thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _run(self) -> None:
        while groups := self._still():
            now = time.monotonic()
            for group in groups:
                group.look(now)
            with self._changed:
                if self._groups:
                    self._changed.wait(max(0.0, min(g.due_s(now) for g in self._groups) - time.monotonic()))

    def _still(self) -> list[Watched]:
        with self._changed:
            return list(self._groups) if self._thread is threading.current_thread() else []
