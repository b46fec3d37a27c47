"""What agents, trainers and the control plane say to one another.

Three channels, each a closed set: trainer <-> agent over a Unix socket (one JSON line each), agent <-> control plane
over a gRPC stream (one JSON body a frame). Facts are past tense, commands imperative. A message is lost with its
connection; whoever reconnects says again what still holds, so every fact and command here is idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.schema.ids import Epoch, Incarnation, NodeId, Rank, RunId, SeatId, Step, TrainerId
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door, Link, Nic, Observation, Topology

PROTOCOL = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What a process was built of; agent and control plane compare theirs in the handshake."""

    atoll: str
    protocol: int
    python: str
    torch: str = ""


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
    """The trainer regrouped into `epoch` and goes on at `step`."""

    trainer: TrainerId
    epoch: Epoch
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDown:
    """Evidence, not a verdict: this trainer's connection to `peer` ended or stayed silent in `epoch`."""

    trainer: TrainerId
    epoch: Epoch
    peer: TrainerId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted:
    """Measurements of one committed step, said once it is known to be decided on all members; rank 0 reports metrics."""

    trainer: TrainerId
    epoch: Epoch
    step: Step
    at: float
    step_s: float
    samples: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommitted:
    """A durable checkpoint of `step` exists at `path`."""

    trainer: TrainerId
    step: Step
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed:
    """A save that did not become durable; training went on."""

    trainer: TrainerId
    step: Step
    problem: str


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
    """The user's function returned on this trainer after its last step was decided on all members."""

    trainer: TrainerId
    step: Step


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
    LinksObserved,
    CheckpointCommitted,
    CheckpointFailed,
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
    | LinksObserved
    | CheckpointCommitted
    | CheckpointFailed
    | ServerReady
    | TrainerFinished
    | TrainerFailed
)


# -- agent -> trainer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAtBoundary:
    """Leave at the next step boundary, after the step in hand is decided."""

    reason: str


TRAINER_COMMANDS = (Membership, StopAtBoundary)
TrainerCommand = Membership | StopAtBoundary


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
    last results of its own.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStarted:
    """The process exists."""

    trainer: TrainerId
    run: RunId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerExited:
    """Proof of death. `exit_status` is the exit code, or minus the signal number."""

    trainer: TrainerId
    run: RunId
    pid: int
    exit_status: int
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSaid:
    """A trainer's own fact, passed on unchanged."""

    run: RunId
    fact: TrainerFact


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBeat:
    """Each second: the agent lives, and what it last measured."""

    node: NodeId
    cpu_percent: float
    free_bytes: int
    trainers: int


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
    AgentBeat,
    LogChunk,
    DoctorReport,
    PeerProbed,
)
AgentFact = AgentHello | TrainerStarted | TrainerExited | TrainerSaid | AgentBeat | LogChunk | DoctorReport | PeerProbed


# -- control plane -> agent ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Answer to `AgentHello`: this incarnation leads now; keep these trainers, fence all others."""

    incarnation: Incarnation
    keep: tuple[TrainerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTrainer:
    """Fork a trainer in `seat`. `secret` (hex) is the run's own, for handshakes between its peers."""

    run: RunId
    trainer: TrainerId
    seat: SeatId
    spec: JobSpec
    run_dir: str
    secret: str
    device_ids: tuple[int, ...] = ()


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
class LeaveNode:
    """The cluster goes down: fence every trainer and end the agent."""

    reason: str


AGENT_COMMANDS = (Adopt, StartTrainer, FenceTrainer, TellTrainer, ForgetTrainer, ReadLog, Examine, ProbePeer, LeaveNode)
AgentCommand = (
    Adopt | StartTrainer | FenceTrainer | TellTrainer | ForgetTrainer | ReadLog | Examine | ProbePeer | LeaveNode
)
