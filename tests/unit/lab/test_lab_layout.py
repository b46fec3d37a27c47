"""Where everything of a lab is: addresses, interfaces, lines for `ip` and `tc`, and what it is declared to be."""

import itertools
from pathlib import Path

import lab_specs
import pytest

from atoll.lab import declared, layout, shaping
from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, TrunkSpec, payload_rate, with_head
from atoll.lab.spec_toml import parse

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "examples" / "lab").glob("*.toml"))


@pytest.fixture(params=FILES, ids=lambda f: f.stem)
def placed(request):
    return layout.lay_out(parse(request.param.read_text(), request.param.name, "x"))


def test_interfaces_are_unique_and_within_linux_limit(placed):
    names = [*placed.bridges.values(), *(e for t in placed.trunks for e in t.ends)]
    names += [nic.port for nics in placed.nics.values() for nic in nics]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 15


def test_addresses_are_unique_and_a_segment_is_one_range(placed):
    nics = [nic for nics in placed.nics.values() for nic in nics]
    assert len({n.address for n in nics}) == len(nics)
    assert len({n.hardware for n in nics}) == len(nics)
    for one, other in itertools.combinations(nics, 2):
        same = one.address.rpartition(".")[0] == other.address.rpartition(".")[0]
        assert same == (one.segment == other.segment)


def test_the_fastest_common_nic_has_the_hosts_name():
    spec = with_head(lab_specs.islands())
    lines = layout.hosts_file(layout.lay_out(spec), "e0").splitlines()
    assert "10.64.0.2 e1.fast e1" in lines
    assert "10.66.0.3 w0.slow w0" in lines
    assert "10.65.0.3 w0.fast" in lines
    assert "10.66.0.5 head.mgmt head" in lines


def test_nics_named_like_words_of_ip_are_still_names(placed):
    lines = layout.switch_links(placed)
    for host in placed.nics:
        lines += [*layout.cables(placed, host), *layout.host_links(placed, host)]
    assert all(line.startswith("link set dev ") for line in lines if line.startswith("link set"))
    assert all(" dev " in line for line in lines if line.startswith("addr add"))


def test_every_shaped_cable_is_shaped_at_both_ends():
    placed = layout.lay_out(lab_specs.islands())
    for host, nics in placed.nics.items():
        for nic in nics:
            assert f"qdisc add dev {nic.name} root handle 1: htb default 10" in layout.host_shapes(placed, host)
            assert f"qdisc add dev {nic.port} root handle 1: htb default 10" in layout.port_shapes(placed, host)
    trunk = layout.lay_out(lab_specs.trunked())
    assert [line.split()[3] for line in layout.switch_shapes(trunk) if "htb default" in line] == ["t0a", "t0b"]


def test_an_unshaped_network_has_no_shaper():
    placed = layout.lay_out(parse((ROOT / "examples/lab/flat4.toml").read_text(), "flat4.toml"))
    assert layout.host_shapes(placed, "h0") == layout.port_shapes(placed, "h0") == []
    assert all(nic.bandwidth is None for nic in layout.known_nics(placed, "h0"))


def test_slowing_a_pair_touches_only_its_two_hosts_and_is_undone_line_by_line():
    placed = layout.lay_out(lab_specs.islands())
    slowed = {("e0", "w0"): 10e6}
    done = layout.slow_changes(placed, {}, slowed)
    assert sorted(done) == ["e0", "w0"]
    # Only the slow NIC joins them.
    assert all("dev slow " in line for lines in done.values() for line in lines)
    assert "match ip dst 10.66.0.3/32 flowid 1:103" in done["e0"][-1]
    undone = layout.slow_changes(placed, slowed, {})
    assert undone["e0"] == ["filter del dev slow parent 1: prio 3", "class del dev slow classid 1:103"]
    assert layout.slow_changes(placed, slowed, slowed) == {}


def test_changing_one_slowed_pair_leaves_the_other_alone():
    placed = layout.lay_out(lab_specs.islands())
    before = {("e0", "w0"): 10e6, ("e0", "w1"): 10e6}
    changed = layout.slow_changes(placed, before, {**before, ("e0", "w1"): 5e6})
    assert sorted(changed) == ["e0", "w1"]
    assert all("10.66.0.3" not in line and "1:103" not in line for line in changed["e0"])


