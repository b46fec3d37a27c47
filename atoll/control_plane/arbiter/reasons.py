"""Why the arbiter decided so: typed values whose `words()` people read unchanged in `atoll why`, `atoll plan`, the dashboard.

`kind` is stable, for programs. `Obstacle` says why one option cannot be had now, `Why` why something was done, `Held`
gathers all that a waiting run is told, `Never` why a run is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.control_plane.arbiter.model import Amount, device_words
from atoll.schema.ids import RunId


def _down_to(after: int) -> str:
    return f"to {_workers(after)}" if after else "to none, at a checkpoint"


def _workers(n: int) -> str:
    return f"{n} worker{'s' * (n != 1)}"


def _islands(n: int) -> str:
    return f"{n} island{'s' * (n != 1)}"


def span_words(seconds: float) -> str:
    """A time for people, from seconds to days."""
    for unit, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


# -- why an option cannot be had now ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoom:
    """Too few devices are free."""

    kind: ClassVar[str] = "no-room"
    wanted: int
    fits: int
    exists: int

    def words(self) -> str:
        """For people."""
        return f"room for {self.fits} of {_workers(self.wanted)} is free now, {self.exists} fit in all"


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandsFull:
    """There is room, but not on so few islands."""

    kind: ClassVar[str] = "islands-full"
    wanted: int
    islands: int
    fits: int
    anywhere: int

    def words(self) -> str:
        """For people."""
        return (
            f"{_islands(self.islands)} {'have' if self.islands > 1 else 'has'} room for at most {self.fits} of "
            f"{_workers(self.wanted)} now; {self.anywhere} fit over all islands"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaReached:
    """The queue has used up its quota and what it may borrow."""

    kind: ClassVar[str] = "quota-reached"
    queue: str
    flavor: str
    used: Amount
    own: Amount
    allowed: Amount
    needs: Amount

    def words(self) -> str:
        """For people."""
        return (
            f"queue {self.queue} uses {device_words(self.used)} of flavor {self.flavor}; its own are "
            f"{device_words(self.own)}, {device_words(self.allowed)} with what it may borrow now, and "
            f"{device_words(self.needs)} more are needed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFlavor:
    """No node is of a flavor that the option and its queue allow."""

    kind: ClassVar[str] = "no-flavor"
    flavors: tuple[str, ...]
    queue: str

    def words(self) -> str:
        """For people."""
        wanted = f"of flavor {' or '.join(self.flavors)} " if self.flavors else ""
        return f"no node {wanted}is there that queue {self.queue} may use"


@dataclass(frozen=True, slots=True, kw_only=True)
class WouldDelay:
    """Its nodes are kept for a run that is before it."""

    kind: ClassVar[str] = "would-delay"
    run: RunId
    starts_at: float | None
    now: float

    def words(self) -> str:
        """For people."""
        begins = "" if self.starts_at is None else f", which begins in {span_words(max(self.starts_at - self.now, 0))}"
        return f"the nodes that would hold it are kept for {self.run}{begins}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitsRelease:
    """Others were told to give up what it needs."""

    kind: ClassVar[str] = "awaits-release"
    runs: tuple[RunId, ...]

    def words(self) -> str:
        """For people."""
        return f"{', '.join(self.runs)} {'are' if len(self.runs) > 1 else 'is'} giving up the nodes for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class NobodyYields:
    """Preempting others was tried and gives nothing."""

    kind: ClassVar[str] = "nobody-yields"
    wanted: int
    reachable: int
    calm: int
    above: int
    young: int = 0

    def words(self) -> str:
        """For people."""
        why = []
        if self.above:
            why.append(f"{self.above} of equal or higher priority, or not to be suspended")
        if self.young:
            why.append(f"{self.young} began too lately")
        if self.calm:
            why.append(f"{self.calm} disturbed too lately")
        kept = f" ({', '.join(why)})" if why else ""
        return f"with all that others could give up {self.reachable} of {_workers(self.wanted)} would fit{kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLookedAt:
    """It is so far behind in the queue that nobody was asked to yield for it."""

    kind: ClassVar[str] = "not-looked-at"
    position: int

    def words(self) -> str:
        """For people."""
        return f"{self.position - 1} runs are before it, for whom others are asked to yield first"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoQueue:
    """Its queue is not there."""

    kind: ClassVar[str] = "no-queue"
    queue: str

    def words(self) -> str:
        """For people."""
        return f"there is no queue {self.queue}"


Obstacle = (
    NoRoom | IslandsFull | QuotaReached | NoFlavor | WouldDelay | AwaitsRelease | NobodyYields | NotLookedAt | NoQueue
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """One option of a waiting run, and what stands against it."""

    option: str
    obstacle: Obstacle

    def words(self) -> str:
        """For people."""
        return f"{self.option}: {self.obstacle.words()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A run waits: its place in line from 1, what its queue used lately against what is fair, and each option's obstacle."""

    kind: ClassVar[str] = "held"
    position: int
    waiting: int
    queue: str
    share: float
    fair_share: float
    priority: int
    starving: bool
    rejected: tuple[Rejected, ...]
    earliest: float | None
    now: float

    def words(self) -> str:
        """For people."""
        line = f"{self.position} of {self.waiting} in line"
        lately = f"queue {self.queue} used {self.share:.1%} of the cluster lately, {self.fair_share:.1%} are fair"
        begins = (
            "its start cannot be foretold"
            if self.earliest is None
            else f"its start is expected in {span_words(max(self.earliest - self.now, 0.0))}"
        )
        starving = "; it has waited so long that it goes before all who have not" if self.starving else ""
        return f"{line}; {'; '.join(r.words() for r in self.rejected)}; {lately}; {begins}{starving}"


