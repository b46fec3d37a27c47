"""What a drain and an eviction leave open for later: deadlines across restarts, nodes avoided for a while."""

import pytest

from atoll.control_plane import drains, leaving
from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.control_plane.records import NodeDrained, NodeDraining, NodeUndrained
from atoll.schema.messages import NodeLeaving
from atoll.schema.spec import JobSpec


class Cluster:
    """A core with two hosts of one CPU; `now` is the wall's clock."""

    def __init__(self, records=(), incarnation=1):
        self.core = Core(incarnation, records)
        self.now = 1000.0
        self.records = list(records)
        self.nodes = tuple(
            ev.NodeSeen(node=n, address=n, alive=True, cpus=1.0, gpus=0.0, local=n == "a") for n in ("a", "b")
        )
        self.tell(ev.ClusterListed(nodes=self.nodes, seats=()))

    def tell(self, event):
        effects = self.core.handle(event, now=self.now)
        self.records += [r for e in effects if isinstance(e, fx.Persist) for r in e.records]
        return effects

    def drain(self, node="b", within=30.0):
        return self.reply(ev.DrainAsked(request="q", node=node, within_s=within, reason="asked"))

    def reply(self, event):
        return next((e for e in self.tell(event) if isinstance(e, fx.Reply)), None)

    def tick(self, at=None):
        self.now = self.now + 0.1 if at is None else at
        return self.tell(ev.Tick())

    def submit(self, **changes):
        fields = {"name": "gpt", "working_dir": "/w", "file": "t.py", "cpus_per_worker": 0.5, "detach": True}
        spec = JobSpec(**(fields | changes))
        self.tell(ev.RunAsked(request="s", run=spec.name, spec=spec, run_dir="/r", secret="00"))
        return self.core.desk.cluster.runs[spec.name]


def test_empty_node_is_drained_at_the_next_tick():
    cluster = Cluster()
    assert cluster.drain().value == {"node": "b", "until": 1030.0}
    cluster.tick()
    assert cluster.records == [
        NodeDraining(node="b", until=1030.0, reason="asked", at=1000.0),
        NodeDrained(node="b", at=1000.1),
    ]
    assert cluster.tick(2000.0) == []


def test_deadline_is_the_walls_and_survives_a_restart():
    cluster = Cluster()
    run = cluster.submit(workers=4, spares=0)
    assert {s.node for s in run.seats.values()} == {"a", "b"}
    cluster.drain(within=30.0)
    again = Cluster(cluster.records, incarnation=2)
    drain = again.core.desk.cluster.drains["b"]
    assert (drain.until, drain.left) == (1030.0, False)
    again.tick(1031.0)
    ended = [t for t in again.core.desk.cluster.runs["gpt"].trainers.values() if t.node == "b"]
    assert all(t.ended is not None for t in ended)


@pytest.mark.parametrize("within", [-1.0, drains.LONGEST_S + 1, float("nan"), float("inf")])
def test_span_that_is_none_is_refused(within):
    problem = Cluster().drain(within=within).problem
    assert problem.code == "invalid-spec"


def test_drain_asked_again_may_come_sooner_and_never_later():
    cluster = Cluster()
    cluster.drain(within=30.0)
    assert cluster.drain(within=60.0).value["until"] == 1030.0
    assert cluster.drain(within=10.0).value["until"] == 1010.0


def test_later_notice_of_the_node_itself_is_a_new_one():
    cluster = Cluster()
    said = [NodeLeaving(node="b", notice=n, left_s=20.0) for n in ("one", "one", "two")]
    for fact in said[:2]:
        cluster.tell(ev.AgentSaid(node="b", fact=fact))
    cluster.tell(ev.UndrainAsked(request="q", node="b"))
    cluster.tell(ev.AgentSaid(node="b", fact=said[1]))
    assert cluster.core.desk.cluster.drains == {}
    again = Cluster(cluster.records, incarnation=2)
    again.tell(ev.AgentSaid(node="b", fact=said[1]))
    assert again.core.desk.cluster.drains == {}
    again.tell(ev.AgentSaid(node="b", fact=said[2]))
    assert again.core.desk.cluster.drains["b"].notice == "two"
    assert [type(r) for r in cluster.records] == [NodeDraining, NodeUndrained]


def test_drained_node_holds_nobody_and_shows_it():
    cluster = Cluster()
    cluster.drain()
    run = cluster.submit(workers=2, spares=2)
    assert {s.node for s in run.seats.values()} == {"a"}
    view = next(e.view for e in cluster.tick() if isinstance(e, fx.ShowNode))
    assert (view.node, view.drain.left, view.drain.trainers, view.alive) == ("b", True, 0, True)


def test_node_avoided_for_slowness_is_tried_again_after_ten_minutes():
    cluster = Cluster()
    run = cluster.submit(workers=2, spares=1)
    for name, seat in list(run.seats.items()):
        if seat.node == "b":
            del run.seats[name]
    desk = cluster.core.desk
    run.avoided["b"] = desk.clock + leaving.AVOID_S
    desk.room_changed = True
    cluster.tick()
    assert leaving.shunned(desk, run) == {"b"}
    assert {s.node for s in run.seats.values()} == {"a"}
    desk.clock += leaving.AVOID_S
    cluster.tick()
    assert run.avoided == {}
    assert {s.node for s in run.seats.values()} == {"a", "b"}
