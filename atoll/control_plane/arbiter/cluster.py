"""Nodes by what is free on them: ten thousand nodes are some hundred islands of few buckets each.

A bucket holds the nodes of one island that have the same class and the same free amounts. How many workers of one shape
(classes that may hold it, amounts of one worker) an island holds is a sum over its buckets, computed once and again only
for islands that changed since; who asks whether a gang fits reads one number first.

What can be given out on a node is `total - taken - used - kept`: `taken` is held by others than the arbiter, `used` by
its grants, `kept` is for a run that waits for more of it. A drained node offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from atoll.control_plane.arbiter.catalog import Catalog
from atoll.control_plane.arbiter.model import Amount, IslandState, NodeState
from atoll.schema.ids import NodeId, RunId

# Workers that need nothing: as many as anybody asks for.
UNBOUNDED = 1 << 20
# Changes remembered for those who recompute only what changed; beyond it they recompute all.
_LOG = 50_000


class Node:
    """One node, as the arbiter keeps it. `occupants`: trainers of each run on it, spares included."""

    __slots__ = (
        "bucket",
        "cpus",
        "domain",
        "drained",
        "gpus",
        "island",
        "kept_cpus",
        "kept_gpus",
        "kind",
        "name",
        "occupants",
        "used_cpus",
        "used_gpus",
    )

    def __init__(self, name: NodeId, island: Island) -> None:
        self.name = name
        self.island = island
        self.domain = ""
        self.kind = -1
        self.cpus = self.gpus = 0
        self.used_cpus = self.used_gpus = 0
        self.kept_cpus = self.kept_gpus = 0
        self.drained = False
        self.bucket: tuple[int, int, int] | None = None
        self.occupants: dict[RunId, int] = {}


class Island:
    """Nodes with fast links between them."""

    __slots__ = ("across", "capacity", "inside", "local", "name", "nodes", "open")

    def __init__(self, name: str) -> None:
        self.name = name
        self.inside: float | None = None
        self.across: float | None = None
        self.local: float | None = None
        self.nodes: dict[NodeId, Node] = {}
        self.open: dict[tuple[int, int, int], dict[NodeId, Node]] = {}
        # (class, cpus, gpus) -> nodes that have so much in all
        self.capacity: dict[tuple[int, int, int], int] = {}


class Shape:
    """One worker's amounts and the classes that may hold it, with the number of free places on each island."""

    __slots__ = ("all_of", "all_total", "cpus", "epoch", "gpus", "group", "kinds", "seen", "sized", "slots", "total")

    def __init__(self, kinds: frozenset[int], cpus: int, gpus: int, group: int) -> None:
        self.kinds = kinds
        self.cpus = cpus
        self.gpus = gpus
        self.group = group
        self.slots: dict[str, int] = {}
        self.total = 0
        self.epoch = self.sized = -1
        self.seen = 0
        # places if all were free, by island
        self.all_of: dict[str, int] = {}
        self.all_total = 0

    def places(self, cpus: int, gpus: int) -> int:
        """Workers that these amounts hold."""
        if self.gpus:
            fits = gpus // self.gpus
            return min(fits, cpus // self.cpus) if fits and self.cpus else fits
        return cpus // self.cpus if self.cpus else UNBOUNDED

    def on(self, island: Island) -> int:
        """Places that are free on the island, in whole groups."""
        kinds, places = self.kinds, self.places
        total = sum(
            [places(cpus, gpus) * len(nodes) for (kind, cpus, gpus), nodes in island.open.items() if kind in kinds]
        )
        return total - total % self.group

    def in_all(self, island: Island) -> int:
        """Places on the island if nobody were there."""
        kinds, places = self.kinds, self.places
        total = sum([places(cpus, gpus) * n for (kind, cpus, gpus), n in island.capacity.items() if kind in kinds])
        return total - total % self.group


class Cluster:
    """All nodes. `sized` counts changes of what is there, `changed` lists islands where something was taken or freed."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.nodes: dict[NodeId, Node] = {}
        self.islands: dict[str, Island] = {}
        self.cpus = self.gpus = 0
        self.sized = 0
        self._epoch = 0
        self._changed: list[Island] = []
        self._building = False
        self._shapes: dict[tuple[frozenset[int], int, int, int], Shape] = {}

    # -- nodes come, change and go -----------------------------------------------------------------------------------

    def put(self, state: NodeState) -> Node:
        """The node as it is now; what grants hold on it stays."""
        node = self.nodes.get(state.node)
        if node is not None and node.island.name != state.island:
            self._leave(node)
            self._enter(node, state.island)
            self.sized += 1
        if node is None:
            node = self.nodes[state.node] = Node(state.node, self.island(state.island))
            self._enter(node, state.island)
        cpus = max(state.kind.total.cpus - state.taken.cpus, 0)
        gpus = max(state.kind.total.gpus - state.taken.gpus, 0)
        kind = self.catalog.number(state.kind)
        if (kind, cpus, gpus, state.drained) != (node.kind, node.cpus, node.gpus, node.drained):
            self._count(node, -1)
            node.kind, node.cpus, node.gpus, node.drained = kind, cpus, gpus, state.drained
            self._count(node, 1)
            self.sized += 1
        node.domain = state.domain
        self._file(node)
        return node

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it nodes are put and used, and what is free may not be asked: each is filed once, at the end."""
        self._building = True
        try:
            yield
        finally:
            self._building = False
            for node in self.nodes.values():
                self._file(node)

    def drop(self, name: NodeId) -> Node | None:
        """The node is not there any more."""
        node = self.nodes.pop(name, None)
        if node is not None:
            self._count(node, -1)
            self._leave(node)
            self.sized += 1
        return node

    def island(self, name: str) -> Island:
        """The island of this name."""
        found = self.islands.get(name)
        if found is None:
            found = self.islands[name] = Island(name)
        return found

    def measured(self, state: IslandState) -> None:
        """Its links are so fast."""
        island = self.island(state.name)
        island.inside, island.across, island.local = state.inside, state.across, state.local

    def _enter(self, node: Node, name: str) -> None:
        node.island = self.island(name)
        node.island.nodes[node.name] = node
        if node.kind >= 0:
            self._count(node, 1)

    def _leave(self, node: Node) -> None:
        island = node.island
        del island.nodes[node.name]
        if node.name in self.nodes:
            self._count(node, -1)
        self._unfile(node)
        self._changed.append(island)

    def _count(self, node: Node, by: int) -> None:
        if node.kind < 0 or node.drained:
            return
        capacity, key = node.island.capacity, (node.kind, node.cpus, node.gpus)
        left = capacity.get(key, 0) + by
        if left:
            capacity[key] = left
        else:
            capacity.pop(key, None)
        self.cpus += by * node.cpus
        self.gpus += by * node.gpus

    # -- amounts are taken and freed ---------------------------------------------------------------------------------

    def use(self, node: Node, cpus: int, gpus: int) -> None:
        """So much more (or, negative, less) of the node is in use by grants."""
        node.used_cpus += cpus
        node.used_gpus += gpus
        self._file(node)

    def keep(self, node: Node, cpus: int, gpus: int) -> None:
        """So much more (or less) of the node is kept for a run that waits."""
        node.kept_cpus += cpus
        node.kept_gpus += gpus
        self._file(node)

    def _unfile(self, node: Node) -> None:
        if node.bucket is not None:
            filed = node.island.open[node.bucket]
            del filed[node.name]
            if not filed:
                del node.island.open[node.bucket]
            node.bucket = None

    def _file(self, node: Node) -> None:
        if self._building:
            return
        cpus = node.cpus - node.used_cpus - node.kept_cpus
        gpus = node.gpus - node.used_gpus - node.kept_gpus
        bucket: tuple[int, int, int] | None = (node.kind, max(cpus, 0), max(gpus, 0))
        if node.drained:
            bucket = None
        if bucket == node.bucket:
            return
        self._unfile(node)
        if bucket is not None:
            node.island.open.setdefault(bucket, {})[node.name] = node
            node.bucket = bucket
        self._changed.append(node.island)
        if len(self._changed) > _LOG:
            self._changed.clear()
            self._epoch += 1

    # -- questions ---------------------------------------------------------------------------------------------------

    def shape(self, kinds: frozenset[int], each: Amount, group: int) -> Shape:
        """The one shape of this kind: those who ask for the same share what is computed."""
        key = (kinds, each.cpus, each.gpus, group)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = Shape(kinds, each.cpus, each.gpus, group)
        return found

    def forget_shapes(self, beyond: int = 0) -> bool:
        """Forget all shapes if there are more than so many: whoever holds one may use it on, but it is not shared."""
        if len(self._shapes) <= beyond:
            return False
        self._shapes.clear()
        return True

    def slots(self, shape: Shape) -> dict[str, int]:
        """Island -> free places of the shape, islands with none left out; `shape.total` is right afterwards, too."""
        if shape.epoch != self._epoch:
            shape.slots = {island.name: n for island in self.islands.values() if (n := shape.on(island))}
            shape.total = sum(shape.slots.values())
            shape.epoch = self._epoch
        elif shape.seen < len(self._changed):
            for island in dict.fromkeys(self._changed[shape.seen :]):
                now = shape.on(island)
                shape.total += now - shape.slots.get(island.name, 0)
                if now:
                    shape.slots[island.name] = now
                else:
                    shape.slots.pop(island.name, None)
        shape.seen = len(self._changed)
        return shape.slots

    def sizes(self, shape: Shape) -> dict[str, int]:
        """Island -> places if all were free; `shape.all_total` is right afterwards, too."""
        if shape.sized != self.sized:
            shape.all_of = {island.name: n for island in self.islands.values() if (n := shape.in_all(island))}
            shape.all_total = sum(shape.all_of.values())
            shape.sized = self.sized
        return shape.all_of
