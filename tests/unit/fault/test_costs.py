"""What a fault cost, on made-up commits: epoch 1 commits each tenth of a second, epoch 2 each fifth from 1.0 s on."""

import pytest

from atoll.fault.costs import Commit, calm_step, cost, longest_gap

OLD = [Commit(step=s, at=s / 10, epoch=1, members=4) for s in range(1, 5)]
NEW = [Commit(step=s, at=1.0 + (s - 5) / 5, epoch=2, members=3) for s in range(5, 12)]


def test_cost_is_the_time_to_the_next_commit_less_an_undisturbed_step():
    found = cost([*OLD, *NEW], 0.45, epoch=1)
    assert (found.raw_s, found.step_s, found.seconds) == pytest.approx((0.55, 0.2, 0.35))
    assert (found.epoch, found.members) == (2, 3)


def test_commit_of_the_struck_epoch_after_the_fault_does_not_count():
    assert cost([*OLD, *NEW], 0.35, epoch=1).raw_s == pytest.approx(0.65)


def test_epoch_that_never_committed_is_passed_over():
    later = [Commit(step=c.step, at=c.at, epoch=4, members=4) for c in NEW]
    assert cost([*OLD, *later], 0.45, epoch=1).epoch == 4


def test_epoch_with_a_single_step_is_measured_by_the_undisturbed_step_of_the_next():
    one = Commit(step=5, at=0.8, epoch=2, members=3)
    joined = [Commit(step=s, at=1.0 + (s - 6) / 10, epoch=3, members=4) for s in range(6, 12)]
    found = cost([*OLD, one, *joined], 0.45, epoch=1)
    assert (found.raw_s, found.step_s) == pytest.approx((0.35, 0.1))
    assert (found.epoch, found.members) == (2, 3)


@pytest.mark.parametrize("commits", [OLD, [*OLD, *NEW[:4]]])
def test_cost_is_unknown_before_new_members_showed_an_undisturbed_step(commits):
    assert cost(commits, 0.45, epoch=1) is None


def test_undisturbed_step_leaves_out_the_first_of_its_epoch():
    slow_first = [Commit(step=1, at=0.0, epoch=1, members=2)]
    slow_first += [Commit(step=s, at=5.0 + s / 10, epoch=1, members=2) for s in range(2, 8)]
    assert calm_step(slow_first, 1) == pytest.approx(0.1)


def test_longest_gap_reaches_over_the_ends_of_its_window():
    assert longest_gap([*OLD, *NEW], 0.5, 0.9) == pytest.approx(0.6)
    assert longest_gap(OLD, 0.35, 2.0) == pytest.approx(1.6)
    assert longest_gap([], 1.0, 3.0) == pytest.approx(2.0)
