"""How many wrong tokens an address may show, or refusals of one user are written down: a bucket each, that fills with time.

A good token is never held up: 256 random bits are not guessed at any rate, and an address may be that of many people (a
forwarded port, a proxy), one of whom must not lock the others out. What the limit saves is the log, and the sign-in form,
which a person may give something shorter to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# A person who mistypes does so a few times; a program with a stale token asks for ever.
BURST, PER_MINUTE = 10.0, 10.0
# Addresses remembered: the oldest is forgotten beyond this many, which is as if it had rested.
KEPT = 4096


@dataclass(slots=True)
class Tries:
    """What is left to each address, of `burst`, and since when that was counted."""

    burst: float = BURST
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def failed(self, source: str, now: float) -> float:
        """Count a wrong token; how many seconds until the next is heard, 0 where this one was within the limit."""
        left, at = self._left.pop(source, (self.burst, now))
        left = min(self.burst, left + max(0.0, now - at) * PER_MINUTE / 60.0)
        within = left >= 1.0
        self._left[source] = (left - 1.0 if within else left, now)
        if len(self._left) > KEPT:
            del self._left[next(iter(self._left))]
        return 0.0 if within else (1.0 - left) * 60.0 / PER_MINUTE

    def exhausted(self, source: str, now: float) -> bool:
        """Whether the next wrong token would be over the limit."""
        left, at = self._left.get(source, (self.burst, now))
        return left + max(0.0, now - at) * PER_MINUTE / 60.0 < 1.0
