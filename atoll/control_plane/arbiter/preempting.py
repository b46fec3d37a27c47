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

from dataclasses import dataclass, field, replace

from atoll.control_plane.arbiter.accounts import Pair, plus
from atoll.control_plane.arbiter.choosing import worked_out
from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.decisions import Shrink, Suspend
from atoll.control_plane.arbiter.growing import sizes_of
from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.arbiter.ordering import priority, starving
from atoll.control_plane.arbiter.packing import gang
from atoll.control_plane.arbiter.reasons import AwaitsRelease, GivesBack, NobodyYields, Obstacle, YieldsTo
from atoll.control_plane.arbiter.state import Choice, Holding, Kept, State, Way, Wish
from atoll.control_plane.arbiter.turn import Turn
from atoll.schema.ids import NodeId, RunId

# Who is asked at most for one run, and on how many islands it is tried: the next ones cost more than they are worth.
_ASKED = 96
_ISLANDS = 4
_HOUR_S = 3_600.0


@dataclass(slots=True, kw_only=True)
class _Victim:
    """A run that may be asked. `reclaim`: it holds what the waiting run's queue lent."""

    holding: Holding
    least: int
    sizes: tuple[int, ...]
    whole: bool
    reclaim: bool
    gives: list[NodeId] = field(default_factory=list)
    keeps: int = 0


@dataclass(slots=True)
class _Trial:
    """A gang that is tried on a cluster where others have given up something; all of it is undone at the end."""

    turn: Turn
    wish: Wish
    choice: Choice
    way: Way

    def release(self, holding: Holding, names: list[NodeId], sign: int = -1) -> None:
        """Free these places of the holding, or (1) take them again."""
        state, each = self.turn.state, holding.ask.each
        charges: dict[str, Pair] = {}
        for name in names:
            node = state.cluster.nodes.get(name)
            if node is None:
                continue
            state.cluster.use(node, sign * each.cpus, sign * each.gpus)
            flavor = state.catalog.flavor_of[node.kind]
            charges[flavor] = plus(charges.get(flavor, (0, 0)), (each.cpus, each.gpus))
        state.accounts.charge(holding.ask.queue, holding.ask.user, charges, sign=sign, now=self.turn.now)

    def fits(self) -> list[Node] | None:
        """The gang's places, if there are."""
        state, ask, least = self.turn.state, self.wish.ask, self.choice.sizes[0]
        if self.way.flavor is not None and state.accounts.room(ask.queue, self.way.flavor, ask.each) < least:
            return None
        return gang(state.cluster, self.way.shape, least, islands=self.choice.option.islands, sums=bool(ask.sync_bytes))


def may_disturb(state: State, ask: Ask, now: float) -> bool:
    """Whether the budget against thrash lets this run be disturbed."""
    lately = [at for at in ask.disturbed if now - at < _HOUR_S]
    settings = state.settings
    return not lately or (now - max(lately) >= settings.calm_s and len(lately) < settings.disturbances_per_hour)


def preempt(turn: Turn, wish: Wish) -> Obstacle:
    """Ask others to yield, if that makes room for the whole gang; what stands against it otherwise."""
    counts = {"calm": 0, "above": 0}
    for choice in worked_out(turn.state, wish):
        for way in choice.ways if choice.sizes else ():
            found = _try(turn, wish, choice, way, counts)
            if found is not None:
                return found
    wanted = min((c.sizes[0] for c in wish.choices if c.sizes), default=wish.ask.least)
    reachable = max((way.shape.total for c in wish.choices for way in c.ways), default=0)
    return NobodyYields(wanted=wanted, reachable=min(reachable, wanted), calm=counts["calm"], above=counts["above"])


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
        for run, h in turn.state.holdings.items()
        if not h.steady() and run not in claimed
    ]


