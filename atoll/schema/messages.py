"""What agents, trainers and the control plane say to one another.

Closed sets: trainer <-> agent over a Unix socket (`trainer_messages`, all named here too), agent <-> control plane over
a gRPC stream (one JSON body a frame). Facts are past tense, commands imperative. A message is lost with its connection;
whoever reconnects says again what still holds, so every fact and command here is idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.schema.harm import Harm
from atoll.schema.ids import Epoch, Incarnation, NodeId, RunId, SeatId, Step, TrainerId
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door, Link, Nic
from atoll.schema.trainer_messages import SKIPPED as SKIPPED
from atoll.schema.trainer_messages import TRAINER_COMMANDS as TRAINER_COMMANDS
from atoll.schema.trainer_messages import TRAINER_FACTS as TRAINER_FACTS
from atoll.schema.trainer_messages import Busy as Busy
from atoll.schema.trainer_messages import CheckpointCommitted as CheckpointCommitted
from atoll.schema.trainer_messages import CheckpointCopied as CheckpointCopied
from atoll.schema.trainer_messages import CheckpointFailed as CheckpointFailed
from atoll.schema.trainer_messages import CheckpointIntervalChosen as CheckpointIntervalChosen
from atoll.schema.trainer_messages import CopyDecided as CopyDecided
from atoll.schema.trainer_messages import CopyProposed as CopyProposed
from atoll.schema.trainer_messages import CopyWithdrawn as CopyWithdrawn
from atoll.schema.trainer_messages import EpochJoined as EpochJoined
from atoll.schema.trainer_messages import LinksObserved as LinksObserved
from atoll.schema.trainer_messages import Member as Member
from atoll.schema.trainer_messages import Membership as Membership
from atoll.schema.trainer_messages import Misbehave as Misbehave
from atoll.schema.trainer_messages import PeerDown as PeerDown
from atoll.schema.trainer_messages import ReplicaDigested as ReplicaDigested
from atoll.schema.trainer_messages import ServerReady as ServerReady
from atoll.schema.trainer_messages import StepCommitted as StepCommitted
from atoll.schema.trainer_messages import StopAtBoundary as StopAtBoundary
from atoll.schema.trainer_messages import TrainerCommand as TrainerCommand
from atoll.schema.trainer_messages import TrainerFact as TrainerFact
from atoll.schema.trainer_messages import TrainerFailed as TrainerFailed
from atoll.schema.trainer_messages import TrainerFinished as TrainerFinished
from atoll.schema.trainer_messages import TrainerHello as TrainerHello
from atoll.schema.trainer_messages import TrainerReady as TrainerReady
from atoll.schema.trainer_messages import Waiting as Waiting

# 2: facts that were queued together share a frame.
PROTOCOL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What a process was built of; agent and control plane compare theirs in the handshake."""

    atoll: str
    protocol: int
    python: str
    torch: str = ""


