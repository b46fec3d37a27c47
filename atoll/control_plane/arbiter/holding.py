"""Runs that hold nodes: what they take off the nodes, and what their queues are charged for it.

A grant may name a node that is not there (lost, not listed yet): nothing is taken for it, and it is taken as soon as the
node is back. So a device is never counted twice, and never given out while its old holder may come back to it only by
the decision of whoever ends that grant.
"""

from __future__ import annotations

from atoll.control_plane.arbiter.accounts import Pair, plus
from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.state import Holding, State
from atoll.schema.ids import NodeId


def draw(state: State, holding: Holding, now: float) -> None:
    """Take what the holding names."""
    each = (holding.ask.each.cpus, holding.ask.each.gpus)
    run, cluster, flavors = holding.ask.run, state.cluster, state.catalog.flavor_of
    charges: dict[str, Pair] = {}
    for name in (*holding.nodes, *holding.spares):
        node = cluster.nodes.get(name)
        if node is None:
            state.missing.setdefault(name, {})[run] = None
            continue
        cluster.use(node, *each)
        node.occupants[run] = node.occupants.get(run, 0) + 1
        holding.drawn.append(node)
        flavor = flavors[node.kind]
        charges[flavor] = plus(charges.get(flavor, (0, 0)), each)
    holding.charges = charges
    state.accounts.charge(holding.ask.queue, holding.ask.user, charges, sign=1, now=now)


def undraw(state: State, holding: Holding, now: float) -> None:
    """Give back what the holding took."""
    each = holding.ask.each
    for node in holding.drawn:
        state.cluster.use(node, -each.cpus, -each.gpus)
        left = node.occupants[holding.ask.run] - 1
        if left:
            node.occupants[holding.ask.run] = left
        else:
            del node.occupants[holding.ask.run]
    holding.drawn = []
    state.accounts.charge(holding.ask.queue, holding.ask.user, holding.charges, sign=-1, now=now)
    holding.charges = {}


def add(state: State, holding: Holding, nodes: list[Node], now: float) -> None:
    """Workers more, on these nodes."""
    undraw(state, holding, now)
    holding.nodes += [node.name for node in nodes]
    draw(state, holding, now)


def redraw(state: State, names: list[NodeId], now: float) -> None:
    """Nodes of these names came, changed class or went: whoever is on them is counted anew."""
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
