"""The network as a lab's spec declares it, in the words of the rest of Atoll: what measuring it should find. Pure.

Latencies are those of a quiet wire; what was cut or slowed since is not in it. A trunk is told as the schema tells one:
all links between the hosts of its two sides together. Where hosts of both sides also meet on another segment that would
be untrue, so such a trunk shows only as the limit of each link across it.
"""

from __future__ import annotations

from atoll.lab.layout import Layout, PlacedTrunk, known_nics
from atoll.lab.spec import HEAD, LabSpec, payload_rate
from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Topology, Trunk

# One way between two namespaces over a bridge and two shapers on a busy machine.
LATENCY_S = 150e-6
# Bytes a second of a link that nothing shapes: what two cores carry when they do nothing else.
UNSHAPED_BANDWIDTH = 500e6


def topology(spec: LabSpec, layout: Layout) -> Topology:
    """Hosts (without the head), a link for each pair of NICs on a common segment each way, and the trunks."""
    hosts = tuple(Host(node=NodeId(h.name), nics=known_nics(layout, h.name), labels=dict(h.labels)) for h in spec.hosts)
    return Topology(hosts=hosts, links=tuple(_links(spec, layout)), trunks=tuple(_trunks(layout)))


def _links(spec: LabSpec, layout: Layout) -> list[Link]:
    return [
        Link(
            source=NodeId(source.name),
            source_nic=mine.name,
            target=NodeId(target.name),
            target_nic=other.name,
            latency_s=LATENCY_S,
            bandwidth=payload_rate(layout.link_rate(mine, other)) or UNSHAPED_BANDWIDTH,
        )
        for source in spec.hosts
        for target in spec.hosts
        if source.name != target.name
        for mine, other in layout.between(source.name, target.name)
    ]


def _trunks(layout: Layout) -> list[Trunk]:
    found = []
    for trunk in layout.trunks:
        first, second = (_side(layout, trunk, end) for end in (0, 1))
        bandwidth = payload_rate(trunk.rate)
        alone = all(len(layout.between(a, b)) == 1 for a in first for b in second)
        if bandwidth is not None and first and second and alone:
            found += [
                Trunk(sources=one, targets=other, bandwidth=bandwidth)
                for one, other in ((first, second), (second, first))
            ]
    return found


def _side(layout: Layout, trunk: PlacedTrunk, end: int) -> tuple[NodeId, ...]:
    """The hosts on one side of a trunk: those whose way to its other end crosses it."""
    networks = {n for n in layout.bridges if layout.crosses(n, trunk.networks[1 - end], trunk)}
    return tuple(NodeId(h) for h, nics in layout.nics.items() if h != HEAD and any(n.network in networks for n in nics))
