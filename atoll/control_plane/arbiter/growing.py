"""Elastic runs: what nobody waits for goes to those who gain by it, and a run moves where that clearly pays.

When all who wait have had their turn, runs grow to larger legal sizes, each on its own islands first: highest priority
first, then the queue with the lowest score, then the run with the smallest part of what it may have; one size up, and
again from the front. A run that was placed in this tick grows for nothing. One that runs pays `regroup_s`, so

    gain = T (1 - rate before / rate after) >= PAYS * cost,

where T is what remains of it (the horizon, where nobody knows), and it is left alone for `grow_after_s` after each change.
A move needs the same with the cost of a start, and `move_gain` times the present rate.
"""

from __future__ import annotations

import bisect
import heapq

from atoll.control_plane.arbiter import speed
from atoll.control_plane.arbiter.cluster import Node, Shape
from atoll.control_plane.arbiter.decisions import Grow, Move
from atoll.control_plane.arbiter.holding import add, draw, nodes_of, undraw
from atoll.control_plane.arbiter.ordering import priority
from atoll.control_plane.arbiter.packing import crossed, gang, more, side_by_side
from atoll.control_plane.arbiter.reasons import Better, Idle, Leaves
from atoll.control_plane.arbiter.state import Choice, Holding, State, choices
from atoll.control_plane.arbiter.turn import Turn
from atoll.schema.ids import NodeId, RunId

# A change must promise twice what it costs: predictions of speed are too optimistic by half at times.
PAYS = 2.0
# Steps up in one tick, and runs considered for a move: the rest has its turn at the next ticks.
_STEPS = 400
_MOVES = 4


def choice_of(state: State, holding: Holding) -> Choice | None:
    """The option by which the run was placed, worked out for now."""
    if holding.version != state.version():
        holding.choices, holding.version = choices(state, holding.ask), state.version()
    return holding.choices[holding.option] if holding.option < len(holding.choices) else None


def grow(turn: Turn) -> None:
    """Give out what nobody waits for."""
    heap = [
        (_key(turn, holding), run)
        for run, holding in turn.state.holdings.items()
        if holding.steady() and _may(turn, run, holding)
    ]
    heapq.heapify(heap)
    before = {run: list(turn.state.holdings[run].nodes) for _, run in heap}
    steps = _STEPS
    while heap and steps:
        _, run = heapq.heappop(heap)
        if _step_up(turn, run, before[run]):
            steps -= 1
            heapq.heappush(heap, (_key(turn, turn.state.holdings[run]), run))
    for run, names in before.items():
        if run not in turn.starts and len(turn.state.holdings[run].nodes) > len(names):
            _tell(turn, run, names)


def _may(turn: Turn, run: RunId, holding: Holding) -> bool:
    if run not in turn.starts and turn.now - holding.changed_at < turn.state.settings.grow_after_s:
        return False
    if holding.ask.queue not in turn.state.accounts.queues:
        # Its queue was taken away: it keeps what it has, and no quota says that it may have more.
        return False
    sizes = holding.sizes
    return bool(sizes) and sizes[-1] > len(holding.nodes) and len(holding.drawn) >= len(holding.nodes)


def _key(turn: Turn, holding: Holding) -> tuple[int, float, float, str]:
    ask = holding.ask
    sizes = holding.sizes
    part = len(holding.nodes) / sizes[-1] if sizes else 1.0
    return -priority(turn.state, ask), round(turn.state.accounts.score(ask.queue, None, turn.now), 6), part, ask.run


