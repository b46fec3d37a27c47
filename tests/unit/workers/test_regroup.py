import pytest

from atoll.errors import InternalError
from atoll.workers.regroup import Report, decide


def holder(rank, committed, prepared=None, **more):
    return Report(rank=rank, has_state=True, committed=committed, prepared=prepared, **more)


def joiner(rank):
    return Report(rank=rank, has_state=False)


def test_nobody_with_state_begins_from_rank_0():
    decision = decide([joiner(0), joiner(1), joiner(2)])
    assert decision.fresh
    assert (decision.source, decision.receive) == (0, (1, 2))


def test_one_committed_makes_all_prepared_apply():
    decision = decide([holder(0, 4, 5), holder(1, 5, sums={"loss": (3.0, 2.0)}, stopping=True), holder(2, 4, 5)])
    assert (decision.step, decision.apply, decision.discard, decision.receive) == (5, (0, 2), (), ())
    assert decision.sums == {"loss": (3.0, 2.0)}
    assert decision.stopping


def test_nobody_committed_makes_all_discard():
    decision = decide([holder(0, 4, 5), holder(1, 4, 5), holder(2, 4)])
    assert (decision.step, decision.apply, decision.discard) == (4, (), (0, 1))


def test_joiner_receives_from_the_lowest_rank_that_holds_the_newest():
    decision = decide([joiner(0), holder(1, 4, 5), holder(2, 5), holder(3, 5)])
    assert (decision.source, decision.receive, decision.apply) == (2, (0,), (1,))


def test_member_in_doubt_never_sends_what_it_has_not_applied():
    decision = decide([holder(0, 4, 5), holder(1, 5), joiner(2)])
    assert decision.source == 1


def test_holder_of_an_older_step_receives():
    decision = decide([holder(0, 2), holder(1, 5)])
    assert (decision.source, decision.receive) == (1, (0,))


def test_doubt_about_an_impossible_step_is_a_bug():
    with pytest.raises(InternalError, match="cannot have tried"):
        decide([holder(0, 4, 7), holder(1, 4)])
