"""What a fault cost a peer, out of stamps; and ratios that never flatter."""

import json
import sys

import pytest

from benchmarks import recovery_peers
from benchmarks.recovery_peers import STRIKES, _numbers
from benchmarks.recovery_peers_account import Member, Stamp, cost, members_since, read
from benchmarks.recovery_peers_cases import CASES, KILL, RATIOS, UNSETTLED, Case, own, report
from benchmarks.recovery_peers_jobs import RAY_TRAIN, TORCHFT_API, TORCHFT_README, Peer

HOSTS = ("a0", "a1", "b0")
FAULT = 10.0
VICTIM = Member(host="b1", pid=4, ticks=7)


def stamps(first, at, began, *, hosts=HOSTS, steps=8, late=0.0, group=None):
    """Steps from `first` on, 0.2 s each, the first at `at`; the last host is `late`."""
    return [
        Stamp(
            member=Member(host=host, pid=n + 1, ticks=7),
            step=first + s,
            at=at + 0.2 * s + late * (n == len(hosts) - 1),
            began=began,
            group=int(began) if group is None else group,
        )
        for n, host in enumerate(hosts)
        for s in range(steps)
    ]


def test_recovery_is_first_step_of_new_membership_on_its_last_member_less_a_step():
    found = cost([*stamps(0, 8.6, 0.0), *stamps(8, 13.0, 12.0, late=0.05)], FAULT, VICTIM)
    assert found.raw_s == pytest.approx(3.05)
    assert found.seconds == pytest.approx(2.85)
    assert (found.members, found.redone) == (3, 0)


def test_step_in_hand_that_old_members_still_commit_is_no_recovery():
    assert cost(stamps(0, 9.5, 0.0, steps=20), FAULT, VICTIM) is None


def test_membership_that_regrouped_with_the_victim_is_no_recovery():
    with_it = stamps(8, 10.1, 10.05, steps=20, group=5)
    its = Stamp(member=VICTIM, step=8, at=10.1, began=10.05, group=5)
    assert cost([*with_it, its], FAULT, VICTIM) is None


def test_new_membership_with_too_few_steps_is_not_known_yet():
    assert cost(stamps(8, 13.0, 12.0, steps=4), FAULT, VICTIM) is None


def test_steps_since_the_checkpoint_count_as_redone():
    assert cost([*stamps(0, 8.6, 0.0), *stamps(3, 30.0, 25.0)], FAULT, VICTIM).redone == 5


def test_member_that_joins_later_does_not_delay_what_was_committed_before():
    alone = stamps(8, 13.0, 12.0)
    joined = stamps(12, 13.85, 13.7, hosts=("b1",), steps=4)
    assert cost([*alone, *joined], FAULT, VICTIM) == cost(alone, FAULT, VICTIM)


def test_members_are_those_who_commit_now():
    old, new = stamps(0, 1.0, 0.0), stamps(0, 20.0, 19.0, hosts=("b1",))
    assert {m.host for m in members_since([*old, *new], 15.0, steps=8)} == {"b1"}


def test_half_a_line_is_left_for_the_next_time(tmp_path):
    (tmp_path / "a0-12-345.jsonl").write_text(f"{json.dumps([4, 1.5, 0.5, 9])}\n[5, 1.")
    assert read(tmp_path) == [Stamp(member=Member(host="a0", pid=12, ticks=345), step=4, at=1.5, began=0.5, group=9)]


def test_missing_peer_says_how_to_install_it():
    why = Peer(name="nobody", module="no_such_peer").missing(sys.executable)
    assert "No module named 'no_such_peer'" in why
    assert "pip install --group peers" in why


def test_interpreter_that_is_not_there_is_named():
    assert "/nowhere/python" in Peer(name="nobody", module="no_such_peer").missing("/nowhere/python")


def test_ever_new_memberships_have_members_but_none_together():
    stamps_ = [s for n in range(10) for s in stamps(n, 20.0 + 0.2 * n, 19.0 + n, steps=1)]
    assert members_since(stamps_, 15.0, steps=8) == set()
    assert {m.host for m in members_since(stamps_, 15.0, steps=8, together=False)} == set(HOSTS)


def test_steps_that_were_redone_earlier_are_not_counted_again():
    first, second = stamps(0, 1.0, 0.0, steps=30), stamps(10, 8.0, 7.5)
    its = Stamp(member=VICTIM, step=12, at=8.4, began=7.5, group=7)
    again = stamps(15, 13.0, 12.0)
    assert cost([*first, *second, its, *again], FAULT, VICTIM).redone == 3


def trials(*seconds, **more):
    return [{"seconds": s} | more for s in seconds]


