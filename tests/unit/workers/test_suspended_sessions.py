"""A session that is told to suspend saves at the next boundary and leaves the program where it is; it goes on from there."""

import pytest
import torch
from torch import nn

from atoll.schema.messages import CheckpointCommitted, EpochJoined, StepCommitted, StopAtBoundary, TrainerFinished
from atoll.workers.torch_ddp import solo_group

STEPS = 7


@pytest.fixture(scope="module", autouse=True)
def one_group():
    with solo_group():
        yield


def program(into, *, suspend_in=None, told="a"):
    """Seven steps of a small model; in step `suspend_in` one worker is told to suspend."""

    def train(ctx):
        model = nn.Linear(6, 1)
        with torch.no_grad():  # trainers are threads here, and share torch's own generator
            for param in model.parameters():
                param.copy_(torch.linspace(-0.5, 0.5, param.numel()).view(param.shape))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        ctx.manage(model, optimizer)
        inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
        data = inputs, inputs.sum(1, keepdim=True)
        host = ctx._host
        try:
            for step in ctx.steps(data, global_batch=8, micro_batch=4, steps=STEPS):
                with step:
                    if step.index == suspend_in and host.identity.trainer == told:
                        host.mailbox.put(StopAtBoundary(reason="others wait", suspend=True))
                    for x, y in step:
                        step.backward(nn.functional.mse_loss(model(x), y))
                    optimizer.step()
        finally:
            into.setdefault("left", []).append(host.identity.trainer)
        into[host.identity.trainer] = model.state_dict()

    return train


def run_crew(team, function, epoch=1):
    team.start(function)
    team.members(epoch, *team.hosts)
    team.join()
    assert set(team.status.values()) == {0}


@pytest.mark.parametrize("told", ["a", "b"])
def test_all_members_save_after_the_step_in_hand_and_leave(crew, told):
    team, into = crew("a", "b"), {}
    run_crew(team, program(into, suspend_in=3, told=told))
    for host in team.hosts.values():
        assert [(f.step, f.suspended) for f in host.facts(TrainerFinished)] == [(3, True)]
    assert sorted(f.step for h in team.hosts.values() for f in h.facts(CheckpointCommitted)) == [3]
    # What follows the loop is for the end of the run; clean-up is not.
    assert sorted(into) == ["left"]
    assert sorted(into["left"]) == ["a", "b"]


def test_run_that_was_suspended_ends_as_if_it_had_not_been(crew, tmp_path_factory):
    whole, resumed = {}, {}
    undisturbed = crew("a", "b", checkpoint_dir=str(tmp_path_factory.mktemp("other")))
    run_crew(undisturbed, program(whole))
    kept = str(tmp_path_factory.mktemp("kept"))
    run_crew(crew("a", "b", checkpoint_dir=kept), program({}, suspend_in=4))
    again = crew("c", "d", "e", checkpoint_dir=kept)
    run_crew(again, program(resumed), epoch=2)
    assert [f.step for f in again.hosts["c"].facts(EpochJoined)] == [5]
    assert [f.step for f in again.hosts["c"].facts(StepCommitted)] == [5, 6, 7]
    assert [f.suspended for f in again.hosts["c"].facts(TrainerFinished)] == [False]
    for name, value in whole["a"].items():
        torch.testing.assert_close(resumed["e"][name], value)


def test_wish_in_the_last_step_changes_nothing(crew):
    team, into = crew("a", "b"), {}
    run_crew(team, program(into, suspend_in=STEPS))
    assert [(f.step, f.suspended) for f in team.hosts["a"].facts(TrainerFinished)] == [(STEPS, False)]
    assert {"a", "b"} <= into.keys()