# -- why something was done ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A run got its nodes. `step_s` and `samples_per_s` are predicted (None: speeds are not known).

    `rejected` are the options that were before the one it got.
    """

    kind: ClassVar[str] = "placed"
    option: str
    workers: int
    wished: int
    islands: int
    nodes: int
    devices: tuple[str, ...]
    step_s: float | None
    samples_per_s: float | None
    price_per_hour: float
    waited_s: float
    overtaken: RunId | None = None
    rejected: tuple[Rejected, ...] = ()

    def words(self) -> str:
        """For people."""
        size = _workers(self.workers) + (f" of {self.wished} wished" if self.workers < self.wished else "")
        where = f"on {self.nodes} node{'s' * (self.nodes != 1)} of {_islands(self.islands)} ({', '.join(self.devices)})"
        parts = [f"{self.option}: {size} {where} after {span_words(self.waited_s)}"]
        if self.samples_per_s is not None:
            parts.append(f"{self.samples_per_s:.4g} samples/s predicted")
        if self.step_s is not None:
            parts.append(f"{self.step_s:.3g} s a step")
        if self.price_per_hour:
            parts.append(f"{self.price_per_hour:.2f} an hour")
        if self.overtaken is not None:
            parts.append(f"it delays {self.overtaken} not, which waits before it")
        parts += [f"not {r.words()}" for r in self.rejected]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nodes are free that nobody before it wants: the run grows. Times saved and spent until the horizon, in seconds."""

    kind: ClassVar[str] = "idle"
    before: int
    after: int
    gain_s: float
    cost_s: float

    def words(self) -> str:
        """For people."""
        return (
            f"nobody waits for these nodes: {self.before} to {_workers(self.after)}, which saves "
            f"{span_words(self.gain_s)} and costs {span_words(self.cost_s)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldsTo:
    """Others go first: the run gives up workers that it held beyond its least, or all."""

    kind: ClassVar[str] = "yields-to"
    run: RunId
    priority: int
    own_priority: int
    before: int
    after: int
    cost_s: float

    def words(self) -> str:
        """For people."""
        to = _down_to(self.after)
        return (
            f"{self.run} (priority {self.priority}) needs its nodes: from {self.before} {to} (priority "
            f"{self.own_priority}), which costs it {span_words(self.cost_s)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GivesBack:
    """The nodes were borrowed, and the queue that owns them wants them."""

    kind: ClassVar[str] = "gives-back"
    run: RunId
    owner: str
    borrower: str
    flavor: str
    before: int
    after: int
    cost_s: float

    def words(self) -> str:
        """For people."""
        to = _down_to(self.after)
        return (
            f"queue {self.borrower} borrowed flavor {self.flavor} of queue {self.owner}, which wants it for {self.run}: "
            f"from {self.before} {to}, which costs {span_words(self.cost_s)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Better:
    """A placement is clearly better than the present one and pays for the move."""

    kind: ClassVar[str] = "better"
    before_per_s: float
    after_per_s: float
    islands_before: int
    islands_after: int
    gain_s: float
    cost_s: float

    def words(self) -> str:
        """For people."""
        return (
            f"{self.after_per_s / self.before_per_s:.2f} times the samples/s on {_islands(self.islands_after)} instead "
            f"of {self.islands_before}: saves {span_words(self.gain_s)}, costs {span_words(self.cost_s)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """Its node is drained: the same worker elsewhere."""

    kind: ClassVar[str] = "leaves"
    nodes: tuple[str, ...]

    def words(self) -> str:
        """For people."""
        return f"{', '.join(self.nodes)} {'are' if len(self.nodes) > 1 else 'is'} drained"


Why = Placed | Idle | YieldsTo | GivesBack | Better | Leaves


# -- why it can never be ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """One option, and what would have to be there for it."""

    option: str
    wanted: int
    fits: int
    islands: int
    each: Amount
    quota_flavor: str = ""
    quota: Amount | None = None

    def words(self) -> str:
        """For people."""
        name = f"{self.option}: " if self.option else ""
        if self.quota is not None:
            needs = device_words(self.each, self.wanted)
            return (
                f"{name}needs {needs} of flavor {self.quota_flavor}, the queue may never have more than "
                f"{device_words(self.quota)}"
            )
        where = f"on {_islands(self.islands)} " if self.islands else ""
        needs = device_words(self.each, self.wanted - self.fits)
        return (
            f"{name}{_workers(self.wanted)} of {device_words(self.each)} do not fit {where}"
            f"even when all is free: {self.fits} do, {needs} more are needed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """The cluster as it is can never hold the run, nor may its queue: what each option lacks."""

    kind: ClassVar[str] = "never-fits"
    lacks: tuple[Lacks, ...]

    def words(self) -> str:
        """For people."""
        return "it can never fit: " + "; ".join(lack.words() for lack in self.lacks)


Reason = Why | Held | Never