def _victims(trial: _Trial, counts: dict[str, int]) -> list[_Victim]:
    """Whom to ask, in this order."""
    turn, ask = trial.turn, trial.wish.ask
    found = []
    for run, holding in turn.state.holdings.items():
        if not holding.steady() or run in turn.starts:
            continue
        victim = _victim(trial, holding, ask)
        if victim is None:
            counts["above"] += 1
        elif not may_disturb(turn.state, holding.ask, turn.now):
            counts["calm"] += 1
        else:
            found.append(victim)
    accounts, now = turn.state.accounts, turn.now
    scores = {q: accounts.score(q, None, now) for q in {v.holding.ask.queue for v in found}}
    found.sort(
        key=lambda v: (
            priority(turn.state, v.holding.ask),
            -scores[v.holding.ask.queue],
            -v.holding.since,
            v.holding.ask.run,
        )
    )
    return found


def _victim(trial: _Trial, holding: Holding, ask: Ask) -> _Victim | None:
    state, now, flavor = trial.turn.state, trial.turn.now, trial.way.flavor
    kinds = trial.way.shape.kinds
    if not any(node.kind in kinds for node in holding.drawn):
        return None
    reclaim = (
        flavor in holding.charges
        and flavor is not None
        and state.accounts.same_cohort(ask.queue, holding.ask.queue)
        and state.accounts.borrows(holding.ask.queue, flavor)
        and _within_own(trial, flavor)
    )
    theirs, ours = priority(state, holding.ask), priority(state, ask)
    rested = now - holding.since >= state.settings.calm_s
    whole = holding.ask.preemptible and rested and (theirs < ours or reclaim)
    lent = theirs <= ours or reclaim or starving(state, ask, now)
    sizes = tuple(n for n in sizes_of(state, holding) if n < len(holding.nodes)) if lent else ()
    beyond = bool(sizes) or bool(holding.spares and lent)
    if not whole and not beyond:
        return None
    least = sizes[0] if sizes else len(holding.nodes)
    return _Victim(holding=holding, least=least, sizes=sizes, whole=whole, reclaim=reclaim)


def _within_own(trial: _Trial, flavor: str) -> bool:
    """Whether the waiting run would still be within its queue's own quota: only then it takes back what was lent."""
    accounts, ask = trial.turn.state.accounts, trial.wish.ask
    needs = plus(accounts.used(ask.queue, flavor), (ask.each.cpus, ask.each.gpus), trial.choice.sizes[0])
    own = accounts.own(ask.queue, flavor)
    return needs[0] <= own[0] and needs[1] <= own[1]


def _scopes(trial: _Trial, victims: list[_Victim]) -> list[frozenset[str] | None]:
    """Where to free places: anywhere, or on the few islands that could have most of them."""
    islands = trial.choice.option.islands
    if not islands:
        return [None]
    shape, cluster = trial.way.shape, trial.turn.state.cluster
    could = dict(cluster.slots(shape))
    for victim in victims:
        room = len(victim.holding.drawn) if victim.whole else len(victim.holding.drawn) - victim.least
        here: dict[str, int] = {}
        for node in victim.holding.drawn:
            if node.kind in shape.kinds:
                here[node.island.name] = here.get(node.island.name, 0) + 1
        each = victim.holding.ask.each
        for name, n in here.items():
            n = min(n, room)  # noqa: PLW2901
            could[name] = could.get(name, 0) + min(shape.places(each.cpus * n, each.gpus * n), n + shape.group * n)
    best = sorted(could, key=lambda name: (-could[name], name))[: max(_ISLANDS, islands)]
    if islands == 1:
        return [frozenset({name}) for name in best[:_ISLANDS]]
    return [frozenset(best[:islands])]


