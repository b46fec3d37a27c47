"""What people and programs see over REST: plain views, made from the journal and the history.

Every view is a dataclass whose JSON form is `atoll.schema.codec.to_plain`. Times are Unix seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from atoll.schema.checkpoints import TierView
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, Step, TrainerId
from atoll.schema.sharing import DEFAULT_QUEUE
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.topology import Host, Trunk


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
    """A durable checkpoint. `tiers`: how its copies stand, where anything is known of them."""

    run: RunId
    step: Step
    path: str
    bytes: int
    seconds: float
    at: float
    tiers: tuple[TierView, ...] = ()


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
    """One run as the list and the run page show it. `held`: suspended until somebody resumes it.

    `owner` is who submitted it, "" for the cluster itself; `queue` is where it waits, or waited. `measured`: samples a second
    of one of its workers alone, by device. `failed_saves`: checkpoints that did not become durable, since the control plane
    began. Lists leave `spec` out.
    """

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
    held: bool = False
    owner: str = ""
    queue: str = DEFAULT_QUEUE
    measured: dict[str, float] = field(default_factory=dict)
    failed_saves: int = 0
    spec: JobSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """What one trainer wrote between two offsets of its log, in bytes."""

    trainer: TrainerId
    text: str
    offset: int = 0
    next_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGap:
    """A log that cannot be read now."""

    trainer: TrainerId
    code: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainView:
    """A node that trainers leave by `until`. `trainers` are there still; `left`: each one's end is proven."""

    until: float
    reason: str
    trainers: int
    left: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWish:
    """Body of a request to stop a run."""

    reason: str = "asked by a client"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWish:
    """Body of a request to drain a node."""

    within_s: float = 30.0
    reason: str = "asked by a client"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One host. `drain`: it is being drained, or was."""

    node: NodeId
    address: str
    alive: bool
    cpus: float
    gpus: float
    cpus_free: float
    agent: bool
    labels: dict[str, str] = field(default_factory=dict)
    drain: DrainView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A measured link, one way: bytes/s and seconds. `at`: when it was last measured or confirmed by traffic."""

    source: NodeId
    source_nic: str
    target: NodeId
    target_nic: str
    latency_s: float
    bandwidth: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandView:
    """Nodes near one another, and why they count as such; `children` are islands within it, lone nodes included."""

    nodes: tuple[NodeId, ...]
    children: tuple[IslandView, ...]
    bandwidth: float | None
    latency_s: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyView:
    """The network as known. `unmeasured`: pairs of nodes that wait for a probe; `problems`: pairs that did not meet."""

    version: int
    at: float
    hosts: tuple[Host, ...]
    links: tuple[LinkView, ...]
    trunks: tuple[Trunk, ...]
    islands: IslandView
    unmeasured: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def both_ways(self) -> list[tuple[LinkView, LinkView | None]]:
        """Each measured pair of NICs once: a link and its way back, if that is known."""
        known = {(k.source, k.source_nic, k.target, k.target_nic): k for k in self.links}
        pairs = []
        for (a, one, b, two), link in sorted(known.items()):
            back = known.get((b, two, a, one))
            if back is None or (a, one) < (b, two):
                pairs.append((link, back))
        return pairs


def unknown_topology() -> TopologyView:
    """The network before anything of it is known."""
    nothing = IslandView(nodes=(), children=(), bandwidth=None, latency_s=None, reason="nothing was measured yet")
    return TopologyView(version=0, at=0.0, hosts=(), links=(), trunks=(), islands=nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemView:
    """Body of every REST answer that is not a success. `code` is an error code of `atoll.errors`."""

    code: str
    problem: str
    remedy: str = ""
