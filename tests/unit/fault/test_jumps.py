import math

from atoll.fault.jumps import WINDOW, Jumps


def steady(steps=20):
    jumps = Jumps()
    assert all(jumps.take(1.0 + 0.1 * (i % 3)) == "" for i in range(steps))
    return jumps


def test_norm_ten_times_the_usual_is_told_once_for_each_excursion():
    jumps = steady()
    assert jumps.take(50.0) == "its gradient norm is 50, 45 times the median of the last steps"
    assert jumps.take(60.0) == ""
    assert jumps.take(1.0) == ""
    assert jumps.take(50.0) != ""


def test_norm_that_is_no_number_is_told():
    assert steady().take(math.nan) == "its gradient norm is nan"
    assert Jumps().take(math.inf) == "its gradient norm is inf"


def test_slow_growth_and_few_steps_are_nothing_odd():
    jumps = Jumps()
    assert all(jumps.take(1.1**i) == "" for i in range(WINDOW))
    assert [Jumps().take(norm) for norm in (1.0, 100.0)] == ["", ""]


def test_steps_without_a_norm_are_left_alone():
    assert steady().take(0.0) == ""
