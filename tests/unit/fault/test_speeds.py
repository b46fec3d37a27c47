import random

import pytest

from atoll.fault.speeds import Restored, SlowWorker, Speeds, Spent

NAMES = ("a", "b", "c", "d")


class Run:
    """Members that compute at these paces (seconds a grain) and wait for the slowest."""

    def __init__(self, names=NAMES, grains=4):
        self.speeds, self.names, self.step = Speeds(), names, 0
        self.grains = dict.fromkeys(names, grains)
        self.epoch(1)

    def epoch(self, number):
        self.speeds.regrouped(number, self.names)

    def go(self, steps=1, *, comm=0.01, **paces):
        verdicts = []
        for _ in range(steps):
            self.step += 1
            spent = {n: self.grains[n] * paces.get(n, 0.1) for n in self.names}
            longest = max(spent.values())
            for name, compute in spent.items():
                said = Spent(
                    grains=self.grains[name],
                    compute_s=compute,
                    wait_s=longest - compute + comm,
                    step_s=longest + comm,
                )
                verdicts += self.speeds.committed(name, self.step, said)
        return verdicts


def test_worker_three_times_slower_is_named_within_ten_steps():
    run = Run()
    assert run.go(30) == []
    (verdict,) = run.go(10, c=0.3)
    assert isinstance(verdict, SlowWorker)
    assert (verdict.trainer, round(verdict.times)) == ("c", 3)
    assert verdict.step - 30 == 8
    assert "comes late and waits 10 ms a step itself, the others 810 ms" in verdict.evidence


def test_worker_slow_from_the_start_is_named_within_ten_steps():
    (verdict,) = Run(("a", "b")).go(10, b=0.3)
    assert (verdict.trainer, verdict.step) == ("b", 7)


def test_slowness_of_all_is_nobodys():
    run = Run()
    assert run.go(20) + run.go(20, a=0.4, b=0.4, c=0.4, d=0.4) == []
    assert run.speeds.paces["a"] == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(5))
def test_equal_workers_on_an_overloaded_machine_are_never_named(seed):
    chance = random.Random(seed)
    run = Run()
    for _ in range(2000):
        assert run.go(**{n: 0.1 * chance.lognormvariate(0.0, 0.4) for n in NAMES}) == []


def test_single_slow_steps_are_no_slow_worker():
    run = Run()
    for _ in range(20):
        assert run.go(2) + run.go(2, b=0.5) == []


def test_slow_worker_whom_nobody_waits_for_is_not_named():
    run = Run()
    run.grains = {"a": 6, "b": 6, "c": 2, "d": 6}
    assert run.go(20, c=0.3) == []


def test_verdict_stays_once_the_grains_are_split_by_speed():
    run = Run()
    assert len(run.go(10, c=0.3)) == 1
    run.grains = {"a": 5, "b": 5, "c": 1, "d": 5}
    run.epoch(2)
    assert run.go(20, c=0.3) == []
    assert set(run.speeds.slow) == {"c"}


def test_worker_between_the_thresholds_does_not_flap():
    run = Run()
    assert len(run.go(10, c=0.3)) == 1
    for _ in range(10):
        assert run.go(5, c=0.17) + run.go(5, c=0.22) == []


def test_worker_that_keeps_up_again_is_told_once():
    run = Run()
    run.go(10, c=0.3)
    (verdict,) = run.go(20)
    assert verdict == Restored(trainer="c", evidence=verdict.evidence)
    assert run.speeds.slow == {}


def test_first_step_of_an_epoch_does_not_count():
    run = Run()
    for epoch in range(2, 12):
        assert run.go(1, c=9.0) + run.go(4) == []
        run.epoch(epoch)


def test_lost_members_are_forgotten_and_those_who_stay_keep_their_pace():
    run = Run()
    run.go(10, c=0.3)
    run.names = ("a", "b", "e")
    run.epoch(2)
    assert run.speeds.slow == {}
    assert set(run.speeds.paces) == {"a", "b"}


def test_steps_that_a_member_never_tells_of_hold_nothing_up():
    run = Run()
    for step in range(1, 30):
        run.speeds.committed("a", step, Spent(grains=4, compute_s=0.4, wait_s=0.0))
    run.step = 29
    assert len(run.go(12, c=0.3)) == 1


def test_member_without_grains_keeps_its_last_pace():
    run = Run()
    run.go(10, c=0.3)
    run.grains = {"a": 6, "b": 5, "c": 0, "d": 5}
    run.go(10, c=0.3)
    assert run.speeds.paces["c"] == pytest.approx(0.3)


def test_members_that_tell_nothing_of_their_computing_are_never_named():
    speeds = Speeds()
    speeds.regrouped(1, ("a", "b"))
    for step in range(1, 30):
        for name in ("a", "b"):
            assert speeds.committed(name, step, Spent(grains=0, compute_s=0.0, wait_s=0.0, step_s=0.1)) == []
    assert speeds.paces == {}


def test_window_speaks_by_itself_while_somebody_is_slow_and_a_moment_after():
    run = Run()
    run.go(10)
    assert not run.speeds.spoken
    run.go(10, c=0.3)
    assert run.speeds.spoken
    run.go(12)
    assert (run.speeds.slow, run.speeds.spoken) == ({}, True)
    run.go(20)
    assert not run.speeds.spoken
