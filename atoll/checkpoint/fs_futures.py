"""What becomes of one save in one tier: a value that is there later, errors included."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass


class Ending(enum.StrEnum):
    """How far it is."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`problem` says why it failed."""

    ending: Ending
    problem: str = ""


class Future:
    """Set once, from any thread."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._problem = ""

    def set(self, problem: str = "") -> None:
        """It is done, or failed with a problem. Only the first word counts."""
        with self._lock:
            if not self._set.is_set():
                self._problem = problem
                self._set.set()

    def is_set(self) -> bool:
        """Whether it has ended, either way."""
        return self._set.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, or so long; whether it came."""
        return self._set.wait(timeout_s)

    def outcome(self, timeout_s: float = 0.0) -> Outcome:
        """What it has come to within so long. Never raises."""
        if not self._set.wait(timeout_s):
            return Outcome(Ending.PENDING)
        return Outcome(Ending.FAILED, self._problem) if self._problem else Outcome(Ending.DONE)
