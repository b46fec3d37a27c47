"""What trainers say of their checkpoints, in the core: lights, lines of the story, and what is not worth a line."""

import pytest

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane import records as r
from atoll.control_plane.copies import decisions
from atoll.control_plane.core import Core
from atoll.control_plane.projection import run_view
from atoll.errors import CheckpointError
from atoll.schema import messages as m
from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

T = "run-t0"


class World:
    """A run of one trainer."""

    def __init__(self, **options):
        self.core = Core(1)
        node = ev.NodeSeen(node="a", address="1.1.1.1", alive=True, cpus=2.0, gpus=0.0, local=True)
        self(ev.ClusterListed(nodes=(node,), seats=()))
        spec = JobSpec(name="j", working_dir="/", file="f.py", spares=0, detach=True, **options)
        self(ev.RunAsked(request="r", run="run", spec=spec, run_dir="/r", secret="00"))

    def __call__(self, event):
        return self.core.handle(event, now=1000.0)

    def say(self, fact):
        return self(ev.AgentSaid(node="a", fact=m.TrainerSaid(run="run", fact=fact)))

    def saved(self, step):
        return self.say(m.CheckpointCommitted(trainer=T, step=step, path=f"/c/{step}", bytes=5, seconds=0.1))

    def failed(self, step, problem="no space left"):
        return self.say(m.CheckpointFailed(trainer=T, step=step, problem=problem))

    @property
    def run(self):
        return self.core.desk.cluster.runs["run"]

    def copied(self, step, state, detail="", tier=Tier.REMOTE):
        return self.say(m.CheckpointCopied(trainer=T, step=step, tier=tier, state=state, detail=detail))


def lights(effects):
    return [[(t.tier, t.state) for t in e.view.tiers] for e in effects if isinstance(e, fx.ShowCheckpoint)]


def lines(effects):
    return [(e.kind, e.text) for e in effects if isinstance(e, fx.Note)]


def test_durable_checkpoint_has_a_light_for_its_local_copy():
    assert lights(World().saved(10)) == [[(Tier.LOCAL, TierState.WHOLE)]]


def test_copy_in_another_tier_lights_up_beside_it_and_is_told_once():
    world = World()
    world.saved(10)
    under_way = world.copied(10, TierState.COPYING, "40 %")
    assert lines(under_way) == []
    assert lights(under_way) == [[(Tier.LOCAL, TierState.WHOLE), (Tier.REMOTE, TierState.COPYING)]]
    done = world.copied(10, TierState.WHOLE, "s3://b/c")
    assert lines(done) == [("checkpoint-copied", "step 10, remote: s3://b/c")]
    assert lights(done) == [[(Tier.LOCAL, TierState.WHOLE), (Tier.REMOTE, TierState.WHOLE)]]
    assert lines(world.copied(10, TierState.WHOLE, "s3://b/c")) == []


def test_copy_of_an_older_step_that_ends_late_does_not_pass_for_the_newest():
    world = World()
    world.saved(10)
    world.saved(20)
    assert lights(world.copied(10, TierState.FAILED, "no room")) == [[("local", "whole"), ("remote", "failed")]]
    assert world.core.desk.cluster.runs["run"].saved.step == 20


def test_lower_step_of_a_later_epoch_is_the_checkpoint_after_a_return(world):
    for step, epoch in ((90, 1), (100, 1), (60, 2), (55, 2), (70, 2), (95, 1)):
        path = f"/c/{step}"
        world.say(m.CheckpointCommitted(trainer=T, step=step, path=path, bytes=5, seconds=0.1, epoch=epoch))
    run = world.core.desk.cluster.runs["run"]
    assert (run.checkpoint.path, run.saved.step) == ("/c/70", 70)
    assert [one.step for one in run.kept] == [60, 70]


def test_damage_is_told_even_of_a_step_that_nobody_remembers():
    told = World().copied(7, TierState.DAMAGED, "tensor 'w'", Tier.LOCAL)
    assert lines(told) == [("checkpoint-damaged", "step 7, local: tensor 'w'")]
    assert lights(told) == []


def test_chosen_interval_stands_in_the_story_with_its_reason():
    fact = m.CheckpointIntervalChosen(trainer=T, step=4, every=30, reason="every 30 steps, least time is lost so")
    assert lines(World().say(fact)) == [("checkpoint-interval", "from step 4 on every 30 steps, least time is lost so")]


def test_only_so_many_checkpoints_are_remembered():
    world = World()
    for step in range(1, 40):
        world.saved(step)
    assert len(world.core.desk.cluster.runs["run"].copies) == 16


# -- saves that fail -------------------------------------------------------------------------------------------------------


def test_failed_save_is_counted_once_whoever_tells_of_it_and_stops_nothing():
    world = World()
    for step in (10, 10, 20):
        assert lines(world.failed(step)) == [("checkpoint-failed", f"step {step}: no space left")]
    assert run_view(world.run).failed_saves == 2
    assert world.run.stopping is None


