"""Who listens for whom: a ring inside each island, and delegates across.

Each node and its two neighbours in its island's ring beat to each other. The first two nodes of an island are its
delegates: the first beats to the first of other islands, the second to the second, so that one lost delegate does not
make two islands deaf to each other. Of many islands each hears `REACH` on either side. Every node thus has two
listeners at least where there are three nodes, and a node sends to a handful of others however large the cluster is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from atoll.schema.ids import NodeId

# Up to five islands all hear one another; beyond, who hears four others also hears of the rest through them.
REACH = 2


def ring(islands: Iterable[Collection[NodeId]], nodes: Collection[NodeId]) -> dict[NodeId, tuple[NodeId, ...]]:
    """For each of `nodes`, those that it beats to and listens for. Symmetric. Nodes of no island make up one more."""
    wanted = set(nodes)
    groups = [sorted(wanted & set(island)) for island in islands]
    rest = wanted.difference(*groups)
    groups = sorted(group for group in (*groups, sorted(rest)) if group)
    pairs: set[tuple[NodeId, NodeId]] = set()
    for group in groups:
        pairs.update(zip(group, (*group[1:], group[0]), strict=True))
    for i, group in enumerate(groups):
        for step in range(1, REACH + 1):
            other = groups[(i + step) % len(groups)]
            pairs.update(zip(_delegates(group), _delegates(other), strict=True))
    ties: dict[NodeId, set[NodeId]] = {n: set() for n in sorted(wanted)}
    for a, b in pairs:
        if a != b:
            ties[a].add(b)
            ties[b].add(a)
    return {n: tuple(sorted(others)) for n, others in ties.items()}


def _delegates(group: list[NodeId]) -> tuple[NodeId, NodeId]:
    return group[0], group[1 % len(group)]
