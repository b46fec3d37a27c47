from atoll.workers.account import committed_line, fed_line, merge, plan_line
from atoll.workers.samples import Plan

PLAN = Plan(seed=1, size=40, global_batch=4, micro_batch=2, steps=5)


def whole(step, epoch=1):
    return [fed_line(step, epoch, 0, PLAN.grain(step, 0)), fed_line(step, epoch, 0, PLAN.grain(step, 1))]


def test_undisturbed_run_loses_and_repeats_nothing():
    lines = [plan_line(PLAN, begin=0, epoch=1), *whole(1), committed_line(1, 1, 0), *whole(2), committed_line(2, 1, 0)]
    account = merge(lines)
    assert (account.steps, account.samples, account.lost, account.repeated) == (2, 8, 0, 0)
    assert not account.gaps
    assert not account.problems


def test_try_that_never_committed_does_not_count():
    lines = [plan_line(PLAN, begin=0, epoch=1), *whole(1, epoch=1)[:1], *whole(1, epoch=2), committed_line(1, 2, 1)]
    account = merge(lines)
    assert (account.lost, account.repeated, account.samples) == (0, 0, 4)


def test_missing_feed_is_lost():
    account = merge([plan_line(PLAN, begin=0, epoch=1), whole(1)[0], committed_line(1, 1, 0)])
    assert (account.lost, account.repeated) == (2, 0)


def test_double_feed_is_repeated():
    account = merge([plan_line(PLAN, begin=0, epoch=1), *whole(1), whole(1)[0], committed_line(1, 1, 0)])
    assert (account.lost, account.repeated) == (0, 2)


def test_commit_in_two_epochs_is_a_problem():
    lines = [
        plan_line(PLAN, begin=0, epoch=1),
        *whole(1),
        *whole(1, 2),
        committed_line(1, 1, 0),
        committed_line(1, 2, 0),
    ]
    account = merge(lines)
    assert account.repeated == 4
    assert "committed in 2 epochs" in account.problems[0]


def test_gap_counts_as_lost():
    account = merge([plan_line(PLAN, begin=0, epoch=1), *whole(2), committed_line(2, 1, 0)])
    assert (account.gaps, account.lost) == ((1,), 4)


def test_joiner_that_begins_later_hides_no_gap():
    account = merge(
        [plan_line(PLAN, begin=1, epoch=1), plan_line(PLAN, begin=0, epoch=1), *whole(2), committed_line(2, 1, 0)]
    )
    assert account.gaps == (1,)


def test_resumed_run_begins_after_its_checkpoint():
    account = merge([plan_line(PLAN, begin=1, epoch=1), *whole(2), committed_line(2, 1, 0)])
    assert (account.gaps, account.lost) == ((), 0)


def test_broken_line_and_second_plan_are_problems():
    other = Plan(seed=2, size=40, global_batch=4, micro_batch=2, steps=5)
    account = merge([plan_line(PLAN, begin=0, epoch=1), plan_line(other, begin=0, epoch=1), "{half a li"])
    assert len(account.problems) == 2


def test_commits_after_the_checkpoint_that_a_lost_run_returned_to_do_not_count():
    lines = [plan_line(PLAN, begin=0, epoch=1), *whole(1), committed_line(1, 1, 0), *whole(2), committed_line(2, 1, 0)]
    again = [plan_line(PLAN, begin=1, epoch=2), *whole(2, epoch=2), committed_line(2, 2, 0)]
    account = merge([*lines, *again])
    assert (account.steps, account.samples, account.lost, account.repeated, account.problems) == (2, 8, 0, 0, ())


def test_steps_undone_by_a_return_to_earlier_copies_are_told_and_count_once():
    lines = [plan_line(PLAN, begin=0, epoch=1)]
    lines += [line for step in (1, 2, 3) for line in (*whole(step), committed_line(step, 1, 0))]
    lines += [plan_line(PLAN, begin=1, epoch=2)]
    lines += [line for step in (2, 3) for line in (*whole(step, 2), committed_line(step, 2, 0))]
    account = merge(lines)
    assert (account.steps, account.samples, account.lost, account.repeated) == (3, 12, 0, 0)
    assert account.again == (2, 3)
    assert not account.problems


def done(epoch, *steps):
    return [line for step in steps for line in (*whole(step, epoch), committed_line(step, epoch, 0))]


def test_checkpoint_from_before_a_return_to_copies_holds_what_that_return_undid():
    lines = [plan_line(PLAN, begin=0, epoch=1), *done(1, 1, 2, 3, 4)]
    lines += [plan_line(PLAN, begin=1, epoch=2), *done(2, 2)]
    lines += [plan_line(PLAN, begin=3, epoch=3, line=1), plan_line(PLAN, begin=3, epoch=3), *done(3, 4)]
    account = merge(lines)
    assert (account.steps, account.samples, account.lost, account.repeated) == (4, 16, 0, 0)
    assert (account.gaps, account.again, account.problems) == ((), (2, 4), ())


def test_checkpoint_from_after_a_return_to_copies_does_not_bring_back_what_that_undid():
    lines = [plan_line(PLAN, begin=0, epoch=1), *done(1, 1, 2, 3, 4)]
    lines += [plan_line(PLAN, begin=1, epoch=2), *done(2, 2)]
    lines += [plan_line(PLAN, begin=2, epoch=3, line=2), *done(3, 4)]
    account = merge(lines)
    assert (account.gaps, account.lost) == ((3,), 4)


def test_rows_left_out_are_told_apart_from_lost_ones():
    first, second = PLAN.grain(1, 0), PLAN.grain(1, 1)
    account = merge([plan_line(PLAN, begin=0, epoch=1), fed_line(1, 1, 0, first, second), committed_line(1, 1, 0)])
    assert (account.samples, account.left_out, account.lost, account.repeated) == (2, 2, 0, 0)


def test_rows_left_out_by_a_try_that_did_not_commit_do_not_count():
    first, second = PLAN.grain(1, 0), PLAN.grain(1, 1)
    tried = fed_line(1, 1, 0, first, second)
    account = merge([plan_line(PLAN, begin=0, epoch=1), tried, *whole(1, epoch=2), committed_line(1, 2, 1)])
    assert (account.samples, account.left_out, account.lost, account.repeated) == (4, 0, 0, 0)


def test_row_both_fed_and_left_out_is_repeated():
    first, second = PLAN.grain(1, 0), PLAN.grain(1, 1)
    lines = [fed_line(1, 1, 0, first, second), fed_line(1, 1, 0, second)]
    account = merge([plan_line(PLAN, begin=0, epoch=1), *lines, committed_line(1, 1, 0)])
    assert (account.left_out, account.lost, account.repeated) == (2, 0, 2)
