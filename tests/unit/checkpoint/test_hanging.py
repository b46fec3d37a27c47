"""What tells storage that hangs from storage that is slow: bytes, and looks that no clock's jump can stand in for."""

import pytest

from atoll.checkpoint.hanging import LEAST_S, SLOWEST_BYTES_S, Watch


def looks(watch, seconds, since=0.0):
    """One look a second; what the last one found."""
    found = 0.0
    for at in range(int(seconds) + 1):
        found = watch.look(since + at)
    return found


@pytest.mark.parametrize(("size", "patience"), [(0, LEAST_S), (int(SLOWEST_BYTES_S * 600), 600.0)])
def test_thread_that_is_about_the_same_thing_for_longer_than_its_bytes_take_hangs(size, patience):
    watch = Watch(1.0)
    watch.begin(size)
    assert looks(watch, patience) == 0.0
    assert looks(watch, 1.0, since=patience + 1.0) > patience


def test_thread_that_begins_one_thing_after_the_other_never_hangs():
    watch = Watch(1.0)
    for turn in range(10):
        watch.begin(0)
        assert looks(watch, 50.0, since=50.0 * turn) == 0.0


def test_thread_with_nothing_to_do_never_hangs():
    watch = Watch(1.0)
    watch.begin(0)
    watch.end()
    assert looks(watch, 1000.0) == 0.0


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_clock_that_jumps_makes_no_thread_hang(jump):
    watch = Watch(1.0)
    watch.begin(0)
    assert looks(watch, 30.0) == 0.0
    assert looks(watch, 10.0, since=jump) == 0.0
