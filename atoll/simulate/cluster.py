"""Clusters to simulate: nodes of several devices of one type, on islands of fast links.

`sync` between workers runs at `inside` bytes/s on one island and at `across` bytes/s as soon as a gang spans two: a gang
goes at the pace of its slowest level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from atoll.schema.ids import NodeId

# 10 Gbit/s of payload, as the hosts had on which the speeds in `laws` were measured, and half of it between islands: what
# one worker without its neighbours reached there (median over the models of `laws`, 8 workers on P100).
INSIDE, ACROSS = 1.25e9, 0.625e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One host."""

    name: NodeId
    device: str
    devices: int
    island: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes, and the bytes a second between workers of one island and of several."""

    nodes: tuple[Node, ...]
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
