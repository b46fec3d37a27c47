"""What the core wants done. `Persist` comes first: durable before anyone is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atoll.control_plane.records import Record
from atoll.schema.ids import NodeId, RunId, SeatId, TrainerId
from atoll.schema.messages import AgentCommand
from atoll.schema.views import CheckpointView, MetricPoint, NodeView, ProblemView, RunView, TopologyView


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Append these to the journal, on disk, before any later effect of the same list."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Hand a command to the agent of `node`; dropped when its stream is gone, since it will be said again."""

    node: NodeId
    command: AgentCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """End the stream of a node's agent: it counts as lost, and whoever comes back says anew what it holds."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAgent:
    """Have an agent started on a node that has none."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSeat:
    """Make the detached actor that holds these resources, or find the one that does."""

    seat: SeatId
    node: NodeId
    cpus: float
    gpus: float
    working_dir_uri: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSeat:
    """Give the seat's resources back to Ray."""

    seat: SeatId


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a request: a value, or a problem."""

    request: str
    value: dict[str, Any] | None = None
    problem: ProblemView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line of the story. `cause` names the stimulus that all its consequences carry."""

    run: RunId | None
    subject: str
    kind: str
    text: str
    cause: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRun:
    """The run's newest view, for the web."""

    view: RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowNode:
    """The node's newest view, for the web."""

    view: NodeView


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowMetric:
    """Measurements of one committed step, for the web."""

    run: RunId
    point: MetricPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowCheckpoint:
    """A durable checkpoint, for the web."""

    view: CheckpointView


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLog:
    """Bytes `[start, stop)` of a trainer's log, so that they outlive its node."""

    run: RunId
    trainer: TrainerId
    start: int
    stop: int
    text: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowTopology:
    """What is known of the network, for the web."""

    view: TopologyView


Effect = (
    Persist
    | Send
    | HangUp
    | StartAgent
    | CreateSeat
    | KillSeat
    | Reply
    | Note
    | ShowRun
    | ShowNode
    | ShowMetric
    | ShowCheckpoint
    | ShowTopology
    | KeepLog
)
