"""What the autoscaler is told: how cluster and provider stand, and what became of what it asked for.

A look is complete: whatever is not in it is not there. So the autoscaler needs no memory of its own on disk; after a
restart it takes over the machines that its provider lists and the nodes that carry their names as labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.control_plane.arbiter.model import Amount, Ask, Flavor
from atoll.schema.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A node of the cluster. `trainers`: processes of runs there, spares included, and seats that are held for some.

    `leaving_at`: when it is to be empty, if it is drained; `noticed`: it said so itself, so its provider takes it.
    `left`: everybody's end is proven. `alive`: Ray sees it; of one that it does not see trainers still work or the agent is
    attached, or it would not be in a look at all. Nothing is placed there, and its machine is not ended as a lost one.
    """

    node: NodeId
    labels: dict[str, str]
    total: Amount
    free: Amount
    trainers: int = 0
    leaving_at: float | None = None
    noticed: bool = False
    left: bool = False
    alive: bool = True

    @property
    def empty(self) -> bool:
        """Nobody is there, and nothing is held for anybody."""
        return self.trainers == 0 and self.free == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as its provider lists it, by the name under which it was asked for.

    `label`: by which its node is known, where the node does not carry that name.
    """

    instance: str
    kind: str
    label: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """All at once. `asks` wait, in the order in which they are served. `machines` None: the provider did not answer."""

    nodes: tuple[Standing, ...]
    machines: tuple[Machine, ...] | None
    asks: tuple[Ask, ...] = ()
    flavors: tuple[Flavor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """The provider took the order; the machine is on its way."""

    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed:
    """The provider did not take the order, so that there is no machine: it has none, or failed."""

    instance: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The provider took the order to end a machine; it is gone when it is not listed any more."""

    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFailed:
    """The provider could not end a machine; it is asked again."""

    instance: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainFailed:
    """The cluster did not take the wish to drain a node."""

    node: NodeId
    problem: str


Fact = Looked | Launched | LaunchFailed | Ended | EndFailed | DrainFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What all machines cost in an hour now, and what they may cost."""

    spent: float = 0.0
    budget: float | None = None

    def allows(self, more: float) -> bool:
        """Whether so much more an hour is within the budget. A rounding error of a millionth does not count."""
        return self.budget is None or self.spent + more <= self.budget + 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What keeps types from being started at the moment. `count`: how many of each stand or come. `away`: the provider."""

    money: Money
    count: dict[str, int] = field(default_factory=dict)
    paused: dict[str, float] = field(default_factory=dict)
    away: bool = False
