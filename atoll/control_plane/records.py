"""What the control plane decided, as it stands in the journal: durable before anyone is told.

A record is a decision or a proof that a later decision rests upon, never a measurement. Replaying all records in order
rebuilds the state of `state.py`; what is measured (readiness, addresses, beats) is said again by the agents.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atoll.fault.budgets import Cause
from atoll.schema.codec import Registry
from atoll.schema.ids import NO_EPOCH, NO_STEP, Epoch, NodeId, RunId, SeatId, Step, TrainerId
from atoll.schema.messages import Member
from atoll.schema.queues import Sharing
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Topology
from atoll.schema.views import RunState


class End(enum.StrEnum):
    """How a trainer's part in its run ended."""

    FINISHED = "finished"
    SUSPENDED = "suspended"
    FAILED = "failed"
    LOST = "lost"
    EVICTED = "evicted"
    LEFT = "left"
    REWOUND = "rewound"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted:
    """A run was accepted into the queue. `secret` (hex) is for handshakes between its trainers."""

    run: RunId
    spec: JobSpec
    run_dir: str
    secret: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatTaken:
    """Resources for one trainer of the run are reserved on a node."""

    run: RunId
    seat: SeatId
    node: NodeId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatFreed:
    """The reservation is given back."""

    run: RunId
    seat: SeatId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlaced:
    """The run left the queue: its seats are reserved. `option`: by which of its alternatives, `workers`: with how many.

    0: as many as it wants.
    """

    run: RunId
    at: float
    reason: str = "the cluster has room for all its workers"
    option: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResized:
    """The run is to go on with so many workers. `leaving`: seats whose trainers go at the next step boundary.

    `yielded`: others wanted the seats, which counts as a disturbance. `bound`: it does not grow beyond that by itself.
    `most`: it stays as it is, and may grow so far as soon as there is room.
    """

    run: RunId
    workers: int
    leaving: tuple[SeatId, ...]
    reason: str
    at: float
    yielded: bool = False
    bound: bool = False
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMoved:
    """Trainers in the seats that are `leaving` go once those in other seats, taken before, can replace them."""

    run: RunId
    leaving: tuple[SeatId, ...]
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAssigned:
    """This trainer, and no other, is to live in the seat."""

    run: RunId
    trainer: TrainerId
    seat: SeatId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerBegan:
    """The process exists; from now on its absence means its death, not a lost command."""

    run: RunId
    trainer: TrainerId
    pid: int
    start_ticks: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnded:
    """The trainer has no part in the run any more. `was_ready` tells a death at start from a later one.

    `cause` of a loss, and the `step` that it was computing: budgets are by cause.
    """

    run: RunId
    trainer: TrainerId
    end: End
    was_ready: bool
    reason: str
    at: float
    cause: Cause = Cause.HARDWARE
    step: Step = NO_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerGone:
    """Proof that the process is gone; its seat may hold another."""

    run: RunId
    trainer: TrainerId
    evidence: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRaised:
    """The members of a new epoch, in rank order. Law 1: only this record raises an epoch.

    `topology` is what they are told of their network: their plans follow from it, so all of them, and whoever is told
    again after a restart, must hear the same.
    """

    run: RunId
    epoch: Epoch
    members: tuple[Member, ...]
    reason: str
    at: float
    topology: Topology | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServing:
    """The first replica of a serving run answers."""

    run: RunId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKept:
    """A durable checkpoint: what trainers start from when nobody alive holds the state."""

    run: RunId
    step: Step
    path: str
    at: float
    epoch: Epoch = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyDecided:
    """`record` of the remote copy of `step` counts: once for a step, until it is withdrawn (law 8)."""

    run: RunId
    step: Step
    record: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWithdrawn:
    """`record` of the remote copy of `step` never counts again; another may be decided on."""

    run: RunId
    step: Step
    record: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRewound:
    """The run goes back to its checkpoint of `step`: what later ones hold that epochs up to `epoch` wrote is in doubt."""

    run: RunId
    step: Step
    path: str
    epoch: Epoch
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopping:
    """The run is to end as `goal`, or to wait again if that is `queued`; its trainers are on their way out.

    `held`: it is to wait until somebody resumes it.
    """

    run: RunId
    goal: RunState
    reason: str
    exit_code: int
    at: float
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """All trainers are gone and all seats free."""

    run: RunId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSuspended:
    """All trainers are gone and all seats free; the run waits, and goes on from its last checkpoint."""

    run: RunId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeld:
    """Whether the run gets seats at all, or is held in the queue by somebody's wish."""

    run: RunId
    held: bool
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuesSet:
    """How the cluster is shared from now on: flavors, queues, settings of the arbiter."""

    sharing: Sharing
    by: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDraining:
    """All trainers are to leave the node, and none may come; what is still there at `until` (Unix seconds) is ended.

    `notice` names what asked for it on the node itself, so that the same notice, said again, is known.
    """

    node: NodeId
    until: float
    reason: str
    at: float
    notice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrained:
    """No process of any run is left on the node: each end is proven."""

    node: NodeId
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUndrained:
    """Trainers may be placed on the node again."""

    node: NodeId
    at: float


RunRecord = (
    RunSubmitted
    | SeatTaken
    | SeatFreed
    | RunPlaced
    | RunResized
    | RunMoved
    | TrainerAssigned
    | TrainerBegan
    | TrainerEnded
    | TrainerGone
    | EpochRaised
    | RunServing
    | CheckpointKept
    | CopyDecided
    | CopyWithdrawn
    | RunRewound
    | RunStopping
    | RunSuspended
    | RunHeld
    | RunEnded
)
NodeRecord = NodeDraining | NodeDrained | NodeUndrained
Record = RunRecord | NodeRecord | QueuesSet
NODE_RECORDS = (NodeDraining, NodeDrained, NodeUndrained)
# Of no run.
CLUSTER_RECORDS = (*NODE_RECORDS, QueuesSet)
RECORDS = Registry(
    (
        RunSubmitted,
        SeatTaken,
        SeatFreed,
        RunPlaced,
        RunResized,
        RunMoved,
        TrainerAssigned,
        TrainerBegan,
        TrainerEnded,
        TrainerGone,
        EpochRaised,
        RunServing,
        CheckpointKept,
        CopyDecided,
        CopyWithdrawn,
        RunRewound,
        RunStopping,
        RunSuspended,
        RunHeld,
        RunEnded,
        QueuesSet,
        *NODE_RECORDS,
    )
)

# Law 8: on a full disk these may use the journal's reserve; everything else is refused first.
VITAL = (
    TrainerEnded,
    TrainerGone,
    EpochRaised,
    RunRewound,
    RunStopping,
    RunSuspended,
    RunEnded,
    SeatFreed,
    *NODE_RECORDS,
)
