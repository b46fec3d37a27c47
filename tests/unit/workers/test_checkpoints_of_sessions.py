import dataclasses
import shutil

import pytest
import torch
from torch import nn

from atoll.checkpoint import interval
from atoll.checkpoint.fs_store import Store
from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.messages import (
    CheckpointCommitted,
    CheckpointCopied,
    CheckpointIntervalChosen,
    EpochJoined,
    Rewound,
    StepCommitted,
    TrainerFailed,
    TrainerFinished,
)
from atoll.workers.context import run_function
from atoll.workers.torch_ddp import solo_group


@pytest.fixture(scope="module", autouse=True)
def one_group():
    with solo_group():
        yield


def rows():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    return inputs, inputs.sum(1, keepdim=True)


def train_with(*, steps, batch=8, into=None):
    def train(ctx):
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        ctx.manage(model, optimizer, scheduler)
        for step in ctx.steps(rows(), global_batch=batch, micro_batch=4, steps=steps):
            with step:
                for x, y in step:
                    loss = nn.functional.mse_loss(model(x), y)
                    step.backward(loss)
                    step.report(loss=loss.detach())
                optimizer.step()
                scheduler.step()
        if into is not None:
            into[ctx._host.identity.trainer] = {**model.state_dict(), "lr": torch.tensor(scheduler.get_last_lr())}

    return train


def run_crew(team, function, *names):
    team.start(function)
    team.members(1, *names)
    team.join()
    assert set(team.status.values()) == {0}


def test_run_resumes_on_another_number_of_members(crew, tmp_path):
    whole, resumed = {}, {}
    first = crew("a", "b", checkpoint_every=3, checkpoint_dir=str(tmp_path / "kept"))
    run_crew(first, train_with(steps=7, into=whole), "a", "b")
    saved = [f.step for h in first.hosts.values() for f in h.facts(CheckpointCommitted)]
    assert sorted(saved) == [3, 6]
    for resume in (tmp_path / "kept", tmp_path / "kept" / "step-00000006"):
        second = crew("x", "y", "z", resume=str(resume), checkpoint_dir=str(tmp_path / "other"))
        run_crew(second, train_with(steps=7, into=resumed), "x", "y", "z")
        assert second.hosts["x"].facts(EpochJoined)[0].step == 7
        assert [f.step for f in second.hosts["x"].facts(StepCommitted)] == [7]
        for name, value in whole["a"].items():
            torch.testing.assert_close(resumed["z"][name], value)


def test_interval_that_the_run_chooses_is_told_and_kept_by_all_members(crew, monkeypatch, tmp_path):
    # So short that the first save, at whatever this machine takes for a step, comes within the test.
    monkeypatch.setattr(interval, "FIRST_S", 1e-6)
    monkeypatch.setattr(interval, "MOST_S", 1e-6)
    team = crew("a", "b", checkpoint_every="auto", checkpoint_dir=str(tmp_path / "kept"))
    run_crew(team, train_with(steps=8), "a", "b")
    told = [f for h in team.hosts.values() for f in h.facts(CheckpointIntervalChosen)]
    assert [(f.trainer, f.every) for f in told][:1] == [("a", 1)]
    steps = Store(tmp_path / "kept").committed_steps()
    assert steps
    assert min(steps) > told[0].step
    assert all(Store(tmp_path / "kept").record(s).size == 2 for s in steps)


def test_run_that_lost_all_members_returns_to_its_own_checkpoint(crew, tmp_path):
    kept = str(tmp_path / "kept")
    run_crew(crew("a", checkpoint_every=2, checkpoint_dir=kept), train_with(steps=5), "a")
    again = crew("b", checkpoint_every=2, checkpoint_dir=kept)
    run_crew(again, train_with(steps=6), "b")
    assert again.hosts["b"].facts(EpochJoined)[0].step == 5
    assert again.hosts["b"].told[-1] == TrainerFinished(trainer="b", step=6)


