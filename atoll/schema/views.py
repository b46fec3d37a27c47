"""What people and programs see over REST: plain views, made from the journal and the history.

Every view is a dataclass whose JSON form is `atoll.schema.codec.to_plain`. Times are Unix seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from atoll.schema.ids import Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.spec import JobKind, JobSpec


class RunState(enum.StrEnum):
    """Where a run stands. The table of transitions is `control_plane/lifecycle.py`."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """True for the three final states."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerView:
    """One process of a run. `role` is worker, spare, server or gone."""

    trainer: TrainerId
    node: NodeId
    role: str
    rank: Rank | None
    pid: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """One line of the story. `subject` is what it happened to; `cause` is the id of the stimulus behind it."""

    seq: int
    at: float
    run: RunId | None
    subject: str
    kind: str
    text: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """A durable checkpoint."""

    run: RunId
    step: Step
    path: str
    bytes: int
    seconds: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """Measurements of one committed step."""

    step: Step
    at: float
    step_s: float
    samples: int
    members: int
    epoch: Epoch
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run as the list and the run page show it."""

    run: RunId
    name: str
    kind: JobKind
    state: RunState
    reason: str
    submitted_at: float
    ended_at: float | None
    epoch: Epoch
    workers_wanted: int
    members: int
    spares: int
    step: Step
    last: MetricPoint | None
    checkpoint: CheckpointView | None
    trainers: tuple[TrainerView, ...] = ()
    endpoint: str = ""
    exit_code: int | None = None
    spec: JobSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One host."""

    node: NodeId
    address: str
    alive: bool
    cpus: float
    gpus: float
    cpus_free: float
    agent: bool
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemView:
    """Body of every REST answer that is not a success. `code` is an error code of `atoll.errors`."""

    code: str
    problem: str
    remedy: str = ""
