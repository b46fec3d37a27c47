"""What a wrong program meets: one line that says what, where and what to do."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import IterableDataset

from atoll.schema.messages import (
    TrainerFailed,
    TrainerFinished,
)
from atoll.workers.context import run_function
from atoll.workers.torch_ddp import solo_group

GRAINS, MICRO = 4, 4
BATCH = GRAINS * MICRO


def rows(width=6):
    inputs = torch.randn(64, width, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


def make_model(*, norm=False):
    generator = torch.Generator().manual_seed(9)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.Tanh(), nn.Linear(12, 1)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 3)
    return model


def loss_of(model, x, y):
    return ((model(x) - y) ** 2).mean()


@pytest.fixture(scope="module", autouse=True)
def one_group():
    """Threads of one process share its group."""
    with solo_group():
        yield


def loop(ctx, *, data=None, body=None, model=None, **options):
    model = model or make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ctx.manage(model, optimizer)
    options = {"global_batch": BATCH, "micro_batch": MICRO, "steps": 2, **options}
    for step in ctx.steps(rows() if data is None else data, **options):
        with step:
            body(step, model, optimizer)


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(10)


def backward_twice(step, model, _):
    for x, y in step:
        step.backward(loss_of(model, x, y))
        step.backward(loss_of(model, x, y))


def early_step(step, model, optimizer):
    for x, y in step:
        step.backward(loss_of(model, x, y))
        optimizer.step()


def with_closure(step, model, optimizer):
    for x, y in step:
        step.backward(loss_of(model, x, y))
    optimizer.step(lambda: None)


def no_backward(step, *_):
    for _batch in step:
        pass


def vector_loss(step, model, _):
    for x, _y in step:
        step.backward(model(x))


def negative_weight(step, model, _):
    for x, y in step:
        step.backward(loss_of(model, x, y), weight=-1.0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"data": Stream()}, "bad-data", "TokenFile"),
        ({"data": iter([1, 2])}, "bad-data", "only be iterated"),
        ({"data": {"a": 1}}, "bad-data", "no data set"),
        ({"data": []}, "bad-data", "no samples"),
        ({"data": [torch.zeros(2), torch.zeros(3)]}, "bad-data", "cannot be stacked"),
        ({"data": [torch.zeros(2, device="meta")] * 20}, "wrong-device", "batch.to"),
        ({"global_batch": 10}, "bad-batch", "8 or 12"),
        ({"model": nn.Linear(6, 1, device="meta")}, "wrong-device", "model.weight is on meta"),
        ({"body": backward_twice}, "user-error", "twice"),
        ({"body": early_step}, "user-error", "to its end"),
        ({"body": with_closure}, "user-error", "closure"),
        ({"body": no_backward}, "bad-batch", "weight above 0"),
        ({"body": vector_loss}, "user-error", "one number"),
        ({"body": negative_weight}, "bad-batch", "weight=-1.0"),
        ({"body": lambda *_: 1 / 0}, "program-failed", "ZeroDivisionError.*test_session_misuse.py"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_program_fails_with_one_line(lone_host, crew, arguments, code, words, capsys):
    def train(ctx):
        loop(ctx, **{"body": no_backward, **arguments})

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 2
    failure = host.told[-1]
    assert isinstance(failure, TrainerFailed)
    assert failure.code == code, failure.problem
    assert __import__("re").search(words, failure.problem), failure.problem
    assert "\n" not in failure.problem


def test_step_that_is_not_entered_is_refused(lone_host, crew):
    def train(ctx):
        model = make_model()
        ctx.manage(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for _step in ctx.steps(rows(), global_batch=BATCH, steps=2):
            pass

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 2
    assert "with step" in host.told[-1].problem


def test_update_that_fails_after_commit_leaves_without_a_word(lone_host, crew):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            if self.param_groups[0]["lr"] < 0.05:
                raise MemoryError
            return super().step(closure)

    def train(ctx):
        model = make_model()
        optimizer = Broken(model.parameters(), lr=0.1)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=4):
            with step:
                for x, y in step:
                    step.backward(loss_of(model, x, y))
                optimizer.step()
                optimizer.param_groups[0]["lr"] *= 0.6

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 70
    assert not host.facts(TrainerFailed)
    assert not host.facts(TrainerFinished)


def test_function_without_steps_just_finishes(lone_host, crew):
    host = lone_host()
    assert run_function(host, lambda ctx: (ctx.size, ctx.rank, ctx.config), connect=crew("x").fabric.connect) == 0
    assert host.told == [TrainerFinished(trainer="a", step=0)]


def test_user_code_finds_a_group_of_its_own(lone_host, crew):
    def train(_ctx):
        assert dist.get_world_size() == 1

    assert run_function(lone_host(), train, connect=crew("x").fabric.connect) == 0
