"""Which link, NIC or trunk became slow, out of the changes in what is known of the network; and when it is well again.

Who measures judges nothing, and what is known changes by a quarter at least. A verdict needs more: half of what the place
carried at its best. It names an edge, all that a NIC sends or receives, or a trunk, since that is what somebody has to
look at. Until the place carries three quarters of its best again it is not told a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.topology import Change, What, rate_text

SLOW, RESTORED = 0.5, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLink:
    """What `change` is about carries `times` less than at its `best`."""

    change: Change
    best: float
    times: float

    @property
    def evidence(self) -> str:
        """For people."""
        now = rate_text(self.change.after)
        return f"{_place(self.change)}: {now}, {self.times:.1f} times less than before ({rate_text(self.best)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRestored:
    """A place that was slow carries what it did."""

    change: Change
    best: float

    @property
    def evidence(self) -> str:
        """For people."""
        return f"{_place(self.change)}: {rate_text(self.change.after)} again"


def _place(change: Change) -> str:
    """What somebody has to look at."""
    ends = f"{' '.join(change.sources)} -> {' '.join(change.targets)}"
    return {
        What.SENDER: f"what NIC {change.nic} of {' '.join(change.sources)} sends",
        What.RECEIVER: f"what NIC {change.nic} of {' '.join(change.targets)} receives",
        What.TRUNK: f"the trunk {ends}",
    }.get(change.what, f"the link {ends}")


_Key = tuple[What, tuple[NodeId, ...], tuple[NodeId, ...], str]


class SlowLinks:
    """What each place carried at its best, and which are slow now."""

    def __init__(self) -> None:
        self._best: dict[_Key, float] = {}
        self._slow: set[_Key] = set()

    def take(self, change: Change) -> SlowLink | LinkRestored | None:
        """The verdict that a change bears out, if any."""
        key = change.what, change.sources, change.targets, change.nic
        after = change.after
        best = self._best[key] = max(self._best.get(key, 0.0), change.before or 0.0, after or 0.0)
        # Where nothing is known any more (a trunk that is none) nothing is slow.
        if after is None or (key in self._slow and after >= RESTORED * best):
            return LinkRestored(change=change, best=best) if self._recovered(key) and after is not None else None
        if key in self._slow or best <= 0 or after > SLOW * best:
            return None
        self._slow.add(key)
        return SlowLink(change=change, best=best, times=best / max(after, 1.0))

    def _recovered(self, key: _Key) -> bool:
        was = key in self._slow
        self._slow.discard(key)
        return was
