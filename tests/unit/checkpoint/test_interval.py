import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.checkpoint.interval import (
    ASSUMED_MTBF_S,
    FIRST_S,
    MOST_S,
    MOST_SHARE,
    Meter,
    Observed,
    Why,
    best_s,
    choose,
    daly,
)


def seen(*, step_s=1.0, cost_s=0.1, save_s=0.5, losses=0, watched_s=0.0):
    return Observed(step_s=step_s, cost_s=cost_s, save_s=save_s, losses=losses, watched_s=watched_s)


def waste(interval, cost, mtbf):
    """The share of time lost, exactly, where losses come at random: Daly's model without a time to restart."""
    return mtbf * (math.exp((interval + cost) / mtbf) - 1) / interval


@given(st.floats(1e-3, 1e3), st.floats(1e3, 1e6))
def test_interval_of_daly_wastes_no_more_than_those_beside_it(cost, mtbf):
    best = daly(cost, mtbf)
    if cost < mtbf / 2:
        assert waste(best, cost, mtbf) <= min(waste(best * f, cost, mtbf) for f in (0.7, 1.4)) * (1 + 1e-9)


def test_interval_grows_with_the_root_of_the_cost():
    cheap, dear = best_s(seen(cost_s=0.01))[0], best_s(seen(cost_s=0.04))[0]
    assert dear / cheap == pytest.approx(2, rel=0.01)
    assert cheap == pytest.approx(math.sqrt(2 * 0.01 * ASSUMED_MTBF_S), rel=0.01)


def test_before_a_save_has_ended_the_first_comes_after_a_minute():
    assert best_s(seen(cost_s=None, save_s=None)) == (FIRST_S, Why.FIRST)


def test_losses_bring_saves_closer_and_quiet_hours_spread_them():
    calm, rough = seen(watched_s=36_000), seen(losses=20, watched_s=36_000)
    assert best_s(rough)[0] < best_s(calm)[0] / 4
    assert best_s(seen(watched_s=1e6))[0] > best_s(calm)[0]


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        (seen(cost_s=10.0, losses=1000), Why.COST),
        (seen(cost_s=0.001, save_s=900.0), Why.STORAGE),
        (seen(cost_s=60.0, save_s=90.0, watched_s=1e7), Why.LONGEST),
        (seen(), Why.LEAST_WASTE),
    ],
)
def test_interval_is_bound_and_says_by_what(observed, why):
    seconds, found = best_s(observed)
    assert found is why
    assert observed.cost_s / MOST_SHARE <= seconds * (1 + 1e-9)
    assert observed.save_s <= seconds <= MOST_S


def test_storage_slower_than_an_hour_is_waited_for():
    assert best_s(seen(save_s=5000.0)) == (5000.0, Why.STORAGE)


def test_choice_stands_until_the_best_is_far_off():
    first = choose(seen())
    assert choose(seen(), first.every) is None
    assert choose(seen(cost_s=0.15), first.every) is None
    changed = choose(seen(cost_s=1.0), first.every)
    assert changed.every > 2 * first.every
    assert choose(seen(cost_s=1.0), changed.every) is None


@given(st.floats(1e-6, 1e4), st.floats(0, 1e4), st.floats(0, 1e5), st.integers(0, 10_000), st.floats(0, 1e9))
def test_every_choice_is_a_whole_number_of_steps_and_stays(step_s, cost_s, save_s, losses, watched_s):
    observed = seen(step_s=step_s, cost_s=cost_s, save_s=save_s, losses=losses, watched_s=watched_s)
    found = choose(observed)
    assert found.every >= 1
    assert choose(observed, found.every) is None


def test_choice_says_its_reason_in_numbers():
    text = choose(seen(step_s=0.5)).text()
    assert text.startswith("every ")
    assert "least time is lost so: a step takes 0.5 s, a save costs 0.1 s, one loss in 6 h" in text


def test_meter_counts_what_steps_beside_a_save_took_longer():
    meter = Meter()
    assert meter.observed() is None
    for _ in range(5):
        meter.step(1.0, saving=False)
    meter.step(1.5, saving=True)
    meter.step(1.25, saving=True)
    meter.step(0.75, saving=True)
    meter.saved(2.5)
    meter.lost(2)
    found = meter.observed()
    assert (found.step_s, found.cost_s, found.save_s, found.losses, found.watched_s) == (1.0, 0.75, 2.5, 2, 8.5)


def test_meter_forgets_one_odd_save():
    meter = Meter()
    for _ in range(5):
        meter.step(1.0, saving=False)
    for extra in (10.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        meter.step(1.0 + extra, saving=True)
        meter.saved(1.0)
    assert meter.observed().cost_s < 1.5
