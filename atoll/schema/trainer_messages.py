"""What trainers and their agents say to one another, over a Unix socket: one JSON line each.

Facts are past tense, commands imperative. A message is lost with its connection; whoever reconnects says again what
still holds, so every fact and command here is idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.harm import Harm
from atoll.schema.ids import NO_EPOCH, Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.topology import Detour, Door, Observation, Topology

# The metric of a committed step whose update was left out, since a loss or gradient was not finite.
SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One rank of an epoch and where its peers reach it: first address, and a door for each other NIC of its node."""

    trainer: TrainerId
    rank: Rank
    node: NodeId
    host: str
    port: int
    weight: float = 1.0
    doors: tuple[Door, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who trains in `epoch`: members in rank order. Replaces every earlier membership of the run.

    `topology`: what is known of the members' network; plans follow from it.
    """

    run: RunId
    epoch: Epoch
    members: tuple[Member, ...]
    reason: str = ""
    topology: Topology | None = None


# -- trainer -> agent ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerHello:
    """First message on each connection: who speaks. (pid, start_ticks) names the process beyond doubt."""

    trainer: TrainerId
    run: RunId
    pid: int
    start_ticks: int
    epoch: Epoch
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerReady:
    """Warm: user code loaded, state managed, waiting for a membership at this address, and behind these doors."""

    trainer: TrainerId
    host: str
    port: int
    doors: tuple[Door, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochJoined:
    """The trainer regrouped into `epoch` and goes on at `step`. `detours`: links that it met around."""

    trainer: TrainerId
    epoch: Epoch
    step: Step
    detours: tuple[Detour, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDown:
    """Evidence, not a verdict: this trainer's connection to `peer` ended or stayed silent in `epoch`."""

    trainer: TrainerId
    epoch: Epoch
    peer: TrainerId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted:
    """Measurements of one committed step, said once it is known to be decided on all members; rank 0 reports metrics.

    `grains` that this member computed, in `compute_s` seconds without what it waited for peers (`wait_s`). `grad_norm` of
    the averaged gradient; 0 where it was not measured. `again`: it was committed before, then all went back behind it.
    `backup`: whom a step does not wait for, where that was chosen anew; `samples` are those that count. `sync_bytes`: of
    gradients that the members add up.
    """

    trainer: TrainerId
    epoch: Epoch
    step: Step
    at: float
    step_s: float
    samples: int
    metrics: dict[str, float] = field(default_factory=dict)
    grains: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    grad_norm: float = 0.0
    again: bool = False
    backup: str = ""
    sync_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDigested:
    """What this trainer holds after `step`, which `of` members digest. A measurement: it may be dropped.

    `weights`: of all that committed updates alone change; `rest`: of what else its modules hold. Comparable within one
    `numeric` class and one `shard` (empty: the whole state).
    """

    trainer: TrainerId
    epoch: Epoch
    step: Step
    of: int
    numeric: str
    weights: str
    rest: str = ""
    shard: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Evidence: for `for_s` seconds an operation of this trainer has waited for others. Said again while it lasts.

    `sequence` numbers the epoch's collectives from 1; 0: the meeting of its members ("connect"), or a message from one to
    another. `missing`: members that have not entered it, as far as this one can tell. `silent`: members whose bytes it
    waits for though they entered, and that answer nothing. Both empty: it waits no longer.
    """

    trainer: TrainerId
    epoch: Epoch
    operation: str
    sequence: int
    for_s: float
    missing: tuple[TrainerId, ...] = ()
    silent: tuple[TrainerId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """This trainer does work of its own (`ctx.busy`) that may keep others waiting for `limit_s`; 0: it is over."""

    trainer: TrainerId
    what: str
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommitted:
    """A durable checkpoint of `step`, saved in `epoch`, exists at `path`."""

    trainer: TrainerId
    step: Step
    path: str
    bytes: int
    seconds: float
    epoch: Epoch = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed:
    """A save that did not become durable; training went on."""

    trainer: TrainerId
    step: Step
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCopied:
    """How the copy of `step` in one tier stands, said at each change, and now and then while it is `copying`."""

    trainer: TrainerId
    step: Step
    tier: Tier
    state: TierState
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProposed:
    """All files of a copy of `step` are in the remote store, and `record` may be the one that counts. Asks for `CopyDecided`."""

    trainer: TrainerId
    step: Step
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWithdrawn:
    """`record` is damaged or is being deleted: it never counts again."""

    trainer: TrainerId
    step: Step
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIntervalChosen:
    """The run saves each `every` steps from now on; `reason` in words."""

    trainer: TrainerId
    step: Step
    every: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """A serving replica answers at this address."""

    trainer: TrainerId
    host: str
    port: int
    model: str
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFinished:
    """The user's function returned on this trainer after its last step was decided on all members.

    `suspended`: it did not, but was left at `step`, as it was told to, and is to go on from a checkpoint later.
    """

    trainer: TrainerId
    step: Step
    suspended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFailed:
    """The user's function raised, or a step was refused (NaN). `code` is an error code of `atoll.errors`."""

    trainer: TrainerId
    step: Step
    code: str
    problem: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksObserved:
    """What this trainer's collectives showed of its links since it last said so. A measurement: it may be dropped."""

    trainer: TrainerId
    epoch: Epoch
    observations: tuple[Observation, ...]


TRAINER_FACTS = (
    TrainerHello,
    TrainerReady,
    EpochJoined,
    PeerDown,
    StepCommitted,
    ReplicaDigested,
    Waiting,
    Busy,
    LinksObserved,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointCopied,
    CopyProposed,
    CopyWithdrawn,
    CheckpointIntervalChosen,
    ServerReady,
    TrainerFinished,
    TrainerFailed,
)
TrainerFact = (
    TrainerHello
    | TrainerReady
    | EpochJoined
    | PeerDown
    | StepCommitted
    | ReplicaDigested
    | Waiting
    | Busy
    | LinksObserved
    | CheckpointCommitted
    | CheckpointFailed
    | CheckpointCopied
    | CopyProposed
    | CopyWithdrawn
    | CheckpointIntervalChosen
    | ServerReady
    | TrainerFinished
    | TrainerFailed
)


# -- agent -> trainer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAtBoundary:
    """Leave at the next step boundary, after the step in hand is decided.

    `suspend`: save there, and leave the program where it is: the run goes on from that checkpoint later.
    """

    reason: str
    suspend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehave:
    """Hurt yourself, as your run's spec allows: for `for_s` seconds (0: for good), or at the failpoint `place`."""

    harm: Harm
    for_s: float = 0.0
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyDecided:
    """Which record of the remote copy of `step` counts (empty: none), and which never will. Durable when it is said."""

    step: Step
    record: str
    withdrawn: tuple[str, ...] = ()


TRAINER_COMMANDS = (Membership, StopAtBoundary, Misbehave, CopyDecided)
TrainerCommand = Membership | StopAtBoundary | Misbehave | CopyDecided
