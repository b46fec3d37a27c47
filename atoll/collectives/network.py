"""From what is known of the network to what a communicator needs: groups of near ranks, a fabric, ways to each peer.

All of it follows from the membership and the topology that came with it, so all members of an epoch see the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.collectives.fabric import Fabric, fabric_of
from atoll.collectives.islands import Island, islands
from atoll.collectives.plan_shapes import Group
from atoll.schema.ids import NodeId
from atoll.schema.messages import Member
from atoll.schema.topology import Topology


@dataclass(frozen=True, slots=True)
class Way:
    """An address of a peer, and the own address to go out from (None: the kernel's choice)."""

    host: str
    port: int
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """The network of one epoch's members, by rank."""

    nodes: tuple[NodeId, ...]
    topology: Topology
    fabric: Fabric
    groups: Group

    def lines(self, one: int, other: int) -> int:
        """How many connections two ranks keep."""
        routes = self.fabric.routes
        return max(routes[one, other].connections, routes[other, one].connections)


def network_of(members: Sequence[Member], topology: Topology | None) -> Network:
    """The network of `members` in rank order; of their nodes' part of `topology` where there is one."""
    nodes = tuple(m.node for m in members)
    return network_on(nodes, part_of(topology or Topology(hosts=()), set(nodes)))


def network_on(nodes: tuple[NodeId, ...], topology: Topology) -> Network:
    """The network of ranks that live on `nodes[rank]`."""
    return Network(nodes, topology, fabric_of(nodes, topology), groups_of(nodes, topology))


def part_of(topology: Topology, nodes: set[NodeId]) -> Topology:
    """What `topology` says of `nodes`."""
    return Topology(
        hosts=tuple(h for h in topology.hosts if h.node in nodes),
        links=tuple(k for k in topology.links if k.source in nodes and k.target in nodes),
        trunks=topology.trunks,
        version=topology.version,
    )


def groups_of(nodes: Sequence[NodeId], topology: Topology) -> Group:
    """Ranks by islands, and within those by hosts."""
    ranks: dict[NodeId, list[int]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(rank)
    by_node: dict[NodeId, Group] = {n: found[0] if len(found) == 1 else tuple(found) for n, found in ranks.items()}
    if not topology.links:
        return _single(tuple(by_node.values()))
    return _grouped(islands(topology), by_node)


def _grouped(island: Island, by_node: Mapping[NodeId, Group]) -> Group:
    if not island.children:
        return _single(tuple(by_node[n] for n in island.nodes if n in by_node))
    return _single(tuple(_grouped(child, by_node) for child in island.children))


def _single(members: tuple[Group, ...]) -> Group:
    return members[0] if len(members) == 1 else members


def ways(me: Member, peer: Member, topology: Topology) -> tuple[Way, ...]:
    """How to reach `peer`: by the fastest measured link first, then others, and last by its first address."""
    links = [k for k in topology.links if k.source == me.node and k.target == peer.node]
    links.sort(key=lambda k: (-k.bandwidth, k.latency_s, k.source_nic, k.target_nic))
    own = _addresses(me, topology)
    theirs = {door.nic: (door.host, door.port) for door in peer.doors}
    found = [Way(*theirs[k.target_nic], source=own.get(k.source_nic)) for k in links if k.target_nic in theirs]
    return tuple(dict.fromkeys([*found, Way(peer.host, peer.port)]))


def _addresses(me: Member, topology: Topology) -> dict[str, str]:
    return {nic.name: nic.host for host in topology.hosts if host.node == me.node for nic in host.nics} | {
        door.nic: door.host for door in me.doors
    }
