import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.checkpoint.retention import Retention, Why

HOUR = 3600.0
STEPS = [(step, step * 60.0) for step in range(10, 110, 10)]
NOW = 6000.0


def test_last_ones_stay():
    assert Retention(last=3).surplus(STEPS, NOW) == [10, 20, 30, 40, 50, 60, 70]


def test_one_in_so_many_stays_beside_the_last():
    found = Retention(last=1, every=40).why(STEPS, NOW)
    assert [s for s, why in found.items() if why is Why.EVERY] == [40, 80]
    assert found[100] is Why.LAST


def test_young_ones_stay():
    assert Retention(last=1, seconds=HOUR / 2).surplus(STEPS, NOW) == [10, 20, 30, 40, 50, 60, 70]


def test_nothing_goes_while_there_are_few():
    assert Retention(last=20).surplus(STEPS, NOW) == []
    assert Retention().surplus([], NOW) == []


def test_keeping_none_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Retention(last=0)


@given(st.sets(st.integers(0, 1000)), st.integers(1, 5), st.integers(0, 50), st.floats(0, 1000))
def test_newest_stays_whatever_the_rule(steps, last, every, seconds):
    found = Retention(last=last, every=every, seconds=seconds).surplus([(s, float(s)) for s in steps], 1000.0)
    assert not steps or max(steps) not in found
    assert len(steps) - len(found) >= min(last, len(steps))
