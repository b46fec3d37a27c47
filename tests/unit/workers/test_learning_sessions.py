"""Joiners that learn a state while the others train: whatever happens meanwhile, all end with the same bits."""

import json
import threading
import time

import pytest
import torch
from torch import nn

from atoll.checkpoint.fs_inspect import verify
from atoll.checkpoint.fs_store import Store
from atoll.fault.inject import LEARNING_FAILPOINTS, arm, disarm
from atoll.schema.messages import Busy, CheckpointFailed, EpochJoined
from atoll.workers import learning
from atoll.workers.fs_account import read_account
from atoll.workers.torch_ddp import solo_group

LIMIT_S = 30.0
STEPS = 24


@pytest.fixture(scope="module", autouse=True)
def one_group():
    """Threads of one process share its group."""
    with solo_group():
        yield


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(learning, "LEARN_ABOVE_BYTES", 0)
    monkeypatch.setattr(learning, "BACKLOG_TIMES", 100.0)
    yield
    disarm()


def rows():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


class Gone(BaseException):
    """A member that vanishes in the middle of a step."""


class Course:
    """A run of a and b, joined by c once they have begun; `pause` is held at a failpoint until `at` is begun by a."""

    def __init__(self, team, tmp_path, *, outside=False, steps=STEPS):
        self.team, self.directory, self.steps, self.outside = team, tmp_path, steps, outside
        self.finals, self.models, self.joined, self.saw = {}, {}, threading.Event(), {}
        self.begun = {n: threading.Event() for n in range(1, steps + 1)}
        self.lost = threading.Event()  # set: nobody has to be lost first
        self.lost.set()
        self.at_step = lambda ctx, step: None

    def train(self, ctx):
        me = ctx._host.identity.trainer
        torch.manual_seed(len(me))
        model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        self.models[me] = model
        ctx.manage(model=model, optimizer=optimizer, scheduler=scheduler)
        for step in ctx.steps(rows(), global_batch=16, micro_batch=4, steps=self.steps):
            with step:
                if me == "a":
                    self.begun[step.index].set()
                    if step.index == 4:
                        # The learner comes in before the run is over.
                        self.joined.wait(LIMIT_S)
                self.at_step(ctx, step)
                for x, y in step:
                    loss = ((model(x) - y) ** 2).mean()
                    step.backward(loss)
                    if not self.outside:
                        step.report(loss=loss.detach())
                if self.outside:
                    step.report(loss=loss.detach())
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        self.finals[me] = [model.state_dict(), optimizer.state_dict(), scheduler.state_dict()]

    def run(self, *more):
        self.team.start(self.train)
        self.team.members(1, "a", "b")
        assert self.begun[3].wait(LIMIT_S)
        self.team.members(2, "a", "b", "c")
        self.joined.set()
        for wait_for, epoch, names in more:
            assert self.begun[wait_for].wait(LIMIT_S)
            assert self.lost.wait(LIMIT_S)
            self.team.members(epoch, *names)
        self.team.join()

    def same(self, *names):
        texts = {json.dumps(self.finals[n], default=lambda t: t.tolist()) for n in names}
        return len(texts) == 1


@pytest.fixture
def course(crew, tmp_path):
    def make(*, outside=False, names=("a", "b", "c"), **spec):
        return Course(crew(*names, **spec), tmp_path, outside=outside)

    return make


def hold(course, place, until, *, skip=0):
    """Whoever passes `place` waits there until a has begun step `until`. Returns what is set when somebody came."""
    came = threading.Event()

    def wait():
        came.set()
        assert course.begun[until].wait(LIMIT_S)

    arm(place, wait, skip=skip)
    return came


def assert_whole(course, *names):
    assert {course.team.status[n] for n in names} == {0}
    assert course.same(*names)
    account = read_account(course.directory)
    assert (account.steps, account.lost, account.repeated, account.problems) == (STEPS, 0, 0, ())