# -- agent -> control plane ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTrainer:
    """A trainer that an agent holds, as it says on attaching. `exit_status` is set once the process ended."""

    trainer: TrainerId
    run: RunId
    seat: SeatId
    pid: int
    start_ticks: int
    epoch: Epoch
    ready: bool
    host: str = ""
    port: int = 0
    doors: tuple[Door, ...] = ()
    exit_status: int | None = None
    outcome: TrainerFinished | TrainerFailed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerProbed:
    """Answer to `ProbePeer`, and said again to each control plane that adopts: what the link does each way.

    `at`: Unix seconds. Without `links` there was none to measure: `problem` says why. `beside`: as its order said.
    """

    request: str
    peer: NodeId
    at: float
    seconds: float
    beside: bool = False
    links: tuple[Link, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHello:
    """First message of an agent after the handshake: what it is and all trainers it knows of.

    `nics`: the node's, first the one by which it is known; `doors`: where it answers probes, for each NIC; `probes`: the
    last results of its own; `beats`: where it hears other agents' beats, for each NIC.
    """

    node: NodeId
    pid: int
    address: str
    state_dir: str
    versions: Versions
    last_incarnation: Incarnation
    trainers: tuple[FoundTrainer, ...] = ()
    nics: tuple[Nic, ...] = ()
    doors: tuple[Door, ...] = ()
    probes: tuple[PeerProbed, ...] = ()
    beats: tuple[Door, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStarted:
    """The process exists."""

    trainer: TrainerId
    run: RunId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerExited:
    """Proof of death. `exit_status` is the exit code, or minus the signal number.

    `out_of_memory`: the kernel killed for memory on this node just then.
    """

    trainer: TrainerId
    run: RunId
    pid: int
    exit_status: int
    log_tail: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSaid:
    """A trainer's own fact, passed on unchanged."""

    run: RunId
    fact: TrainerFact


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBeat:
    """The agent lives, and what it last measured: each second, and where it said nothing else for a quarter of one."""

    node: NodeId
    cpu_percent: float
    free_bytes: int
    trainers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeaving:
    """The node was given notice: it goes in `left_s` seconds. `notice` names it, so that it may be said again."""

    node: NodeId
    notice: str
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerWatched:
    """A trainer's process as its node shows it: at once on a change, else each second. A measurement.

    `state`: the letter of `/proc`; `cpu_s`: processor time of all its threads; `beat_age_s`: since its interpreter last
    gave a thread of its own a turn (a held GIL stops that); `behind_s`: how late the agent itself was to look.
    """

    trainer: TrainerId
    run: RunId
    state: str
    cpu_s: float
    beat_age_s: float
    behind_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentPeer:
    """A node that an agent listens for and has not heard for `for_s` seconds."""

    node: NodeId
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersWatched:
    """What an agent hears of the nodes that it was told to listen for: at once on a change, else each second.

    `heard` are the others of them. `behind_s`: how late the agent itself was to look; what is silent may be itself.
    """

    node: NodeId
    heard: tuple[NodeId, ...]
    silent: tuple[SilentPeer, ...]
    behind_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Answer to `ReadLog`: bytes `[offset, next_offset)` of a trainer's log, decoded with replacement."""

    request: str
    text: str
    next_offset: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `atoll doctor`."""

    node: NodeId
    check: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """Answer to `Examine`."""

    request: str
    findings: tuple[Finding, ...]


AGENT_FACTS = (
    AgentHello,
    TrainerStarted,
    TrainerExited,
    TrainerSaid,
    TrainerWatched,
    PeersWatched,
    AgentBeat,
    NodeLeaving,
    LogChunk,
    DoctorReport,
    PeerProbed,
)
AgentFact = (
    AgentHello
    | TrainerStarted
    | TrainerExited
    | TrainerSaid
    | TrainerWatched
    | PeersWatched
    | AgentBeat
    | NodeLeaving
    | LogChunk
    | DoctorReport
    | PeerProbed
)


# -- control plane -> agent ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Answer to `AgentHello`: this incarnation leads now; keep these trainers, fence all others."""

    incarnation: Incarnation
    keep: tuple[TrainerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """The run went back to `step`: its later checkpoints that epochs up to `epoch` wrote are in doubt, and do not count."""

    step: Step
    epoch: Epoch

    def spoils(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint is one of those."""
        return step > self.step and epoch <= self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTrainer:
    """Fork a trainer in `seat`. `secret` (hex) is the run's own, for handshakes between its peers.

    `copies`: what is decided on the run's remote copies.
    """

    run: RunId
    trainer: TrainerId
    seat: SeatId
    spec: JobSpec
    run_dir: str
    secret: str
    device_ids: tuple[int, ...] = ()
    rewound: Rewound | None = None
    copies: tuple[CopyDecided, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceTrainer:
    """End this process by pid and start time with SIGKILL; answered by `TrainerExited`."""

    run: RunId
    trainer: TrainerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TellTrainer:
    """Hand a command to a trainer; dropped when it is gone."""

    trainer: TrainerId
    command: TrainerCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetTrainer:
    """The end of this trainer is journaled; its record need not be said again."""

    trainer: TrainerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLog:
    """Read up to `limit` bytes of a trainer's log. A negative `offset` counts from the end."""

    request: str
    run: RunId
    trainer: TrainerId
    offset: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Examine:
    """Check this node for `atoll doctor`; `now` is the control plane's clock."""

    request: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePeer:
    """Measure the link from this node's NIC to a door of `peer`; bursts take at least `burst_s`, all of it `limit_s`.

    `steady`: send for `burst_s` each way and measure the middle of it, as several pairs are told to at once. `beside`: other probes, or a job's traffic, may take their share of what is measured.
    """

    request: str
    peer: NodeId
    nic: str
    host: str
    door: Door
    burst_s: float
    limit_s: float
    steady: bool = False
    beside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedPeer:
    """A node of the ring and where its agent hears beats: one door for each of its NICs that this node reaches."""

    node: NodeId
    doors: tuple[Door, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPeers:
    """Beat to `beat` and listen for `listen`, instead of whomever it was before. `key` (hex) proves a beat."""

    beat: tuple[WatchedPeer, ...]
    listen: tuple[NodeId, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inject:
    """Hurt this trainer on purpose; its run allows it. As a `HarmWish` says."""

    trainer: TrainerId
    harm: Harm
    for_s: float = 0.0
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveNode:
    """The cluster goes down: fence every trainer and end the agent."""

    reason: str


AGENT_COMMANDS = (
    Adopt,
    StartTrainer,
    FenceTrainer,
    TellTrainer,
    ForgetTrainer,
    ReadLog,
    Examine,
    ProbePeer,
    WatchPeers,
    Inject,
    LeaveNode,
)
AgentCommand = (
    Adopt
    | StartTrainer
    | FenceTrainer
    | TellTrainer
    | ForgetTrainer
    | ReadLog
    | Examine
    | ProbePeer
    | WatchPeers
    | Inject
    | LeaveNode
)
