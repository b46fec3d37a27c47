"""From stamps and accounts to what a fault cost: made-up runs of two processes on a clock of whole tenths."""

import json

import pytest

from atoll.fault.costs import longest_gap
from atoll.workers.account import committed_line, fed_line, plan_line
from atoll.workers.samples import Plan
from benchmarks import recovery_account as acc


def stamps(*commits):
    return [json.dumps(["commit", step, at, 0.0]) for step, at in commits]


def account(epochs):
    plan = Plan(seed=1, size=64, global_batch=4, micro_batch=1, steps=100)
    lines = [plan_line(plan, begin=0, epoch=1)]
    for step, epoch in epochs.items():
        lines += [fed_line(step, epoch, 1, plan.samples(step)), committed_line(step, epoch, 1)]
    return lines


def entered(told, lines):
    books = acc.Books()
    for pid, its in told.items():
        for line in its:
            books.stamp(pid, line)
    for line in lines:
        books.decide(line)
    return books


def run_with_a_loss():
    """Steps 1-4 in epoch 1, a tenth of a second each; then 5-11 in epoch 2, from 1.0 s on, 0.2 s each."""
    first = [(s, s / 10) for s in range(1, 5)]
    second = [(s, 1.0 + (s - 5) / 5) for s in range(5, 12)]
    survivor = stamps(*first, *second)
    victim = [json.dumps(["commit", s, at - 0.01, 0.0]) for s, at in first]
    epochs = dict.fromkeys(range(1, 5), 1) | dict.fromkeys(range(5, 12), 2)
    return entered({10: survivor, 11: victim}, account(epochs))


def test_recovery_is_the_time_to_the_first_step_of_new_members_less_one_of_their_steps():
    found = acc.recovery(run_with_a_loss(), 0.45, epoch=1)
    assert (found.raw_s, found.step_s, found.seconds) == pytest.approx((0.55, 0.2, 0.35))
    assert (found.epoch, found.members) == (2, 1)


def test_step_that_the_old_members_still_decide_is_no_recovery():
    assert acc.recovery(run_with_a_loss(), 0.35, epoch=1).raw_s == pytest.approx(0.65)


def test_recovery_is_unknown_until_new_members_showed_an_undisturbed_step():
    first = stamps((1, 0.1), (2, 1.0), (3, 1.2))
    books = entered({10: first}, account({1: 1, 2: 2, 3: 2}))
    assert acc.recovery(books, 0.2, epoch=1) is None


def test_step_counts_when_its_last_member_committed_it():
    books = entered({1: stamps((1, 0.1)), 2: stamps((1, 0.4))}, account({1: 1}))
    assert books.committed(1) == 0.4


def test_longest_gap_reaches_over_the_ends_of_its_window():
    commits = run_with_a_loss().commits()
    assert longest_gap(commits, 0.5, 0.9) == pytest.approx(0.6)
    assert longest_gap(commits, 0.0, 0.3) == pytest.approx(0.1)


def test_rate_counts_commits_within_its_window():
    assert acc.rate(run_with_a_loss(), 1.0, 2.0) == pytest.approx(6.0)


def test_moment_that_a_victim_stamped_itself_is_kept():
    books = entered({1: [*stamps((1, 0.1)), json.dumps(["fault", 0, 0.7, 0.0])]}, account({1: 1}))
    assert books.faults == [0.7]


@pytest.fixture
def ledger(tmp_path):
    for folder in ("stamps", "account"):
        (tmp_path / folder).mkdir()
    (tmp_path / "account" / "t.jsonl").write_text("".join(account({1: 1, 2: 1})))
    return acc.Ledger(tmp_path / "stamps", tmp_path / "account")


def test_line_that_is_being_written_is_left_for_the_next_time(ledger, tmp_path):
    file = tmp_path / "stamps" / "7.jsonl"
    file.write_text("\n".join(stamps((1, 0.1))) + '\n["commit", 2, 0.')
    assert list(ledger.look().moments) == [1]
    with file.open("a") as opened:
        opened.write("4, 0.0]\n")
    assert ledger.look().moments == {1: {7: 0.1}, 2: {7: 0.4}}
    assert ledger.look().steps == [1, 2]


def test_sample_that_was_fed_to_nobody_is_found_in_the_account(ledger, tmp_path):
    assert ledger.account().lost == 0
    file = tmp_path / "account" / "t.jsonl"
    file.write_text("".join(line for line in account({1: 1, 2: 1}) if '"fed":2' not in line))
    assert ledger.account().lost == 4
