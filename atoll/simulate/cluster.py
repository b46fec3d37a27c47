"""Clusters to simulate: nodes of several devices of one type, on islands of fast links.

Workers sum up at `local` bytes/s on one host, at `inside` bytes/s on one island, and at `across` bytes/s as soon as their
gang spans two: a gang goes at the pace of its slowest level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from atoll.schema.ids import NodeId

# Between hosts half of what is reached on one: the mean (geometric) over the models of `laws`, as 8 workers on P100 on one
# host and on several were measured for them; between islands half of that again. Only these ratios matter: the bytes of a
# sum in `laws` are fitted to `LOCAL`.
LOCAL, INSIDE, ACROSS = 2.5e9, 1.25e9, 0.625e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One host."""

    name: NodeId
    device: str
    devices: int
    island: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes, and the bytes a second between workers of one host, one island, several."""

    nodes: tuple[Node, ...]
    local: float = LOCAL
    inside: float = INSIDE
    across: float = ACROSS
    by_name: Mapping[NodeId, Node] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    @property
    def devices(self) -> int:
        """All devices of all nodes."""
        return sum(node.devices for node in self.nodes)

    def of_type(self) -> dict[str, int]:
        """Devices by their type."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.device] = found.get(node.device, 0) + node.devices
        return found


def islands(nodes: int, *, types: Sequence[str], each: int, island_nodes: int) -> Cluster:
    """`nodes` hosts of `each` devices; islands of `island_nodes` hosts, all of one type, the types in turn in equal parts."""
    made: list[Node] = []
    for number in range(nodes):
        place = number * len(types) // nodes
        first = -(-place * nodes // len(types))
        island = (number - first) // island_nodes
        device = types[place]
        name = NodeId(f"{device}-{island:04d}-{number - first - island * island_nodes:02d}")
        made.append(Node(name=name, device=device, devices=each, island=f"{device}-{island:04d}"))
    return Cluster(nodes=tuple(made))
