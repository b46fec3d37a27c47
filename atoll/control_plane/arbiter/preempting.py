"""Who yields to a run that waits: first what runs hold beyond their least size, then, at a checkpoint, whole runs.

**Who may be asked.** For spares and for workers beyond the least: runs of the same or lower priority (what is beyond the
least is lent), all of them for a starving run. To be suspended: preemptible runs of lower priority that have run for
`calm_s`. Of another queue's runs that hold what this queue lent them both may be asked, whatever the priority. Nobody is
asked who was disturbed less than `calm_s` ago, or `disturbances_per_hour` times within the hour.

**Gangs on both sides.** What others would give up is freed for a trial, one run after another: lowest priority first, those
over their share first, the youngest first. As soon as the whole gang fits, those are taken out again whom it does not
need, the last ones first, and each that shrinks keeps the largest legal size with which it still fits. If it never fits,
everything is as it was, and nobody was disturbed.

What is freed is kept for the run (a claim) until it starts.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from atoll.control_plane.arbiter.accounts import plus
from atoll.control_plane.arbiter.choosing import worked_out
from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.decisions import Shrink, Suspend
from atoll.control_plane.arbiter.holding import counted
from atoll.control_plane.arbiter.ordering import priority, starving
from atoll.control_plane.arbiter.packing import gang
from atoll.control_plane.arbiter.reasons import AwaitsRelease, GivesBack, NobodyYields, Obstacle, YieldsTo
from atoll.control_plane.arbiter.roster import Candidate
from atoll.control_plane.arbiter.state import Choice, Holding, Kept, Way, Wish
from atoll.control_plane.arbiter.turn import Turn
from atoll.schema.ids import NodeId, RunId

# Who is asked at most for one run, and on how many islands it is tried: the next ones cost more than they are worth.
_ASKED = 96
_ISLANDS = 4


class _Part(NamedTuple):
    """What a run gives up: workers and spares, by node."""

    workers: list[NodeId]
    spares: list[NodeId]

    @property
    def names(self) -> list[NodeId]:
        return [*self.workers, *self.spares]


_NOTHING = _Part([], [])


@dataclass(slots=True, kw_only=True)
class _Victim:
    """A run that may be asked. `reclaim`: it holds what the waiting run's queue lent."""

    holding: Holding
    least: int
    sizes: Sequence[int]
    whole: bool
    beyond: bool
    reclaim: bool
    gives: _Part = _NOTHING
    # in which order workers would go, and which spares, for a scope
    scope: frozenset[str] | None = None
    line: _Part | None = None


class _Trial:
    """A gang that is tried on a cluster where others have given up something; all of it is undone at the end."""

    def __init__(self, turn: Turn, wish: Wish, choice: Choice, way: Way) -> None:
        self.turn = turn
        self.wish = wish
        self.choice = choice
        self.way = way
        self.priority = priority(turn.state, wish.ask)
        self.late = starving(turn.state, wish.ask, turn.now)
        self.reclaims = way.flavor is not None and self._within_own(way.flavor)

    def _within_own(self, flavor: str) -> bool:
        """Whether the run would still be within its queue's own quota: only then it takes back what was lent."""
        accounts, ask = self.turn.state.accounts, self.wish.ask
        needs = plus(accounts.used(ask.queue, flavor), (ask.each.cpus, ask.each.gpus), self.choice.sizes[0])
        own = accounts.own(ask.queue, flavor)
        return needs[0] <= own[0] and needs[1] <= own[1]

    def release(self, holding: Holding, names: list[NodeId], sign: int = -1) -> None:
        """Free these places of the holding, or (1) take them again."""
        state, each, flavor = self.turn.state, holding.ask.each, self.way.flavor
        charged = 0
        for name, count in counted(names).items():
            node = state.cluster.nodes.get(name)
            if node is not None:
                state.cluster.use(node, sign * count * each.cpus, sign * count * each.gpus)
                charged += count * (state.catalog.flavor_of[node.kind] == flavor)
        if flavor is not None and charged:
            state.accounts.suppose(holding.ask.queue, flavor, (each.cpus * charged, each.gpus * charged), sign)

    def fits(self) -> list[Node] | None:
        """The gang's places, if there are."""
        state, ask, least = self.turn.state, self.wish.ask, self.choice.sizes[0]
        if self.way.flavor is not None and state.accounts.room(ask.queue, self.way.flavor, ask.each) < least:
            return None
        return gang(state.cluster, self.way.shape, least, islands=self.choice.option.islands, sums=bool(ask.sync_bytes))


