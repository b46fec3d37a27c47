"""Whether the cluster can ever hold a run: all nodes empty, those included that could be started, the quota all its own.

Judged once, when a run first waits at a tick and nodes are there at all: nobody is refused because a node went
meanwhile, or because the cluster is just starting.
"""

from __future__ import annotations

from heapq import nlargest

from atoll.control_plane.arbiter.accounts import Pair
from atoll.control_plane.arbiter.catalog import labels_of, selects
from atoll.control_plane.arbiter.choosing import worked_out
from atoll.control_plane.arbiter.cluster import UNBOUNDED, Shape
from atoll.control_plane.arbiter.model import Amount, Ask, NodeClass
from atoll.control_plane.arbiter.reasons import Lacks, Never
from atoll.control_plane.arbiter.state import Choice, State, Way, Wish


def judge(state: State, wish: Wish) -> Never | None:
    """Why the run can never be placed, or None if it can, or nobody knows yet."""
    if not state.cluster.nodes and not state.obtainable:
        return None
    wish.judged = True
    lacks = []
    for choice in worked_out(state, wish):
        lack = _lack(state, wish.ask, choice)
        if lack is None:
            return None
        lacks.append(lack)
    return Never(lacks=tuple(lacks))


def _lack(state: State, ask: Ask, choice: Choice) -> Lacks | None:
    if not choice.sizes:
        return Lacks(option=choice.name, wanted=ask.least, fits=0, islands=choice.option.islands, each=ask.each)
    least, best, narrow = choice.sizes[0], 0, None
    for way in choice.ways:
        fits = max(_holds(state, way.shape, choice.option.islands), 0) + _could_come(state, ask, choice, way)
        quota = UNBOUNDED if way.flavor is None else _quota_ever(state, ask, way)
        if min(fits, quota) >= least:
            return None
        if quota < least <= fits and way.flavor is not None:
            narrow = way.flavor
        best = max(best, fits)
    if not choice.ways and _could_come(state, ask, choice, None) >= least:
        return None
    if narrow is not None:
        most = state.accounts.most_ever(ask.queue, narrow)
        quota_of = Amount(cpus=most[0], gpus=most[1])
        return Lacks(
            option=choice.name, wanted=least, fits=0, islands=0, each=ask.each, quota_flavor=narrow, quota=quota_of
        )
    return Lacks(option=choice.name, wanted=least, fits=best, islands=choice.option.islands, each=ask.each)


def _holds(state: State, shape: Shape, islands: int) -> int:
    sizes = state.cluster.sizes(shape)
    if not islands:
        return shape.all_total
    return sum(nlargest(islands, sizes.values()))


def _quota_ever(state: State, ask: Ask, way: Way) -> int:
    return _fits(state.accounts.most_ever(ask.queue, way.flavor or ""), ask.each)


def _fits(have: Pair, each: Amount) -> int:
    limits = [h // n for h, n in zip(have, (each.cpus, each.gpus), strict=True) if n]
    return min(limits, default=UNBOUNDED)


def _could_come(state: State, ask: Ask, choice: Choice, way: Way | None) -> int:
    """Workers on nodes that are not there and could be started; one island, as the provider is asked for it."""
    return sum(
        _fits((it.kind.total.cpus, it.kind.total.gpus), ask.each) * it.most
        for it in state.obtainable
        if _may(state, choice, way, it.kind)
    )


def _may(state: State, choice: Choice, way: Way | None, kind: NodeClass) -> bool:
    labels = labels_of(kind)
    flavor = next((f.name for f in state.catalog.flavors if selects(f.selector, labels)), "")
    named = not choice.option.flavors or flavor in choice.option.flavors
    return named and selects(choice.option.selector, labels) and (way is None or way.flavor in {None, flavor})
