"""One waiting run's turn: it starts, is refused, or waits with what stands against each of its options.

Who waits at the head keeps what it is waiting for: places (`keeping.py`) if nodes are the reason, room in its queue's
quota (a pledge) if that is. Only those behind it see it taken, so a small run never starves a large one of its queue, and
backfill never delays the head. Withheld places are open to runs that will have ended by then, and to those whose
priority is higher than their owner's.
"""

from __future__ import annotations

from atoll.control_plane.arbiter.choosing import choose, worked_out
from atoll.control_plane.arbiter.decisions import Refuse
from atoll.control_plane.arbiter.holding import draw, undraw
from atoll.control_plane.arbiter.keeping import forecast
from atoll.control_plane.arbiter.model import Ask
from atoll.control_plane.arbiter.ordering import priority, starving
from atoll.control_plane.arbiter.packing import side_by_side, spares
from atoll.control_plane.arbiter.preempting import preempt
from atoll.control_plane.arbiter.reasons import AwaitsRelease, NoQueue, NotLookedAt, Obstacle, Rejected
from atoll.control_plane.arbiter.refusing import judge
from atoll.control_plane.arbiter.state import Holding, Kept, State, Wish
from atoll.control_plane.arbiter.turn import Blocked, Plan, Started, Turn


def serve(turn: Turn, wish: Wish, position: int) -> None:
    """Decide about the run that is next."""
    state, ask = turn.state, wish.ask
    if ask.queue not in state.accounts.queues:
        _block(turn, wish, [Rejected(option=ask.queue, obstacle=NoQueue(queue=ask.queue))])
        return
    own = state.kept.get(ask.run)
    if own is not None and ask.run in turn.keeping.active:
        turn.keeping.lift(own)
    plan, against, by_quota = choose(turn, wish)
    if plan is None and turn.keeping.active:
        plan = _from_kept(turn, wish)
    if plan is not None:
        _start(turn, wish, plan)
        return
    if not wish.judged and not ask.suspended:
        never = judge(state, wish)
        if never is not None:
            del state.wishes[ask.run]
            state.kept.pop(ask.run, None)
            turn.refusals.append(Refuse(run=ask.run, reason=never))
            return
    yields = _ask_others(turn, wish, position, own)
    if yields is not None:
        against.append(Rejected(option="others yielding", obstacle=yields))
    if by_quota:
        _pledge(state, wish)
    elif not isinstance(yields, AwaitsRelease):
        _keep_places(turn, wish, own)
    _block(turn, wish, against)


def _block(turn: Turn, wish: Wish, against: list[Rejected]) -> None:
    late = starving(turn.state, wish.ask, turn.now)
    turn.blocked.append(Blocked(wish=wish, rejected=tuple(against), starving=late))


# -- it starts -------------------------------------------------------------------------------------------------------


def _start(turn: Turn, wish: Wish, plan: Plan) -> None:
    state, ask = turn.state, wish.ask
    nodes = side_by_side(plan.nodes)
    holding = Holding(
        ask=ask,
        nodes=[node.name for node in nodes],
        spares=[],
        since=turn.now,
        changed_at=turn.now,
        option=plan.choice.index,
        checkpoint_at=None,
        leaving=[],
        suspending=False,
        sizes=plan.choice.sizes,
    )
    state.holdings[ask.run] = holding
    draw(state, holding, turn.now)
    for kept in turn.rekeep:
        turn.keeping.keep(kept)
    turn.rekeep.clear()
    wanted = ask.spares
    if wanted and plan.way.flavor is not None:
        wanted = min(wanted, state.accounts.room(ask.queue, plan.way.flavor, ask.each))
    if wanted:
        shape = state.cluster.shape(plan.way.shape.kinds, ask.each, 1)
        found = spares(state.cluster, shape, wanted, nodes, room=plan.choice.sizes[-1] - len(nodes))
        undraw(state, holding, turn.now)
        holding.spares = [node.name for node in found]
        draw(state, holding, turn.now)
    del state.wishes[ask.run]
    state.kept.pop(ask.run, None)
    overtaken = turn.blocked[0].wish.ask.run if turn.blocked else None
    turn.starts[ask.run] = Started(wish=wish, plan=plan, holding=holding, overtaken=overtaken)