def _step_up(turn: Turn, run: RunId, before: list[NodeId]) -> bool:
    state, holding = turn.state, turn.state.holdings[run]
    choice = choice_of(state, holding)
    if choice is None:
        return False
    here = nodes_of(state, holding.nodes)
    larger = bisect.bisect_right(choice.sizes, len(here))
    if larger == len(choice.sizes):
        return False
    size = choice.sizes[larger]
    for shape, room in _shapes(state, holding, choice, here):
        extra = size - len(here)
        if room < extra:
            continue
        added = more(
            state.cluster, shape, extra, here, islands=choice.option.islands, sums=bool(holding.ask.sync_bytes)
        )
        if added is None:
            continue
        gain, cost = _worth(turn, run, holding, nodes_of(state, before), here + added)
        if gain > 0 and gain >= PAYS * cost:
            add(state, holding, added, turn.now)
            return True
    return False


def _shapes(state: State, holding: Holding, choice: Choice, here: list[Node]) -> list[tuple[Shape, int]]:
    """Ways that the run is on already come first: like devices beside like ones."""
    ask, kinds = holding.ask, {node.kind for node in here}
    found = []
    for way in choice.ways:
        room = 1 << 20 if way.flavor is None else state.accounts.room(ask.queue, way.flavor, ask.each)
        found.append((not (kinds & way.shape.kinds), len(way.shape.kinds), way.shape, room))
    found.sort(key=lambda item: (item[0], item[1]))
    return [(shape, room) for _, _, shape, room in found]


def _worth(turn: Turn, run: RunId, holding: Holding, before: list[Node], after: list[Node]) -> tuple[float, float]:
    """Seconds that the larger size saves, and what the change costs."""
    kinds, ask = turn.state.catalog.kinds, holding.ask
    left = speed.remaining(ask, holding.since, turn.now, turn.state.settings.horizon_s)
    gain = speed.saved(speed.rate(ask, before, kinds), speed.rate(ask, after, kinds), left)
    return gain, 0.0 if run in turn.starts else ask.regroup_s


def _tell(turn: Turn, run: RunId, before: list[NodeId]) -> None:
    state, holding = turn.state, turn.state.holdings[run]
    gain, cost = _worth(turn, run, holding, nodes_of(state, before), nodes_of(state, holding.nodes))
    holding.changed_at = turn.now
    reason = Idle(before=len(before), after=len(holding.nodes), gain_s=gain, cost_s=cost)
    turn.grows.append(Grow(run=run, adds=tuple(holding.nodes[len(before) :]), to=len(holding.nodes), reason=reason))


def move(turn: Turn) -> None:
    """Bring runs off drained nodes, and where it clearly pays to a better place."""
    state, left = turn.state, _MOVES
    told = {m.run for m in turn.grows} | set(turn.starts)
    for run, holding in _in_turns(state, turn.now):
        if run in told or not holding.steady() or len(holding.drawn) < len(holding.nodes):
            continue
        if any(node.drained for node in holding.drawn):
            _leave(turn, run, holding)
        elif left and _could_gain(turn, holding):
            left -= 1
            _better(turn, run, holding)


def _in_turns(state: State, now: float) -> list[tuple[RunId, Holding]]:
    """All that hold nodes, from another one on each second: who decides by snapshots remembers nobody's last look."""
    held = list(state.holdings.items())
    first = int(now) * _MOVES % max(len(held), 1)
    return held[first:] + held[:first]


def _leave(turn: Turn, run: RunId, holding: Holding) -> None:
    state, choice = turn.state, choice_of(turn.state, holding)
    here = nodes_of(state, holding.nodes)
    gone = [node for node in here if node.drained]
    stay = [node for node in here if not node.drained]
    if choice is None or not gone:
        return
    islands = choice.option.islands
    for shape, _room in _shapes(state, holding, choice, stay or here):
        if stay:
            taken = more(state.cluster, shape, len(gone), stay, islands=islands)
        else:
            taken = gang(state.cluster, shape, len(gone), islands=islands)
        if taken is not None and _fit_beside(state, holding, taken):
            names = tuple(sorted({node.name for node in gone}))
            _moves(turn, run, holding, gone, taken, Leaves(nodes=names))
            return


