"""What the arbiter decided at one tick, each with its reason; the order in a list is the order in which to do it.

Gangs are whole: a `Start` names a node for each worker of a legal size, or there is none. What a `Shrink`, `Suspend`
or `Move` frees is given to nobody before the shell has said that it is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.control_plane.arbiter.model import Claim
from atoll.control_plane.arbiter.reasons import Better, GivesBack, Held, Idle, Leaves, Never, Placed, YieldsTo
from atoll.schema.ids import NodeId, RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Give the run these nodes: one for each worker, in order of rank (those of one island side by side), and spares."""

    run: RunId
    option: int
    nodes: tuple[NodeId, ...]
    spares: tuple[NodeId, ...]
    reason: Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow:
    """Add a worker on each of `adds`; it has `to` afterwards."""

    run: RunId
    adds: tuple[NodeId, ...]
    to: int
    reason: Idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """Take the workers on `gives` (a node for each) and `spares` from the run; it keeps `to` workers, a legal size."""

    run: RunId
    gives: tuple[NodeId, ...]
    spares: tuple[NodeId, ...]
    to: int
    reason: YieldsTo | GivesBack


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Make a checkpoint, end the run's workers, let it wait again."""

    run: RunId
    reason: YieldsTo | GivesBack


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Replace worker by worker: `gives[i]` by `takes[i]`. What is taken is reserved from now on."""

    run: RunId
    gives: tuple[NodeId, ...]
    takes: tuple[NodeId, ...]
    reason: Better | Leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The run waits on."""

    run: RunId
    reason: Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The run can never be placed."""

    run: RunId
    reason: Never


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A queue at this tick: share used now and lately (dominant resource, 0 to 1), what is fair, and who runs and waits."""

    queue: str
    now: float
    lately: float
    fair: float
    running: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """All of one tick. `shares` are those of all queues after it, `kept` what is kept for those who wait."""

    at: float
    starts: tuple[Start, ...] = ()
    grows: tuple[Grow, ...] = ()
    shrinks: tuple[Shrink, ...] = ()
    suspends: tuple[Suspend, ...] = ()
    moves: tuple[Move, ...] = ()
    holds: tuple[Hold, ...] = ()
    refusals: tuple[Refuse, ...] = ()
    shares: tuple[Share, ...] = ()
    kept: tuple[Claim, ...] = ()
