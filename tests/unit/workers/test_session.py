import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atoll.schema.messages import (
    EpochJoined,
    PeerDown,
    StepCommitted,
    StopAtBoundary,
    TrainerFailed,
    TrainerFinished,
    TrainerReady,
)
from atoll.workers.context import run_function
from atoll.workers.fs_account import read_account
from atoll.workers.samples import Plan
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


def train_with(steps=8, *, norm=False, into=None, wrap=None, before=None):
    def train(ctx):
        model = make_model(norm=norm)
        model = wrap(model) if wrap else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        ctx.manage(model=model, optimizer=optimizer, scheduler=scheduler)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=steps):
            with step:
                if before:
                    before(ctx, step)
                for x, y in step:
                    loss = loss_of(model, x, y)
                    step.backward(loss)
                    step.report(loss=loss.detach())
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        if into is not None:
            into[ctx._host.identity.trainer] = {k: v.clone() for k, v in model.state_dict().items()}

    return train


def plain(steps=8):
    """The same training in plain PyTorch."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    x, y = rows()
    plan = Plan(seed=0, size=64, global_batch=BATCH, micro_batch=MICRO, steps=steps)
    losses = []
    for step in range(1, steps + 1):
        ids = list(plan.samples(step))
        optimizer.zero_grad()
        loss = loss_of(model, x[ids], y[ids])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return model.state_dict(), losses


def losses_of(host):
    return [f.metrics["loss"] for f in host.facts(StepCommitted)]


def test_lone_trainer_trains_as_plain_torch_does(lone_host, crew):
    finals, host = {}, lone_host()
    assert run_function(host, train_with(into=finals), connect=crew("x").fabric.connect) == 0
    state, losses = plain()
    for name, value in state.items():
        torch.testing.assert_close(finals["a"][name], value, rtol=1e-5, atol=1e-6)
    assert losses_of(host) == pytest.approx(losses, rel=1e-5)
    assert [type(f) for f in host.told[:2]] == [TrainerReady, EpochJoined]
    assert host.told[-1] == TrainerFinished(trainer="a", step=8)
    assert {f.sync_bytes for f in host.facts(StepCommitted)} == {4 * sum(p.numel() for p in make_model().parameters())}


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("wrap", [None, DistributedDataParallel], ids=["plain", "ddp"])
def test_any_number_of_members_trains_alike(crew, names, wrap, tmp_path):
    finals, team = {}, crew(*names)
    team.start(train_with(into=finals, wrap=wrap))
    team.members(1, *names)
    team.join()
    assert set(team.status.values()) == {0}
    assert losses_of(team.hosts["a"]) == pytest.approx(plain()[1], rel=1e-4)
    for name in names[1:]:
        assert all(torch.equal(finals[name][k], v) for k, v in finals["a"].items())
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated, account.problems) == (8, 0, 0, ())


def test_buffers_do_not_depend_on_who_computed_them(crew):
    results = []
    for names in (("a",), ("a", "b", "c")):
        finals, team = {}, crew(*names)
        team.start(train_with(into=finals, norm=True))
        team.members(1, *names)
        team.join()
        assert all(torch.equal(finals[n][k], v) for n in names for k, v in finals["a"].items() if k != "0.bias")
        results.append(finals["a"])
    one, three = results
    assert int(one["1.num_batches_tracked"]) == int(three["1.num_batches_tracked"]) == 8 * GRAINS
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(one[name], three[name])


class Gone(BaseException):
    """A member that vanishes in the middle of a step."""


@pytest.mark.parametrize("wrap", [None, DistributedDataParallel], ids=["plain", "ddp"])
def test_lost_member_makes_the_others_retry_the_step(crew, wrap, tmp_path):
    def vanish(ctx, step):
        if ctx._host.identity.trainer == "a" and step.index == 4:
            raise Gone

    finals, team = {}, crew("a", "b", "c")
    team.start(train_with(into=finals, wrap=wrap, before=vanish))
    team.members(1, "a", "b", "c")
    team.threads[0].join(30)
    team.members(2, "b", "c")
    team.join()
    told = {f.step: f.metrics["loss"] for n in "ab" for f in team.hosts[n].facts(StepCommitted) if f.metrics}
    # Step 3 may have been settled by the regroup, after the rank that reports had gone.
    assert [told[s] for s in range(4, 9)] == pytest.approx(plain()[1][3:], rel=1e-4)
    assert {f.step for f in team.hosts["b"].facts(StepCommitted)} == set(range(1, 9))
    assert all(torch.equal(finals["c"][k], v) for k, v in finals["b"].items())
    assert {f.peer for f in team.hosts["b"].facts(PeerDown)} >= {"a"}
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated, account.problems) == (8, 0, 0, ())


@pytest.mark.parametrize("learnt", [set(), {0}, {2}, {1, 2}], ids=str)
@pytest.mark.parametrize("second", [("a", "b", "c"), ("d", "c", "b", "a"), ("c", "d", "a")], ids="-".join)
def test_vote_that_only_some_saw_pass_is_applied_by_all_or_none(crew, learnt, second, tmp_path):
    finals, team = {}, crew("a", "b", "c", "d")
    team.fabric.split = (4, learnt)
    told = threading.Event()

    def notice(_host, fact):
        if isinstance(fact, TrainerReady) and fact.trainer == "d":
            told.set()

    team.hosts["d"].on_tell = notice
    team.start(train_with(into=finals, norm=True))
    assert told.wait(30)
    team.members(1, "a", "b", "c")
    while 1 not in team.fabric.groups or team.fabric.groups[1].votes < 4:
        time.sleep(0.01)
    team.members(2, *second)
    missing = {"a", "b", "c", "d"} - set(second)
    for name in second:
        team.threads["abcd".index(name)].join(30)
    for name in missing:
        team.members(3, name)
        team.threads["abcd".index(name)].join(30)
    together = [finals[n] for n in second]
    assert all(torch.equal(f[k], v) for f in together for k, v in together[0].items())
    begun = {f.step for n in second for f in team.hosts[n].facts(EpochJoined) if f.epoch == 2}
    applied = any("abc"[r] in second for r in learnt)
    assert begun == {5 if applied else 4}
    losses = {f.step: f.metrics["loss"] for n in second for f in team.hosts[n].facts(StepCommitted) if f.metrics}
    calm, alone = {}, crew("x")
    alone.start(train_with(into=calm, norm=True))
    alone.members(1, "x")
    alone.join()
    expected = losses_of(alone.hosts["x"])
    assert [losses[s] for s in range(1, 9)] == pytest.approx(expected, rel=1e-4)


def test_joiner_receives_the_state_and_goes_on_with_the_others(crew, tmp_path):
    reached = threading.Event()

    def announce(ctx, step):
        if step.index == 4:
            reached.set()
            time.sleep(0.05)

    finals, team = {}, crew("a", "b", "c")
    team.start(train_with(steps=12, into=finals, before=announce))
    team.members(1, "a", "b")
    assert reached.wait(30)
    team.members(2, "c", "a", "b")
    team.join()
    assert set(team.status.values()) == {0}
    first = team.hosts["c"].facts(EpochJoined)[0].step
    assert 4 <= first <= 12
    assert all(torch.equal(finals["c"][k], v) for k, v in finals["a"].items())
    told = {f.step: f.metrics["loss"] for n in "abc" for f in team.hosts[n].facts(StepCommitted) if f.metrics}
    assert [told[s] for s in range(1, 13)] == pytest.approx(plain(12)[1], rel=1e-4)
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated, account.problems) == (12, 0, 0, ())


def test_more_members_than_grains_is_fine(crew):
    names = ("a", "b", "c", "d", "e", "f")
    finals, team = {}, crew(*names)
    team.start(train_with(into=finals, steps=3, norm=True))
    team.members(1, *names)
    team.join()
    assert all(torch.equal(finals["f"][k], v) for k, v in finals["a"].items())


def test_stop_is_agreed_on_one_boundary(crew):
    def stop(ctx, step):
        if ctx._host.identity.trainer == "b" and step.index == 3:
            ctx._host.mailbox.put(StopAtBoundary(reason="driver gone"))

    team = crew("a", "b")
    team.start(train_with(before=stop))
    team.members(1, "a", "b")
    team.join()
    assert [h.told[-1] for h in team.hosts.values()] == [TrainerFinished(trainer=n, step=3) for n in "ab"]


def test_spare_that_never_had_a_part_leaves_on_stop(crew):
    team = crew("a")
    team.hosts["a"].mailbox.put(StopAtBoundary(reason="done"))
    team.start(train_with())
    team.join()
    assert team.hosts["a"].told[-1] == TrainerFinished(trainer="a", step=0)


def test_nan_on_one_member_refuses_the_step_on_all(crew):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=5):
            with step:
                for x, y in step:
                    bad = float("nan") if step.index == 3 and ctx.rank == 1 else 1.0
                    step.backward(loss_of(model, x, y) * bad)
                optimizer.step()

    team = crew("a", "b")
    team.start(train)
    team.members(1, "a", "b")
    team.join()
    for host in team.hosts.values():
        failure = host.told[-1]
        assert isinstance(failure, TrainerFailed)
        assert (failure.code, failure.step) == ("non-finite", 2)
        assert "step 3: the loss of 2 of 4 micro-batches" in failure.problem
    assert set(team.status.values()) == {2}


def test_grad_scaler_skips_an_overflow_and_goes_on(lone_host, crew):
    scales, weights = [], []

    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        ctx.manage(model=model, optimizer=optimizer, scaler=scaler)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=4):
            with step:
                for x, y in step:
                    bad = float("inf") if step.index == 2 else 1.0
                    step.backward(scaler.scale(loss_of(model, x, y) * bad))
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                scales.append(scaler.get_scale())
                weights.append(model[0].weight.detach().clone())

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 0
    assert scales == [1024.0, 512.0, 512.0, 512.0]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert len(host.facts(StepCommitted)) == 4


def test_weights_make_unequal_batches_exact(lone_host, crew):
    gradients = []

    def train(ctx):
        model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=1):
            with step:
                for i, (x, y) in enumerate(step):
                    step.backward(loss_of(model, x[: i + 1], y[: i + 1]), weight=i + 1)
                gradients.append(model.weight.grad.clone())
                optimizer.step()
                plan = Plan(seed=0, size=64, global_batch=BATCH, micro_batch=MICRO, steps=1)
                kept = [r for i in range(4) for r in plan.grain(1, i)[: i + 1]]
                x, y = rows()
                model.zero_grad()
                loss_of(model, x[kept], y[kept]).backward()
                gradients.append(model.weight.grad.clone())

    assert run_function(lone_host(), train, connect=crew("x").fabric.connect) == 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_unused_parameters_and_late_calls(lone_host, crew):
    seen = []

    def train(ctx):
        model = nn.ModuleDict({"used": nn.Linear(6, 1), "unused": nn.Linear(6, 1)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ctx.manage(model, optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=2):
            with step:
                for x, y in step:
                    step.backward(loss_of(model["used"], x, y))
                assert not model["unused"].weight.grad.any()
                optimizer.step()
                step.report(late=2.0)
                step.on_commit(lambda n=step.index: seen.append(n))

    host = lone_host()
    assert run_function(host, train, connect=crew("x").fabric.connect) == 0
    assert seen == [1, 2]
    assert [f.metrics for f in host.facts(StepCommitted)] == [{"late": 2.0}] * 2
