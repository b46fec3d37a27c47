"""When members compare their replicas, and which of them compute alike. Pure.

A digest of the whole state takes time, so by default members decide by what theirs cost: each says with its vote that
another one would keep it within `SHARE` of its time, and once all say so they digest the state after that very step.
All read the same votes, so all choose the same step; a slow member slows the comparing, never the training.

Bits can be compared only where arithmetic is the same: the `numeric` class. Who receives a state from a member of
another class goes on from its bits, which the others of its own class may have left long ago: from there it is a class
of its own, with whoever received the same state in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

# Of a member's time, at most; the aim for all that Atoll does beside training is 2 %.
SHARE = 0.005
# Before the first one was timed: what a core does without any help.
BYTES_PER_S = 0.28e9
# A small state is digested in no time; to tell of it more often than once a second would be news to nobody.
LEAST_S = 1.0
_SINCE = " since "
# Of so many terms the sum is the same in any order.
_ANY_ORDER = 2


@dataclass(slots=True, kw_only=True)
class Turns:
    """Whose turn it is. `every`: steps between two comparisons, 0: never, None: as the cost allows."""

    every: int | None
    cost_s: float = 0.0
    last: float = field(default=0.0)

    def willing(self, now: float) -> bool:
        """Whether this member says, with its vote, that it can afford a digest after this step."""
        return self.every is None and now - self.last >= max(LEAST_S, self.cost_s / SHARE)

    def due(self, step: int, willing: Sequence[bool]) -> bool:
        """Whether all digest their state after `step`, by what each of them said."""
        return all(willing) if self.every is None else self.every > 0 and step % self.every == 0

    def took(self, seconds: float, now: float) -> None:
        """A digest was made, and took so long."""
        self.cost_s, self.last = seconds, now


def received(own: str, source: str, step: int) -> str:
    """The numeric class of a member of class `own` that was given the state after `step` by one of class `source`."""
    base = own.partition(_SINCE)[0]
    if source.partition(_SINCE)[0] == base:
        return source
    return f"{base}{_SINCE}{step} from {crc32(source.encode()):08x}"


def together(classes: Sequence[str]) -> str:
    """The one class of all members, where their shards move between them; empty, and so for good, if they differ."""
    return classes[0] if len(set(classes)) == 1 else ""


def comparable(index: int, size: int) -> str | None:
    """The name of one of `size` shards; None where its owners may differ by rounding.

    Programs clip by a norm over all shards, which each replica group adds up in the order that its own links call for.
    """
    return f"{index + 1} of {size}" if size <= _ANY_ORDER else None
