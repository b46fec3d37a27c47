"""Where a gang goes: on as few islands as possible, on few nodes of them, spares where nothing else of it can fail.

A reduction is as slow as the slowest link that it crosses, so one island beats two whatever else is equal. Of the islands
that hold the whole gang, those with the fastest links come first if the run says how much it adds up; then the one
that is filled best: the smallest that also holds what the run may grow to, else the largest. Where no island holds it,
islands are taken from the largest number of free places down, which takes the fewest; the last is the tightest that does.

A spare replaces any of the workers, so it should share no failure domain with them; where there is no such place, another
node must do, and at last any place.
"""

from __future__ import annotations

from collections.abc import Callable

from atoll.control_plane.arbiter.cluster import Cluster, Island, Node, Shape

# Islands looked at for a spare: beyond them one is as good as another.
_SPARE_ISLANDS = 16


def gang(
    cluster: Cluster, shape: Shape, n: int, *, islands: int = 0, most: int = 0, sums: bool = False
) -> list[Node] | None:
    """A node for each of `n` workers on at most `islands` islands (0: any number), or None where they do not fit.

    `most`: how far the run may grow; `sums`: it sends enough that the speed of links counts before a tight fit.
    """
    slots = cluster.slots(shape)
    if shape.total < n:
        return None
    whole = [(name, free) for name, free in slots.items() if free >= n]
    if whole:
        name = min(whole, key=_tightest(cluster, max(most, n), sums=sums))[0]
        return places(cluster.islands[name], shape, n)
    return None if islands == 1 else _spread(cluster, shape, n, islands)


def _tightest(cluster: Cluster, most: int, *, sums: bool) -> Callable[[tuple[str, int]], tuple[float, bool, int, str]]:
    def key(item: tuple[str, int]) -> tuple[float, bool, int, str]:
        name, free = item
        fast = -(cluster.islands[name].inside or 0.0) if sums else 0.0
        return fast, free < most, free if free >= most else -free, name

    return key


def _spread(cluster: Cluster, shape: Shape, n: int, islands: int) -> list[Node] | None:
    chosen: list[Node] = []
    left = n
    order = sorted(shape.slots.items(), key=lambda item: (-item[1], item[0]))
    for used, (name, free) in enumerate(order):
        if islands and used == islands:
            return None
        if free >= left:
            rest = [item for item in order[used:] if item[1] >= left]
            last = min(rest, key=lambda item: (item[1], item[0]))[0]
            return chosen + places(cluster.islands[last], shape, left)
        chosen += places(cluster.islands[name], shape, free)
        left -= free
    return None


def places(island: Island, shape: Shape, n: int) -> list[Node]:
    """Nodes of the island for `n` workers that fit there: the tightest one that holds all, else the roomiest first."""
    rooms = [
        (shape.places(cpus, gpus), name, node)
        for (kind, cpus, gpus), nodes in island.open.items()
        if kind in shape.kinds and shape.places(cpus, gpus) > 0
        for name, node in nodes.items()
    ]
    rooms.sort(key=lambda room: (-room[0], room[1]))
    chosen: list[Node] = []
    for at, (fits, _name, node) in enumerate(rooms):
        left = n - len(chosen)
        if fits >= left:
            tight = min((room for room in rooms[at:] if room[0] >= left), key=lambda room: (room[0], room[1]))
            return chosen + [tight[2]] * left
        chosen += [node] * fits
    return chosen


def more(
    cluster: Cluster, shape: Shape, n: int, here: list[Node], *, islands: int = 0, sums: bool = False
) -> list[Node] | None:
    """Nodes for `n` workers more of a run that is `here`: its own islands first, then the fewest others."""
    slots = cluster.slots(shape)
    if shape.total < n:
        return None
    own = sorted({node.island.name for node in here}, key=lambda name: (-slots.get(name, 0), name))
    chosen: list[Node] = []
    for name in own:
        take = min(slots.get(name, 0), n - len(chosen))
        if take:
            chosen += places(cluster.islands[name], shape, take)
    left = n - len(chosen)
    if not left:
        return chosen
    if islands and len(own) >= islands:
        return None
    others = [item for item in slots.items() if item[0] not in own and item[1] >= left]
    if not others:
        return None
    name = min(others, key=_tightest(cluster, left, sums=sums))[0]
    return chosen + places(cluster.islands[name], shape, left)


def spares(cluster: Cluster, shape: Shape, n: int, workers: list[Node], *, room: int = 0) -> list[Node]:
    """Up to `n` places for spares, one after another; call it when the workers' places are taken.

    `room`: places that the run may still grow by. A spare takes none of them on its island if another island does.
    """
    found: list[Node] = []
    domains = {node.domain for node in workers}
    nodes = {node.name for node in workers}
    near = {node.island.name for node in workers}
    for _ in range(n):
        slots = cluster.slots(shape)
        wide = room <= 0 or any(slots.get(name, 0) > room for name in near)
        names = sorted(slots, key=lambda name: ((name not in near) == wide, name))[:_SPARE_ISLANDS]
        rooms = [
            ((node.domain in domains, node.name in nodes, at), node)
            for at, name in enumerate(names)
            for node in _open_nodes(cluster.islands[name], shape)
        ]
        if not rooms:
            break
        node = min(rooms, key=lambda room: (room[0], room[1].name))[1]
        found.append(node)
        cluster.use(node, shape.cpus, shape.gpus)
    for node in found:
        cluster.use(node, -shape.cpus, -shape.gpus)
    return found


def _open_nodes(island: Island, shape: Shape) -> list[Node]:
    rooms = [
        node
        for (kind, cpus, gpus), nodes in island.open.items()
        if kind in shape.kinds and shape.places(cpus, gpus) > 0
        for node in nodes.values()
    ]
    return sorted(rooms, key=lambda node: node.name)


def crossed(nodes: list[Node]) -> int:
    """On how many islands these are."""
    return len({node.island.name for node in nodes})


def side_by_side(nodes: list[Node]) -> list[Node]:
    """The nodes in order of rank: islands together, the one with most workers first."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.island.name] = counts.get(node.island.name, 0) + 1
    return sorted(nodes, key=lambda node: (-counts[node.island.name], node.island.name, node.name))
