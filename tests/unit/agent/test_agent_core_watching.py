"""What the agent's core says of the watch: to whom, when, and how late."""

from __future__ import annotations

import dataclasses

import pytest

from atoll.schema.messages import Adopt, PeersWatched, StartTrainer, TrainerWatched, Versions, WatchPeers
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door
from atoll.workers.agent_core import AgentCore, Self
from atoll.workers.agent_messages import Attached, CommandCame, Detached, Ended, Forked, Send, Watched, WatchRing

ME = Self(
    node="node-1",
    pid=7,
    address="127.0.0.1",
    state_dir="/state",
    home="/home",
    versions=Versions(atoll="0", protocol=1, python="3.11"),
)
SPEC = JobSpec(name="job", working_dir="/w", file="train.py")
START = StartTrainer(run="r", trainer="t1", seat="s1", spec=SPEC, run_dir="/runs/r", secret="00")


class Driver:
    """A core that was adopted and holds one trainer."""

    def __init__(self):
        self.core = AgentCore(ME)
        self.now = 0.0
        self.attach()
        self.command(START)
        self(Forked(trainer="t1", pid=100, start_ticks=5))

    def __call__(self, event):
        return self.core.handle(event, now=self.now)

    def command(self, command):
        return self(CommandCame(incarnation=1, command=command))

    def attach(self):
        return self(Attached()) + self.command(Adopt(incarnation=1, keep=("t1",)))


@pytest.fixture
def agent():
    return Driver()


def sent(effects):
    return [e.fact for e in effects if isinstance(e, Send)]


LOOK = TrainerWatched(trainer="t1", run="r", state="T", cpu_s=1.0, beat_age_s=0.6, behind_s=0.01)
EARS = PeersWatched(node="node-1", heard=("node-2",), silent=())


def test_looks_and_ears_are_said_to_whoever_adopted(agent):
    assert sent(agent(Watched(facts=(LOOK, EARS), at=0.0))) == [LOOK, EARS]


def test_looks_and_ears_are_not_said_later(agent):
    agent(Detached())
    assert agent(Watched(facts=(LOOK, EARS), at=0.0)) == []
    assert not {type(f) for f in sent(agent.attach())} & {TrainerWatched, PeersWatched}


def test_look_at_a_trainer_that_ended_is_not_said(agent):
    agent(Ended(trainer="t1", exit_status=-9))
    assert sent(agent(Watched(facts=(LOOK, EARS), at=0.0))) == [EARS]


def test_look_that_waited_for_the_agent_says_how_late_it_is(agent):
    agent.now = 0.7
    assert [f.behind_s for f in sent(agent(Watched(facts=(LOOK, EARS), at=0.2)))] == pytest.approx([0.5, 0.5])


def test_ring_is_obeyed_and_its_doors_are_part_of_the_hello(agent):
    order = WatchPeers(beat=(), listen=("node-2",), key="00")
    assert agent.command(order) == [WatchRing(order=order)]
    door = Door(nic="eth0", host="10.0.0.1", port=9)
    core = AgentCore(dataclasses.replace(ME, beats=(door,)))
    assert sent(core.handle(Attached(), now=0.0))[0].beats == (door,)
