"""Agents on hosts with shaped NICs find the network as it was built."""

from __future__ import annotations

import os

import pytest
from probing_host import Hosts

from atoll.lab.lab_runtime import raised
from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, TrunkSpec

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to raise hosts with NICs of their own"),
]
PAYLOAD = 1448 / 1514 / 8


def host(name, **networks):
    return HostSpec(name=name, nics=tuple(NicSpec(name=nic, network=network) for nic, network in networks.items()))


def surveyed(spec, nic):
    with raised(spec) as lab:
        hosts = Hosts(lab.popen, {h: lab.address(h, nic) for h in lab.hosts})
        try:
            hosts.survey(40)
        finally:
            hosts.close()
    assert hosts.problems == []
    return hosts.probes


def test_two_islands_and_a_host_with_only_a_slow_nic_are_found_with_their_rates():
    networks = (Network(name="a", rate=200e6), Network(name="b", rate=200e6), Network(name="all", rate=20e6))
    members = [host(f"a{i}", slow="all", fast="a") for i in range(2)] + [
        host(f"b{i}", slow="all", fast="b") for i in range(2)
    ]
    probes = surveyed(LabSpec(name="probes-nics", networks=networks, hosts=(*members, host("z", slow="all"))), "slow")
    assert {i.nodes for i in probes.tree.innermost()} == {("a0", "a1"), ("b0", "b1"), ("z",)}
    rates = {(k.source_nic, k.target_nic): [] for k in probes.known.topology.links}
    for k in probes.known.topology.links:
        rates[k.source_nic, k.target_nic].append(k.bandwidth)
    assert {ends: len(found) for ends, found in rates.items()} == {("slow", "slow"): 20, ("fast", "fast"): 4}
    for nic, built in (("slow", 20e6), ("fast", 200e6)):
        found = sorted(rates[nic, nic])
        assert found[len(found) // 2] == pytest.approx(built * PAYLOAD, rel=0.1)
    assert probes.known.topology.trunks == ()


def test_a_trunk_between_two_islands_is_found_with_its_rate():
    networks = (Network(name="a", rate=100e6), Network(name="b", rate=100e6))
    members = tuple(host(f"{side}{i}", eth=side) for side in "ab" for i in range(2))
    trunks = (TrunkSpec(first="a", second="b", rate=50e6),)
    probes = surveyed(LabSpec(name="probes-trunk", networks=networks, hosts=members, trunks=trunks), "eth")
    assert {i.nodes for i in probes.tree.innermost()} == {("a0", "a1"), ("b0", "b1")}
    found = {(t.sources, t.targets): t.bandwidth for t in probes.known.topology.trunks}
    assert set(found) == {(("a0", "a1"), ("b0", "b1")), (("b0", "b1"), ("a0", "a1"))}
    # Together they are taken for a trunk below 1.4 times what one reaches; how far below says how well they overlapped.
    assert all(0.7 < rate / (50e6 * PAYLOAD) < 1.45 for rate in found.values())
