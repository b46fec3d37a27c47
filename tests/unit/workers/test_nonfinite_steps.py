import pytest
import torch
from torch import nn

from atoll.errors import SpecError
from atoll.schema.messages import StepCommitted
from atoll.schema.spec import JobSpec, check_spec
from atoll.workers.context import run_function
from atoll.workers.fs_account import read_account
from atoll.workers.torch_ddp import solo_group


@pytest.fixture(scope="module", autouse=True)
def one_group():
    """Threads of one process share its group."""
    with solo_group():
        yield


def rows():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


def train_with(weights, *, bad_step=None):
    """Adam and batch norm: both would carry a NaN on for ever."""

    def train(ctx):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=16, micro_batch=4, steps=6):
            with step:
                spoilt = ctx.rank == 1
                for x, y in step:
                    factor = float("nan") if spoilt and step.index == bad_step else 1.0
                    step.backward(((model(x * factor) - y) ** 2).mean())
                optimizer.step()
            weights.setdefault(ctx.rank, []).append([p.detach().clone() for p in model.state_dict().values()])

    return train


def committed(host):
    return {f.step: f.metrics for f in host.facts(StepCommitted)}


def test_step_that_is_not_finite_is_skipped_on_all_members_and_the_run_goes_on(crew, tmp_path):
    weights, team = {}, crew("a", "b", nonfinite="skip")
    team.start(train_with(weights, bad_step=3))
    team.members(1, "a", "b")
    team.join()
    assert set(team.status.values()) == {0}
    assert [s for s, metrics in committed(team.hosts["a"]).items() if metrics.get("skipped")] == [3]
    for before, after, later in zip(weights[0][1], weights[0][2], weights[0][3], strict=True):
        assert torch.equal(before, after)
        assert torch.isfinite(later).all()
    for mine, other in zip(weights[0][-1], weights[1][-1], strict=True):
        assert torch.equal(mine, other)
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated) == (6, 0, 0)


def test_other_steps_are_what_they_are_without_the_option(lone_host, crew):
    found = []
    for option in ("stop", "skip"):
        weights = {}
        host = lone_host(nonfinite=option)
        assert run_function(host, train_with(weights), connect=crew("x").fabric.connect) == 0
        found.append(weights[0][-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_unknown_choice_is_refused():
    with pytest.raises(SpecError, match="nonfinite='ignore': 'stop' or 'skip'"):
        check_spec(JobSpec(name="n", working_dir="/w", file="train.py", nonfinite="ignore"))


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_steps_tell_the_norm_of_their_averaged_gradient(crew, names):
    norms = []

    def train(ctx):
        torch.manual_seed(3)
        model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=16, micro_batch=4, steps=3):
            with step:
                for x, y in step:
                    step.backward(((model(x) - y) ** 2).mean())
                if ctx.rank == 0:
                    norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
                optimizer.step()

    team = crew(*names)
    team.start(train)
    team.members(1, *names)
    team.join()
    told = {f.step: f.grad_norm for f in team.hosts["a"].facts(StepCommitted)}
    assert list(told.values()) == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError("cannot allocate 3 GiB"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_a_program_at_fault(lone_host, crew, error, memory):
    def train(ctx):
        raise error

    host = lone_host()
    run_function(host, train, connect=crew("x").fabric.connect)
    assert host.told[-1].code == ("out-of-memory" if memory else "program-failed")
    assert "test_nonfinite_steps.py" in host.told[-1].problem