def test_an_unshaped_nic_has_a_tree_only_while_a_pair_on_it_is_slowed():
    placed = layout.lay_out(parse((ROOT / "examples/lab/flat4.toml").read_text(), "flat4.toml"))
    slowed = {("h0", "h1"): 10e6}
    assert layout.slow_changes(placed, {}, slowed)["h0"][0].startswith("qdisc add dev net root")
    assert layout.slow_changes(placed, slowed, {})["h0"] == ["qdisc del dev net root"]


@pytest.mark.parametrize("rate", [128e3, 1e6, 20e6, 50e6, 500e6, 1e9, 40e9])
def test_bursts_and_queues_stay_within_their_laws(rate):
    assert 2 * shaping.FRAME <= shaping.burst_bytes(rate) <= 32 * 1024
    assert 2 * shaping.FRAME <= shaping.piece_bytes(rate) <= shaping.burst_bytes(rate)
    queue = shaping.queue_bytes(rate)
    assert shaping.MIN_QUEUE <= queue <= shaping.MAX_QUEUE
    assert queue == shaping.MAX_QUEUE or queue >= rate / 8 * 0.020 - 1
    if 13e6 <= rate <= 160e6:
        assert queue == 400_000


def test_declared_links_join_every_pair_on_a_common_segment():
    spec = lab_specs.islands()
    found = declared.topology(spec, layout.lay_out(spec))
    assert [h.node for h in found.hosts] == ["e0", "e1", "w0", "w1"]
    assert found.hosts[0].labels == {"island": "east"}
    assert [n.name for n in found.hosts[0].nics] == ["fast", "slow"]
    assert len([x for x in found.links if x.source_nic == "fast"]) == 4
    assert len([x for x in found.links if x.source_nic == "slow"]) == 12
    assert {x.bandwidth for x in found.links} == {payload_rate(400e6), payload_rate(50e6)}
    assert found.trunks == ()


def test_a_link_is_as_fast_as_its_slowest_part():
    text = (ROOT / "examples/lab/three_islands.toml").read_text()
    spec = parse(text, "three_islands.toml")
    found = {
        (x.source, x.target): x for x in declared.topology(spec, layout.lay_out(spec)).links if x.source_nic == "slow"
    }
    assert found["b0", "lone"].bandwidth == found["lone", "b0"].bandwidth == payload_rate(20e6)
    assert found["b0", "s0"].bandwidth == payload_rate(50e6)


def test_declared_trunks_name_both_sides_each_way():
    spec = lab_specs.trunked()
    east, west = ("e0", "e1"), ("w0", "w1")
    found = declared.topology(spec, layout.lay_out(spec)).trunks
    assert [(t.sources, t.targets, t.bandwidth) for t in found] == [
        (east, west, payload_rate(40e6)),
        (west, east, payload_rate(40e6)),
    ]


def chained(extra=()):
    """Three networks in a chain of two trunks, one host on each."""
    return LabSpec(
        name="chain",
        networks=(*(Network(name=n, rate=100e6) for n in "abc"), Network(name="all", rate=10e6)),
        trunks=(TrunkSpec(first="a", second="b", rate=20e6), TrunkSpec(first="b", second="c", rate=5e6)),
        hosts=tuple(HostSpec(name=f"h{n}", nics=(NicSpec(name="net", network=n), *extra)) for n in "abc"),
    )


def test_a_chain_of_trunks_limits_what_crosses_both():
    spec = chained()
    placed = layout.lay_out(spec)
    found = declared.topology(spec, placed)
    assert {(x.source, x.target): x.bandwidth for x in found.links}["ha", "hc"] == payload_rate(5e6)
    assert (("ha",), ("hb", "hc"), payload_rate(20e6)) in [(t.sources, t.targets, t.bandwidth) for t in found.trunks]
    assert (("ha", "hb"), ("hc",), payload_rate(5e6)) in [(t.sources, t.targets, t.bandwidth) for t in found.trunks]


def test_a_trunk_beside_another_way_is_not_told_as_the_only_one():
    spec = chained(extra=(NicSpec(name="wide", network="all"),))
    assert declared.topology(spec, layout.lay_out(spec)).trunks == ()