def preempt(turn: Turn, wish: Wish) -> Obstacle:
    """Ask others to yield, if that makes room for the whole gang; what stands against it otherwise."""
    counts = {"calm": 0, "above": 0, "young": 0}
    for choice in worked_out(turn.state, wish):
        for way in choice.ways if choice.sizes else ():
            found = _try(turn, wish, choice, way, counts)
            if found is not None:
                return found
    wanted = min((c.sizes[0] for c in wish.choices if c.sizes), default=wish.ask.least)
    reachable = max((way.shape.total for c in wish.choices for way in c.ways), default=0)
    return NobodyYields(wanted=wanted, reachable=min(reachable, wanted), **counts)


def _try(turn: Turn, wish: Wish, choice: Choice, way: Way, counts: dict[str, int]) -> Obstacle | None:
    trial = _Trial(turn, wish, choice, way)
    coming = _coming(turn)
    for holding, names in coming:
        trial.release(holding, names)
    try:
        nodes = trial.fits()
        if nodes is not None:
            return _claim(trial, nodes, [], coming)
        victims = _victims(trial, counts)
        for scope in _scopes(trial, victims):
            taken = _search(trial, victims, scope)
            if taken:
                nodes = trial.fits() or []
                _undo(trial, taken)
                return _claim(trial, nodes, taken, coming)
        return None
    finally:
        for holding, names in coming:
            trial.release(holding, names, sign=1)


def _coming(turn: Turn) -> list[tuple[Holding, list[NodeId]]]:
    """What runs were told to give up for nobody who is still there to take it."""
    claimed = {run for kept in turn.state.kept.values() if kept.claim for run in kept.givers}
    return [
        (h, [*h.nodes, *h.spares] if h.suspending else list(h.leaving))
        for h in turn.roster().unsteady
        if h.ask.run not in claimed
    ]


def _victims(trial: _Trial, counts: dict[str, int]) -> list[_Victim]:
    """Whom to ask, in this order."""
    found = []
    for candidate in trial.turn.roster().on(trial.way.shape.kinds):
        if candidate.holding.ask.run in trial.turn.starts:
            continue
        victim = _victim(trial, candidate)
        if victim is None:
            yields = candidate.holding.ask.preemptible and candidate.priority < trial.priority
            counts["young" if yields else "above"] += 1
        elif not candidate.calm:
            counts["calm"] += 1
        else:
            found.append(victim)
    return found


def _victim(trial: _Trial, candidate: Candidate) -> _Victim | None:
    holding, ours = candidate.holding, trial.priority
    reclaim = trial.reclaims and _borrowed(trial, holding)
    whole = holding.ask.preemptible and candidate.rested and (candidate.priority < ours or reclaim)
    lent = candidate.priority <= ours or reclaim or trial.late
    size = len(holding.nodes)
    beyond = lent and (bool(holding.spares) or (bool(holding.sizes) and holding.sizes[0] < size))
    if not whole and not beyond:
        return None
    sizes = holding.sizes[: bisect.bisect_left(holding.sizes, size)] if lent else ()
    least = sizes[0] if sizes else size
    return _Victim(holding=holding, least=least, sizes=sizes, whole=whole, beyond=beyond, reclaim=reclaim)


def _borrowed(trial: _Trial, holding: Holding) -> bool:
    accounts, flavor = trial.turn.state.accounts, trial.way.flavor or ""
    return (
        flavor in holding.charges
        and accounts.same_cohort(trial.wish.ask.queue, holding.ask.queue)
        and accounts.borrows(holding.ask.queue, flavor)
    )


