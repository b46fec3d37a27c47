"""Who probes whom, and what follows: on simulated networks that share their bandwidth fairly."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives.islands import islands
from atoll.collectives.knowledge import Knowledge, Reading, key, meet, take
from atoll.collectives.probing import check_together, checks, lanes, side_by_side, tournament
from atoll.schema.topology import Host, Link, Nic, What

MB = 1e6


class Net:
    """A network of the imagination: NICs with rates, trunks between sets of nodes, max-min fair shares, noise."""

    def __init__(self, nics, trunks=(), noise=0.0, seed=0):
        self.nics = nics  # node -> {nic: (network, rate)}
        self.trunks = trunks  # (nodes, nodes, rate), each way
        self.chance, self.noise = random.Random(seed), noise

    def hosts(self):
        return [
            Host(
                node=node,
                nics=tuple(Nic(name=n, host=f"10.{net}.0.{i + 1}", prefix=24) for n, (net, _) in nics.items()),
            )
            for i, (node, nics) in enumerate(self.nics.items())
        ]

    def rates(self, flows):
        """Max-min fair rates of `flows` = (node, nic, node, nic) that run at the same time."""
        uses = {f: self.used(f) for f in flows}
        left = {r: cap for f in flows for r, cap in uses[f].items()}
        rates = {}
        while len(rates) < len(flows):
            waiting = [f for f in flows if f not in rates]
            share = {r: c / n for r, c in left.items() if (n := sum(r in uses[f] for f in waiting))}
            tight = min(share, key=share.get)
            for f in [f for f in waiting if tight in uses[f]]:
                rates[f] = share[tight]
                for r in uses[f]:
                    left[r] -= share[tight]
        return {f: r * (1 + self.chance.uniform(-self.noise, self.noise)) for f, r in rates.items()}

    def used(self, flow):
        a, one, b, two = flow
        found = {("out", a, one): self.nics[a][one][1], ("in", b, two): self.nics[b][two][1]}
        for n, (s, t, rate) in enumerate(self.trunks):
            if a in s and b in t:
                found[n, "there"] = rate
            elif b in s and a in t:
                found[n, "back"] = rate
        return found

    def probe(self, chosen):
        """The links that `chosen` lanes show when they run side by side."""
        there = self.rates([(c.source, c.source_nic, c.target, c.target_nic) for c in chosen])
        back = self.rates([(c.target, c.target_nic, c.source, c.source_nic) for c in chosen])
        return [
            Link(source=a, source_nic=x, target=b, target_nic=y, latency_s=1e-4, bandwidth=rate)
            for (a, x, b, y), rate in (there | back).items()
        ]


def surveyed(net):
    """What is known after a survey and the checks that follow from it; and how many rounds and probes that took."""
    known = meet(Knowledge(), net.hosts())
    wanted = list(lanes(known.topology.hosts))
    rounds = 0
    while wanted:
        batch = side_by_side(wanted, {h.node for h in known.topology.hosts})
        alone = len(batch) == 1
        known = take(known, [Reading(link=k, alone=alone) for k in net.probe(batch)])
        wanted = [lane for lane in wanted if lane not in batch]
        rounds += 1
    for check in checks(known.topology):
        for lane in check.lanes:
            known = take(known, [Reading(link=k, alone=True) for k in net.probe([lane])])
        known = check_together(known, check, net.probe(check.lanes))
    return known, rounds


def groups(known):
    return {i.nodes for i in islands(known.topology).innermost()}


def one_nic(rates, net=0):
    return {n: {"eth0": (net, r)} for n, r in rates.items()}


def two_nics(fast_of, slow=6 * MB):
    """Each node: a fast NIC on its island's network, a slow one on the network of all."""
    return {n: {"fast": (1 + g, 60 * MB), "slow": (0, slow)} for n, g in fast_of.items()}