def figure(mine, by_peer, name="vs_torchft_kill"):
    fault, _ = RATIOS[name]
    found = {own(fault): mine} | {f"{peer.name}: {fault}": theirs for peer, theirs in by_peer.items()}
    return next(f for f in report(found, quick=True).figures if f.name == name)


def ratio(mine, theirs):
    return figure(mine, {TORCHFT_README: theirs})


def test_ratio_is_of_medians():
    assert ratio(trials(0.4, 0.5, 9.0), trials(9.0, 10.0, 11.0)).value == pytest.approx(20)


def test_peer_that_does_not_recover_counts_with_the_limit_and_is_told_as_a_bound():
    late = {"seconds": None, "at_least_s": 90.0, "problem": "did not recover within 90 s"}
    found = ratio([{"seconds": 0.5}], [late])
    assert found.value == pytest.approx(180)
    assert "at least" in found.note


def test_no_ratio_where_atoll_did_not_recover():
    assert ratio([{"seconds": None}, {"seconds": 0.4}], [{"seconds": 9.0}]).value is None


def test_no_ratio_without_the_peer_and_its_note_says_why():
    found = ratio([{"seconds": 0.4}], [{"seconds": None, "problem": "torchft is not installed: pip"}])
    assert found.value is None
    assert "not installed" in found.note


def test_job_that_never_trained_enters_no_median():
    found = ratio(trials(0.5), [*trials(10.0), {"seconds": None, "problem": "no four workers training"}])
    assert found.value == pytest.approx(20)


def test_setting_that_serves_the_peer_best_counts_and_the_other_is_shown():
    found = figure(trials(0.5), {TORCHFT_API: trials(5.0), TORCHFT_README: trials(10.0)})
    assert found.value == pytest.approx(10)
    assert "10 s, median of 1, 20 times" in found.note


def test_setting_without_a_lasting_membership_is_shown_but_does_not_count():
    found = figure(trials(0.5), {TORCHFT_API: trials(0.1, settled=False), TORCHFT_README: trials(10.0)})
    assert found.value == pytest.approx(20)
    assert UNSETTLED in found.note


def test_trials_with_a_lasting_membership_count_and_those_without_are_told():
    loose = [*trials(0.1, settled=False), *trials(5.0, settled=True)]
    found = figure(trials(0.5), {TORCHFT_API: loose, TORCHFT_README: trials(10.0)})
    assert found.value == pytest.approx(10)
    assert f"in 1 of 2 trials {UNSETTLED}" in found.note


def test_peer_without_hope_is_not_asked_again():
    case = Case(peer=TORCHFT_README, fault=KILL)
    assert list(_numbers(case, {}, quick=False)) == [0, 1, 2, 3, 4]
    assert list(_numbers(case, {case.name: [{"seconds": None}] * 2}, quick=False)) == []


def test_kept_trials_are_not_made_again():
    case = Case(peer=TORCHFT_README, fault=KILL)
    assert list(_numbers(case, {case.name: trials(1.0, 2.0)}, quick=False)) == [2, 3, 4]


def test_every_ratio_has_a_case_in_a_quick_run():
    asked = {(c.peer, c.fault) for c in CASES if c.quick}
    for fault, settings in RATIOS.values():
        assert any((peer, fault) in asked for peer in settings)
    assert any(RAY_TRAIN in settings for _, settings in RATIOS.values())


def test_own_trial_that_did_not_recover_is_kept_over_a_resumed_run():
    assert recovery_peers._measured({"seconds": None, "verdict": True, "problem": "no step of new members within 60 s"})
    assert not recovery_peers._measured({"seconds": None, "problem": "no steady run to strike: no room"})


class Stage:
    """Strikes nothing, and breaks down after `left` trials."""

    left, asked = 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def struck(self, case, number, python):
        return self._trial(case.name, 9.0)

    def atoll_struck(self, fault, number):
        return self._trial(own(fault), 0.5)

    def _trial(self, name, seconds):
        if not Stage.left:
            raise KeyboardInterrupt
        Stage.left -= 1
        Stage.asked.append(name)
        return {"seconds": seconds}


def test_run_that_was_ended_goes_on_with_the_trials_that_are_left(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    monkeypatch.setattr(recovery_peers, "_Stage", Stage)
    Stage.left, Stage.asked = 3, []
    with pytest.raises(KeyboardInterrupt):
        recovery_peers.peers(quick=True, notes=notes)
    Stage.left = 100
    found = recovery_peers.peers(quick=True, notes=notes)
    assert sorted(Stage.asked) == sorted(
        [c.name for c in CASES if c.quick] + [own(f) for f in STRIKES for _ in range(2)]
    )
    assert [f.value for f in found.figures] == [18.0] * len(RATIOS)
    assert not notes.exists()
