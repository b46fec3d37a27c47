"""When members compare their replicas by what it costs, and with whom."""

import pytest

from atoll.workers.comparing import LEAST_S, SHARE, Turns, comparable, received, together


def test_member_is_willing_once_a_digest_takes_its_share_of_the_time():
    turns = Turns(every=None, cost_s=0.1)
    assert not turns.willing(0.99 * 0.1 / SHARE)
    assert turns.willing(0.1 / SHARE)


def test_small_state_is_not_compared_all_the_time():
    turns = Turns(every=None, cost_s=0.0)
    assert not turns.willing(0.9 * LEAST_S)
    assert turns.willing(LEAST_S)


def test_slow_digest_makes_the_next_one_later():
    turns = Turns(every=None)
    turns.took(2.0, 10.0)
    assert not turns.willing(10.0 + 1.9 / SHARE)
    assert turns.willing(10.0 + 2.0 / SHARE)


@pytest.mark.parametrize(("said", "due"), [([True, True], True), ([True, False], False)])
def test_all_must_be_willing(said, due):
    assert Turns(every=None).due(7, said) is due


def test_number_of_steps_needs_no_votes():
    turns = Turns(every=5)
    assert [s for s in range(1, 16) if turns.due(s, [False])] == [5, 10, 15]
    assert not turns.willing(1e9)


def test_zero_is_never():
    assert not any(Turns(every=0).due(s, [True]) for s in range(1, 100))


def test_receiver_of_the_same_class_belongs_to_its_source():
    assert received("a", "a", 7) == "a"
    assert received("a", "a since 3 from 00000001", 7) == "a since 3 from 00000001"


def test_receiver_of_another_class_goes_on_from_other_bits_than_its_own():
    one, other = received("b", "a", 7), received("b since 2 from 00000001", "a", 7)
    assert one == other != "b"
    assert received("b", "a", 8) != one
    assert received("c", one, 9).startswith("c since 9")


def test_shards_move_between_all_so_that_unlike_members_never_compare_again():
    assert together(["a", "a"]) == "a"
    assert together(["a", "b"]) == ""
    assert together(["", ""]) == ""


def test_norm_over_many_shards_is_added_in_another_order_elsewhere():
    assert [comparable(1, size) for size in (2, 3)] == ["2 of 2", None]