def _scopes(trial: _Trial, victims: list[_Victim]) -> list[frozenset[str] | None]:
    """Where to free places: anywhere, or on the few islands that could have enough of them; nowhere if none could."""
    islands, least = trial.choice.option.islands, trial.choice.sizes[0]
    shape, cluster = trial.way.shape, trial.turn.state.cluster
    could = dict(cluster.slots(shape))
    for victim in victims:
        holding = victim.holding
        room = len(holding.drawn) if victim.whole else len(holding.nodes) + len(holding.spares) - victim.least
        each = holding.ask.each
        # What lies about on a node adds up with what is freed there: twice is more than it can be in most cases.
        one = 2 * max(shape.places(each.cpus, each.gpus), 1)
        for name, n in holding.where().islands.items():
            could[name] = could.get(name, 0) + one * min(n, room)
    sizes = cluster.sizes(shape)
    could = {name: min(n, sizes.get(name, 0)) for name, n in could.items()}
    best = sorted(could, key=lambda name: (-could[name], name))
    if islands == 1:
        return [frozenset({name}) for name in best[:_ISLANDS] if could[name] >= least]
    if sum(could[name] for name in best[: islands or None]) < least:
        return []
    return [frozenset(best[:islands])] if islands else [None]


def _search(trial: _Trial, victims: list[_Victim], scope: frozenset[str] | None) -> list[_Victim]:
    """Those who yield, with what each gives, freed for the trial; nobody, and nothing is freed, where it cannot fit."""
    taken: list[_Victim] = []
    near = [v for v in victims if scope is None or not scope.isdisjoint(v.holding.where().islands)]
    for whole in (False, True):
        for victim in near:
            if len(taken) >= _ASKED:
                break
            if not (victim.whole if whole else victim.beyond):
                continue
            gives = _gives(trial, victim, scope, whole=whole)
            if len(gives.names) <= len(victim.gives.names):
                continue
            if victim.gives.names:
                trial.release(victim.holding, victim.gives.names, sign=1)
            else:
                taken.append(victim)
            victim.gives = gives
            trial.release(victim.holding, gives.names)
            if trial.fits() is not None:
                return _least(trial, taken, scope)
    _undo(trial, taken)
    for victim in taken:
        victim.gives = _NOTHING
    return []


def _gives(trial: _Trial, victim: _Victim, scope: frozenset[str] | None, *, whole: bool) -> _Part:
    """What the victim would give up, where it helps: its spares and last workers, those within the scope first."""
    if whole:
        return _Part(victim.holding.nodes, victim.holding.spares)
    return _down_to(trial, victim, scope, victim.least)


def _down_to(trial: _Trial, victim: _Victim, scope: frozenset[str] | None, keep: int) -> _Part:
    line = victim.line
    if line is None or victim.scope != scope:
        line = victim.line = _line(trial, victim.holding, scope)
        victim.scope = scope
    return _Part(line.workers[: len(victim.holding.nodes) - keep], line.spares)


def _line(trial: _Trial, holding: Holding, scope: frozenset[str] | None) -> _Part:
    """Workers in the order in which they would go, the last ranks where room is wanted first, and spares there."""
    useful = {name for name in {*holding.nodes, *holding.spares} if _near(trial, name, scope)}
    near = [name for name in reversed(holding.nodes) if name in useful]
    if near:
        # A legal size may need more workers to go than stand where room is wanted.
        near += [name for name in reversed(holding.nodes) if name not in useful]
    return _Part(near, [name for name in holding.spares if name in useful])


def _near(trial: _Trial, name: NodeId, scope: frozenset[str] | None) -> bool:
    node = trial.turn.state.cluster.nodes.get(name)
    return node is not None and node.kind in trial.way.shape.kinds and (scope is None or node.island.name in scope)


def _least(trial: _Trial, taken: list[_Victim], scope: frozenset[str] | None) -> list[_Victim]:
    """Give back to victims, the last asked first, whatever the gang does not need."""
    for victim in reversed(taken):
        trial.release(victim.holding, victim.gives.names, sign=1)
        if trial.fits() is not None:
            victim.gives = _NOTHING  # so it is with most: those asked after them made the room
            continue
        line = _down_to(trial, victim, scope, victim.least)
        smaller = _smaller(victim, line)
        # Who gives more leaves no less room: the first of them that is enough is found by halving.
        enough = bisect.bisect_left(smaller, x=True, key=partial(_suffices, trial, victim, line))
        victim.gives = _cut(line, smaller[enough]) if enough < len(smaller) else victim.gives
        trial.release(victim.holding, victim.gives.names)
    return [victim for victim in taken if victim.gives.names]


