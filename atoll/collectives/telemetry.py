"""What every operation tells of itself, peer by peer: when this rank entered, first and last byte, and what it waited for.

Duration proves nothing: back-pressure makes it equal on all ranks. So waiting is split by its edge. *Blocked*: bytes for a
peer could not leave; *starved*: an operation could go on only with bytes of that peer. A slow rank enters late and waits
for nobody; a slow link blocks its sender and starves its receiver, on that edge alone (as C4, Dong et al., 2024, tells
them apart). Kept for the last operations; plain counters and one reading of the clock for each turn of the loop, so that
it is always on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# Enough for the operations of a few steps; older ones live on in the sums.
KEPT = 256


@dataclass(slots=True)
class Edge:
    """One operation and one peer. Times in monotonic seconds; `first_s` and `last_s` of what came, None if nothing did."""

    sent_bytes: int = 0
    received_bytes: int = 0
    first_s: float | None = None
    last_s: float | None = None
    blocked_s: float = 0.0
    starved_s: float = 0.0
    waiting: int = 0
    since_s: float = 0.0

    def came(self, now: float) -> None:
        """A message is here."""
        if self.first_s is None:
            self.first_s = now
        self.last_s = now

    def waits(self, now: float) -> None:
        """The operation needs one more message of this peer before it can go on."""
        if not self.waiting:
            self.since_s = now
        self.waiting += 1

    def got(self, now: float) -> None:
        """One that was waited for is here."""
        self.waiting -= 1
        if not self.waiting:
            self.starved_s += now - self.since_s


@dataclass(slots=True)
class Trace:
    """One operation on this rank."""

    number: int = 0
    what: str = ""
    entered_s: float = 0.0
    ended_s: float | None = None
    planned_s: float = 0.0  # when its plan was known
    expected_s: float | None = None  # what that was predicted to take
    size_bytes: int = 0  # of what was summed, where it is expected to take so long
    on: bool = True
    edges: dict[int, Edge] = field(default_factory=dict)

    def edge(self, rank: int) -> Edge | None:
        """What was exchanged with `rank`; None where nothing is recorded."""
        if not self.on:
            return None
        found = self.edges.get(rank)
        if found is None:
            found = self.edges[rank] = Edge()
        return found

    def _sum(self, name: str) -> float:
        return float(sum(getattr(edge, name) for edge in self.edges.values()))

    @property
    def sent_bytes(self) -> int:
        """To all peers."""
        return int(self._sum("sent_bytes"))

    @property
    def received_bytes(self) -> int:
        """From all peers."""
        return int(self._sum("received_bytes"))

    @property
    def blocked_s(self) -> float:
        """Over all peers, so waits side by side count each."""
        return self._sum("blocked_s")

    @property
    def starved_s(self) -> float:
        """Over all peers, so waits side by side count each."""
        return self._sum("starved_s")


class Telemetry:
    """The last operations of one communicator, and sums over all that ended."""

    def __init__(self) -> None:
        self.on = True  # off only to measure what it costs
        self.operations = 0
        self.totals: dict[int, Edge] = {}
        self._recent: deque[Trace] = deque(maxlen=KEPT)

    def add(self, trace: Trace) -> None:
        """An operation has ended."""
        self.operations += 1
        self._recent.append(trace)
        for rank, edge in trace.edges.items():
            total = self.totals.get(rank)
            if total is None:
                total = self.totals[rank] = Edge()
            total.sent_bytes += edge.sent_bytes
            total.received_bytes += edge.received_bytes
            total.blocked_s += edge.blocked_s
            total.starved_s += edge.starved_s

    def recent(self) -> list[Trace]:
        """The last operations, oldest first."""
        return list(self._recent)

    @property
    def sent_bytes(self) -> int:
        """To all peers, by all operations that ended."""
        return _total(edge.sent_bytes for edge in self.totals.values())

    @property
    def received_bytes(self) -> int:
        """From all peers, by all operations that ended."""
        return _total(edge.received_bytes for edge in self.totals.values())


def _total(counts: Iterable[int]) -> int:
    return sum(counts)