def test_others_train_on_while_a_joiner_learns_and_then_it_has_the_same_bits(course):
    run = course()
    came = hold(run, "in-lesson", 12)
    replayed, examined = threading.Event(), threading.Event()
    arm("in-replay", replayed.set)
    arm("in-examination", examined.set)
    run.run()
    assert came.is_set()
    assert replayed.is_set(), "nothing was withheld"
    assert examined.is_set()
    assert_whole(run, "a", "b", "c")
    assert 3 <= run.team.hosts["c"].facts(EpochJoined)[0].step <= 6


def test_run_that_ends_before_the_snapshot_came_waits_for_its_learner(course):
    run = course()
    hold(run, "in-lesson", STEPS)
    run.run()
    assert_whole(run, "a", "b", "c")


def test_teacher_lost_in_the_middle_of_a_lesson_makes_it_begin_again(course):
    run = course()
    hold(run, "in-lesson", 14)
    ended = []

    def vanish(ctx, step):
        if ctx._host.identity.trainer == "b" and step.index == 9:
            ended.append(step.index)
            run.lost.set()
            raise Gone

    run.at_step = vanish
    run.lost.clear()
    run.run((9, 3, ("a", "c")))
    assert ended == [9]
    assert_whole(run, "a", "c")


def test_updates_that_lead_elsewhere_are_noticed_and_the_whole_state_is_given(course):
    run = course()
    hold(run, "in-lesson", 10)

    def bend():
        with torch.no_grad():
            run.models["c"][0].weight.mul_(1.5)

    arm("in-replay", bend)
    run.run()
    assert_whole(run, "a", "b", "c")


def test_program_that_does_not_bear_a_step_without_batches_is_given_the_whole_state(course):
    run = course(outside=True)
    hold(run, "in-lesson", 12)
    run.run()
    assert_whole(run, "a", "b", "c")


def test_saves_beside_a_lesson_are_written_by_those_who_hold_the_state(course, tmp_path):
    run = course(checkpoint_every=6, keep_checkpoints=9)
    hold(run, "in-lesson", 15)
    run.run()
    assert_whole(run, "a", "b", "c")
    found = {report.step: report for report in verify(tmp_path / "checkpoints")}
    # Steps here take less time than a save may: one that comes too soon after two others is skipped, and said to be.
    failed = [f for host in run.team.hosts.values() for f in host.facts(CheckpointFailed)]
    assert all("skipped: 2 earlier saves" in fact.problem for fact in failed)
    assert sorted([*found, *(fact.step for fact in failed)]) == [6, 12, 18, 24]
    assert {6, 12} <= set(found)
    assert all(report.ok for report in found.values())
    store = Store(tmp_path / "checkpoints")
    assert {store.record(step).size for step in found} == {2}


def test_learner_without_room_for_more_gradients_is_waited_for(course, monkeypatch):
    monkeypatch.setattr(learning, "BACKLOG_TIMES", 0.5)
    run = course()
    busy = threading.Event()
    run.team.hosts["c"].on_tell = lambda _, fact: isinstance(fact, Busy) and "state" in fact.what and busy.set()
    arm("in-lesson", lambda: busy.wait(LIMIT_S))
    run.run()
    assert busy.is_set()
    assert_whole(run, "a", "b", "c")


def test_two_joiners_learn_each_at_its_own_pace(course):
    run = course(names=("a", "b", "c", "d"))
    hold(run, "in-lesson", 12)
    run.team.start(run.train)
    run.team.members(1, "a", "b")
    assert run.begun[3].wait(LIMIT_S)
    run.team.members(2, "a", "b", "c", "d")
    run.joined.set()
    run.team.join()
    assert_whole(run, "a", "b", "c", "d")


@pytest.mark.parametrize("place", LEARNING_FAILPOINTS)
def test_epoch_that_ends_anywhere_in_a_lesson_loses_nothing(course, place):
    run = course()
    first = threading.Event()

    def end():
        if not first.is_set():
            first.set()
            run.team.members(3, "a", "b", "c")
            time.sleep(0.05)

    if place != "in-lesson":
        hold(run, "in-lesson", 12)
    arm(place, end)
    run.at_step = lambda ctx, step: time.sleep(0.002)
    run.run()
    assert first.is_set()
    assert_whole(run, "a", "b", "c")
