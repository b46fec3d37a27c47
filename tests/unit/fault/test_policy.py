import pytest

from atoll.fault.policy import Hold, Raise, Standing, Steady, backoff, decide, loss_budget
from atoll.schema.messages import Member


def standing(name, *, active=True, ready=True, gone=False, finished=False, holds=True):
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
    )


def members(*names):
    return tuple(Member(trainer=n, rank=i, node="n", host="h", port=1) for i, n in enumerate(names))


def choose(*standings, now=("a", "b"), epoch=1, wanted=2, broken=""):
    return decide(epoch=epoch, members=members(*now), standings=standings, wanted=wanted, broken=broken)


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


@pytest.mark.parametrize("failures", range(6))
def test_backoff_never_shrinks(failures):
    assert backoff(failures) <= backoff(failures + 1)


def test_budget_lets_every_worker_die_twice():
    assert loss_budget(4) > 8