def _search(trial: _Trial, victims: list[_Victim], scope: frozenset[str] | None) -> list[_Victim]:
    """Those who yield, with what each gives, freed for the trial; nobody, and nothing is freed, where it cannot fit."""
    taken: list[_Victim] = []
    for whole in (False, True):
        for victim in victims:
            if len(taken) >= _ASKED:
                break
            gives = _gives(trial, victim, scope, whole=whole)
            if len(gives) <= len(victim.gives):
                continue
            if victim.gives:
                trial.release(victim.holding, victim.gives, sign=1)
            else:
                taken.append(victim)
            victim.gives, victim.keeps = gives, 0 if whole else victim.least
            trial.release(victim.holding, gives)
            if trial.fits() is not None:
                return _least(trial, taken, scope)
    _undo(trial, taken)
    return []


def _gives(trial: _Trial, victim: _Victim, scope: frozenset[str] | None, *, whole: bool) -> list[NodeId]:
    """What the victim would give up, where it helps: its spares and last workers, those within the scope first."""
    holding = victim.holding
    if whole:
        return [*holding.nodes, *holding.spares] if victim.whole and _near(trial, holding.nodes, scope) else []
    if not victim.sizes and not holding.spares:
        return []
    return _part(trial, victim, scope, victim.least)


def _part(trial: _Trial, victim: _Victim, scope: frozenset[str] | None, keep: int) -> list[NodeId]:
    holding, drop = victim.holding, len(victim.holding.nodes) - keep
    near = [name for name in reversed(holding.nodes) if _near(trial, [name], scope)]
    if len(near) < drop:
        # A legal size may need more workers to go than stand where room is wanted.
        far = [name for name in reversed(holding.nodes) if not _near(trial, [name], scope)]
        near += far[: drop - len(near)]
    useful = any(_near(trial, [name], scope) for name in near[:drop])
    spares = [name for name in holding.spares if _near(trial, [name], scope)]
    return (near[:drop] if useful else []) + spares


def _near(trial: _Trial, names: list[NodeId], scope: frozenset[str] | None) -> bool:
    nodes, kinds = trial.turn.state.cluster.nodes, trial.way.shape.kinds
    return any(
        (node := nodes.get(name)) is not None and node.kind in kinds and (scope is None or node.island.name in scope)
        for name in names
    )


def _least(trial: _Trial, taken: list[_Victim], scope: frozenset[str] | None) -> list[_Victim]:
    """Give back to victims, the last asked first, whatever the gang does not need."""
    for victim in reversed(taken):
        everything, keeps = victim.gives, victim.keeps
        smaller: list[tuple[list[NodeId], int]] = [([], len(victim.holding.nodes))]
        sizes = sorted(victim.sizes, reverse=True)
        smaller += [([s for s in victim.holding.spares if _near(trial, [s], scope)], len(victim.holding.nodes))]
        smaller += [(_part(trial, victim, scope, size), size) for size in sizes]
        for gives, keep in smaller:
            if len(gives) >= len(everything):
                break
            trial.release(victim.holding, everything, sign=1)
            trial.release(victim.holding, gives)
            if trial.fits() is not None:
                everything, keeps = gives, keep
                break
            trial.release(victim.holding, gives, sign=1)
            trial.release(victim.holding, everything)
        victim.gives, victim.keeps = everything, keeps
    return [victim for victim in taken if victim.gives]


def _undo(trial: _Trial, taken: list[_Victim]) -> None:
    for victim in taken:
        trial.release(victim.holding, victim.gives, sign=1)


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
    before = len(holding.nodes)
    whole = len(victim.gives) >= before + len(holding.spares)
    after = 0 if whole else victim.keeps
    reason = _reason(trial, victim, before, after)
    holding.ask = replace(holding.ask, disturbed=(*holding.ask.disturbed[-31:], turn.now))
    run: RunId = holding.ask.run
    if whole:
        holding.suspending = True
        turn.suspends.append(Suspend(run=run, reason=reason))
        return
    workers = victim.gives[: before - after]
    holding.leaving = list(victim.gives)
    turn.shrinks.append(
        Shrink(run=run, gives=tuple(workers), spares=tuple(victim.gives[before - after :]), to=after, reason=reason)
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
