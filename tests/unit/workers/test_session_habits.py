"""What programs do around a step by habit - averages, schedules and saves after it, layers thawed, errors caught."""

import re

import pytest
import torch
from torch import nn

from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_state import unflatten
from atoll.schema.messages import TrainerFailed
from atoll.workers.context import run_function
from atoll.workers.torch_ddp import solo_group

GRAINS, MICRO, STEPS = 4, 4, 8
BATCH = GRAINS * MICRO


@pytest.fixture(scope="module", autouse=True)
def one_group():
    with solo_group():
        yield


def rows():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


def make_model():
    generator = torch.Generator().manual_seed(9)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 3)
    return model


def backward(step, model):
    for x, y in step:
        step.backward(((model(x) - y) ** 2).mean())


class Gone(BaseException):
    """A member that vanishes in the middle of a step."""


def disturbed(crew, function):
    """Three members, of which `function` makes one vanish in step 4; the others go on."""
    team = crew("a", "b", "c")
    team.start(function)
    team.members(1, "a", "b", "c")
    team.threads[0].join(30)
    team.members(2, "b", "c")
    team.join()
    assert (team.status["b"], team.status["c"]) == (0, 0)


def calm(crew, function, **spec):
    team = crew("x", **spec)
    team.start(function)
    team.members(1, "x")
    team.join()
    assert team.status["x"] == 0
    return team


def vanish(ctx, step):
    if ctx._host.identity.trainer == "a" and step.index == 4:
        raise Gone


def averages_and_schedule_after_the_step(into):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay)
        ctx.manage(model=model, optimizer=optimizer, scheduler=scheduler, average=average)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=STEPS):
            with step:
                vanish(ctx, step)
                backward(step, model)
                optimizer.step()
            scheduler.step()
            average.update_parameters(model)
        state = {k: v.clone() for k, v in average.state_dict().items()}
        into[ctx._host.identity.trainer] = {**state, "lr": torch.tensor(scheduler.get_last_lr())}

    return train


def test_what_follows_a_step_that_was_given_up_is_undone(crew):
    finals = {}
    disturbed(crew, averages_and_schedule_after_the_step(finals))
    calm(crew, averages_and_schedule_after_the_step(finals))
    for name, value in finals["x"].items():
        assert torch.equal(finals["b"][name], finals["c"][name])
        torch.testing.assert_close(finals["b"][name], value)


def test_checkpoint_holds_what_follows_its_step(crew, tmp_path):
    finals = {}
    train = averages_and_schedule_after_the_step(finals)
    calm(crew, train, checkpoint_every=STEPS, checkpoint_dir=str(tmp_path / "kept"))
    saved = unflatten(Store(tmp_path / "kept").open(None))
    assert saved["scheduler"]["last_epoch"] == STEPS
    for name, value in saved["average"].items():
        assert torch.equal(value, finals["x"][name])


def thawing(into):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=STEPS):
            model[0].requires_grad_(step.index >= 3)
            with step:
                backward(step, model)
                optimizer.step()
        into[ctx._host.identity.trainer] = {k: v.clone() for k, v in model.state_dict().items()}

    return train


def test_layer_thawed_on_the_way_is_averaged(crew):
    finals, team = {}, crew("a", "b", "c")
    team.start(thawing(finals))
    team.members(1, "a", "b", "c")
    team.join()
    calm(crew, thawing(finals))
    for name, value in finals["x"].items():
        assert torch.equal(finals["a"][name], finals["b"][name])
        torch.testing.assert_close(finals["a"][name], value)


def test_leaving_the_loop_before_a_step_is_fine(crew):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=STEPS):
            if step.index == 3:
                break
            with step:
                backward(step, model)
                optimizer.step()

    team = crew("a", "b")
    team.start(train)
    team.members(1, "a", "b")
    team.join()
    assert set(team.status.values()) == {0}


def test_member_that_leaves_alone_is_told_and_so_are_the_others(crew):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=STEPS):
            with step:
                backward(step, model)
                optimizer.step()
            if ctx.rank == 0 and step.index == 2:
                break

    team = crew("a", "b")
    team.start(train)
    team.members(1, "a", "b")
    team.join()
    assert set(team.status.values()) == {2}
    problems = [f.problem for h in team.hosts.values() for f in h.facts(TrainerFailed)]
    assert all("1 of 2 workers left the loop" in p for p in problems)


def fail():
    raise ValueError("mine")


def caught_before_commit(step, model, optimizer):
    try:
        with step:
            backward(step, model)
            fail()
    except ValueError:
        return


def caught_after_commit(step, model, optimizer):
    try:
        with step:
            backward(step, model)
            optimizer.step()
            fail()
    except ValueError:
        return


def caught_in_backward(step, model, optimizer):
    with step:
        for x, y in step:
            loss = ((model(x) - y) ** 2).mean()
            loss.register_hook(lambda _: 1 / 0)
            try:
                step.backward(loss)
            except ZeroDivisionError:
                continue
        optimizer.step()


def zeroed_between(step, model, optimizer):
    with step:
        for x, y in step:
            optimizer.zero_grad()
            step.backward(((model(x) - y) ** 2).mean())
        optimizer.step()


def frozen_inside(step, model, optimizer):
    with step:
        model[0].requires_grad_(False)
        backward(step, model)
        optimizer.step()


def vector_reported(step, model, _optimizer):
    with step:
        backward(step, model)
        step.report(norms=torch.ones(3))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (caught_before_commit, "step 1 failed with ValueError: mine; do not catch"),
        (caught_after_commit, "step 1 failed with ValueError: mine; do not catch"),
        (caught_in_backward, "step 1 failed with ZeroDivisionError"),
        (zeroed_between, "changed between two micro-batches"),
        (frozen_inside, "change them before it"),
        (vector_reported, r"norms has shape \(3,\)"),
    ],
)
def test_habit_that_cannot_be_right_is_refused(lone_host, crew, body, words):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=2):
            body(step, model, optimizer)

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 2
    assert re.search(words, host.told[-1].problem), host.told[-1].problem


def test_optimizer_that_was_not_handed_over_is_refused(lone_host, crew):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        ctx.manage(model)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=2):
            with step:
                backward(step, model)
                optimizer.step()

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 2
    assert "SGD updates a managed model but is not managed itself" in host.told[-1].problem
