"""Which link, NIC or trunk became slow, out of the changes in what is known of the network; and when it is well again.

Who measures judges nothing, and what is known changes by a quarter at least. A verdict needs more: half of what the place
carried at its best. It names an edge, all that a NIC sends or receives, or a trunk, since that is what somebody has to
look at. Until the place carries three quarters of its best again it is not told a second time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.topology import rate_text

SLOW, RESTORED = 0.5, 0.75


class Place(enum.StrEnum):
    """What is slow."""

    EDGE = "link"
    SENDER = "sender"
    RECEIVER = "receiver"
    TRUNK = "trunk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What one place is now known to carry, in bytes/s, and from what that follows."""

    place: Place
    sources: tuple[NodeId, ...]
    targets: tuple[NodeId, ...]
    nic: str = ""
    before: float | None
    after: float | None
    evidence: str

    def __str__(self) -> str:
        ends = f"{' '.join(self.sources)} -> {' '.join(self.targets)}"
        return {
            Place.SENDER: f"what NIC {self.nic} of {' '.join(self.sources)} sends",
            Place.RECEIVER: f"what NIC {self.nic} of {' '.join(self.targets)} receives",
            Place.TRUNK: f"the trunk {ends}",
        }.get(self.place, f"the link {ends}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLink:
    """`carried.place` does `times` less than at its `best`."""

    carried: Carried
    best: float
    times: float

    @property
    def evidence(self) -> str:
        """For people."""
        now = rate_text(self.carried.after)
        return f"{self.carried}: {now}, {self.times:.1f} times less than before ({rate_text(self.best)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRestored:
    """A place that was slow carries what it did."""

    carried: Carried
    best: float

    @property
    def evidence(self) -> str:
        """For people."""
        return f"{self.carried}: {rate_text(self.carried.after)} again"


_Key = tuple[Place, tuple[NodeId, ...], tuple[NodeId, ...], str]


class SlowLinks:
    """What each place carried at its best, and which are slow now."""

    def __init__(self) -> None:
        self._best: dict[_Key, float] = {}
        self._slow: set[_Key] = set()

    def take(self, carried: Carried) -> SlowLink | LinkRestored | None:
        """The verdict that a change bears out, if any."""
        key = carried.place, carried.sources, carried.targets, carried.nic
        after = carried.after
        best = self._best[key] = max(self._best.get(key, 0.0), carried.before or 0.0, after or 0.0)
        # Where nothing is known any more (a trunk that is none) nothing is slow.
        if after is None or (key in self._slow and after >= RESTORED * best):
            return LinkRestored(carried=carried, best=best) if self._recovered(key) and after is not None else None
        if key in self._slow or best <= 0 or after > SLOW * best:
            return None
        self._slow.add(key)
        return SlowLink(carried=carried, best=best, times=best / max(after, 1.0))

    def _recovered(self, key: _Key) -> bool:
        was = key in self._slow
        self._slow.discard(key)
        return was
