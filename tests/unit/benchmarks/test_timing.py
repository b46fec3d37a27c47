"""From times to figures."""

import random

import pytest

from benchmarks import timing


def test_duration_is_from_the_last_entry_to_the_last_exit():
    starts = [[1.0, 10.0], [1.5, 10.1]]
    ends = [[2.0, 10.3], [1.9, 10.2]]
    assert timing.durations(starts, ends) == pytest.approx([0.5, 0.2])


def test_spread_of_five_values():
    found = timing.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.low, found.high, found.least, found.most, found.count) == (3, 2, 4, 1, 5, 5)
    assert found.plain() == {"median": 3, "p25": 2, "p75": 4, "min": 1, "max": 5, "n": 5}


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2.5), (95, 3.85), (100, 4)])
def test_percentile_lies_between_neighbours(percent, value):
    assert timing.percentile([4, 2, 1, 3], percent) == pytest.approx(value)


def test_rounds_have_each_contestant_once_and_differ_in_order():
    order = timing.rounds(("a", "b", "c"), 30, seed=1)
    found = [tuple(order[n : n + 3]) for n in range(0, 90, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in found)
    assert len(set(found)) > 3
    assert order == timing.rounds(("a", "b", "c"), 30, seed=1)


def test_values_go_to_their_names_in_order():
    assert timing.paired(["a", "b", "b", "a"], [1, 2, 3, 4]) == {"a": [1, 4], "b": [2, 3]}


def test_ratio_is_of_medians():
    assert timing.ratio([2, 200, 4], [1, 2, 3]) == 2


def test_excess_of_equals_has_an_interval_around_zero():
    chance = random.Random(1)
    pairs = [(chance.gauss(1, 0.05), chance.gauss(1, 0.05)) for _ in range(400)]
    low, high = timing.interval(timing.excess, pairs, seed=2)
    assert low < 0 < high
    assert high - low < 0.02


def test_excess_finds_what_the_second_costs_more():
    chance = random.Random(1)
    pairs = [(chance.gauss(1, 0.05), chance.gauss(1.05, 0.05)) for _ in range(400)]
    low, high = timing.interval(timing.excess, pairs, seed=2)
    assert 0.03 < low < timing.excess(pairs) < high < 0.07


def test_excess_is_not_moved_by_a_few_bursts():
    pairs = [(1.0, 1.0)] * 98 + [(1.0, 50.0), (1.0, 80.0)]
    assert timing.excess(pairs) == 0
