"""Which plan is chosen on which network, and that no prediction is below what is possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from declared_network import MBIT, declared, island_nodes, two_nics
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives.fabric import fabric_of
from atoll.collectives.network import network_on
from atoll.collectives.planner import Planner, turned

CODED = {"int8": 0.25, "onebit": 1 / 32}


def planner_of(topology, nodes=None):
    network = network_on(tuple(nodes or [h.node for h in topology.hosts]), topology)
    return Planner(network.fabric, network.groups, coded=CODED)


@pytest.mark.parametrize("hosts", [2, 4])
def test_two_islands_with_slow_links_between_are_planned_as_islands_near_the_bound(hosts):
    choice = planner_of(two_nics(hosts, hosts)).choose(2 << 20, 4)
    assert choice.recipe.shape == "islands"
    assert choice.reason.lower_bound_s <= choice.predicted_s < 1.25 * choice.reason.lower_bound_s
    assert choice.reason.other_s is None or choice.reason.other_s >= choice.predicted_s


def test_tiny_messages_take_few_latencies():
    planner = planner_of(declared(island_nodes(4), lambda *_: 500 * MBIT))
    assert planner.choose(4, 4).recipe.shape in {"direct", "doubling"}


def test_large_messages_between_equal_hosts_go_round_a_ring_or_as_well():
    choices = planner_of(declared(island_nodes(4), lambda *_: 500 * MBIT)).candidates(4 << 20, 4)
    ring = next(c for c in choices if c.recipe.shape == "ring")
    assert choices[0].predicted_s >= 0.98 * ring.predicted_s
    assert ring.predicted_s < 1.1 * ring.reason.lower_bound_s


def test_ranks_that_know_the_same_choose_the_same():
    topology = two_nics(3, 2)
    for size in (1, 1000, 100_000, 3_000_000):
        one, other = (planner_of(topology).choose(size, 4, "int8") for _ in range(2))
        assert one == other
        assert planner_of(topology).plan(size, 4).digest == planner_of(topology).plan(size, 4).digest


def test_a_codec_is_used_where_links_are_slow_and_is_only_a_permission():
    slow, fast = two_nics(2, 2), two_nics(2, 2, inside=8000 * MBIT, across=8000 * MBIT)
    assert planner_of(slow).choose(2 << 20, 4, "int8").recipe.codec == "int8"
    assert planner_of(fast).choose(2 << 20, 4, "int8").recipe.codec is None
    assert planner_of(slow).choose(2 << 20, 4).recipe.codec is None


def test_choices_are_made_once_for_a_class_of_sizes():
    planner = planner_of(two_nics(2, 2))
    assert planner.choose(1_000_000, 4) is planner.choose(1_000_100, 4)
    assert planner.plan(1_000_000, 4) is planner.plan(1_000_000, 4)
    assert planner.plan(1_000_100, 4).count == 1_000_100


@st.composite
def topologies(draw):
    nodes = island_nodes(*draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    if len(nodes) < 2:
        nodes = island_nodes(2)
    rates = st.sampled_from([10 * MBIT, 50 * MBIT, 500 * MBIT])
    found = {(a, b): draw(rates) for a in nodes for b in nodes if a != b}
    return declared(nodes, lambda a, b: found[a, b], latency_s=draw(st.sampled_from([1e-5, 1e-3])))


@settings(max_examples=25, deadline=None)
@given(topology=topologies(), count=st.sampled_from([1, 1000, 200_000]), codec=st.sampled_from([None, "int8"]))
def test_no_plan_is_predicted_to_beat_the_bound(topology, count, codec):
    choices = planner_of(topology).candidates(count, 4, codec)
    assert choices[0].predicted_s <= 1.03 * min(c.predicted_s for c in choices)
    assert all(c.predicted_s >= c.reason.lower_bound_s * (1 - 1e-9) for c in choices)


def test_ranks_alone_or_on_unmeasured_hosts_have_a_plan():
    assert Planner(fabric_of(["x"]), 0).plan(10, 4).size == 1
    assert Planner(fabric_of(["x", "y", "z"]), (0, 1, 2)).plan(10, 4).size == 3


def test_around_one_slow_link_between_islands_others_meet_as_fast_as_before():
    whole = two_nics(2, 2)
    ends = {"a0", "b0"}
    links = tuple(replace(k, bandwidth=k.bandwidth / 5) if {k.source, k.target} == ends else k for k in whole.links)
    before, after = planner_of(whole), planner_of(replace(whole, links=links))
    assert [planner.choose(1 << 17, 4).recipe.groups for planner in (before, after)] == [
        ((0, 1), (2, 3)),
        ((0, 1), (3, 2)),
    ]
    assert after.choose(1 << 17, 4).predicted_s < 1.05 * before.choose(1 << 17, 4).predicted_s


def test_groups_are_turned_only_where_that_gains():
    planner = planner_of(two_nics(3, 3))
    groups = ((0, 1, 2), (3, 4, 5))
    assert turned(groups, planner.fabric) == groups
    assert turned((0, 1, 2), planner.fabric) == (0, 1, 2)
