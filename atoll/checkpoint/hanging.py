"""Whether a thread hangs in storage: told from how long it has been about the same thing, as another thread looks on.

A call into storage that hangs cannot be ended, nor does it say that it hangs. So the thread says what it begins, with the
bytes that this moves at most, and whoever looks on adds up the time between two looks at the same thing. A clock that
jumps, or a process that stood still, adds no more than one look does.
"""

from __future__ import annotations

from dataclasses import dataclass

# As long as a leader waits for the words of others.
LEAST_S = 60.0
# A fifth of what a link of 1 Gbit/s carries: whatever is slower than that saves nothing in time either.
SLOWEST_BYTES_S = 20e6


@dataclass(frozen=True, slots=True, eq=False)
class _Doing:
    patience_s: float


@dataclass(slots=True)
class Watch:
    """One thread calls `begin` and `end`, another one `look`. `every_s` lie between two looks."""

    every_s: float
    _doing: _Doing | None = None
    _seen: _Doing | None = None
    _looked_at: float = 0.0
    _waited_s: float = 0.0

    def begin(self, size_bytes: int) -> None:
        """The thread is about something new, which moves so many bytes at most."""
        self._doing = _Doing(max(LEAST_S, size_bytes / SLOWEST_BYTES_S))

    def end(self) -> None:
        """The thread has nothing to do."""
        self._doing = None

    def look(self, now: float) -> float:
        """For how many seconds it hangs; 0 where it does not."""
        doing, since = self._doing, self._looked_at
        self._looked_at = now
        if doing is None or doing is not self._seen:
            self._seen, self._waited_s = doing, 0.0
            return 0.0
        self._waited_s += min(max(0.0, now - since), 2 * self.every_s)
        return self._waited_s if self._waited_s > doing.patience_s else 0.0