def test_everyone_meets_everyone_once_and_nobody_twice_in_a_round():
    for count in range(9):
        nodes = [f"n{i}" for i in range(count)]
        rounds = tournament(nodes)
        met = [pair for round_ in rounds for pair in round_]
        assert sorted(met) == sorted(itertools.combinations(nodes, 2))
        for round_ in rounds:
            assert len({n for pair in round_ for n in pair}) == 2 * len(round_)
        assert len(rounds) == max(0, count - 1 + count % 2)


def test_nics_meet_on_the_network_they_share():
    net = Net(two_nics({"a": 0, "b": 0, "c": 1}))
    found = {(w.source, w.source_nic, w.target, w.target_nic) for w in lanes(net.hosts())}
    assert found == {
        ("a", "fast", "b", "fast"),
        ("a", "slow", "b", "slow"),
        ("a", "slow", "c", "slow"),
        ("b", "slow", "c", "slow"),
    }


def test_hosts_without_a_common_network_meet_by_their_first_nics():
    hosts = [Host(node=n, nics=(Nic(name="x", host=h, prefix=24),)) for n, h in (("a", "10.0.0.1"), ("b", "10.9.0.1"))]
    assert [w.nodes for w in lanes(hosts)] == [("a", "b")]


def test_agents_of_one_address_are_not_probed():
    hosts = [Host(node=n, nics=(Nic(name="lo", host="127.0.0.1", prefix=8),)) for n in "ab"]
    assert lanes(hosts) == ()


def test_nobody_is_in_two_probes_at_once():
    net = Net(one_nic(dict.fromkeys("abcdef", MB)))
    batch = side_by_side(lanes(net.hosts()), set("abcde"))
    assert len(batch) == 2
    assert len({n for w in batch for n in w.nodes}) == 4


def test_a_slow_nic_on_each_host_is_no_trunk():
    where = dict.fromkeys("abcd", 0) | dict.fromkeys("efgh", 1)
    known, rounds = surveyed(Net(two_nics(where), noise=0.05))
    assert groups(known) == {tuple("abcd"), tuple("efgh")}
    assert known.topology.trunks == ()
    assert rounds <= 14
    nics = {(h.node, n.name): n.bandwidth for h in known.topology.hosts for n in h.nics}
    assert nics["a", "fast"] == pytest.approx(60 * MB, rel=0.1)
    assert nics["a", "slow"] == pytest.approx(6 * MB, rel=0.1)


@pytest.mark.parametrize("trunk", [60 * MB, 30 * MB, 6 * MB])
def test_a_trunk_is_found_also_where_one_pair_alone_notices_nothing(trunk):
    net = Net(one_nic(dict.fromkeys("abcdefgh", 60 * MB)), trunks=[(set("abcd"), set("efgh"), trunk)], noise=0.05)
    known, _ = surveyed(net)
    assert groups(known) == {tuple("abcd"), tuple("efgh")}
    assert {(t.sources, t.targets) for t in known.topology.trunks} == {
        (tuple("abcd"), tuple("efgh")),
        (tuple("efgh"), tuple("abcd")),
    }
    assert all(t.bandwidth == pytest.approx(trunk, rel=0.2) for t in known.topology.trunks)
    crossing = [k for k in known.topology.links if (k.source in "abcd") != (k.target in "abcd")]
    assert all(k.bandwidth == pytest.approx(trunk, rel=0.2) for k in crossing)


def test_three_islands_of_unequal_size_and_a_host_with_only_a_slow_nic():
    where = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 2, "g": 2}
    nics = two_nics(where) | {"z": {"slow": (0, 6 * MB)}}
    known, _ = surveyed(Net(nics, noise=0.1))
    assert groups(known) == {tuple("abc"), tuple("de"), tuple("fg"), ("z",)}


def test_islands_with_an_uplink_each_have_a_trunk_to_all_others():
    sides = ["abc", "def", "ghi"]
    uplinks = [(set(s), set("abcdefghi") - set(s), 20 * MB) for s in sides]
    known, _ = surveyed(Net(one_nic(dict.fromkeys("abcdefghi", 60 * MB)), trunks=uplinks, noise=0.05))
    assert groups(known) == {tuple(s) for s in sides}
    assert {t.sources for t in known.topology.trunks} >= {tuple(s) for s in sides}


