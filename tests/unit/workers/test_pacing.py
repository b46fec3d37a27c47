from atoll.workers.pacing import Pacing


def paced(*heard, every="auto"):
    found = Pacing(every)
    for epoch, step, each in heard:
        found.heard(epoch, step, each)
    return found


def test_number_of_steps_needs_no_vote():
    assert [s for s in range(1, 10) if paced(every=3).is_due(s, 1)] == [3, 6, 9]
    assert not paced(every=0).is_due(3, 1)
    assert paced(every=3).propose() is None


def test_what_was_heard_with_a_vote_holds_from_the_next_step_on():
    found = paced((1, 4, 5))
    assert not found.is_due(4, 1)
    assert found.is_due(5, 1)
    assert not found.is_due(6, 1)


def test_member_that_heard_the_newest_vote_and_one_that_did_not_save_the_same_step():
    first, second = paced((1, 8, 5), (1, 9, 5), (1, 10, 20)), paced((1, 8, 5), (1, 9, 5))
    assert first.is_due(10, 1)
    assert second.is_due(10, 1)


def test_first_step_of_an_epoch_is_not_saved_whoever_trained_before():
    old = paced((1, 9, 5))
    old.heard(2, 10, 5)
    new = paced((2, 10, 5))
    assert not old.is_due(10, 2)
    assert not new.is_due(10, 2)
    assert (old.is_due(15, 2), new.is_due(15, 2)) == (True, True)


def test_step_that_a_regroup_decides_is_due_by_what_its_own_epoch_heard():
    found = paced((1, 8, 5), (1, 9, 5))
    found.regrouped(lost=1)
    assert found.is_due(10, 1)


def run(found, *, steps, seconds, saving=False, at=0.0):
    for _ in range(steps):
        at += seconds
        found.passed(at, saving=saving)
    return at


def test_first_proposal_comes_once_steps_were_measured_and_later_ones_only_on_a_change():
    found = paced()
    assert found.propose() is None
    at = run(found, steps=6, seconds=2.0)
    assert found.propose().every == 30
    assert found.propose() is None
    at = run(found, steps=1, seconds=2.5, saving=True, at=at)
    found.saved(0.5)
    assert found.propose().every > 30
    assert found.current > 30
    assert found.propose() is None


def test_time_of_a_regroup_is_no_time_of_a_step():
    found = paced()
    at = run(found, steps=6, seconds=2.0)
    found.regrouped(lost=1)
    run(found, steps=1, seconds=500.0, at=at)
    run(found, steps=5, seconds=2.0, at=at + 500)
    assert found.propose().every == 30
    assert found.propose() is None
