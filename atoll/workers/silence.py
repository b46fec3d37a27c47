"""How long a side was silent, counted so that one's own stall is not taken for the other's silence.

A process that was stopped or starved finds, when it goes on, that much time has passed and nothing was heard; the
messages lie unread in its socket. So silence grows by at most `tick_s` a look: a long gap between two looks says
something about the looker, not about the other side.
"""

from __future__ import annotations


class Silence:
    """A watch on one other side."""

    def __init__(self, *, tick_s: float = 1.0) -> None:
        self._tick_s = tick_s
        self._seconds = 0.0
        self._last: float | None = None

    def heard(self) -> None:
        """Something came."""
        self._seconds = 0.0

    def look(self, *, now: float) -> float:
        """Seconds of silence as of `now` (monotonic); to be called about once each `tick_s` or more often."""
        if self._last is not None:
            self._seconds += min(max(now - self._last, 0.0), self._tick_s)
        self._last = now
        return self._seconds


class Backoff:
    """Pauses that double from `first_s` to `last_s` and start over after success."""

    def __init__(self, *, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    def next(self) -> float:
        """Seconds to pause before the next try."""
        pause = self._next_s
        self._next_s = min(self._last_s, pause * 2)
        return pause

    def reset(self) -> None:
        """A try succeeded."""
        self._next_s = self._first_s
