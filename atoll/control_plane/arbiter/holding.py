"""Runs that hold nodes: what they take off the nodes, and what their queues are charged for it.

A grant may name a node that is not there (lost, not listed yet): nothing is taken for it, and it is taken as soon as the
node is back. So a device is never counted twice, and never given out while its old holder may come back to it only by
the decision of whoever ends that grant.
"""

from __future__ import annotations

from collections import Counter

from atoll.control_plane.arbiter.accounts import Pair, plus
from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.state import Holding, State
from atoll.schema.ids import NodeId


def draw(state: State, holding: Holding, now: float) -> None:
    """Take what the holding names."""
    each, run = holding.ask.each, holding.ask.run
    cluster, flavors = state.cluster, state.catalog.flavor_of
    charges: dict[str, Pair] = {}
    for name, count in counted([*holding.nodes, *holding.spares]).items():
        node = cluster.nodes.get(name)
        if node is None:
            state.missing.setdefault(name, {})[run] = None
            continue
        cpus, gpus = count * each.cpus, count * each.gpus
        cluster.use(node, cpus, gpus)
        node.occupants[run] = count
        holding.drawn += [node] * count
        flavor = flavors[node.kind]
        charges[flavor] = plus(charges.get(flavor, (0, 0)), (cpus, gpus))
    holding.charges, holding.spread = charges, None
    state.accounts.charge(holding.ask.queue, holding.ask.user, charges, sign=1, now=now)


def undraw(state: State, holding: Holding, now: float) -> None:
    """Give back what the holding took."""
    each, run = holding.ask.each, holding.ask.run
    for node in dict.fromkeys(holding.drawn):
        count = node.occupants.pop(run)
        state.cluster.use(node, -count * each.cpus, -count * each.gpus)
    holding.drawn = []
    state.accounts.charge(holding.ask.queue, holding.ask.user, holding.charges, sign=-1, now=now)
    holding.charges = {}


def counted(names: list[NodeId]) -> dict[NodeId, int]:
    """How often each name is there, in their order."""
    return Counter(names)


def add(state: State, holding: Holding, nodes: list[Node], now: float) -> None:
    """Workers more, on these nodes."""
    undraw(state, holding, now)
    holding.nodes += [node.name for node in nodes]
    draw(state, holding, now)


def redraw(state: State, names: list[NodeId], now: float) -> None:
    """Nodes of these names came, went, or changed class or island: whoever is on them is counted anew."""
    runs: dict[str, Holding] = {}
    for name in names:
        node = state.cluster.nodes.get(name)
        for run in (*(node.occupants if node else ()), *state.missing.pop(name, ())):
            if run in state.holdings:
                runs[run] = state.holdings[run]
    for holding in runs.values():
        undraw(state, holding, now)
        draw(state, holding, now)


def nodes_of(state: State, names: list[NodeId]) -> list[Node]:
    """Those of the nodes that are there."""
    nodes = state.cluster.nodes
    return [nodes[name] for name in names if name in nodes]