def test_checkpoints_in_doubt_do_not_count_and_their_steps_are_saved_anew(crew, tmp_path):
    kept = str(tmp_path / "kept")
    run_crew(crew("a", checkpoint_every=2, checkpoint_dir=kept), train_with(steps=5), "a")
    again = crew("b", checkpoint_every=2, checkpoint_dir=kept)
    host = again.hosts["b"]
    host.identity = dataclasses.replace(host.identity, rewound=Rewound(step=3, epoch=1))
    run_crew(again, train_with(steps=6), "b")
    assert host.facts(EpochJoined)[0].step == 3
    assert [f.step for f in host.facts(CheckpointCommitted)] == [4, 6]


def test_checkpoints_in_doubt_are_better_than_none(crew, tmp_path):
    kept = str(tmp_path / "kept")
    run_crew(crew("a", checkpoint_every=2, checkpoint_dir=kept, keep_checkpoints=1), train_with(steps=4), "a")
    again = crew("b", checkpoint_dir=kept)
    host = again.hosts["b"]
    host.identity = dataclasses.replace(host.identity, rewound=Rewound(step=2, epoch=1))
    run_crew(again, train_with(steps=6), "b")
    assert host.facts(EpochJoined)[0].step == 5


def test_checkpoints_of_later_epochs_are_in_no_doubt():
    rewound = Rewound(step=3, epoch=2)
    assert [rewound.spoils(*c) for c in ((3, 1), (4, 2), (4, 3))] == [False, True, False]


def test_resume_with_another_batch_is_refused(crew, lone_host, tmp_path):
    kept = str(tmp_path / "kept")
    run_crew(crew("a", checkpoint_every=2, checkpoint_dir=kept), train_with(steps=2), "a")
    host = lone_host(resume=kept, checkpoint_dir=str(tmp_path / "other"))
    assert run_function(host, train_with(steps=4, batch=16), connect=crew("x").fabric.connect) == 2
    assert isinstance(host.told[-1], TrainerFailed)
    assert "global_batch=8, this run has 16" in host.told[-1].problem


def test_resume_from_nowhere_is_refused(crew, lone_host, tmp_path):
    host = lone_host(resume=str(tmp_path / "nothing"))
    assert run_function(host, train_with(steps=4), connect=crew("x").fabric.connect) == 3
    assert host.told[-1].code == "bad-checkpoint"


def test_run_whose_disk_is_lost_returns_to_its_copy_in_the_remote_store(crew, tmp_path):
    kept, there = tmp_path / "kept", tmp_path / "there"
    settings = {"checkpoint_every": 2, "checkpoint_dir": str(kept), "checkpoint_remote": there.as_uri()}
    first = crew("a", **settings)
    run_crew(first, train_with(steps=5), "a")
    whole = [f.step for f in first.hosts["a"].facts(CheckpointCopied) if f.state is TierState.WHOLE]
    assert whole[-1] == 4
    shutil.rmtree(kept)
    again = crew("b", **settings)
    run_crew(again, train_with(steps=6), "b")
    assert again.hosts["b"].facts(EpochJoined)[0].step == 5


def test_run_goes_on_from_an_older_checkpoint_where_the_newest_is_damaged(crew, tmp_path):
    kept = tmp_path / "kept"
    run_crew(crew("a", checkpoint_every=2, checkpoint_dir=str(kept)), train_with(steps=5), "a")
    pack = next((kept / "step-00000004").glob("e*.safetensors"))
    pack.write_bytes(pack.read_bytes()[:-1] + b"!")
    again = crew("b", checkpoint_every=2, checkpoint_dir=str(kept))
    run_crew(again, train_with(steps=6), "b")
    assert again.hosts["b"].facts(EpochJoined)[0].step == 3
    (said,) = again.hosts["b"].facts(CheckpointCopied)
    assert (said.step, said.tier, said.state) == (4, Tier.LOCAL, TierState.DAMAGED)
    assert Store(kept).committed_steps() == [2, 4, 6]