def test_a_trunk_that_is_none_any_more_is_forgotten():
    net = Net(one_nic(dict.fromkeys("abcd", 60 * MB)), trunks=[(set("ab"), set("cd"), 20 * MB)])
    known, _ = surveyed(net)
    assert len(known.topology.trunks) == 2
    check = checks(known.topology)[0]
    net.trunks = ()
    for lane in check.lanes:
        known = take(known, [Reading(link=k, alone=True) for k in net.probe([lane])])
    known = check_together(known, check, net.probe(check.lanes))
    assert known.topology.trunks == ()
    assert {c.what for c in known.changes} == {What.TRUNK}
    assert known.changes[0].after is None


def reading(rate, *, alone=True, latency=1e-4):
    link = Link(source="a", source_nic="e", target="b", target_nic="e", latency_s=latency, bandwidth=rate)
    return Reading(link=link, alone=alone)


@pytest.fixture
def known():
    hosts = [Host(node=n, nics=(Nic(name="e", host=f"10.0.0.{i}"),)) for i, n in enumerate("ab")]
    return take(meet(Knowledge(), hosts), [reading(50 * MB)])


def test_a_change_of_less_than_a_quarter_leaves_the_version(known):
    again = take(known, [reading(58 * MB)])
    assert again.topology is known.topology
    assert again.changes == ()


def test_a_reading_alone_replaces_and_says_why(known):
    now = take(known, [reading(10 * MB)])
    assert now.topology.version == known.topology.version + 1
    assert [str(c) for c in now.changes] == ["link a -> b: 400 Mbit/s -> 80 Mbit/s: probed alone"]
    assert now.topology.hosts[0].nics[0].bandwidth == 10 * MB


def test_a_reading_beside_others_only_raises(known):
    assert take(known, [reading(10 * MB, alone=False)]).topology is known.topology
    assert take(known, [reading(80 * MB, alone=False)]).topology.links[0].bandwidth == 80 * MB


def test_a_first_reading_beside_others_gives_way_to_the_first_alone(known):
    link = reading(5 * MB, alone=False)
    fresh = take(meet(Knowledge(), known.topology.hosts), [link])
    assert key(link.link) in fresh.beside
    now = take(fresh, [reading(4.5 * MB)])
    assert now.topology.links[0].bandwidth == 4.5 * MB
    assert now.beside == frozenset()


def test_a_latency_follows_readings_taken_alone(known):
    assert take(known, [reading(50 * MB, latency=1.1e-4)]).topology is known.topology
    assert take(known, [reading(50 * MB, latency=5e-3, alone=False)]).topology is known.topology
    assert take(known, [reading(50 * MB, latency=5e-3)]).topology.links[0].latency_s == 5e-3


def test_a_nic_that_is_gone_takes_its_links_with_it(known):
    hosts = [Host(node="a", nics=(Nic(name="e", host="10.0.0.9"),)), known.topology.hosts[1]]
    now = meet(known, hosts)
    assert now.topology.links == ()
    assert now.topology.version > known.topology.version
    assert meet(now, reversed(now.topology.hosts)).topology is now.topology


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_independent_nics_and_trunks_are_told_apart(seed, left, right):
    chance = random.Random(seed)
    one, two = [f"a{i}" for i in range(left)], [f"b{i}" for i in range(right)]
    shared = chance.random() < 0.5
    if shared:
        trunks = [(set(one), set(two), chance.uniform(3, 15) * MB)]
        net = Net(one_nic(dict.fromkeys(one + two, 60 * MB)), trunks=trunks, noise=0.08, seed=seed)
    else:
        where = dict.fromkeys(one, 0) | dict.fromkeys(two, 1)
        net = Net(two_nics(where, slow=chance.uniform(3, 15) * MB), noise=0.08, seed=seed)
    known, _ = surveyed(net)
    assert groups(known) == {tuple(one), tuple(two)}
    assert bool(known.topology.trunks) is shared
