"""Topologies as they would be measured, on addresses of the loopback so that real listeners can be bound to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Nic, Topology, Trunk

MBIT = 1e6 / 8


def island_nodes(*sizes: int) -> list[NodeId]:
    """a0, a1, ..., b0, ...: as many of each letter as its island has hosts."""
    return [NodeId(f"{letter}{i}") for letter, size in zip("abcdefgh", sizes, strict=False) for i in range(size)]


def declared(
    nodes: Sequence[NodeId],
    rate: Callable[[NodeId, NodeId], float],
    *,
    latency_s: float = 1e-4,
    flow: float | None = None,
    trunks: Sequence[Trunk] = (),
) -> Topology:
    """One NIC for each node, `eth0`, and a link for each ordered pair."""
    hosts = tuple(Host(node=n, nics=(Nic(name="eth0", host=f"127.0.1.{i + 1}"),)) for i, n in enumerate(nodes))
    links = tuple(_link(a, b, "eth0", rate(a, b), latency_s, flow) for a, b in itertools.permutations(nodes, 2))
    return Topology(hosts=hosts, links=links, trunks=tuple(trunks))


def two_nics(*sizes: int, inside: float = 500 * MBIT, across: float = 50 * MBIT, latency_s: float = 1e-4) -> Topology:
    """Islands of these sizes. Each host has a NIC `fast` for its own and a NIC `slow` for the others."""
    nodes = island_nodes(*sizes)
    hosts = tuple(
        Host(
            node=n,
            nics=(
                Nic(name="fast", host=f"127.0.2.{i + 1}", bandwidth=inside),
                Nic(name="slow", host=f"127.0.3.{i + 1}", bandwidth=across),
            ),
        )
        for i, n in enumerate(nodes)
    )
    links = tuple(
        _link(a, b, "fast", inside, latency_s) if a[0] == b[0] else _link(a, b, "slow", across, latency_s)
        for a, b in itertools.permutations(nodes, 2)
    )
    return Topology(hosts=hosts, links=links)


def _link(a: NodeId, b: NodeId, nic: str, rate: float, latency_s: float, flow: float | None = None) -> Link:
    return Link(
        source=a,
        source_nic=nic,
        target=b,
        target_nic=nic,
        latency_s=latency_s,
        bandwidth=rate,
        flow_bandwidth=flow,
    )
