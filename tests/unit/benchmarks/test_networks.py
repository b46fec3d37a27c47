"""The networks that are measured on, what is known of them, and their bounds."""

import itertools
import random

import pytest

from atoll.collectives.fabric import fabric_of
from atoll.collectives.network import groups_of
from atoll.collectives.plan_cost import lower_bound
from atoll.lab.spec import check
from benchmarks import networks

SIZE = 8 * networks.MIB


def known(spec):
    """Addresses as a lab gives them; only their being distinct matters here."""
    numbers = {end: n for n, end in enumerate((h.name, n.name) for h in spec.hosts for n in h.nics)}
    return networks.topology(spec, lambda host, nic: f"10.0.0.{numbers[host, nic]}")


def planners_bound(spec):
    topology, nodes = known(spec), [h.name for h in spec.hosts]
    return lower_bound(fabric_of(nodes, topology), groups_of(nodes, topology), SIZE)


@pytest.mark.parametrize(("hosts", "seconds"), [(2, 0.70), (4, 0.35)])
def test_bound_of_two_islands_is_that_of_their_slow_nics_and_what_the_planner_says(hosts, seconds):
    bound = networks.islands_bound(SIZE, hosts, networks.FAST, networks.SLOW)
    assert bound == pytest.approx(seconds, rel=0.01)
    assert bound == pytest.approx(planners_bound(networks.two_islands(hosts)), rel=1e-6)


def test_with_an_eighth_of_the_bytes_crossing_the_fast_nics_rule():
    ring = networks.ring_bound(SIZE, 4, networks.FAST)
    assert networks.islands_bound(SIZE, 4, networks.FAST, networks.SLOW, 0.125) == ring


@pytest.mark.parametrize(("ranks", "seconds"), [(4, 2.11), (8, 2.46)])
def test_bound_of_a_ring_over_slow_nics(ranks, seconds):
    assert networks.ring_bound(SIZE, ranks, networks.SLOW) == pytest.approx(seconds, rel=0.01)


def test_interleaved_ranks_cross_the_trunk_at_every_other_step_each_way():
    names = [h.name for h in networks.trunked(4).hosts]
    mixed = networks.interleaved(names)
    assert mixed == ["e0", "w0", "e1", "w1", "e2", "w2", "e3", "w3"]
    assert (networks.crossings(names), networks.crossings(mixed)) == (1, 4)
    bound = networks.ring_bound(SIZE, 8, networks.SLOW, sharing=4)
    assert bound == pytest.approx(7 * networks.trunk_bound(SIZE, networks.SLOW))


def test_trunk_is_known_in_both_directions_and_limits_its_links():
    spec = networks.trunked(2)
    topology = known(spec)
    east, west = ("e0", "e1"), ("w0", "w1")
    assert {(t.sources, t.targets) for t in topology.trunks} == {(east, west), (west, east)}
    across = {k.bandwidth for k in topology.links if k.source[0] != k.target[0]}
    assert across == {topology.trunks[0].bandwidth}
    assert planners_bound(spec) == pytest.approx(networks.trunk_bound(SIZE, networks.SLOW))


def test_trunks_in_a_row_each_divide_the_hosts():
    hosts = [networks.host(f"{n}0", {n: networks.FAST}) for n in "abc"]
    trunks = [networks.TrunkSpec(first=a, second=b, rate=networks.SLOW) for a, b in ("ab", "bc")]
    topology = known(networks.lab(hosts, "abc", trunks))
    assert [(t.sources, t.targets) for t in topology.trunks[::2]] == [(("a0",), ("b0", "c0")), (("a0", "b0"), ("c0",))]


@pytest.mark.parametrize("seed", range(40))
def test_any_network_is_a_lab_whose_hosts_all_meet(seed):
    spec = check(networks.anyhow(random.Random(seed)))
    names = [h.name for h in spec.hosts]
    assert 2 <= len(names) <= 8
    assert 20e6 <= min(spec.rate_of(n) for h in spec.hosts for n in h.nics) <= 500e6
    linked = {(k.source, k.target) for k in known(spec).links}
    assert linked == set(itertools.permutations(names, 2))


def test_any_networks_are_of_all_kinds():
    specs = [networks.anyhow(random.Random(seed)) for seed in range(100)]
    islands = [len([n for n in s.networks if n.name != networks.WIDE]) for s in specs]
    assert {1, 2, 3} == set(islands)
    assert any(s.trunks for s in specs)
    assert any(not s.trunks and n > 1 for s, n in zip(specs, islands, strict=True))


def test_network_in_a_line():
    spec = networks.islands([2, 1], [networks.FAST, 100e6], networks.SLOW, only_slow=1)
    assert networks.drawn(spec) == "island0 500 x 2, island1 100 x 1, wide 50 x 4"