def _smaller(victim: _Victim, line: _Part) -> list[tuple[int, int]]:
    """Numbers of workers and spares of the line, fewer than the victim gives, not none: spares, then legal sizes."""
    size, spares = len(victim.holding.nodes), len(line.spares)
    counts = [(0, n) for n in range(1, spares + 1)]
    counts += [(min(size - n, len(line.workers)), spares) for n in sorted(victim.sizes, reverse=True)]
    most = len(victim.gives.workers) + len(victim.gives.spares)
    return [(workers, spares) for workers, spares in counts if workers + spares < most]


def _cut(line: _Part, counts: tuple[int, int]) -> _Part:
    return _Part(line.workers[: counts[0]], line.spares[: counts[1]])


def _suffices(trial: _Trial, victim: _Victim, line: _Part, counts: tuple[int, int]) -> bool:
    """Whether the gang fits if the victim, of which nothing is freed at present, gives so many of its line."""
    names = _cut(line, counts).names
    trial.release(victim.holding, names)
    fits = trial.fits() is not None
    trial.release(victim.holding, names, sign=1)
    return fits


def _undo(trial: _Trial, taken: list[_Victim]) -> None:
    for victim in taken:
        trial.release(victim.holding, victim.gives.names, sign=1)


def _claim(
    trial: _Trial, nodes: list[Node], taken: list[_Victim], coming: list[tuple[Holding, list[NodeId]]]
) -> Obstacle:
    """Tell the victims, and keep what they give for the run."""
    turn, ask = trial.turn, trial.wish.ask
    takes = 0.0
    for victim in taken:
        _tell(trial, victim)
        takes = max(takes, victim.holding.ask.regroup_s)
    places = {node.name for node in nodes}
    givers = [v.holding.ask.run for v in taken]
    givers += [h.ask.run for h, names in coming if not places.isdisjoint(names)]
    kept = Kept(
        run=ask.run,
        option=trial.choice.index,
        shape=trial.way.shape,
        places=[node.name for node in nodes],
        start=turn.now + takes,
        claim=True,
        givers=tuple(dict.fromkeys(givers)),
    )
    turn.state.kept[ask.run] = kept
    return AwaitsRelease(runs=kept.givers)


def _tell(trial: _Trial, victim: _Victim) -> None:
    turn, holding = trial.turn, victim.holding
    before, gives = len(holding.nodes), victim.gives
    after = before - len(gives.workers)
    reason = _reason(trial, victim, before, after)
    holding.ask = replace(holding.ask, disturbed=(*holding.ask.disturbed[-31:], turn.now))
    run: RunId = holding.ask.run
    if not after:
        holding.suspending = True
        turn.suspends.append(Suspend(run=run, reason=reason))
        return
    holding.leaving = gives.names
    turn.shrinks.append(
        Shrink(run=run, gives=tuple(gives.workers), spares=tuple(gives.spares), to=after, reason=reason)
    )


def _reason(trial: _Trial, victim: _Victim, before: int, after: int) -> YieldsTo | GivesBack:
    turn, ask, holding = trial.turn, trial.wish.ask, victim.holding
    cost = holding.ask.regroup_s if after else holding.ask.start_s + _redone(holding, turn.now)
    theirs, ours = priority(turn.state, holding.ask), priority(turn.state, ask)
    if victim.reclaim and not (theirs < ours or (after and theirs <= ours)):
        return GivesBack(
            run=ask.run,
            owner=ask.queue,
            borrower=holding.ask.queue,
            flavor=trial.way.flavor or "",
            before=before,
            after=after,
            cost_s=cost,
        )
    return YieldsTo(run=ask.run, priority=ours, own_priority=theirs, before=before, after=after, cost_s=cost)


def _redone(holding: Holding, now: float) -> float:
    """Seconds of work since the newest checkpoint: a suspension makes one, so only a run that has none loses them."""
    return now - holding.since if holding.checkpoint_at is None else 0.0
