"""Windows of traffic: counted alike by all, folded alike, and in effect one window later."""

from __future__ import annotations

import dataclasses

import pytest
from declared_network import MBIT, two_nics

from atoll.collectives.attribution import MIN_BYTES
from atoll.collectives.network import network_on
from atoll.collectives.telemetry import Trace
from atoll.collectives.tuning import (
    DISTRUST_WINDOWS,
    TRIAL_WINDOWS,
    WINDOW_BYTES,
    Told,
    Tuning,
    window_bytes,
)
from atoll.schema.topology import Observation, Topology

SLOW = {"bytes": 2_000_000, "busy_s": 2.0}  # a hundred times slower than an island's link


def tuning(topology=None):
    topology = two_nics(2, 2) if topology is None else topology
    return Tuning(network_on(("a0", "a1", "b0", "b1"), topology), {"int8": 0.25})


def window(pace, *, seen=True, ends=("a0", "a1")):
    """What four ranks tell: one of them that its link within the island is slow."""
    ends = {"source": ends[0], "source_nic": "fast", "target": ends[1], "target_nic": "fast"}
    slow = Observation(**ends, **SLOW, rtt_s=2e-4, window_s=2.0)
    return [Told(pace=pace, observations=(slow,) if seen and rank == 0 else ()) for rank in range(4)]