def _could_gain(turn: Turn, holding: Holding) -> bool:
    """Whether it is worth a look: several islands, or a slower device than it knows of, long enough as it is."""
    if turn.now - holding.changed_at < turn.state.settings.grow_after_s or turn.now < holding.looked_at:
        return False
    if crossed(holding.drawn) > 1:
        return True
    speeds = {**holding.ask.declared, **holding.ask.measured}
    kinds = turn.state.catalog.kinds
    return len(speeds) > 1 and any(
        speed.of_one(holding.ask, kinds[node.kind].device) < max(speeds.values()) for node in holding.drawn
    )


def _better(turn: Turn, run: RunId, holding: Holding) -> None:
    state, now, ask = turn.state, turn.now, holding.ask
    choice = choice_of(state, holding)
    here = nodes_of(state, holding.nodes)
    # Not at every tick: what was not worth it a moment ago hardly is now.
    holding.looked_at = now + state.settings.calm_s
    if choice is None:
        return
    kinds, present = state.catalog.kinds, speed.rate(ask, here, state.catalog.kinds)
    best, best_rate = None, present * state.settings.move_gain
    # Its own places are free for the trial: the new placement may keep some of them.
    undraw(state, holding, now)
    for shape, room in _shapes(state, holding, choice, here):
        if room < len(here):
            continue
        found = gang(state.cluster, shape, len(here), islands=choice.option.islands, sums=bool(ask.sync_bytes))
        if found is not None and (promised := speed.rate(ask, found, kinds)) >= best_rate:
            best, best_rate = found, promised
    draw(state, holding, now)
    if best is None:
        return
    gives, takes = _exchange(here, best)
    cost = ask.regroup_s + ask.start_s
    gain = speed.saved(present, best_rate, speed.remaining(ask, holding.since, now, state.settings.horizon_s))
    # Old and new places are held at once for a moment: quotas and nodes must have room for both.
    if gain < PAYS * cost or not _fit_beside(state, holding, takes):
        return
    reason = Better(
        before_per_s=present,
        after_per_s=best_rate,
        islands_before=crossed(here),
        islands_after=crossed(best),
        gain_s=gain,
        cost_s=cost,
    )
    _moves(turn, run, holding, gives, takes, reason)


def _exchange(here: list[Node], best: list[Node]) -> tuple[list[Node], list[Node]]:
    """What is given up and what is taken, one for one; workers that stay are in neither."""
    takes = list(best)
    gives = []
    for node in here:
        if node in takes:
            takes.remove(node)
        else:
            gives.append(node)
    return gives, side_by_side(takes)


def _fit_beside(state: State, holding: Holding, takes: list[Node]) -> bool:
    each, count = holding.ask.each, {node.name: takes.count(node) for node in takes}
    for node in takes:
        cpus, gpus = (node.bucket[1], node.bucket[2]) if node.bucket is not None else (0, 0)
        if each.cpus * count[node.name] > cpus or each.gpus * count[node.name] > gpus:
            return False
    for flavor in {state.catalog.flavor_of[node.kind] for node in takes}:
        if state.accounts.bounded(holding.ask.queue):
            wanted = sum(state.catalog.flavor_of[node.kind] == flavor for node in takes)
            if state.accounts.room(holding.ask.queue, flavor, each) < wanted:
                return False
    return bool(takes)


def _moves(
    turn: Turn, run: RunId, holding: Holding, gives: list[Node], takes: list[Node], reason: Better | Leaves
) -> None:
    state, now = turn.state, turn.now
    undraw(state, holding, now)
    holding.nodes += [node.name for node in takes]
    draw(state, holding, now)
    # Until it is said that they are free, the old places are the run's, too.
    holding.leaving = [node.name for node in gives]
    holding.changed_at = now
    turn.moves.append(
        Move(run=run, gives=tuple(n.name for n in gives), takes=tuple(n.name for n in takes), reason=reason)
    )
