"""Faults on purpose, in the core: who allows them, and what is ordered of whom."""

import pytest

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.schema import messages as m
from atoll.schema.harm import Harm, HarmWish
from atoll.schema.spec import JobSpec

VERSIONS = m.Versions(atoll="0", protocol=m.PROTOCOL, python="3")


class World:
    """One node, one run of one trainer."""

    def __init__(self, *, chaos):
        self.core, self.now = Core(1), 1000.0
        node = ev.NodeSeen(node="a", address="1.1.1.1", alive=True, cpus=2.0, gpus=0.0, local=True)
        self(ev.ClusterListed(nodes=(node,), seats=()))
        self(ev.AgentAttached(hello=hello()))
        spec = JobSpec(name="j", working_dir="/", file="f.py", spares=0, detach=True, chaos=chaos)
        self(ev.RunAsked(request="r", run="run", spec=spec, run_dir="/r", secret="00"))

    def __call__(self, event):
        return self.core.handle(event, now=self.now)

    def harm(self, trainer="run-t0", harm=Harm.KILL, run="run", **changes):
        wish = HarmWish(trainer=trainer, harm=harm, **changes)
        return self(ev.HarmAsked(request="q", run=run, wish=wish))


def hello():
    return m.AgentHello(
        node="a", pid=1, address="1.1.1.1", state_dir="/s", versions=VERSIONS, last_incarnation=0, trainers=()
    )


def orders(effects):
    return [(e.node, e.command) for e in effects if isinstance(e, fx.Send)]


def answer(effects):
    (reply,) = [e for e in effects if isinstance(e, fx.Reply)]
    return reply.problem.code if reply.problem else reply.value


def test_harm_goes_to_the_agent_of_the_trainer_and_into_the_story():
    effects = World(chaos=True).harm(harm=Harm.STOP, for_s=20.0)
    assert orders(effects) == [("a", m.Inject(trainer="run-t0", harm=Harm.STOP, for_s=20.0))]
    assert answer(effects) == {"run": "run", "at": 1000.0}
    (note,) = [e for e in effects if isinstance(e, fx.Note)]
    assert (note.subject, note.kind, note.text) == ("run-t0", "hurt", "on purpose: stop for 20 s")


def test_run_that_does_not_say_chaos_is_never_hurt():
    effects = World(chaos=False).harm()
    assert orders(effects) == []
    assert answer(effects) == "invalid-spec"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"trainer": "somebody"}, "not-found"),
        ({"run": "other"}, "not-found"),
        ({"for_s": 5.0}, "invalid-spec"),
        ({"harm": Harm.DIE}, "invalid-spec"),
        ({"place": "before-vote"}, "invalid-spec"),
        ({"harm": Harm.STOP, "for_s": -1.0}, "invalid-spec"),
        ({"harm": Harm.STOP, "for_s": float("inf")}, "invalid-spec"),
        ({"harm": Harm.STOP, "for_s": float("nan")}, "invalid-spec"),
        ({"harm": Harm.FLIP, "for_s": 5.0}, "invalid-spec"),
    ],
)
def test_wish_that_cannot_be_is_answered_with_its_problem(changes, code):
    effects = World(chaos=True).harm(**changes)
    assert orders(effects) == []
    assert answer(effects) == code
