"""Seconds of plans on fabrics small enough to do by hand, and bounds that no plan beats."""

from __future__ import annotations

import pytest
from declared_network import MBIT, declared, island_nodes, two_nics

from atoll.collectives.fabric import Fabric, Route, fabric_of
from atoll.collectives.network import groups_of
from atoll.collectives.plan import Meet, Plan, Program, Reduce, Spread
from atoll.collectives.plan_cost import Costs, lower_bound, seconds
from atoll.collectives.plan_shapes import Recipe, build
from atoll.errors import InternalError
from atoll.schema.topology import Trunk

FREE = Costs(message_s=0.0, add_s=0.0, code_s=0.0)
MIB = 1 << 20


def fabric(size, *, latency_s=0.01, rate=1000.0, trunk=None):
    """Hosts with one NIC each way; `trunk`: what all routes share besides."""
    capacities = [rate] * (2 * size) + ([trunk] if trunk else [])
    routes = {
        (a, b): Route(latency_s, rate, (2 * a, 2 * b + 1, *([2 * size] if trunk else [])))
        for a in range(size)
        for b in range(size)
        if a != b
    }
    return Fabric(tuple(range(size)), routes, tuple(capacities))


def plan(size, *moves, count=100, codec=None):
    return Plan("by hand", size, count, (Program(0, count, moves),), codec)


def test_one_message_takes_its_bytes_at_the_rate_and_the_latency():
    assert seconds(plan(2, Reduce(0, 1)), fabric(2), 4, FREE) == pytest.approx(400 / 1000 + 0.01)


def test_there_and_back_takes_both():
    assert seconds(plan(2, Reduce(0, 1), Spread(1, 0)), fabric(2), 4, FREE) == pytest.approx(2 * 0.41)


def test_handling_adding_and_coding_cost_the_rank_time():
    costs = Costs(message_s=0.1, add_s=0.001, code_s=0.0)
    assert seconds(plan(2, Reduce(0, 1)), fabric(2), 4, costs) == pytest.approx(0.41 + 0.1 + 0.4)
    coded = Costs(message_s=0.0, add_s=0.0, code_s=0.001, coded=0.25)
    # A quarter of the bytes on the wire; the own and the other's contribution are coded once each.
    met = seconds(plan(2, Meet((0, 1), coded=True), codec="int8"), fabric(2), 4, coded)
    assert met == pytest.approx(0.1 + 0.01 + 2 * 0.4)


def test_two_that_leave_by_one_nic_get_half_of_it_each():
    assert seconds(plan(3, Spread(0, 1), Spread(0, 2)), fabric(3), 4, FREE) == pytest.approx(0.81)


def test_two_that_arrive_at_one_nic_get_half_of_it_each():
    assert seconds(plan(3, Reduce(0, 2), Reduce(1, 2)), fabric(3), 4, FREE) == pytest.approx(0.81)


def test_both_directions_of_a_nic_are_its_own():
    assert seconds(plan(2, Meet((0, 1))), fabric(2), 4, FREE) == pytest.approx(0.41)


def test_a_trunk_is_shared_by_all_that_cross_it():
    two = (Spread(0, 2), Spread(1, 3))
    assert seconds(plan(4, *two), fabric(4), 4, FREE) == pytest.approx(0.41)
    assert seconds(plan(4, *two), fabric(4, trunk=1000.0), 4, FREE) == pytest.approx(0.81)


def test_earlier_programs_leave_first():
    ranges = (Program(0, 50, (Spread(0, 1),)), Program(50, 100, (Spread(0, 1), Spread(1, 2))))
    later = Plan("later", 3, 100, ranges)
    earlier = Plan("earlier", 3, 100, (Program(50, 100, ranges[1].moves), Program(0, 50, ranges[0].moves)))
    # What goes on to rank 2 gains by going first: its second hop runs beside the other's first.
    assert seconds(later, fabric(3), 4, FREE) == pytest.approx(0.4 + 0.01 + 0.2 + 0.01)
    assert seconds(earlier, fabric(3), 4, FREE) == pytest.approx(0.2 + 0.01 + 0.2 + 0.01)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_ring_takes_its_well_known_time(size):
    ring = build(Recipe(shape="ring", groups=tuple(range(size)), weights=(1.0,) * size), size * 100)
    steps = 2 * (size - 1)
    assert seconds(ring, fabric(size), 4, FREE) == pytest.approx(steps * (400 / 1000 + 0.01))


def test_programs_side_by_side_share_the_rank_that_adds():
    costs = Costs(message_s=1.0, add_s=0.0, code_s=0.0)
    two = Plan("two", 2, 100, (Program(0, 50, (Reduce(0, 1),)), Program(50, 100, (Reduce(0, 1),))))
    assert seconds(two, fabric(2), 4, costs) == pytest.approx(0.2 + 0.01 + 2.0)


def test_a_plan_that_never_ends_is_an_error_and_an_empty_one_takes_no_time():
    backward = Plan("circle", 2, 1, (Program(0, 1, (Reduce(5, 0),)),))
    with pytest.raises(InternalError, match="never ends"):
        seconds(backward, fabric(2), 4, FREE)
    assert seconds(plan(2, Reduce(0, 1), count=0), fabric(2), 4, FREE) == 0.0


# -- bounds ----------------------------------------------------------------------------------------------------------


def bound_of(topology, size_bytes, coded=1.0):
    nodes = [h.node for h in topology.hosts]
    return lower_bound(fabric_of(nodes, topology), groups_of(nodes, topology), size_bytes, coded)


@pytest.mark.parametrize(("hosts", "expected"), [(2, 0.70), (4, 0.35)])
def test_the_bound_of_two_islands_is_a_hosts_share_over_its_slow_nic(hosts, expected):
    # 0.956 of the rate is payload, as it was when these times were measured.
    topology = two_nics(hosts, hosts, inside=500 * MBIT * 0.956, across=50 * MBIT * 0.956)
    assert bound_of(topology, 8 * MIB) == pytest.approx(expected, rel=0.01)


def test_what_crosses_in_a_codec_is_bound_by_what_it_takes_there():
    topology = two_nics(2, 2)
    assert bound_of(topology, 8 * MIB, coded=0.25) == pytest.approx(bound_of(topology, 8 * MIB) / 4)
    # Within the islands it stays whole: they are what counts at last.
    assert bound_of(topology, 8 * MIB, coded=0.001) == pytest.approx(8 * MIB / (500 * MBIT))


def test_the_bound_of_one_trunk_is_all_over_it():
    nodes = island_nodes(3, 3)
    trunks = [
        Trunk(sources=tuple(s), targets=tuple(t), bandwidth=50 * MBIT)
        for s, t in ((nodes[:3], nodes[3:]), (nodes[3:], nodes[:3]))
    ]
    topology = declared(nodes, lambda a, b: (500 if a[0] == b[0] else 50) * MBIT, trunks=trunks)
    assert bound_of(topology, 8 * MIB) == pytest.approx(8 * MIB / (50 * MBIT))


def test_the_bound_of_equal_hosts_is_the_rings():
    topology = declared(island_nodes(4), lambda *_: 100 * MBIT)
    assert bound_of(topology, 8 * MIB) == pytest.approx(2 * 3 / 4 * 8 * MIB / (100 * MBIT))


def test_ranks_of_one_host_and_a_rank_alone_have_no_bound_of_links():
    assert lower_bound(fabric_of(["x", "x"]), (0, 1), 1e9) == 0.0
    assert lower_bound(fabric_of(["x"]), 0, 1e9) == 0.0
