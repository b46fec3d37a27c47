"""What is kept for a run that waits at the head, so that nobody behind it delays it: places, and from when it has them.

`forecast` finds the places where the run begins soonest: on each island (the roomiest `_LOOKED_AT`) the grants with a
known end give back their amounts one after another until the gang fits; those without come last, in unknown time. The
places stay the same until the run starts or they are gone, so its start never moves back behind somebody else.

Of a node that is kept, `keep` withholds only what its occupants will not give back by then themselves,

    withheld in all >= needed by it and those before it - given back by the start,

so whoever fits into the rest may run there as long as it likes, and after all grants of now have ended the head fits.
A run whose expected end lies before the start may use withheld amounts, too: that is backfill. Runs of unknown length
never do.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from atoll.control_plane.arbiter.cluster import Cluster, Island, Node, Shape
from atoll.control_plane.arbiter.state import Holding, Kept, State
from atoll.schema.ids import NodeId, RunId

# Islands of which a forecast is made: the next ones hardly begin sooner, and ten thousand nodes take too long.
_LOOKED_AT = 48


class Keeping:
    """What is withheld during one tick, for whom. `promised`: all that is needed on a node by those it is kept for."""

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.active: dict[RunId, Kept] = {}
        self.version = 0
        self._promised: dict[NodeId, tuple[int, int]] = {}
        self._extra: dict[tuple[Shape, RunId], tuple[int, int]] = {}

    def keep(self, kept: Kept) -> bool:
        """Withhold what the run needs; False where one of its places is not there any more."""
        nodes = self.state.cluster.nodes
        if any(name not in nodes or nodes[name].drained for name in kept.places):
            self.state.kept.pop(kept.run, None)
            return False
        needs: dict[NodeId, int] = {}
        for name in kept.places:
            needs[name] = needs.get(name, 0) + 1
        for name, n in needs.items():
            node, shape = nodes[name], kept.shape
            before = self._promised.get(name, (0, 0))
            after = (before[0] + n * shape.cpus, before[1] + n * shape.gpus)
            back = self._given_back(node, kept)
            cpus = max(after[0] - back[0] - node.kept_cpus, 0)
            gpus = max(after[1] - back[1] - node.kept_gpus, 0)
            self._promised[name] = after
            self.state.cluster.keep(node, cpus, gpus)
            kept.parts.append((node, cpus, gpus))
        self.active[kept.run] = self.state.kept[kept.run] = kept
        self.version += 1
        return True

    def stands(self, kept: Kept) -> bool:
        """Whether the run can still have its places by then, beside all for whom something is kept already."""
        nodes = self.state.cluster.nodes
        if kept.start is not None and kept.start <= self.now:
            return False
        for name in dict.fromkeys(kept.places):
            node = nodes.get(name)
            if node is None or node.drained:
                return False
            back, (cpus, gpus), n = self._given_back(node, kept), self.open_at(node), kept.places.count(name)
            if cpus + back[0] < n * kept.shape.cpus or gpus + back[1] < n * kept.shape.gpus:
                return False
        return True

    def lift(self, kept: Kept) -> None:
        """Withhold it no more, for now."""
        for node, cpus, gpus in kept.parts:
            self.state.cluster.keep(node, -cpus, -gpus)
        kept.parts = []
        for name in kept.places:
            cpus, gpus = self._promised[name]
            self._promised[name] = (cpus - kept.shape.cpus, gpus - kept.shape.gpus)
        del self.active[kept.run]
        self.version += 1

    def lift_all(self) -> None:
        """The tick is over."""
        for kept in list(self.active.values()):
            self.lift(kept)

    def _given_back(self, node: Node, kept: Kept) -> tuple[int, int]:
        """What occupants of the node will have given back when the run starts."""
        cpus = gpus = 0
        for run, count in node.occupants.items():
            holding = self.state.holdings[run]
            if kept.claim:
                count = _leaves(holding, node) if run in kept.givers else 0  # noqa: PLW2901
            elif kept.start is not None and not _ends_by(holding, kept.start, self.now):
                continue
            cpus += count * holding.ask.each.cpus
            gpus += count * holding.ask.each.gpus
        return cpus, gpus

    def withheld(self, shape: Shape, kept: Kept | None = None) -> int:
        """Places of the shape in what is withheld for this run (for all of them), at most."""
        if kept is None:
            return sum(self.withheld(shape, each) for each in self.active.values())
        version, found = self._extra.get((shape, kept.run), (-1, 0))
        if version != self.version:
            found = 0
            for node, cpus, gpus in kept.parts:
                if node.kind in shape.kinds and (cpus or gpus):
                    found += shape.places(*self._free(node)) - shape.places(*self._visible(node))
            self._extra[shape, kept.run] = (self.version, found)
        return found

    @staticmethod
    def _free(node: Node) -> tuple[int, int]:
        return max(node.cpus - node.used_cpus, 0), max(node.gpus - node.used_gpus, 0)

    @staticmethod
    def _visible(node: Node) -> tuple[int, int]:
        return (node.bucket[1], node.bucket[2]) if node.bucket is not None else (0, 0)

    def open_at(self, node: Node) -> tuple[int, int]:
        """What is free on the node now beside all that is promised."""
        cpus, gpus = self._promised.get(node.name, (0, 0))
        return node.cpus - node.used_cpus - cpus, node.gpus - node.used_gpus - gpus


def _leaves(holding: Holding, node: Node) -> int:
    if holding.suspending:
        return node.occupants[holding.ask.run]
    return holding.leaving.count(node.name)


def _ends_by(holding: Holding, start: float, now: float) -> bool:
    ends = holding.ends_at(now)
    return ends is not None and ends <= start


@dataclass(slots=True)
class _Room:
    """An island on its way through time: what each node has, and the places in it."""

    island: Island
    free: dict[NodeId, tuple[int, int]] = field(default_factory=dict)
    places: int = 0


def forecast(keeping: Keeping, shape: Shape, n: int, islands: int) -> tuple[list[NodeId], float | None] | None:
    """Where `n` workers on at most `islands` islands begin soonest, and when (None: nobody knows)."""
    cluster = keeping.state.cluster
    rooms = {i.name: _room(keeping, i, shape) for i in _candidates(cluster, shape, n, islands)}
    at, total = keeping.now, sum(room.places for room in rooms.values())
    if not (found := _fits(rooms, shape, n, islands)):
        for ends, node, cpus, gpus in _returns(keeping, rooms):
            at = ends
            room = rooms[node.island.name]
            had = room.free[node.name]
            now = (had[0] + cpus, had[1] + gpus)
            room.free[node.name] = now
            gained = _places(shape, now) - _places(shape, had)
            room.places += gained
            total += gained
            if not gained or total < n:
                continue
            if found := _fits({node.island.name: room} if islands == 1 else rooms, shape, n, islands):
                break
    if not found:
        return None
    return _pick(found, shape, n), at if at < math.inf else None


def _candidates(cluster: Cluster, shape: Shape, n: int, islands: int) -> list[Island]:
    sizes, free = cluster.sizes(shape), cluster.slots(shape)
    whole = [name for name, size in sizes.items() if islands != 1 or size >= n]
    best = heapq.nsmallest(_LOOKED_AT, whole, key=lambda name: (-free.get(name, 0), -sizes[name], name))
    if islands != 1 and sum(sizes[name] for name in best) < n:
        best = whole
    return [cluster.islands[name] for name in best]


def _places(shape: Shape, amounts: tuple[int, int]) -> int:
    return max(shape.places(max(amounts[0], 0), max(amounts[1], 0)), 0)


def _room(keeping: Keeping, island: Island, shape: Shape) -> _Room:
    room = _Room(island)
    for node in island.nodes.values():
        if node.kind in shape.kinds and not node.drained:
            room.free[node.name] = free = keeping.open_at(node)
            room.places += _places(shape, free)
    return room


def _returns(keeping: Keeping, rooms: dict[str, _Room]) -> list[tuple[float, Node, int, int]]:
    """What comes back on these islands, in order of time; runs without a known end last, the oldest first."""
    found: list[tuple[float, float, str, Node, int, int]] = []
    for room in rooms.values():
        for name in room.free:
            node = room.island.nodes[name]
            for run, count in node.occupants.items():
                holding = keeping.state.holdings[run]
                ends = holding.ends_at(keeping.now)
                each = holding.ask.each
                back = (count * each.cpus, count * each.gpus)
                found.append((math.inf if ends is None else ends, holding.since, run, node, *back))
    found.sort(key=lambda item: (item[0], item[1], item[2], item[3].name))
    return [(ends, node, cpus, gpus) for ends, _, _, node, cpus, gpus in found]


def _fits(rooms: dict[str, _Room], shape: Shape, n: int, islands: int) -> list[_Room]:
    """The fewest of the rooms that hold the gang together, or none."""
    group = shape.group
    order = sorted(rooms.values(), key=lambda room: (-room.places, room.island.name))
    if islands:
        order = order[:islands]
    chosen, left = [], n
    for room in order:
        chosen.append(room)
        left -= room.places - room.places % group
        if left <= 0:
            return chosen
    return []


def _pick(rooms: list[_Room], shape: Shape, n: int) -> list[NodeId]:
    chosen: list[NodeId] = []
    for room in rooms:
        whole = min(room.places - room.places % shape.group, n - len(chosen))
        by_room = sorted(room.free.items(), key=lambda item: (-_places(shape, item[1]), item[0]))
        for name, free in by_room:
            take = min(_places(shape, free), whole)
            chosen += [name] * take
            whole -= take
    return chosen
