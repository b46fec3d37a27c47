"""Sessions that do not wait for their slowest member: what it leaves out counts nowhere, and all hold the same bits."""

import threading
import time
from collections import defaultdict

import pytest
import torch
from torch import nn

from atoll.errors import UserError
from atoll.schema.messages import StepCommitted, TrainerFailed, TrainerFinished, TrainerReady
from atoll.workers.fs_account import read_account
from atoll.workers.samples import Plan
from atoll.workers.torch_backup import Backups
from atoll.workers.torch_ddp import solo_group

GRAINS, MICRO, STEPS = 12, 2, 5
BATCH = GRAINS * MICRO
SHARE = GRAINS // 3


@pytest.fixture(scope="module", autouse=True)
def one_group():
    """Threads of one process share its group."""
    with solo_group():
        yield


def rows():
    inputs = torch.randn(96, 6, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


def make_model(*, norm=False):
    generator = torch.Generator().manual_seed(9)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Linear(8, 1)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 3)
    return model


def until_told(ctx, step):
    """Slow is who has not come when the others have: then it hears that they suffice."""
    session, deadline = ctx._session, time.monotonic() + 20
    while not session._backups.suffices(step.index) and session.link.joined and time.monotonic() < deadline:
        threading.Event().wait(0.002)


def train_with(slow, *, into, backup=1, norm=False, at=1, steps=STEPS, weights=None, during=None):
    """`slow` is late in its micro-batch number `at` (None: before the first); the others finish after that."""
    reached = defaultdict(threading.Event)

    def train(ctx):
        me = ctx._host.identity.trainer
        model = make_model(norm=norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        ctx.manage(model=model, optimizer=optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=steps, backup=backup):
            with step:
                if during:
                    during(ctx, step)
                here = reached[step.index, step.transaction.epoch]
                if me == slow and at is None:
                    here.set()
                    until_told(ctx, step)
                for number, (x, y) in enumerate(step):
                    if me == slow and number == at:
                        here.set()
                        until_told(ctx, step)
                    elif me != slow and slow is not None:
                        assert here.wait(20)
                    loss = ((model(x) - y) ** 2).mean()
                    step.backward(loss, weight=weights[number] if weights else 1.0)
                    step.report(loss=loss.detach())
                optimizer.step()
        into[me] = {k: v.clone() for k, v in model.state_dict().items()}

    return train


def run(crew, function, names=("a", "b", "c")):
    team = crew(*names, workers=len(names))
    team.start(function)
    team.members(1, *names)
    team.join()
    assert set(team.status.values()) == {0}
    return team


def partly(counted, steps=STEPS):
    """The same training in plain PyTorch, over the micro-batches `counted` of each step."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = rows()
    plan = Plan(seed=0, size=96, global_batch=BATCH, micro_batch=MICRO, steps=steps)
    losses = []
    for step in range(1, steps + 1):
        ids = [i for grain in counted for i in plan.grain(step, grain)]
        optimizer.zero_grad()
        loss = ((model(x[ids]) - y[ids]) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.state_dict(), losses


def alike(finals):
    first, *others = finals.values()
    return all(torch.equal(other[name], value) for other in others for name, value in first.items())


def facts_of(team, name="a"):
    return team.hosts[name].facts(StepCommitted)


@pytest.mark.parametrize("slow", ["a", "b", "c"])
@pytest.mark.parametrize("at", [0, 1, SHARE - 1])
def test_slow_member_gives_what_it_has_and_the_mean_is_over_that(crew, slow, at, tmp_path):
    finals = {}
    team = run(crew, train_with(slow, into=finals, at=at))
    first = "abc".index(slow) * SHARE
    counted = [g for g in range(GRAINS) if not first + at <= g < first + SHARE]
    state, losses = partly(counted)
    assert alike(finals)
    for name, value in state.items():
        torch.testing.assert_close(finals["a"][name], value, rtol=1e-4, atol=1e-6)
    facts = facts_of(team)
    assert [f.metrics["loss"] for f in facts] == pytest.approx(losses, rel=1e-4)
    assert {f.samples for f in facts} == {len(counted) * MICRO}
    assert {f.metrics["left_out"] for f in facts} == {SHARE - at}
    assert {f.grains for f in facts_of(team, slow)} == {at}
    account = read_account(tmp_path)
    assert (account.lost, account.repeated, account.problems) == (0, 0, ())
    assert account.left_out == STEPS * (SHARE - at) * MICRO
    assert account.samples == STEPS * len(counted) * MICRO


def test_member_told_before_its_first_micro_batch_gives_nothing(crew, tmp_path):
    finals = {}
    run(crew, train_with("c", into=finals, at=None))
    assert alike(finals)
    assert read_account(tmp_path).left_out == STEPS * SHARE * MICRO


def test_what_the_body_binds_is_there_after_the_loop_of_whoever_was_told_before(crew, tmp_path):
    def train(ctx):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        ctx.manage(model=model, optimizer=optimizer)
        for step in ctx.steps(rows(), global_batch=BATCH, micro_batch=MICRO, steps=STEPS, backup=1):
            with step:
                if ctx._host.identity.trainer == "c":
                    until_told(ctx, step)
                for x, y in step:
                    loss = ((model(x) - y) ** 2).mean()
                    step.backward(loss)
                step.report(last_loss=loss.detach())
                optimizer.step()

    run(crew, train)
    assert read_account(tmp_path).left_out == STEPS * SHARE * MICRO


def test_what_is_left_out_leaves_no_trace_in_buffers(crew):
    finals = {}
    run(crew, train_with("b", into=finals, norm=True))
    assert alike(finals)
    assert int(finals["a"]["1.num_batches_tracked"]) == STEPS * (2 * SHARE + 1)


def test_weights_count_only_where_micro_batches_do(crew):
    finals = {}
    team = run(crew, train_with("c", into=finals, weights=[1.0, 2.0, 3.0, 4.0]))
    assert alike(finals)
    assert {f.metrics["left_out"] for f in facts_of(team)} == {SHARE - 1}


def test_choice_is_told_once(crew):
    team = run(crew, train_with("c", into={}))
    told = [f.backup for f in facts_of(team)]
    assert told == ["wait for the fastest 2 of 3: the program asks for it", *[""] * (STEPS - 1)]


def test_nobody_slow_leaves_nothing_out_by_itself(crew, tmp_path):
    finals = {}
    team = run(crew, train_with(None, into=finals, backup="auto", steps=4))
    account = read_account(tmp_path)
    assert alike(finals)
    assert (account.samples, account.left_out, account.lost) == (4 * BATCH, 0, 0)
    assert {f.metrics["backup"] for f in facts_of(team)} == {0.0}
    assert {f.backup for f in facts_of(team)} == {""}


def test_chosen_number_follows_who_is_late(crew, tmp_path):
    finals = {}

    def late(ctx, step):
        if ctx._host.identity.trainer == "b":
            threading.Event().wait(0.15)

    def one_is_late(ctx):
        train_with(None, into=finals, backup="auto", steps=14, during=late)(ctx)

    team = run(crew, one_is_late)
    account = read_account(tmp_path)
    facts = facts_of(team)
    assert alike(finals)
    assert (account.steps, account.lost, account.repeated) == (14, 0, 0)
    assert facts[0].metrics["backup"] == 0.0
    assert facts[-1].metrics["backup"] == 1.0
    assert any(f.backup.startswith("wait for the fastest 2 of 3: a step is predicted to take") for f in facts)
    assert account.left_out == sum(BATCH - f.samples for f in facts) > 0


class Gone(BaseException):
    """A member that vanishes in the middle of a step."""


@pytest.mark.parametrize("gone", ["a", "b"])
def test_lost_member_makes_the_others_retry_without_what_was_told_before(crew, gone, tmp_path):
    def vanish(ctx, step):
        if ctx._host.identity.trainer == gone and step.index == 3:
            raise Gone

    finals, team = {}, crew("a", "b", "c", workers=3)
    team.start(train_with("c", into=finals, during=vanish))
    team.members(1, "a", "b", "c")
    team.threads["ab".index(gone)].join(30)
    left = [n for n in "abc" if n != gone]
    team.members(2, *left)
    team.join()
    assert alike({n: finals[n] for n in left})
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated, account.problems) == (STEPS, 0, 0, ())
    assert account.left_out == (2 * (SHARE - 1) + 3 * (GRAINS // 2 - 1)) * MICRO


class Ear:
    """A communicator of three that keeps what rank 0 sends."""

    rank, size = 0, 3

    def __init__(self):
        self.sent = []

    def send(self, buffer, *, to, tag):
        self.sent.append((to, int(buffer.item())))

    def recv(self, buffer, *, source, tag):
        return self

    def add_done_callback(self, call):
        """Nothing comes by itself."""


def test_who_came_while_the_shares_changed_within_an_epoch_counts_as_come():
    comm, backups = Ear(), Backups(1)
    backups.regrouped(comm, (2, 2, 0), 4)
    backups._note(comm, 5, 1)
    backups.regrouped(comm, (2, 2, 2), 4)
    backups.arrived(5)
    assert comm.sent == [(2, 5)]
    backups.regrouped(Ear(), (2, 2, 2), 4)
    assert backups._book.came == {}


def test_alone_a_run_leaves_nothing_out(crew, tmp_path):
    run(crew, train_with(None, into={}, backup="auto"), names=("a",))
    assert read_account(tmp_path).left_out == 0


def test_setting_out_of_range_fails_the_run(crew):
    team = crew("a", "b", workers=2)
    team.start(train_with(None, into={}, backup=2))
    team.join()
    assert all("backup=2" in h.facts(TrainerFailed)[0].problem for h in team.hosts.values())


def test_sharded_model_waits_for_all(lone_host):
    from atoll.workers.torch_session import Session

    session = Session(lone_host(), None, torch.device("cpu"))
    session.sharded = object()
    plan = Plan(seed=0, size=8, global_batch=2, micro_batch=1, steps=1)
    with pytest.raises(UserError, match="hold one model together"):
        session.begin([torch.zeros(1)] * 8, plan, 0, 1)


def test_all_finish_together(crew):
    team = run(crew, train_with("c", into={}))
    assert {h.told[-1] for h in team.hosts.values()} == {TrainerFinished(trainer=n, step=STEPS) for n in "abc"}


@pytest.mark.parametrize("slow", ["a", "c"])
def test_over_sockets_the_slow_member_hears_that_the_others_suffice(connected, slow, tmp_path):
    finals = {}
    connected.start(train_with(slow, into=finals))
    connected.until(lambda: all(h.facts(TrainerReady) for h in connected.hosts.values()))
    connected.meet(1, "a", "b", "c")
    connected.join()
    assert alike(finals)
    account = read_account(tmp_path)
    assert (account.steps, account.lost, account.repeated, account.problems) == (STEPS, 0, 0, ())
    assert account.left_out == STEPS * (SHARE - 1) * MICRO
    assert not any(w.operation == "recv" for n in "abc" for w in connected.waits(n))
