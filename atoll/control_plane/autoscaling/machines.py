"""Each machine from its order to its end, as a value that the autoscaler moves along.

    COMING -> STANDING -> DRAINING -> ENDING -> forgotten, when its provider lists it no more
       |          |
       +----------+-----------------> ENDING

A machine counts and costs from its order until it is forgotten: a provider that is slow to end one is still paid.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from atoll.control_plane.autoscaling.commands import Reason
from atoll.control_plane.autoscaling.facts import Money
from atoll.control_plane.autoscaling.spec import NodeType, Scaling
from atoll.schema.ids import NodeId


class Phase(enum.StrEnum):
    """Where a machine is."""

    COMING = "coming"
    STANDING = "standing"
    DRAINING = "draining"
    ENDING = "ending"


@dataclass(slots=True, kw_only=True)
class Held:
    """One machine. `since`: when its phase began. `taken`: its provider said yes, or lists it."""

    instance: str
    kind: NodeType
    phase: Phase
    since: float
    node: NodeId | None = None
    label: tuple[str, str] | None = None
    taken: bool = False
    seen_at: float = 0.0
    unneeded_since: float | None = None
    asked_at: float = 0.0
    reason: Reason | None = None

    def move(self, phase: Phase, now: float) -> None:
        """Into another phase."""
        self.phase, self.since, self.unneeded_since = phase, now, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A type that failed so many times in a row is left alone until then."""

    times: int
    until: float


@dataclass(slots=True, kw_only=True)
class Fleet:
    """All machines that were asked for and may still cost money."""

    held: dict[str, Held] = field(default_factory=dict)
    pauses: dict[str, Pause] = field(default_factory=dict)

    def spent(self) -> float:
        """Price of an hour of all of them."""
        return sum(machine.kind.price_per_hour for machine in self.held.values())

    def money(self, scaling: Scaling) -> Money:
        """Spent and allowed."""
        return Money(spent=self.spent(), budget=scaling.budget_per_hour)

    def counts(self) -> dict[str, int]:
        """How many of each type there are in any phase."""
        counts: dict[str, int] = {}
        for machine in self.held.values():
            counts[machine.kind.name] = counts.get(machine.kind.name, 0) + 1
        return counts

    def serving(self, kind: NodeType) -> int:
        """How many of a type stand or come, and are to stay."""
        stay = {Phase.COMING, Phase.STANDING}
        return sum(m.kind.name == kind.name and m.phase in stay for m in self.held.values())

    def paused(self, now: float) -> dict[str, float]:
        """The types that are left alone, and until when."""
        return {kind: pause.until for kind, pause in self.pauses.items() if pause.until > now}

    def failed(self, kind: NodeType, scaling: Scaling, now: float) -> Pause | None:
        """Pause a type, twice as long each time; None where it is paused already: failures of one order count once."""
        before = self.pauses.get(kind.name)
        if before is not None and before.until > now:
            return None
        times = before.times + 1 if before is not None else 1
        length = min(scaling.sold_out_s * 2.0 ** min(times - 1, 30), scaling.sold_out_most_s)
        self.pauses[kind.name] = Pause(times=times, until=now + length)
        return self.pauses[kind.name]
