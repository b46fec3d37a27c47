"""The network as a plan sees it: ranks on hosts, and for each ordered pair of ranks a route with what it shares.

A route uses *resources*: its sender's NIC (outwards), its receiver's NIC (inwards), a trunk, a host's memory. Flows that
share a resource share its bandwidth. Two ranks of one host meet in memory. Where nothing was measured, all hosts count
as equally near: then the plan is chosen by latency and the number of bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.schema.ids import NodeId
from atoll.schema.topology import Link, Topology

# What a link counts as while unmeasured: 10 Gbit/s of payload, the ordinary data-centre NIC.
UNKNOWN_BYTES_S = 1.25e9
UNKNOWN_LATENCY_S = 50e-6
# Through memory; measured between two processes of a common server core by core.
MEMORY_BYTES_S = 4e9
MEMORY_LATENCY_S = 20e-6
# More connections than this on one link cost more than they bring.
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class Route:
    """From one rank to another: seconds one way, bytes/s alone, resources used, connections that fill it."""

    latency_s: float
    bandwidth: float
    resources: tuple[int, ...]
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Fabric:
    """`hosts[rank]`: the rank's host. `routes[source, target]`. `capacities[resource]` in bytes/s."""

    hosts: tuple[int, ...]
    routes: dict[tuple[int, int], Route]
    capacities: tuple[float, ...]

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.hosts)


def best_links(topology: Topology) -> dict[tuple[NodeId, NodeId], Link]:
    """The fastest measured link from each node to each other."""
    best: dict[tuple[NodeId, NodeId], Link] = {}
    for link in topology.links:
        known = best.get((link.source, link.target))
        if known is None or _merit(link) > _merit(known):
            best[link.source, link.target] = link
    return best


def fabric_of(nodes: Sequence[NodeId], topology: Topology | None = None) -> Fabric:
    """The fabric of ranks that live on `nodes[rank]`."""
    return _Weaver(nodes, topology or Topology(hosts=())).fabric()


class _Weaver:
    """Numbers the resources as routes ask for them."""

    def __init__(self, nodes: Sequence[NodeId], topology: Topology) -> None:
        self._nodes, self._topology = nodes, topology
        self._best = best_links(topology)
        self._nics = {(h.node, n.name): n.bandwidth for h in topology.hosts for n in h.nics}
        self._numbers: dict[tuple[str, ...], int] = {}
        self._capacities: list[float] = []

    def fabric(self) -> Fabric:
        names = list(dict.fromkeys(self._nodes))
        routes = {
            (a, b): self._route(source, target)
            for a, source in enumerate(self._nodes)
            for b, target in enumerate(self._nodes)
            if a != b
        }
        return Fabric(tuple(names.index(n) for n in self._nodes), routes, tuple(self._capacities))

    def _route(self, source: NodeId, target: NodeId) -> Route:
        if source == target:
            memory = self._resource(("memory", source), MEMORY_BYTES_S)
            return Route(MEMORY_LATENCY_S, MEMORY_BYTES_S, (memory,))
        link = self._best.get((source, target))
        if link is None:
            ends = (("", source), ("", target))
            rate, latency, flow = UNKNOWN_BYTES_S, UNKNOWN_LATENCY_S, None
        else:
            ends = ((link.source_nic, source), (link.target_nic, target))
            rate, latency, flow = link.bandwidth, link.latency_s, link.flow_bandwidth
        (nic_out, _), (nic_in, _) = ends
        shared = [
            self._resource(("out", source, nic_out), self._nic(source, nic_out, outwards=True)),
            self._resource(("in", target, nic_in), self._nic(target, nic_in, outwards=False)),
        ]
        for number, trunk in enumerate(self._topology.trunks):
            if source in trunk.sources and target in trunk.targets:
                shared.append(self._resource(("trunk", str(number)), trunk.bandwidth))
        connections = 1 if flow is None else min(_CONNECTIONS, max(1, round(rate / flow)))
        return Route(latency, rate, tuple(shared), connections)

    def _nic(self, node: NodeId, nic: str, *, outwards: bool) -> float:
        """A NIC carries at least what its fastest link carries alone."""
        known = self._nics.get((node, nic))
        if known is not None:
            return known
        links = [
            k.bandwidth
            for k in self._best.values()
            if ((k.source, k.source_nic) if outwards else (k.target, k.target_nic)) == (node, nic)
        ]
        return max(links, default=UNKNOWN_BYTES_S)

    def _resource(self, key: tuple[str, ...], capacity: float) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._capacities)
            self._capacities.append(capacity)
        return number


def _merit(link: Link) -> tuple[float, float, str, str]:
    return link.bandwidth, -link.latency_s, link.source_nic, link.target_nic
