"""Seats that are taken, kept and given up without the arbiter keep to its laws."""

from sharing_cluster import Cluster, attached, quota

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.rooms import _promised
from atoll.schema import messages as m
from atoll.schema.sharing import Alternative
from atoll.schema.views import RunState


def held(cluster, queue):
    return sum(len(run.seats) for run in cluster.desk.cluster.open_runs() if run.spec.queue == queue)


def test_spare_that_its_queues_quota_has_no_room_for_is_not_given_later_either():
    cluster = Cluster()
    cluster.share(quota("default", 2), quota("lab", 2))
    cluster.submit("mine", workers=2, spares=2)
    cluster.tick(3)
    assert held(cluster, "default") == 2
    assert cluster.submit("theirs", workers=2, queue="lab").state is RunState.PLACED


def test_worker_on_a_drained_node_is_replaced_only_where_its_placement_selects():
    cluster = Cluster()
    run = cluster.submit(workers=1, alternatives=(Alternative(labels={"zone": "x"}),))
    attached(cluster)
    cluster.running(run)
    cluster.reply(ev.DrainAsked(request="d", node="a", within_s=30, reason="asked"))
    cluster.tick(2)
    assert {seat.node for seat in run.seats.values()} == {"a"}


def test_worker_on_a_drained_node_is_replaced_though_the_quota_is_used_up():
    cluster = Cluster()
    cluster.share(quota("default", 1))
    run = cluster.submit(workers=1)
    attached(cluster)
    cluster.running(run)
    (node,) = {seat.node for seat in run.seats.values()}
    cluster.reply(ev.DrainAsked(request="d", node=node, within_s=30, reason="asked"))
    assert sorted(seat.node for seat in run.seats.values()) == ["a", "b"]


def test_lost_worker_is_not_replaced_by_what_others_gave_up_for_a_run_that_waits():
    cluster = Cluster()
    low = cluster.submit("low", workers=2, min_workers=1, priority=10)
    mine = cluster.submit("mine", workers=2, priority=50)
    attached(cluster)
    cluster.running(low)
    cluster.running(mine)
    urgent = cluster.submit("urgent", workers=1, priority=90)
    assert urgent.state is RunState.QUEUED
    (claim,) = cluster.desk.decided.kept
    assert _promised(cluster.desk) == {claim.nodes[0]: (10_000, 0)}


def test_person_cannot_resize_a_run_past_its_quota_or_past_those_who_wait():
    cluster = Cluster()
    cluster.share(quota("default", 2), quota("lab", 2))
    run = cluster.submit(workers=2, min_workers=1, priority=0)
    attached(cluster)
    cluster.running(run)
    cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=1, reason="asked"))
    for trainer in [t for t in run.trainers.values() if t.ended is not None]:
        fact = m.TrainerExited(trainer=trainer.trainer, run="gpt", pid=1, exit_status=-9)
        cluster.tell(ev.AgentSaid(node=trainer.node, fact=fact))
    urgent = cluster.submit("urgent", workers=1, priority=100)
    assert urgent.state is RunState.PLACED
    cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=2, reason="asked"))
    cluster.tick(2)
    assert (run.size, run.most, held(cluster, "default")) == (1, 2, 2)
    cluster.reply(ev.StopAsked(request="q", run="urgent", reason="over"))
    for trainer in urgent.trainers.values():
        fact = m.TrainerExited(trainer=trainer.trainer, run="urgent", pid=1, exit_status=0)
        cluster.tell(ev.AgentSaid(node=trainer.node, fact=fact))
    cluster.tick(30)
    assert (run.size, held(cluster, "default")) == (2, 2)


def test_run_placed_by_a_smaller_share_is_resized_within_it():
    cluster = Cluster()
    run = cluster.submit(workers=4, alternatives=(Alternative(share=0.5),))
    attached(cluster)
    cluster.running(run)
    cluster.tick(20)
    refused = cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=4, reason="asked"))
    assert refused.problem.problem == "workers=4: run gpt runs with 2"
    assert cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=2, reason="asked")).value["workers"] == 2


def test_second_stop_ends_at_once_what_the_first_gave_an_hour():
    cluster = Cluster()
    run = cluster.submit(workers=2, stop_grace_s=3600.0)
    attached(cluster)
    cluster.running(run)
    cluster.reply(ev.StopAsked(request="q", run="gpt", reason="asked"))
    cluster.reply(ev.StopAsked(request="q", run="gpt", reason="asked"))
    assert [t.ended for t in run.trainers.values()] == [None, None]
    cluster.tick(2)
    effects = cluster.tell(ev.StopAsked(request="q", run="gpt", reason="asked again"))
    sent = [e.command for e in effects if isinstance(e, fx.Send)]
    assert {c.trainer for c in sent if isinstance(c, m.FenceTrainer)} == set(run.trainers)


def test_run_gives_up_one_spare_where_one_is_enough():
    cluster = Cluster()
    run = cluster.submit(workers=2, spares=2)
    attached(cluster)
    cluster.running(run)
    cluster.submit("next", workers=1)
    assert sum(seat.leaving for seat in run.seats.values()) == 1