def _from_kept(turn: Turn, wish: Wish) -> Plan | None:
    """A plan that uses what is kept for others and will be given back in time, or outranks them."""
    ask, keeping = wish.ask, turn.keeping
    ours = priority(turn.state, ask)
    usable = [k for k in keeping.active.values() if _over_in_time(turn, ask, k) or _outranks(turn, ours, k)]
    if not usable or not _could_fit(turn, wish, usable):
        return None
    for kept in usable:
        keeping.lift(kept)
    plan, _, _ = choose(turn, wish)
    if plan is None:
        for kept in usable:
            keeping.keep(kept)
        return None
    taken = {node.name for node in plan.nodes}
    for kept in usable:
        if not taken.isdisjoint(kept.places) and not _over_in_time(turn, ask, kept):
            # Its places go to somebody before it: it looks for others at its own turn.
            turn.state.kept.pop(kept.run, None)
    turn.rekeep += [kept for kept in usable if kept.run in turn.state.kept]
    return plan


def _could_fit(turn: Turn, wish: Wish, usable: list[Kept]) -> bool:
    """Whether there would be places enough, islands and quotas apart: lifting what is kept takes time."""
    ask, keeping = wish.ask, turn.keeping
    for choice in worked_out(turn.state, wish):
        for way in choice.ways if choice.sizes else ():
            least = choice.sizes[0]
            if way.flavor is not None and turn.state.accounts.room(ask.queue, way.flavor, ask.each) < least:
                continue
            free, extra = turn.state.cluster.slots(way.shape), [keeping.withheld(way.shape, k) for k in usable]
            if not any(extra) or way.shape.total + sum(extra) < least:
                continue
            if choice.option.islands != 1 or max(free.values(), default=0) + sum(extra) >= least:
                return True
    return False


def _over_in_time(turn: Turn, ask: Ask, kept: Kept) -> bool:
    if kept.claim or kept.start is None or ask.expected_s is None:
        return False
    return turn.now + ask.expected_s <= kept.start


def _outranks(turn: Turn, ours: int, kept: Kept) -> bool:
    owner = turn.state.wishes[kept.run].ask
    return ours > priority(turn.state, owner) and not starving(turn.state, owner, turn.now)


# -- it waits --------------------------------------------------------------------------------------------------------


def _ask_others(turn: Turn, wish: Wish, position: int, own: Kept | None) -> Obstacle | None:
    state = turn.state
    if own is not None and own.claim:
        givers = tuple(run for run in own.givers if run in state.holdings and not state.holdings[run].steady())
        if givers and turn.keeping.keep(own):
            return AwaitsRelease(runs=givers)
        state.kept.pop(wish.ask.run, None)
    if turn.looked_at >= state.settings.looked_at:
        return NotLookedAt(position=position)
    turn.looked_at += 1
    found = preempt(turn, wish)
    if isinstance(found, AwaitsRelease):
        turn.keeping.keep(state.kept[wish.ask.run])
    return found


def _keep_places(turn: Turn, wish: Wish, own: Kept | None) -> None:
    state = turn.state
    late = starving(state, wish.ask, turn.now)
    if turn.reserved >= state.settings.reserved_for and not late:
        state.kept.pop(wish.ask.run, None)
        return
    turn.reserved += 1
    sure = own is not None and not own.claim and own.start is not None
    if own is not None and sure and turn.keeping.stands(own) and turn.keeping.keep(own):
        return
    best = _soonest(turn, wish)
    if own is not None and not own.claim and own.start is None and (best is None or best.start is None):
        # Nobody knows when: the places of before, so that who ends there counts.
        best = own if turn.keeping.stands(own) else best
    if best is None:
        state.kept.pop(wish.ask.run, None)
    else:
        turn.keeping.keep(best)


def _soonest(turn: Turn, wish: Wish) -> Kept | None:
    """The places where one of its options begins soonest."""
    state = turn.state
    best: Kept | None = None
    for choice in worked_out(state, wish):
        for way in choice.ways if choice.sizes else ():
            least = choice.sizes[0]
            if way.flavor is not None and state.accounts.room(wish.ask.queue, way.flavor, wish.ask.each) < least:
                continue
            found = forecast(turn.keeping, way.shape, least, choice.option.islands)
            if found is None:
                continue
            places, start = found
            if best is None or (start is not None and (best.start is None or start < best.start)):
                best = Kept(
                    run=wish.ask.run, option=choice.index, shape=way.shape, places=places, start=start, claim=False
                )
    return best


def _pledge(state: State, wish: Wish) -> None:
    """Its queue's room is its own, for the first option that the quota could ever hold."""
    for choice in worked_out(state, wish):
        for way in choice.ways if choice.sizes else ():
            if way.flavor is not None:
                each, n = wish.ask.each, choice.sizes[0]
                state.accounts.pledge(wish.ask.queue, way.flavor, (each.cpus * n, each.gpus * n))
                return
