"""One tick under way: what was decided so far, and what the steps of a tick share."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.decisions import Grow, Move, Refuse, Shrink, Suspend
from atoll.control_plane.arbiter.keeping import Keeping
from atoll.control_plane.arbiter.reasons import Rejected
from atoll.control_plane.arbiter.roster import Roster
from atoll.control_plane.arbiter.speed import Worth
from atoll.control_plane.arbiter.state import Choice, Holding, Kept, State, Way, Wish
from atoll.schema.ids import RunId


@dataclass(slots=True, kw_only=True)
class Plan:
    """A gang's places by one way of one choice."""

    choice: Choice
    way: Way
    nodes: list[Node]
    rejected: tuple[Rejected, ...] = ()


@dataclass(slots=True, kw_only=True)
class Started:
    """A run that got its nodes in this tick; it may still grow in it."""

    wish: Wish
    plan: Plan
    holding: Holding
    overtaken: RunId | None


@dataclass(slots=True, kw_only=True)
class Blocked:
    """A run that waits on, and what stands against its options."""

    wish: Wish
    rejected: tuple[Rejected, ...]
    starving: bool


@dataclass(slots=True, kw_only=True)
class Turn:
    """What is decided in a tick."""

    state: State
    now: float
    keeping: Keeping
    starts: dict[RunId, Started] = field(default_factory=dict)
    blocked: list[Blocked] = field(default_factory=list)
    refusals: list[Refuse] = field(default_factory=list)
    shrinks: list[Shrink] = field(default_factory=list)
    suspends: list[Suspend] = field(default_factory=list)
    grows: list[Grow] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    looked_at: int = 0
    reserved: int = 0
    # lifted for the run that is about to start, to be withheld again when it has its nodes
    rekeep: list[Kept] = field(default_factory=list)
    _roster: Roster | None = None
    _worth: Worth | None = None

    def roster(self) -> Roster:
        """Who held nodes when it was first asked for."""
        if self._roster is None:
            self._roster = Roster(self.state, self.now)
        return self._roster

    def worth(self) -> Worth:
        """What devices are worth to those who waited when it was first asked for."""
        if self._worth is None:
            asks = [wish.ask for wish in self.state.wishes.values()]
            devices = dict.fromkeys(kind.device for kind in self.state.catalog.kinds)
            self._worth = Worth(asks, tuple(devices))
        return self._worth
