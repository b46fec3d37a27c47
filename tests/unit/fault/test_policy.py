import pytest

from atoll.fault.policy import Hold, Raise, Standing, Steady, backoff, decide
from atoll.schema.messages import Member


def standing(name, *, active=True, ready=True, gone=False, finished=False, holds=True, leaving=False, how="lost"):
    return Standing(
        trainer=name,
        node="n",
        host="h",
        port=1,
        active=active,
        ready=ready,
        proven_gone=gone,
        finished=finished,
        holds=holds,
        leaving=leaving,
        how=how,
    )


def members(*names):
    return tuple(Member(trainer=n, rank=i, node="n", host="h", port=1) for i, n in enumerate(names))


def choose(*standings, now=("a", "b"), epoch=1, wanted=2, broken="", hurry=False):
    return decide(epoch=epoch, members=members(*now), standings=standings, wanted=wanted, broken=broken, hurry=hurry)


def names(decision):
    assert isinstance(decision, Raise)
    assert [m.rank for m in decision.members] == list(range(len(decision.members)))
    return [m.trainer for m in decision.members]


def lost(name, *, proof=True):
    return standing(name, active=False, gone=proof)


def test_first_epoch_waits_for_all_workers():
    held = choose(standing("a"), standing("b", ready=False), now=(), epoch=0)
    assert held == Hold(reason="1 of 2 trainers ready")


def test_first_epoch_takes_the_first_ready_and_leaves_spares():
    assert names(choose(standing("a"), standing("b"), standing("c"), now=(), epoch=0)) == ["a", "b"]


def test_nothing_changes_while_all_are_there():
    assert choose(standing("a"), standing("b"), standing("spare")) == Steady()


def test_spare_takes_the_place_of_the_lost_behind_the_survivors():
    assert names(choose(lost("a"), standing("b"), standing("spare"))) == ["b", "spare"]


def test_survivors_go_on_alone_without_a_spare():
    assert names(choose(lost("a"), standing("b"), standing("c", ready=False))) == ["b"]


def test_replacement_joins_when_ready():
    assert names(choose(lost("a"), standing("b"), standing("c"), now=("b",))) == ["b", "c"]


def test_no_survivor_and_no_proof_holds():
    held = choose(lost("a", proof=False), lost("b"), standing("c"), standing("d"))
    assert isinstance(held, Hold)
    assert "a is not proven" in held.reason


def test_no_survivor_with_proof_begins_anew_once_all_are_ready():
    assert isinstance(choose(lost("a"), lost("b"), standing("c"), standing("d", ready=False)), Hold)
    assert names(choose(lost("a"), lost("b"), standing("c"), standing("d"))) == ["c", "d"]


def test_broken_link_raises_the_epoch_with_the_same_members():
    assert names(choose(standing("a"), standing("b"), broken="reset")) == ["a", "b"]


def test_nobody_joins_once_training_is_over():
    done = standing("a", active=False, finished=True)
    assert choose(done, standing("b"), standing("spare")) == Steady()
    three = choose(done, lost("b"), standing("c"), standing("spare"), now=("a", "b", "c"), wanted=3)
    assert names(three) == ["c"]


def test_member_that_never_joined_is_no_survivor():
    held = choose(lost("a", proof=False), standing("b", holds=False))
    assert isinstance(held, Hold)
    assert "a is not proven" in held.reason
    assert names(choose(lost("a"), standing("b", holds=False))) == ["b"]


def test_member_that_never_joined_is_not_needed_once_training_is_over():
    done = standing("a", active=False, finished=True)
    assert choose(done, standing("b", holds=False), broken="reset") == Steady()
    assert names(choose(done, lost("b"), standing("c"), standing("d", holds=False), now="abcd")) == ["c"]


def test_finished_member_is_not_a_loss():
    done = standing("a", active=False, finished=True)
    assert choose(done, standing("b")) == Steady()


@pytest.mark.parametrize("failures", range(-1, 6))
def test_backoff_never_shrinks(failures):
    assert backoff(failures) <= backoff(failures + 1)


def leaving(name, **kwargs):
    return standing(name, leaving=True, **kwargs)


def test_leaver_goes_with_the_epoch_that_has_its_replacement():
    chosen = choose(standing("a"), leaving("b"), standing("spare"))
    assert names(chosen) == ["a", "spare"]
    assert chosen.reason == "b leaves n, which is drained, spare joins"


def test_leaver_waits_while_a_replacement_is_on_its_way():
    assert choose(standing("a"), leaving("b"), standing("coming", ready=False)) == Steady()


def test_leaver_goes_without_replacement_when_none_is_on_its_way_or_time_is_up():
    assert names(choose(standing("a"), leaving("b"))) == ["a"]
    assert names(choose(standing("a"), leaving("b"), standing("coming", ready=False), hurry=True)) == ["a"]


def test_leavers_go_together_once_all_are_replaced():
    who = (standing("a"), leaving("b"), leaving("c"), standing("s1"))
    assert choose(*who, standing("s2", ready=False), now="abc", wanted=3) == Steady()
    assert names(choose(*who, standing("s2"), now="abc", wanted=3)) == ["a", "s1", "s2"]


def test_nobody_joins_from_a_drained_node():
    assert choose(standing("a"), standing("b", leaving=False), leaving("spare"), now=("a", "b"), wanted=3) == Steady()


def test_last_holder_of_the_state_hands_it_over_before_it_leaves():
    first = choose(leaving("a"), standing("s"), now=("a",), wanted=1)
    assert names(first) == ["a", "s"]
    assert choose(leaving("a"), standing("s", holds=False), now=("a", "s"), wanted=1) == Steady()
    assert names(choose(leaving("a"), standing("s"), now=("a", "s"), wanted=1)) == ["s"]


def test_whole_crew_leaves_in_two_epochs():
    first = choose(leaving("a"), leaving("b"), standing("s", holds=False), standing("t", holds=False))
    assert names(first) == ["a", "s"]
    then = choose(leaving("a"), leaving("b"), standing("s"), standing("t", holds=False), now=("a", "s"))
    assert names(then) == ["s", "t"]


def test_crew_that_nobody_can_replace_stays_to_the_deadline():
    assert choose(leaving("a"), leaving("b"), hurry=True) == Steady()


def test_loss_of_a_leaver_is_a_loss_like_any_other():
    assert names(choose(standing("a"), standing("b", active=False, leaving=True), standing("spare"))) == ["a", "spare"]


def test_reason_tells_how_each_member_went():
    gone = standing("a", active=False, how="evicted")
    three = choose(gone, standing("b"), lost("c"), now="abc", wanted=3)
    assert three.reason == "a was evicted, c was lost"
