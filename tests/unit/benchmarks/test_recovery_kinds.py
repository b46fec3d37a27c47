"""What a story holds of a fault: the right verdict, and who was condemned wrongly."""

import contextlib

import pytest

from atoll.schema.views import EventView
from benchmarks import recovery_classes
from benchmarks.recovery_classes import report
from benchmarks.recovery_faults import carried
from benchmarks.recovery_kinds import KINDS, Shape, verdicts
from benchmarks.recovery_soak import growth
from benchmarks.recovery_trials import LIMIT_S, NO_RUN

KILL = KINDS[0]


def line(subject, kind, text):
    return EventView(seq=1, at=0.0, run="r", subject=subject, kind=kind, text=text)


def test_loss_of_the_victim_for_the_right_reason_is_a_right_verdict():
    found = verdicts(KILL, {"t2"}, [line("t2", "lost", "killed by SIGKILL")])
    assert (found.right, found.wrong) == (True, ())


def test_loss_of_a_bystander_is_a_wrong_one_even_beside_a_right_one():
    found = verdicts(KILL, {"t2"}, [line("t2", "lost", "killed by SIGKILL"), line("t1", "lost", "hung: it waits")])
    assert found.right
    assert found.wrong == ("t1: lost hung: it waits",)


def test_loss_of_a_bystander_for_the_expected_reason_is_not_taken_for_the_victims():
    assert verdicts(KILL, {"t2"}, [line("t1", "lost", "killed by SIGKILL")]).right is False


def test_names_and_figures_of_the_issue_are_all_there():
    assert len({k.name for k in KINDS}) == len(KINDS)
    bars = {k.figure: k.bar for k in KINDS if k.figure}
    assert bars == {
        "kill_s": 0.6,
        "hang_s": 1.5,
        "gil_s": 2.0,
        "host_s": 1.5,
        "cut_s": 1.5,
        "partition_s": 2.0,
        "control_pause_s": 0.1,
    }


def trial(seconds, **changes):
    fine = {"verdict": True, "wrong": [], "said": [], "back_s": 0.1}
    return fine | {"seconds": seconds, "steps_lost": 0, "samples_lost": 0, "samples_repeated": 0} | changes


def figures(*trials):
    return {f.name: f for f in report([KILL], {KILL.name: list(trials)}, quick=True).figures}


def test_median_and_worst_come_out_of_trials():
    found = figures(trial(0.2), trial(0.3), trial(0.9))
    assert found["kill_s"].value == pytest.approx(0.3)
    assert "worst 0.900" in found["kill_s"].note


def test_trial_that_never_recovered_counts_with_all_the_time_it_had():
    found = figures(trial(0.2), trial(None), trial(None))
    assert found["kill_s"].value == LIMIT_S
    assert "2 of 3 did not recover" in found["kill_s"].note


def test_trial_that_never_struck_is_not_counted_and_told():
    found = figures(trial(0.2), {"problem": f"{NO_RUN}: no lab"})
    assert found["kill_s"].value == pytest.approx(0.2)
    assert "1 had no run to strike" in found["kill_s"].note


def test_wrong_verdicts_and_lost_samples_are_counted_over_all_trials():
    found = figures(trial(0.2, verdict=False), trial(0.2, wrong=["t1: lost"], samples_lost=3))
    assert found["wrong_verdicts"].value == 2
    assert found["samples_lost"].value == 3


def test_each_kind_has_a_shape_and_those_with_a_bar_have_a_verdict_or_hold():
    assert all(k.verdict or k.shape is Shape.HELD for k in KINDS)


class Grounds:
    """Stands in for labs: counts those that stand and those that ever stood."""

    def __init__(self, monkeypatch, answers):
        self.standing = self.raised = 0
        self.answers = list(answers)
        monkeypatch.setattr(recovery_classes, "ground", self.ground)
        monkeypatch.setattr(recovery_classes, "Theatre", lambda here, hold_s: self)

    @contextlib.contextmanager
    def ground(self):
        self.standing, self.raised = self.standing + 1, self.raised + 1
        assert self.standing == 1
        yield self
        self.standing -= 1

    def tried(self, kind, number):
        return self.answers.pop(0)


def test_trial_on_a_ground_where_nothing_runs_is_made_on_another(monkeypatch):
    broken = {"problem": f"{NO_RUN}: the control plane did not answer"}
    grounds = Grounds(monkeypatch, [trial(0.2), broken, trial(0.3)])
    found = recovery_classes.classes(quick=True, only=(KILL.name,))
    assert (grounds.raised, grounds.standing) == (2, 0)
    assert found.details["rows"][KILL.name]["median_s"] == pytest.approx(0.25)


def test_trials_that_were_kept_are_not_made_again(monkeypatch, tmp_path):
    notes = tmp_path / "kept"
    Grounds(monkeypatch, [trial(0.2)])
    with pytest.raises(IndexError):  # the second trial ends the benchmark
        recovery_classes.classes(quick=True, only=(KILL.name,), notes=notes)
    Grounds(monkeypatch, [trial(0.4)])
    found = recovery_classes.classes(quick=True, only=(KILL.name,), notes=notes)
    assert found.details["rows"][KILL.name]["median_s"] == pytest.approx(0.3)
    assert not notes.exists()


def test_kind_that_ends_its_ground_gets_one_of_its_own(monkeypatch):
    last = next(k for k in KINDS if k.fresh)
    held = {"verdict": None, "wrong": [], "said": [], "back_s": 0.1}
    grounds = Grounds(monkeypatch, [trial(0.2), trial(0.2), held | {"seconds": 0.0}])
    recovery_classes.classes(quick=True, only=(KILL.name, last.name))
    assert (grounds.raised, grounds.standing) == (2, 0)


def test_what_grows_is_seen_from_the_first_third_to_the_last():
    assert growth([10.0, 10.0, 30.0, 11.0, 11.0, 11.0]) == pytest.approx(0.1)
    assert growth([1.0, 2.0]) == 0.0


_TOLD = """\
ESTAB 0 0 10.66.0.1:38371 10.66.0.2:34633 users:(("python",pid=71,fd=9)) cubic wscale:7,7 rto:204 bytes_sent:9 bytes_acked:1867266 bytes_received:165
ESTAB 0 0 [::ffff:10.64.0.1]:37645 [::ffff:10.64.0.2]:53469 users:(("ray::atoll",pid=7,fd=4),("ray::atoll",pid=71,fd=4)) cubic bytes_acked:42 segs_out:3
ESTAB 0 0 10.64.0.1:40001 10.64.0.2:9000 users:(("python",pid=7,fd=12)) cubic bytes_acked:5000 segs_out:3
FIN-WAIT-1 0 77 10.64.0.1:37646 10.64.0.2:53470 cubic bytes_acked:9000 segs_out:3
ESTAB 0 0 10.66.0.1:38372 10.66.0.4:34633 users:(("python",pid=71,fd=10)) cubic wscale:7,7 rto:204
"""


def test_only_what_a_members_own_connections_carried_counts():
    assert carried(_TOLD, 71) == [("10.66.0.2", 1867266), ("10.64.0.2", 42)]
    assert carried(_TOLD, 7) == [("10.64.0.2", 42), ("10.64.0.2", 5000)]
    assert carried(_TOLD, 1) == []
