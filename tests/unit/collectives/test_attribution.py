"""Which link, NIC or trunk real traffic blames."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives.attribution import fold
from atoll.collectives.knowledge import Knowledge
from atoll.schema.topology import Host, Link, Nic, Observation, Topology, Trunk, What

MB = 1e6
FAST, SLOW = 60 * MB, 6 * MB
ISLANDS = ("abc", "def")
NIC_RATES = {"in": FAST, "out": SLOW}


def known(trunks=()):
    """Two islands of three: NIC `in` within, NIC `out` between (or `in`, over a trunk)."""
    nodes = "".join(ISLANDS)
    inner = [(a, b) for group in ISLANDS for a, b in itertools.permutations(group, 2)]
    across = [(a, b) for a, b in itertools.permutations(nodes, 2) if (a, b) not in inner]
    links = [link(a, b, "in", FAST) for a, b in inner] + [link(a, b, "out", SLOW) for a, b in across]
    hosts = tuple(
        Host(node=n, nics=tuple(Nic(name=nic, host=f"10.0.0.{n}", bandwidth=r) for nic, r in NIC_RATES.items()))
        for n in nodes
    )
    return Knowledge(topology=Topology(hosts=hosts, links=tuple(links), trunks=tuple(trunks), version=3))


def link(a, b, nic, rate):
    return Link(source=a, source_nic=nic, target=b, target_nic=nic, latency_s=1e-4, bandwidth=rate)


def seen(a, b, rate, *, nic="in", busy=0.1, window=0.1, messages=1, rtt=2e-4):
    return Observation(
        source=a,
        source_nic=nic,
        target=b,
        target_nic=nic,
        bytes=int(rate * busy),
        busy_s=busy,
        rtt_s=rtt,
        window_s=window,
        messages=messages,
    )


def folded(before, *windows):
    """What is known after `windows`, and all changes on the way."""
    changes = []
    for window in windows:
        before = fold(before, window)
        changes += before.changes
    return before, changes


def bandwidth(state, a, b):
    return max(k.bandwidth for k in state.topology.links if (k.source, k.target) == (a, b))


def nic(state, node, name):
    return next(n.bandwidth for h in state.topology.hosts if h.node == node for n in h.nics if n.name == name)


RING = [("a", "b"), ("b", "c"), ("c", "a")]


def test_a_slow_link_is_blamed_after_two_windows():
    first = fold(known(), [seen("a", "b", 6 * MB), seen("b", "c", 50 * MB), seen("c", "a", 50 * MB)])
    assert (first.topology.version, len(first.suspicions)) == (3, 1)
    state, changes = folded(first, [seen("a", "b", 7 * MB), *(seen(*e, 50 * MB) for e in RING[1:])])
    assert [(c.what, c.sources, c.targets) for c in changes] == [(What.LINK, ("a",), ("b",))]
    assert bandwidth(state, "a", "b") == pytest.approx(7 * MB)
    assert bandwidth(state, "b", "a") == FAST
    assert state.topology.version == 4
    assert state.suspicions == ()
    assert "it alone was slow: 56 Mbit/s" in str(changes[0])


def test_one_slow_window_between_good_ones_changes_nothing():
    slow, good = [seen("a", "b", 6 * MB)], [seen("a", "b", 55 * MB)]
    state, changes = folded(known(), slow, good, slow, good, slow, good)
    assert changes == []
    assert state.topology.version == 3


def test_a_window_that_does_not_use_the_link_neither_blames_nor_clears():
    slow, other = [seen("a", "b", 6 * MB)], [seen("d", "e", 55 * MB)]
    _, changes = folded(known(), slow, other, slow)
    assert len(changes) == 1


def test_all_edges_of_a_sender_slow_is_its_nic():
    window = [seen("a", "b", 5 * MB), seen("a", "c", 5 * MB), seen("b", "c", 50 * MB)]
    state, changes = folded(known(), window, window)
    assert [(c.what, c.sources, c.nic) for c in changes] == [(What.SENDER, ("a",), "in")]
    assert nic(state, "a", "in") == pytest.approx(10 * MB)
    assert bandwidth(state, "a", "b") == pytest.approx(10 * MB)
    assert bandwidth(state, "b", "a") == FAST


def test_all_edges_to_a_receiver_slow_is_its_nic():
    window = [seen("a", "c", 5 * MB), seen("b", "c", 5 * MB), seen("a", "b", 50 * MB)]
    state, changes = folded(known(), window, window)
    assert [(c.what, c.targets, c.nic) for c in changes] == [(What.RECEIVER, ("c",), "in")]
    assert nic(state, "c", "in") == pytest.approx(10 * MB)


def test_all_edges_between_islands_slow_is_a_trunk():
    window = [seen(a, b, 1 * MB, nic="out", busy=0.4, window=0.4) for a, b in zip(*ISLANDS, strict=True)]
    window += [seen("a", "b", 50 * MB), seen("d", "e", 50 * MB)]
    state, changes = folded(known(), window, window)
    assert [c.what for c in changes] == [What.TRUNK]
    assert state.topology.trunks == (Trunk(sources=tuple("abc"), targets=tuple("def"), bandwidth=3 * MB),)
    assert bandwidth(state, "a", "d") == pytest.approx(3 * MB)
    assert bandwidth(state, "d", "a") == SLOW


def test_a_busy_nic_explains_its_slow_edges():
    window = [seen("a", "b", 25 * MB), seen("a", "c", 25 * MB)]
    _, changes = folded(known(), window, window, window)
    assert changes == []


def test_a_busy_trunk_explains_its_slow_edges():
    trunk = Trunk(sources=tuple("abc"), targets=tuple("def"), bandwidth=SLOW)
    window = [seen(a, b, 2 * MB, nic="out") for a, b in zip(*ISLANDS, strict=True)]
    assert folded(known([trunk]), window, window, window)[1] == []
    window = [seen(a, b, 1 * MB, nic="out", busy=0.4, window=0.4) for a, b in ("ad", "be")]
    _, changes = folded(known([trunk]), window, window)
    assert [(c.what, c.after) for c in changes] == [(What.TRUNK, 2 * MB)]


def test_edges_that_carry_more_than_was_known_raise_it():
    state, changes = folded(known(), [seen("a", "d", 9 * MB, nic="out")], [seen("a", "d", 9.5 * MB, nic="out")])
    assert [(c.what, c.after) for c in changes] == [(What.LINK, 9.5 * MB)]
    assert bandwidth(state, "a", "d") == 9.5 * MB
    assert nic(state, "a", "out") == 9.5 * MB


def test_a_link_that_heals_is_known_to():
    slow, good = [[seen("a", "b", rate), *(seen(*e, 50 * MB) for e in RING[1:])] for rate in (6 * MB, 55 * MB)]
    state, changes = folded(known(), slow, slow, good, good)
    assert len(changes) == 2
    assert bandwidth(state, "a", "b") == pytest.approx(55 * MB)


def test_a_nic_and_a_trunk_that_heal_are_known_to():
    for slow, good in (
        ([seen("a", "b", 5 * MB), seen("a", "c", 5 * MB)], [seen("a", "b", 28 * MB), seen("a", "c", 28 * MB)]),
        (
            [seen(a, b, 0.5 * MB, nic="out", busy=0.4, window=0.4) for a, b in zip(*ISLANDS, strict=True)],
            [seen(a, b, 5 * MB, nic="out") for a, b in zip(*ISLANDS, strict=True)],
        ),
    ):
        state, _ = folded(known(), slow, slow, good, good, good, good, good, good)
        before = known()
        assert nic(state, "a", "in") >= 0.9 * 56 * MB
        assert all(t.bandwidth >= 0.9 * 15 * MB for t in state.topology.trunks)
        assert len(state.topology.links) == len(before.topology.links)


@pytest.mark.parametrize(
    "idle",
    [
        {"rate": 1 * MB, "busy": 0.01},
        {"rate": 1 * MB, "messages": 900},
        {"rate": 100 * MB, "busy": 0.002},
    ],
)
def test_edges_that_carried_little_or_waited_for_round_trips_say_nothing(idle):
    window = [seen("a", "b", idle.pop("rate"), **idle)]
    assert folded(known(), window, window, window)[1] == []


def test_unknown_links_say_nothing():
    stranger = [seen("a", "x", 1 * MB), seen("a", "b", 50 * MB)]
    assert folded(known(), stranger, stranger)[1] == []


def test_an_empty_window_changes_nothing():
    before = known()
    assert fold(before, []).topology is before.topology


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_noise_of_thirty_per_cent_changes_nothing(seed):
    chance = random.Random(seed)
    state = known()
    for _ in range(10):
        window = [seen(a, b, FAST * chance.uniform(0.7, 1.2)) for a, b in RING if chance.random() < 0.7]
        state = fold(state, window)
        assert state.changes == ()


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_order_of_observations_changes_nothing(seed):
    chance = random.Random(seed)
    one = two = known()
    for _ in range(3):
        window = [seen(a, b, chance.uniform(1, 90) * MB) for a, b in itertools.permutations("abc", 2)]
        window += [seen(a, b, chance.uniform(0.3, 9) * MB, nic="out") for a in "abc" for b in "def"]
        one = fold(one, window)
        chance.shuffle(window)
        two = fold(two, window)
        assert one.changes == two.changes
        assert [(k.source, k.target, round(k.bandwidth)) for k in one.topology.links] == [
            (k.source, k.target, round(k.bandwidth)) for k in two.topology.links
        ]


def test_a_link_that_was_well_in_one_stretch_of_the_window_is_not_slow():
    hiccup = dataclasses.replace(seen("a", "b", 6 * MB), best=50 * MB)
    state, changes = folded(known(), *[[hiccup, *(seen(*e, 50 * MB) for e in RING[1:])]] * 4)
    assert changes == []
    assert bandwidth(state, "a", "b") == FAST


def test_a_link_whose_slowness_differs_from_window_to_window_is_not_blamed():
    others = [seen(*e, 50 * MB) for e in RING[1:]]
    rates = (3, 9, 30, 12, 5) * 2
    _, changes = folded(known(), *[[seen("a", "b", rate * MB), *others] for rate in rates])
    assert changes == []