def test_what_fails_behind_a_durable_checkpoint_is_no_failed_save():
    world = World(checkpoint_failures=0)
    world.saved(10)
    world.failed(10, "committed, but older steps stay")
    assert run_view(world.run).failed_saves == 0
    assert world.run.stopping is None


@pytest.mark.parametrize(("most", "steps"), [(0, [10]), (2, [10, 20, 30])])
def test_run_stops_as_failed_at_one_more_failed_save_in_a_row_than_may_fail(most, steps):
    world = World(checkpoint_failures=most)
    for step in steps[:-1]:
        world.failed(step)
    assert world.run.stopping is None
    world.failed(steps[-1], "disk full")
    stopping = world.run.stopping
    assert (stopping.goal, stopping.exit_code) == (RunState.FAILED, CheckpointError.exit_code)
    row = "1 save" if most == 0 else "3 saves in a row"
    assert stopping.reason == f"{row} failed (checkpoint_failures={most}), the last at step {steps[-1]}: disk full"


def test_durable_checkpoint_begins_the_row_of_failed_saves_anew():
    world = World(checkpoint_failures=1)
    for step in range(10, 100, 10):
        world.failed(step)
        world.saved(step + 1)
    assert world.run.stopping is None
    assert run_view(world.run).failed_saves == 9


# -- which remote copy counts ----------------------------------------------------------------------------------------------


def answers(effects):
    """What the trainer is told, and with which records before it."""
    sent = [e.command.command for e in effects if isinstance(e, fx.Send) and isinstance(e.command, m.TellTrainer)]
    return [one for one in sent if isinstance(one, m.CopyDecided)]


def proposed(world, step, record):
    return answers(world.say(m.CopyProposed(trainer=T, step=step, record=record)))


def withdrawn(world, step, record):
    return world.say(m.CopyWithdrawn(trainer=T, step=step, record=record))


@pytest.fixture
def world():
    world = World()
    versions = m.Versions(atoll="0", python="3", protocol=1)
    hello = m.AgentHello(node="a", pid=7, address="1.1.1.1", state_dir="/s", versions=versions, last_incarnation=0)
    world(ev.AgentAttached(hello=hello))
    return world


def test_first_proposal_for_a_step_counts_and_every_later_one_is_told_so(world):
    one = m.CopyDecided(step=10, record="one")
    assert proposed(world, 10, "one") == [one]
    assert proposed(world, 10, "two") == [one]
    assert proposed(world, 10, "one") == [one]
    assert proposed(world, 20, "two") == [m.CopyDecided(step=20, record="two")]


def test_decision_is_one_row_of_the_journal(world):
    written = []
    for record in ("one", "two", "one"):
        effects = world.say(m.CopyProposed(trainer=T, step=10, record=record))
        written += [row for e in effects if isinstance(e, fx.Persist) for row in e.records]
    assert [(type(one), one.record) for one in written] == [(r.CopyDecided, "one")]


def test_answer_is_sent_after_the_row_is_written(world):
    effects = world.say(m.CopyProposed(trainer=T, step=10, record="one"))
    kinds = [type(e) for e in effects]
    assert kinds.index(fx.Persist) < kinds.index(fx.Send)


def test_withdrawn_copy_never_counts_again_and_another_may(world):
    proposed(world, 10, "one")
    withdrawn(world, 10, "one")
    assert not any(isinstance(e, fx.Persist) for e in withdrawn(world, 10, "one"))
    assert proposed(world, 10, "one") == [m.CopyDecided(step=10, record="", withdrawn=("one",))]
    assert proposed(world, 10, "two") == [m.CopyDecided(step=10, record="two", withdrawn=("one",))]


def test_run_remembers_the_withdrawn_copies_of_its_last_steps(world):
    for step in range(100):
        withdrawn(world, step, f"r{step}")
    run = world.core.desk.cluster.runs["run"]
    assert sorted(run.withdrawn) == list(range(36, 100))


def test_copy_withdrawn_last_is_remembered_however_low_its_step(world):
    for step in range(100, 200):
        withdrawn(world, step, f"r{step}")
    withdrawn(world, 10, "one")
    assert proposed(world, 10, "one") == [m.CopyDecided(step=10, record="", withdrawn=("one",))]


def test_trainer_that_begins_is_told_what_is_decided_also_after_a_restart(world):
    proposed(world, 10, "one")
    proposed(world, 20, "two")
    withdrawn(world, 20, "two")
    records = [
        r.RunSubmitted(run="run", spec=world.core.desk.cluster.runs["run"].spec, run_dir="/r", secret="00", at=1.0)
    ]
    records += [r.CopyDecided(run="run", step=10, record="one", at=1.0)]
    records += [r.CopyDecided(run="run", step=20, record="two", at=1.0)]
    records += [r.CopyWithdrawn(run="run", step=20, record="two", at=1.0)]
    again = Core(2, records)
    told = (m.CopyDecided(step=10, record="one"), m.CopyDecided(step=20, record="", withdrawn=("two",)))
    for core in (world.core, again):
        assert decisions(core.desk.cluster.runs["run"]) == told
