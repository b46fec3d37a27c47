"""What trainers say of their checkpoints, in the core: lights, lines of the story, and what is not worth a line."""

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.schema import messages as m
from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.spec import JobSpec

T = "run-t0"


class World:
    """A run of one trainer."""

    def __init__(self):
        self.core = Core(1)
        node = ev.NodeSeen(node="a", address="1.1.1.1", alive=True, cpus=2.0, gpus=0.0, local=True)
        self(ev.ClusterListed(nodes=(node,), seats=()))
        spec = JobSpec(name="j", working_dir="/", file="f.py", spares=0, detach=True)
        self(ev.RunAsked(request="r", run="run", spec=spec, run_dir="/r", secret="00"))

    def __call__(self, event):
        return self.core.handle(event, now=1000.0)

    def say(self, fact):
        return self(ev.AgentSaid(node="a", fact=m.TrainerSaid(run="run", fact=fact)))

    def saved(self, step):
        return self.say(m.CheckpointCommitted(trainer=T, step=step, path=f"/c/{step}", bytes=5, seconds=0.1))

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
