"""What the detector is given: facts of observers as values, with when they came by the core's own clock.

A fact that an observer measured ("silent for 0.7 s") is older by the time that passed since it was told; whoever reads
one adds that, and trusts it only as long as its observer would have said otherwise by now (`FRESH_S`). All times are
seconds of the core's clock, which a stall of the control plane moves by one tick only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId

# Observers repeat themselves each second while something lasts; two and a half say that the observer is gone.
FRESH_S = 2.5
NOBODY = TrainerId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A member's report that its connection to `peer` ended in `epoch`. `by` is that member."""

    at: float
    peer: TrainerId
    epoch: Epoch
    evidence: str
    by: TrainerId = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A member's last word on what it waits for, said at `at`, when it had waited `for_s`."""

    at: float
    trainer: TrainerId
    epoch: Epoch
    operation: str
    sequence: int
    for_s: float
    missing: tuple[TrainerId, ...] = ()
    silent: tuple[TrainerId, ...] = ()

    @property
    def named(self) -> tuple[TrainerId, ...]:
        """Whom it waits for, in whichever way."""
        return (*self.missing, *(t for t in self.silent if t not in self.missing))

    @property
    def what(self) -> str:
        """The operation, for people."""
        return f"collective {self.sequence} ({self.operation})" if self.sequence else self.operation

    def lasts(self, now: float) -> float:
        """How long it has waited by `now`."""
        return self.for_s + now - self.at


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """A trainer's process as its node's agent last showed it.

    `stopped_at`: since when `/proc` says stopped, None while it is not; `traced`: by a debugger. `beat_at`: when its
    interpreter last gave its own thread a turn. `idle_at`: since when its processor time stands still.
    """

    at: float
    state: str
    beat_at: float
    idle_at: float
    stopped_at: float | None = None
    traced: bool = False
    late_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """One trainer of a run. `rank` is None for a spare; `joined`: it is in the current epoch.

    `steps`: whether it committed any since its process began. `busy_until`: work of its own that it announced.
    `holds`: it is a member that has not ended and has the run's state.
    """

    trainer: TrainerId
    node: NodeId
    rank: Rank | None
    joined: bool = True
    steps: bool = True
    busy_until: float = 0.0
    holds: bool = True
    process: ProcessFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What one replica held after a step: `value` of its weights, `rest` of what a program may change by itself.

    `numeric`: the class within which arithmetic gives the same bits; `shard`: which part of the state.
    """

    trainer: TrainerId
    numeric: str
    value: str
    rest: str = ""
    shard: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What all members held after `step`. `agreed`: the last step before it after which all held the same."""

    step: int
    agreed: int
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of one run: its trainers, who waits for whom, the blames of the last minute, its pace.

    `step_s`: the p99 of its own undisturbed steps, None while too few were seen. `committed_at`: when the last commit of
    the current epoch came. `compared`: the last complete comparison of replicas, while nobody has drawn conclusions from it.
    """

    run: RunId
    epoch: Epoch
    trainers: tuple[TrainerFacts, ...]
    blames: tuple[Blame, ...] = ()
    waits: tuple[Wait, ...] = ()
    step_s: float | None = None
    committed_at: float = 0.0
    compared: Compared | None = None

    @property
    def members(self) -> tuple[TrainerFacts, ...]:
        """Those with a rank."""
        return tuple(t for t in self.trainers if t.rank is not None)

    def of(self, trainer: TrainerId) -> TrainerFacts | None:
        """The facts of one trainer."""
        return next((t for t in self.trainers if t.trainer == trainer), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """What the agent of a node hears of the nodes that it listens for, said at `at`. `silent`: node -> seconds then."""

    at: float
    heard: frozenset[NodeId]
    silent: dict[NodeId, float]
    late_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What is known of one node: its agent's stream, when it was last heard, what Ray says, what it hears of others.

    `attached_at`: when its stream began. `heard_since`: since when it was heard without a pause. `known`: it was heard by
    this incarnation of the control plane at all. `unmet`: for how long in all, while it has been lost, a member of a run
    that holds the run's state was heard.
    """

    node: NodeId
    attached: bool
    heard_at: float
    ray_alive: bool
    local: bool
    attached_at: float = 0.0
    heard_since: float = 0.0
    known: bool = True
    lost: bool = False
    unmet: Mapping[RunId, float] = field(default_factory=dict)
    ears: Ears | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingFacts:
    """A trainer that its attached agent does not report, and since when."""

    run: RunId
    trainer: TrainerId
    node: NodeId
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it at `now`.

    `watchers`: who listens for a node. `islands`: which nodes are near one another. `strain_s`: how late this process,
    or an agent, lately was to do anything; every silence must outlast it. `steady`: this process was not stalled just
    now, so that what is not here yet was not said.
    """

    now: float
    runs: tuple[RunFacts, ...] = ()
    nodes: dict[NodeId, NodeFacts] = field(default_factory=dict)
    missing: tuple[MissingFacts, ...] = ()
    watchers: dict[NodeId, tuple[NodeId, ...]] = field(default_factory=dict)
    islands: tuple[tuple[NodeId, ...], ...] = ()
    strain_s: float = 0.0
    steady: bool = True