def test_all_count_the_same_windows_and_plans_lag_one_behind():
    sizes = [WINDOW_BYTES // 2] * 8
    seen = [[(here.count(size), here.window_ends()) for size in sizes] for here in (tuning(), tuning())]
    assert seen[0] == seen[1]
    assert seen[0] == [(0, False), (0, True), (0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]


def test_one_large_operation_or_many_small_ones_are_no_window():
    here = tuning()
    here.count(10 * WINDOW_BYTES)
    assert not here.window_ends()
    small = tuning()
    for _ in range(1000):
        small.count(100_000)
    assert not small.window_ends()


def test_a_network_without_links_is_never_asked():
    here = tuning(Topology(hosts=()))
    for _ in range(4):
        here.count(WINDOW_BYTES)
    assert not here.window_ends()


@pytest.mark.parametrize("pace", [0.8, 1.0, 1.25, None])
def test_operations_that_take_what_was_planned_change_nothing(pace):
    here = tuning()
    first = here.newest
    assert [here.told(window(pace)) for _ in range(3)] == [False] * 3
    assert here.changes == []
    assert here.newest is first


def test_a_link_that_is_slow_for_two_windows_is_planned_around():
    here = tuning()
    first = here.newest
    here.count(WINDOW_BYTES)
    assert here.told(window(5.0))
    assert (here.newest, here.changes) == (first, [])
    assert here.told(window(5.0))
    assert here.newest is not first
    assert [here.planner(g) is first for g in (0, 1, 2)] == [True, True, False]
    assert here.changes
    assert "a0" in str(here.changes[0])
    fabric = here.network.fabric
    route = fabric.routes[0, 1]
    assert min(route.bandwidth, *(fabric.capacities[r] for r in route.resources)) < 50 * MBIT


def test_all_who_are_told_the_same_know_the_same():
    one, other = tuning(), tuning()
    for here in (one, other):
        for _ in range(2):
            here.told(window(5.0))
    assert one.network == other.network
    assert one.newest.choose(1 << 20, 4) == other.newest.choose(1 << 20, 4)


def test_who_comes_last_tells_the_pace():
    here, told = tuning(), window(5.0)
    told[3] = dataclasses.replace(told[3], pace=1.0)
    for _ in range(3):
        here.told(told)
    assert here.changes == []


def test_generations_that_nobody_will_ask_for_are_forgotten_however_far_the_windows_ran_ahead():
    here = tuning()
    assert [here.count(WINDOW_BYTES) for _ in range(2)] == [0, 0]
    for _ in range(20):
        here.windows += 1
        here.told(window(None, seen=False))
    assert [here.planner(0) is here.newest for _ in range(2)] == [True, True]
    here.windows += 1
    here.told(window(None, seen=False))
    with pytest.raises(KeyError):
        here.planner(0)
    assert here.planner(here.count(WINDOW_BYTES)) is here.newest


def test_pace_and_rate_are_of_operations_since_last_asked():
    here = tuning()
    assert here.said(()) == Told(pace=None, rate=None, observations=())
    here.took(Trace(planned_s=10.0, ended_s=13.0, expected_s=1.0, size_bytes=500))
    here.took(Trace(planned_s=20.0, ended_s=21.0, expected_s=1.0, size_bytes=1500))
    here.took(Trace(planned_s=30.0, ended_s=99.0))  # by a recipe: nothing was promised
    assert here.said(()) == Told(pace=2.0, rate=500.0, observations=())
    assert here.said(()).pace is None


def at(rate, told):
    return [dataclasses.replace(said, rate=rate) for said in told]


def quiet(rate):
    """A window that took longer than planned, and in which no link was seen to be slow."""
    return at(rate, window(5.0, seen=False))


def test_new_plans_that_are_no_faster_go_and_nothing_is_learned_for_a_while():
    here = tuning()
    first, network = here.newest, here.network
    for _ in range(2):
        here.told(at(100.0, window(5.0)))
    assert here.newest is not first
    for _ in range(TRIAL_WINDOWS):
        here.told(quiet(104.0))
        assert here.newest is not first
    here.told(quiet(104.0))
    assert (here.newest, here.network, here.changes) == (first, network, [])
    for _ in range(DISTRUST_WINDOWS):
        here.told(at(100.0, window(5.0)))
    assert here.newest is first
    for _ in range(2):
        here.told(at(100.0, window(5.0)))
    assert here.newest is not first


def test_new_plans_that_are_faster_stay():
    here = tuning()
    for _ in range(2):
        here.told(at(100.0, window(5.0)))
    for _ in range(2 * TRIAL_WINDOWS):
        here.told(quiet(106.0))
    assert here.changes
    assert here.network.topology.version > 0


def test_a_second_cause_found_by_new_plans_gives_them_more_time():
    here = tuning()
    first = here.newest
    for _ in range(2):
        here.told(at(100.0, window(5.0)))
    for _ in range(TRIAL_WINDOWS - 1):
        here.told(quiet(100.0))
    for _ in range(2):
        here.told(at(100.0, window(5.0, ends=("b0", "b1"))))
    for _ in range(TRIAL_WINDOWS):
        here.told(quiet(100.0))
        assert len(here.changes) == 2
    here.told(quiet(100.0))
    assert (here.newest, here.changes) == (first, [])


def test_a_pair_whose_link_turned_slow_is_not_planned_on_a_nic_by_which_it_did_not_meet():
    topology = two_nics(2, 2)
    other = dataclasses.replace(topology.links[0], source_nic="slow", target_nic="slow", bandwidth=50 * MBIT)
    assert (other.source, other.target) == ("a0", "a1")
    here = tuning(dataclasses.replace(topology, links=(*topology.links, other)))
    for _ in range(2):
        here.told(at(100.0, window(5.0)))
    assert here.network.fabric.routes[0, 1].bandwidth < 10 * MBIT


def test_a_small_model_on_slow_links_has_windows_of_two_steps():
    here, gradient = tuning(), 1 << 19
    assert [(here.count(gradient), here.window_ends())[1] for _ in range(6)] == [False, True] * 3


def test_fast_links_are_measured_by_many_bytes_and_the_slowest_by_enough_to_tell():
    fast, slow = (two_nics(2, 2, inside=rate, across=rate) for rate in (10_000 * MBIT, 1 * MBIT))
    assert window_bytes(fast, 4) == WINDOW_BYTES
    assert window_bytes(slow, 4) == 4 * MIN_BYTES
