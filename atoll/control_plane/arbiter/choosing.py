"""Which of a run's alternatives can be had now, and which of those it gets.

An option is tried at its least legal size: what a run may have beyond it is given out when all who wait have had their
turn (`growing.py`). Ordered options: the first that fits. Otherwise, and among unlike devices of one option, the one with
the highest score: samples a second predicted for this very run, divided by what the devices are worth to the others who wait
(each one's speed there against its best). So of two runs that are both faster on A the one gets A that gains more by
it, as in Gavel's and Sia's normalised throughput, one run at a time.
"""

from __future__ import annotations

from heapq import nlargest

from atoll.control_plane.arbiter import speed
from atoll.control_plane.arbiter.model import Amount, Ask
from atoll.control_plane.arbiter.packing import gang
from atoll.control_plane.arbiter.reasons import (
    IslandsFull,
    NoFlavor,
    NoRoom,
    Obstacle,
    QuotaReached,
    Rejected,
    WouldDelay,
)
from atoll.control_plane.arbiter.state import Choice, State, Way, Wish, choices
from atoll.control_plane.arbiter.turn import Plan, Turn


def worked_out(state: State, wish: Wish) -> list[Choice]:
    """The wish's choices, right for now."""
    if wish.version != state.version():
        wish.choices, wish.version = choices(state, wish.ask), state.version()
    return wish.choices


def choose(turn: Turn, wish: Wish) -> tuple[Plan | None, list[Rejected], bool]:
    """The plan to start by, or none; what stands against the options before it; whether only quotas do."""
    state, against, by_quota = turn.state, [], True
    found: list[Plan] = []
    for choice in worked_out(state, wish):
        plans = _plans(state, wish.ask, choice)
        if plans:
            found += plans
            if wish.ask.ordered:
                break
            continue
        obstacle = obstacle_of(turn, wish.ask, choice)
        by_quota = by_quota and isinstance(obstacle, QuotaReached)
        against.append(Rejected(option=choice.name, obstacle=obstacle))
    if not found:
        return None, against, by_quota
    best = max(found, key=lambda plan: _score(turn, wish.ask, plan)) if len(found) > 1 else found[0]
    best.rejected = tuple(against)
    return best, against, False


def _plans(state: State, ask: Ask, choice: Choice) -> list[Plan]:
    if not choice.sizes:
        return []
    least, most, found = choice.sizes[0], choice.sizes[-1], []
    for way in choice.ways:
        if way.flavor is not None:
            room = state.accounts.room(ask.queue, way.flavor, ask.each)
            if room < least:
                continue
        nodes = gang(
            state.cluster, way.shape, least, islands=choice.option.islands, most=most, sums=bool(ask.sync_bytes)
        )
        if nodes:
            found.append(Plan(choice=choice, way=way, nodes=nodes))
            if way.device is None or (way.flavor is not None and choice.option.flavors and ask.ordered):
                # Nothing to compare: flavors in the order in which the run names them.
                break
    return found


def _score(turn: Turn, ask: Ask, plan: Plan) -> float:
    kinds = turn.state.catalog.kinds
    devices = [kinds[node.kind].device for node in plan.nodes]
    worth = turn.worth().to_others(ask, dict.fromkeys(devices))
    value = sum(worth[device] for device in devices) / len(devices)
    return speed.rate(ask, plan.nodes, kinds) / value if value > 0 else 0.0


def obstacle_of(turn: Turn, ask: Ask, choice: Choice) -> Obstacle:
    """What stands against the option, which does not fit now: of the way that comes nearest."""
    state, cluster = turn.state, turn.state.cluster
    if not choice.ways or not choice.sizes:
        return NoFlavor(flavors=choice.option.flavors, queue=ask.queue)
    least, islands = choice.sizes[0], choice.option.islands
    open_ways = [
        w for w in choice.ways if w.flavor is None or state.accounts.room(ask.queue, w.flavor, ask.each) >= least
    ]
    if not open_ways:
        return _quota(state, ask, choice.ways[0], least)
    way = max(open_ways, key=lambda w: (cluster.slots(w.shape) and w.shape.total) or 0)
    free = cluster.slots(way.shape)
    extra = turn.keeping.withheld(way.shape) if turn.keeping.active else 0
    if extra and way.shape.total < least <= way.shape.total + extra:
        kept = next(iter(turn.keeping.active.values()))
        return WouldDelay(run=kept.run, starts_at=kept.start, now=turn.now)
    if way.shape.total >= least and islands:
        best = sum(nlargest(islands, free.values()))
        return IslandsFull(wanted=least, islands=islands, fits=best, anywhere=way.shape.total)
    cluster.sizes(way.shape)
    return NoRoom(wanted=least, fits=min(way.shape.total, least), exists=way.shape.all_total)


def _quota(state: State, ask: Ask, way: Way, least: int) -> QuotaReached:
    flavor = way.flavor or ""
    accounts = state.accounts
    used, own, allowed = (
        Amount(cpus=pair[0], gpus=pair[1])
        for pair in (
            accounts.used(ask.queue, flavor),
            accounts.own(ask.queue, flavor),
            accounts.allowance(ask.queue, flavor),
        )
    )
    needs = Amount(cpus=ask.each.cpus * least, gpus=ask.each.gpus * least)
    return QuotaReached(queue=ask.queue, flavor=flavor, used=used, own=own, allowed=allowed, needs=needs)
