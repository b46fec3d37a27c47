"""What people and programs see of the queue: `atoll plan`, `atoll why`, `atoll top`, and where the time of devices went.

Reasons are the arbiter's own words, unchanged. Times are Unix seconds, amounts of time device-seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.schema.ids import NodeId, RunId
from atoll.schema.views import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeWish:
    """Body of a request to make a run smaller or larger."""

    workers: int
    reason: str = "asked by a client"


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedView:
    """An alternative that cannot be had now, and why."""

    option: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldView:
    """A run that gives way: `after` workers are left to it, 0 where it is suspended at a checkpoint."""

    run: RunId
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """What would become of a job if it were submitted now. `verdict`: starts, waits or never.

    `nodes`: where its workers would be, by rank, and `spares`; `yields`: who would give way for it; `to_start`: machines
    that an autoscaler offers, by type, with which it would start; size, price and predictions are then of that start.
    `starts_at` is None where nobody can tell; so are predictions.
    """

    verdict: str
    reason: str
    queue: str
    workers: int = 0
    wanted: int = 0
    option: str = ""
    nodes: tuple[NodeId, ...] = ()
    spares: tuple[NodeId, ...] = ()
    yields: tuple[YieldView, ...] = ()
    to_start: dict[str, int] = field(default_factory=dict)
    rejected: tuple[RejectedView, ...] = ()
    position: int = 0
    waiting: int = 0
    starts_at: float | None = None
    step_s: float | None = None
    samples_per_s: float | None = None
    price_per_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyView:
    """Why a run waits, or runs as it does. `rejected`: its alternatives, each with what stands against it.

    `share`, `fair_share`: of the cluster, what its queue had lately and what is fair.
    """

    run: RunId
    state: RunState
    queue: str
    priority: int
    reason: str
    workers: int
    wanted: int
    held: bool = False
    position: int = 0
    waiting: int = 0
    share: float = 0.0
    fair_share: float = 0.0
    starving: bool = False
    starts_at: float | None = None
    rejected: tuple[RejectedView, ...] = ()
    yields: tuple[YieldView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """A queue now: parts of the cluster that it uses now, used lately, and that are fair by its weight; quotas in words."""

    name: str
    weight: float
    cohort: str
    share: float
    lately: float
    fair_share: float
    running: int
    waiting: int
    quotas: tuple[str, ...] = ()


# What device-seconds are used for, in the order in which people read them.
USES = ("useful", "starting", "checkpointing", "resharding", "lost", "idle", "queued")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputView:
    """Where the time of devices went, of one run, team or device type: device-seconds by what they were used for.

    `by` says which of these `name` is.
    """

    by: str
    name: str
    useful: float = 0.0
    queued: float = 0.0
    starting: float = 0.0
    checkpointing: float = 0.0
    resharding: float = 0.0
    lost: float = 0.0
    idle: float = 0.0

    @property
    def held(self) -> float:
        """Device-seconds that were held by runs: all but those queued for or idle."""
        return self.useful + self.starting + self.checkpointing + self.resharding + self.lost

    @property
    def goodput(self) -> float:
        """The useful part of what was held, from 0 to 1; 1 where nothing was."""
        return self.useful / self.held if self.held > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopView:
    """The cluster at work, now: queues, and where the time went since `since`."""

    at: float
    since: float
    queues: tuple[QueueView, ...]
    goodput: tuple[GoodputView, ...] = ()
