"""What the core is told: requests of people, facts of agents and of Ray, and the passing of time.

Everything that took long, and everything that failed, comes back as an event; an exception never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.schema.harm import HarmWish
from atoll.schema.ids import NodeId, RunId, SeatId
from atoll.schema.messages import (
    AgentBeat,
    AgentHello,
    NodeLeaving,
    PeerProbed,
    PeersWatched,
    TrainerExited,
    TrainerSaid,
    TrainerStarted,
    TrainerWatched,
)
from atoll.schema.offers import MachineOffer
from atoll.schema.queues import Sharing
from atoll.schema.spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAsked:
    """Somebody submits a job. The shell chose the id and made the secret; the answer goes to `request`."""

    request: str
    run: RunId
    spec: JobSpec
    run_dir: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """Somebody wants the run to end at a step boundary."""

    request: str
    run: RunId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeAsked:
    """Somebody wants the run to go on with so many workers."""

    request: str
    run: RunId
    workers: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendAsked:
    """Somebody wants the run to save, leave its seats and wait until it is resumed."""

    request: str
    run: RunId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsked:
    """Somebody wants a run that was suspended to go on when there is room."""

    request: str
    run: RunId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuesAsked:
    """An operator sets how the cluster is shared."""

    request: str
    sharing: Sharing
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinesOffered:
    """An autoscaler says which machines it would start."""

    request: str
    offers: tuple[MachineOffer, ...]
    decisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverBeat:
    """The driver that follows the run is alive."""

    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAsked:
    """Somebody wants a node empty within so many seconds."""

    request: str
    node: NodeId
    within_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainAsked:
    """Trainers may be placed on the node again."""

    request: str
    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmAsked:
    """Somebody wants a trainer of the run hurt on purpose."""

    request: str
    run: RunId
    wish: HarmWish


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownAsked:
    """The whole cluster goes down."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAttached:
    """An agent passed the handshake. Replaces any earlier stream of the same node."""

    hello: AgentHello


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDetached:
    """An agent's stream ended. No verdict: the agent, the link or this process may be at fault."""

    node: NodeId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSaid:
    """A fact from an attached agent."""

    node: NodeId
    fact: (
        TrainerStarted
        | TrainerExited
        | TrainerSaid
        | TrainerWatched
        | PeersWatched
        | AgentBeat
        | NodeLeaving
        | PeerProbed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """One node as Ray lists it. `local` is the control plane's own host."""

    node: NodeId
    address: str
    alive: bool
    cpus: float
    gpus: float
    local: bool
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterListed:
    """Ray answered: all its nodes, and the seats that live."""

    nodes: tuple[NodeSeen, ...]
    seats: tuple[SeatId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatCreated:
    """The seat's actor runs and holds its resources. `working_dir` is where Ray unpacked the job's files, if it did."""

    seat: SeatId
    devices: tuple[int, ...] = ()
    working_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatFailed:
    """The seat's actor could not be made, or not in time."""

    seat: SeatId
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed. However long the process was stalled, one tick moves the core's clock by one tick at most."""


Event = (
    RunAsked
    | StopAsked
    | ResizeAsked
    | SuspendAsked
    | ResumeAsked
    | QueuesAsked
    | MachinesOffered
    | DriverBeat
    | DrainAsked
    | UndrainAsked
    | HarmAsked
    | ShutdownAsked
    | AgentAttached
    | AgentDetached
    | AgentSaid
    | ClusterListed
    | SeatCreated
    | SeatFailed
    | Tick
)
