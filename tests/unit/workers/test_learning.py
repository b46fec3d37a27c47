"""What a learner does next, without tensors."""

import pytest

from atoll.workers.learning import (
    LEARN_ABOVE_BYTES,
    AwaitSnapshot,
    BodyFailed,
    Lesson,
    LoadSnapshot,
    ReplayUpdate,
    SnapshotArrived,
    TakeStep,
    UpdateReplayed,
    UpdateWithheld,
    may_learn,
    weights,
)

BIG = LEARN_ABOVE_BYTES + 1
GIVEN = {"receive": (2,), "teachers": (0, 1), "state_bytes": BIG, "replayable": True}


def lesson(*steps, arrived=False, state_bytes=1000, size=100):
    made = Lesson(step=4, state_bytes=state_bytes)
    for step in steps:
        made = made.after(UpdateWithheld(step=step, bytes=size))
    return made.after(SnapshotArrived()) if arrived else made


def test_joiner_of_a_large_state_learns():
    assert may_learn(**GIVEN)


@pytest.mark.parametrize(
    "otherwise",
    [{"receive": ()}, {"teachers": ()}, {"receive": (0, 2)}, {"state_bytes": LEARN_ABOVE_BYTES}, {"replayable": False}],
    ids=["nobody joins", "nobody holds", "rank 0", "small", "changed by more than optimizers"],
)
def test_what_cannot_be_learnt_is_copied_while_all_wait(otherwise):
    assert not may_learn(**(GIVEN | otherwise))


def test_learners_own_no_grains():
    assert weights([1.0, 2.0, 3.0], frozenset({1})) == [1.0, 0.0, 3.0]


def test_others_train_on_until_the_snapshot_is_here():
    assert lesson(5, 6).next(has_time=True, last=False) == TakeStep(learnt=False)


def test_learner_without_room_lets_the_others_wait():
    crowded = lesson(5, 6, 7, size=3000)
    assert crowded.next(has_time=True, last=False) == AwaitSnapshot()


def test_learner_behind_the_last_step_waits_and_replays_whatever_the_time():
    assert lesson(5).next(has_time=False, last=True) == AwaitSnapshot()
    loaded = lesson(5, arrived=True).load()
    assert loaded.next(has_time=False, last=True) == ReplayUpdate(step=5)


def test_updates_are_replayed_in_order_while_there_is_time():
    now = lesson(5, 5, 6, arrived=True)
    assert now.next(has_time=False, last=False) == LoadSnapshot()
    now = now.load()
    assert now.next(has_time=False, last=False) == TakeStep(learnt=False)
    done = []
    while isinstance(effect := now.next(has_time=True, last=False), ReplayUpdate):
        done.append(effect.step)
        now = now.after(UpdateReplayed())
    assert (done, effect) == ([5, 5, 6], TakeStep(learnt=True))
    assert now.learnt


def test_learner_whose_program_failed_asks_for_the_whole_state_at_once():
    spoilt = lesson(5, 6).after(BodyFailed())
    assert spoilt.next(has_time=True, last=False) == TakeStep(learnt=True)


def test_what_cannot_have_happened_is_refused():
    with pytest.raises(ValueError, match="step 4 cannot be withheld"):
        lesson(4)
    with pytest.raises(ValueError, match="step 5 cannot be withheld after that of step 6"):
        lesson(6, 5)
    with pytest.raises(ValueError, match="nothing to replay"):
        lesson(5).after(UpdateReplayed())
    with pytest.raises(ValueError, match="loaded once"):
        lesson(5).load()
    learnt = lesson(arrived=True).load()
    with pytest.raises(ValueError, match="cannot be withheld"):
        learnt.after(UpdateWithheld(step=9, bytes=1))
