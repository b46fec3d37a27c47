"""Trainers over real connections, in one process: what they tell of waits, of their own work, and of calls that differ."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from atoll.errors import UserError
from atoll.schema.messages import Busy, PeerDown, StepCommitted, TrainerFailed
from atoll.workers.busy_runtime import FIRST_STEP, FIRST_STEP_S, Announcements
from atoll.workers.context import Context
from atoll.workers.torch_ddp import solo_group

GRAINS, MICRO = 6, 2
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module", autouse=True)
def one_group():
    with solo_group():
        yield


def nothing(*_):
    pass


def training(*, before=nothing, inside=nothing, after=nothing, steps=3):
    def train(ctx):
        model = nn.Linear(6, 4)
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ctx.manage(model=model, optimizer=optimizer)
        for step in ctx.steps(torch.ones(64, 6), global_batch=GRAINS * MICRO, micro_batch=MICRO, steps=steps):
            before(ctx, step, model)
            with step:
                inside(ctx, step)
                for x in step:
                    step.backward(model(x).mean())
                optimizer.step()
            after(ctx, step)

    return train


def test_a_worker_that_computes_long_is_named_by_those_that_wait_and_names_nobody(connected):
    go_on = threading.Event()

    def inside(ctx, step):
        if ctx._host.identity.trainer == "c" and step.index == 2:
            go_on.wait(20)

    connected.start(training(inside=inside))
    connected.meet(1, *NAMES)
    connected.until(lambda: all(any(w.missing == ("c",) for w in connected.waits(n)) for n in "ab"))
    assert {(w.epoch, w.silent) for n in "ab" for w in connected.waits(n)} == {(1, ())}
    assert not any(w.missing for w in connected.waits("c") if w.for_s > 0)
    go_on.set()
    connected.join()
    assert set(connected.status.values()) == {0}
    for name in "ab":
        last = connected.waits(name)[-1]
        assert (last.missing, last.silent) == ((), ())


def test_a_member_that_does_not_come_to_the_epoch_is_named_while_the_others_meet(connected):
    connected.start(training(), "a", "b")
    connected.meet(1, *NAMES)
    connected.until(lambda: all(any(w.operation == "connect" for w in connected.waits(n)) for n in "ab"))
    assert {(w.missing, w.for_s < 1.0) for n in "ab" for w in connected.waits(n)[:1]} == {(("c",), True)}
    connected.meet(2, "a", "b")
    connected.join()
    assert connected.status == {"a": 0, "b": 0}


def test_all_members_tell_what_they_computed_and_how_long_they_waited(connected):
    def inside(ctx, step):
        if ctx._host.identity.trainer == "b":
            threading.Event().wait(0.1)  # the slow one

    connected.start(training(inside=inside))
    connected.meet(1, *NAMES)
    connected.join()
    told = {n: connected.hosts[n].facts(StepCommitted) for n in NAMES}
    assert {n: sorted({f.step for f in facts}) for n, facts in told.items()} == {key: [1, 2, 3] for key in NAMES}
    assert {f.grains for facts in told.values() for f in facts} == {GRAINS // len(NAMES)}
    assert all(f.compute_s >= 0.1 for f in told["b"])
    assert all(f.wait_s >= 0.05 for n in "ac" for f in told[n])
    for facts in told.values():
        assert all(0 < f.compute_s <= f.step_s and f.wait_s >= 0 and f.compute_s + f.wait_s <= f.step_s for f in facts)


def test_the_first_step_of_a_process_is_announced_and_over_with_its_commit(connected):
    connected.start(training())
    connected.meet(1, *NAMES)
    connected.join()
    for host in connected.hosts.values():
        mine = host.identity.trainer
        assert host.facts(Busy) == [
            Busy(trainer=mine, what=FIRST_STEP, limit_s=FIRST_STEP_S),
            Busy(trainer=mine, what=FIRST_STEP, limit_s=0.0),
        ]
        kinds = [f for f in host.told if isinstance(f, Busy | StepCommitted)]
        assert [type(f) for f in kinds[:3]] == [Busy, Busy, StepCommitted]


def test_work_of_ones_own_is_announced_until_it_ends_also_by_an_error(connected):
    def after(ctx, step):
        if ctx._host.identity.trainer == "b" and step.index == 2:
            with ctx.busy("evaluate", limit_s=7):
                raise ValueError("no such split")

    connected.start(training(after=after))
    connected.meet(1, *NAMES)
    connected.until(lambda: connected.hosts["b"].facts(TrainerFailed))
    said = [(f.what, f.limit_s) for f in connected.hosts["b"].facts(Busy)]
    assert said == [(FIRST_STEP, FIRST_STEP_S), (FIRST_STEP, 0.0), ("evaluate", 7), ("evaluate", 0.0)]
    connected.meet(2, "a", "c")
    connected.join()


class Clock:
    def __init__(self):
        self.at = 50.0

    def monotonic(self):
        return self.at

    def now(self):
        return self.at


def test_the_end_of_an_inner_announcement_says_again_what_is_left_of_the_outer_one(connected):
    host, clock = connected.hosts["a"], Clock()
    announced = Announcements(host, clock)
    announced.begin("first step", 60.0)
    clock.at += 10.0
    announced.begin("evaluate", 5.0)
    clock.at += 2.0
    announced.end("evaluate")
    announced.end("evaluate")  # nothing of that name
    announced.end("first step")
    assert [(f.what, f.limit_s) for f in host.facts(Busy)] == [
        ("first step", 60.0),
        ("evaluate", 50.0),
        ("first step", 48.0),
        ("first step", 0.0),
    ]


def test_an_inner_announcement_that_is_longer_counts_while_it_lasts(connected):
    host, clock = connected.hosts["a"], Clock()
    announced = Announcements(host, clock)
    announced.begin("outer", 5.0)
    announced.begin("inner", 60.0)
    clock.at += 2.0
    announced.end("inner")
    announced.end("outer")
    assert [(f.what, f.limit_s) for f in host.facts(Busy)] == [
        ("outer", 5.0),
        ("inner", 60.0),
        ("outer", 3.0),
        ("outer", 0.0),
    ]


@pytest.mark.parametrize("limit_s", [float("inf"), float("nan"), -1.0, 0.0])
def test_an_announcement_without_an_end_is_refused(connected, limit_s):
    context = Context(connected.hosts["a"], None)
    with pytest.raises(UserError, match="more than 0, that it may take"), context.busy("evaluate", limit_s=limit_s):
        pass


def test_an_outer_announcement_past_its_limit_is_not_said_again(connected):
    host, clock = connected.hosts["a"], Clock()
    announced = Announcements(host, clock)
    announced.begin("outer", 1.0)
    announced.begin("inner", 1.0)
    clock.at += 3.0
    announced.end("inner")
    assert [f.what for f in host.facts(Busy)] == ["outer", "inner", "inner"]


def test_workers_whose_calls_differ_all_fail_with_both_calls_named(connected):
    def before(ctx, step, model):
        if ctx.rank == 1 and step.index == 2:
            model.bias.requires_grad_(False)

    connected.start(training(before=before))
    connected.meet(1, *NAMES)
    connected.join()
    failures = [f for host in connected.hosts.values() for f in host.facts(TrainerFailed)]
    assert {f.trainer for f in failures} == set(NAMES)
    assert {(f.code, f.step) for f in failures} == {("different-calls", 1)}
    for fact in failures:
        assert "all_reduce sum of float32[24]" in fact.problem  # without the bias, on rank 1
        assert "all_reduce sum of float32[28]" in fact.problem
        assert "rank 1 " in fact.problem
        assert "ctx.rank" in fact.problem  # what to look for
    assert not any(host.facts(PeerDown) for host in connected.hosts.values())
    assert set(connected.status.values()) == {2}
