"""Whatever changes live tensors waits first for the save that still copies them."""

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from checkpoint_crews import Crew
from local_peers import Exchange
from torch import nn

from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.torch_restore import Restore
from atoll.checkpoint.torch_state import Flat, flatten, unflatten
from atoll.fault.inject import arm
from atoll.workers.buddies import Place
from atoll.workers.torch_ddp import solo_group
from atoll.workers.torch_engine import Engine
from atoll.workers.torch_managed import Managed
from atoll.workers.torch_restart import Restart
from atoll.workers.torch_shard_access import Access
from atoll.workers.torch_sharded import Sharded
from atoll.workers.torch_shards import Spec

WITHIN_S = 20.0


@pytest.fixture(scope="module", autouse=True)
def one_group():
    with solo_group():
        yield


class Copying:
    """A save whose copy begins when its writer is told that tensors are about to change."""

    def __init__(self, directory, tensors, step):
        self.crew = Crew(1, directory=directory)
        self.go, self.at = threading.Event(), threading.Event()
        arm("before-staging", self.hold)
        state, layouts = replicated(flatten(tensors), 0, ["n0"])
        self.handle = self.crew.writers[0].save(state, layouts, step=step, epoch=1, rank=0)
        assert self.at.wait(WITHIN_S)

    def hold(self):
        self.at.set()
        assert self.go.wait(WITHIN_S)

    def before_change(self):
        self.go.set()
        self.crew.writers[0].before_update()

    def end(self):
        self.go.set()
        assert self.handle.ended.wait(WITHIN_S)
        self.crew.finish()
        assert self.handle.committed, self.handle.problem


def test_step_in_doubt_is_applied_after_the_save_has_copied_the_state_before_it(tmp_path):
    model = nn.Linear(8, 8, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    managed = Managed(torch.device("cpu"), update=None)
    managed._bare_steps = {"sgd": optimizer.step}
    save = Copying(tmp_path, {"weight": model.weight}, 10)
    model.weight.grad = torch.ones_like(model.weight)
    engine = object.__new__(Engine)
    engine._parts = SimpleNamespace(managed=managed, saving=SimpleNamespace(before_update=save.before_change))
    engine._updating, engine.commit_as = True, lambda *_: None
    engine.update_now(SimpleNamespace(skipped=False), {})
    save.end()
    assert model.weight.unique().tolist() == [0.0]
    assert unflatten(Store(tmp_path).open(10))["weight"].unique().tolist() == [1.0]


def test_checkpoint_is_read_into_the_live_model_after_a_save_has_copied_it(tmp_path):
    live = torch.full((1000,), 5.0)
    first = Crew(1, directory=tmp_path)
    first.save_and_wait(Flat(tensors={"w": live}, meta={}), 5)
    first.finish()
    live.fill_(10.0)
    save = Copying(tmp_path, {"w": live}, 10)
    specs, place, comm = {"w": Spec("float32", (1000,), 0)}, Place(size=1, group=0, index=0), Exchange(1).peers[0]
    comm.epoch = 2

    def newest(_epoch, take):
        return Restore(Store(tmp_path), run="run", damaged=lambda *_: None, take=take).newest()

    access = Access(state=dict, load=lambda _: 0, found=newest, opened=None, before_change=save.before_change)
    sharded = object.__new__(Sharded)
    sharded._access, sharded._live = access, True
    sharded._shards = lambda: SimpleNamespace(flat=SimpleNamespace(tensors={"w": live}), specs=specs)
    Restart(
        comm=comm,
        access=access,
        places=[place],
        specs_of=lambda _: specs,
        memory=lambda saved: sharded._memory(saved, place, anew=True),
    ).found()
    save.end()
    assert live.unique().tolist() == [5.0]
    assert unflatten(Store(tmp_path).open(10))["w"].unique().tolist() == [10.0]


def averaging(truth, go, *, bad_step):
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))

    def train(ctx):
        model = nn.Linear(6, 1)
        average = copy.deepcopy(model).requires_grad_(False)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer, average=average)
        for step in ctx.steps((inputs, inputs.sum(1, keepdim=True)), global_batch=8, micro_batch=4, steps=6):
            truth[step.index - 1] = average.weight.detach().clone()
            with step:
                for x, y in step:
                    factor = float("nan") if step.index == bad_step else 1.0
                    step.backward(((model(x * factor) - y) ** 2).mean())
                if step.index != bad_step:
                    optimizer.step()
            with torch.no_grad():
                average.weight.mul_(0.5).add_(model.weight, alpha=0.5)
            if step.index == bad_step:
                go.set()

    return train


def test_average_that_moves_after_a_step_without_an_update_is_saved_as_it_was(crew, tmp_path):
    truth, go, held = {}, threading.Event(), []

    def hold():
        if not held:
            held.append(go.wait(WITHIN_S))

    arm("before-staging", hold)
    team = crew("a", nonfinite="skip", checkpoint_every=3, checkpoint_dir=str(tmp_path))
    team.start(averaging(truth, go, bad_step=4))
    team.members(1, "a")
    team.join()
    assert team.status["a"] == 0
    assert held == [True]
    assert torch.equal(unflatten(Store(tmp_path).open(3))["average"]["weight"], truth[3])


def test_average_that_moved_is_copied_at_a_save_and_a_teacher_that_stands_still_is_not():
    teacher, average, model = (nn.Linear(4, 4, bias=False) for _ in range(3))
    managed = Managed(torch.device("cpu"), update=None)
    modules = {"teacher": teacher, "average": average, "model": model}
    for name, item in modules.items():
        managed.add(name, item)
    managed.add("optimizer", torch.optim.SGD(model.parameters(), lr=1.0))
    with torch.no_grad():
        average.weight.add_(1.0)
        model.weight.add_(1.0)
    state = managed.frozen()
    copied = [n for n, m in modules.items() if state[n]["weight"].data_ptr() != m.weight.data_ptr()]
    assert copied == ["average"]
