"""Whom a waiting run may ask to yield, in order: gathered once in a tick, found again by class of node.

Lowest priority first, then queues that are most over their share, then the youngest, which loses least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.arbiter.ordering import priority
from atoll.control_plane.arbiter.state import Holding, State

_HOUR_S = 3_600.0


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A run that holds nodes. `calm`: the budget against thrash allows to disturb it, `rested`: it ran long enough."""

    holding: Holding
    priority: int
    calm: bool
    rested: bool


class Roster:
    """All who hold nodes."""

    def __init__(self, state: State, now: float) -> None:
        scores = {queue: state.accounts.score(queue, None, now) for queue in state.accounts.queues}
        settings = state.settings
        found = [
            Candidate(
                holding=holding,
                priority=priority(state, holding.ask),
                calm=not holding.ask.disturbed or may_disturb(state, holding.ask, now),
                rested=now - holding.since >= settings.calm_s,
            )
            for holding in state.holdings.values()
            if holding.steady()
        ]
        found.sort(
            key=lambda c: (c.priority, -scores.get(c.holding.ask.queue, 0.0), -c.holding.since, c.holding.ask.run)
        )
        self._all = found
        # told before this tick to give something up
        self.unsteady = [holding for holding in state.holdings.values() if not holding.steady()]
        self._by_kind: dict[int, list[int]] = {}
        for at, candidate in enumerate(found):
            for kind in candidate.holding.where().kinds:
                self._by_kind.setdefault(kind, []).append(at)

    def on(self, kinds: frozenset[int]) -> Iterator[Candidate]:
        """Those with a trainer on a node of one of these classes, and not yet told to yield."""
        places = {at for kind in kinds for at in self._by_kind.get(kind, ())}
        for at in sorted(places):
            if self._all[at].holding.steady():
                yield self._all[at]


def may_disturb(state: State, ask: Ask, now: float) -> bool:
    """Whether the budget against thrash lets this run be disturbed."""
    lately = [at for at in ask.disturbed if now - at < _HOUR_S]
    settings = state.settings
    return not lately or (now - max(lately) >= settings.calm_s and len(lately) < settings.disturbances_per_hour)
