"""What the queue makes of the arbiter's decisions, and what it answers to questions about them."""

import dataclasses

import pytest
from sharing_cluster import Cluster, hello, job, quota

from atoll.control_plane import events as ev
from atoll.control_plane.arbiter.decisions import Decisions, Grow, Move
from atoll.control_plane.arbiter.reasons import Better, Idle
from atoll.control_plane.explain import plan, queues, why
from atoll.control_plane.queue import MOVES_S, carry_out
from atoll.control_plane.records import QueuesSet, RunPlaced, RunResized
from atoll.control_plane.resizing import superfluous
from atoll.control_plane.snapshots import UNKNOWN_ISLAND, ask, snapshot
from atoll.control_plane.usage import account
from atoll.errors import SpecError
from atoll.schema import messages as m
from atoll.schema.offers import MachineOffer
from atoll.schema.queues import QueueWish, QuotaWish
from atoll.schema.sharing import Alternative
from atoll.schema.spec import JobKind, check_spec
from atoll.schema.views import RunState

# -- what is taken in ------------------------------------------------------------------------------------------------


def test_job_for_a_queue_that_is_not_there_is_refused_and_told_which_are():
    cluster = Cluster()
    assert cluster.submit(queue="lab") is None
    assert cluster.answer.problem.problem == "queue='lab': there is no such queue; the cluster has default"


def test_job_beyond_its_queues_quota_is_refused_though_the_cluster_could_hold_it():
    cluster = Cluster()
    cluster.share(quota("default", 2))
    assert cluster.submit(workers=3) is None
    assert cluster.answer.problem.code == "does-not-fit"
    assert "the queue may never have more than 2 CPU" in cluster.answer.problem.problem


@pytest.mark.parametrize("changes", [{}, {"min_workers": 1}, {"spares": 1_024, "workers": 1}])
def test_seats_that_ask_for_nothing_are_bounded_by_the_nodes(changes):
    cluster = Cluster()
    run = cluster.submit(**({"workers": 20_000, "cpus_per_worker": 0.0} | changes))
    assert sum(len(run.seats) for run in cluster.desk.cluster.open_runs()) <= 4 * 64
    assert (run is None) == (changes == {})


@pytest.mark.parametrize(
    "beyond",
    [
        {"workers": 65_537, "min_workers": 1},
        {"spares": 1_025},
        {"alternatives": (Alternative(),) * 33},
        {"workers": 2_000, "min_workers": 1, "worker_sizes": tuple(range(1, 2_001))},
        {"stop_grace_s": 3_601.0},
    ],
)
def test_job_with_numbers_beyond_all_reason_is_refused_when_submitted_and_when_planned(beyond):
    cluster = Cluster()
    assert cluster.submit(**beyond) is None
    assert cluster.answer.problem.code == "invalid-spec"
    with pytest.raises(SpecError):
        plan(cluster.desk, job(**beyond))


def test_sizes_of_an_elastic_job_are_never_written_out():
    assert check_spec(job(workers=65_536, min_workers=1)).sizes() == range(1, 65_537)


def test_run_whose_queue_was_taken_away_goes_on_and_neither_it_nor_the_others_end_the_core():
    cluster = Cluster()
    cluster.share(QueueWish(name="default"), QueueWish(name="lab"))
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    run = cluster.submit("mine", workers=1, queue="lab")
    cluster.running(run)
    cluster.submit("next", workers=4)
    cluster.share(QueueWish(name="default"))
    cluster.reply(ev.DrainAsked(request="d", node=next(iter(run.seats.values())).node, within_s=30, reason="asked"))
    cluster.tick(2)
    again = Cluster(cluster.records, 2)
    again.tick(2)
    assert again.desk.cluster.runs["mine"].state is RunState.RUNNING


def test_queues_outlive_a_restart_and_bad_ones_are_refused():
    cluster = Cluster()
    assert "flavor 'gone'" in cluster.share(QueueWish(name="q", quota=(QuotaWish(flavor="gone"),))).problem.problem
    assert cluster.share(quota("default", 2), quota("lab", 2)).value == {"queues": ["default", "lab"]}
    assert [type(r) for r in cluster.records] == [QueuesSet]
    again = Cluster(cluster.records, 2)
    assert [q.name for q in again.desk.cluster.sharing.queue] == ["default", "lab"]


# -- what the arbiter sees -------------------------------------------------------------------------------------------


def test_nodes_are_of_one_class_but_for_what_names_the_node_itself():
    cluster = Cluster()
    kinds = {n.node: n.kind for n in snapshot(cluster.desk).nodes}
    assert kinds["a"].name == "cpu 2 CPU [price=2.5,zone=x]"
    assert kinds["b"].name == "cpu 2 CPU [zone=y]"
    assert (kinds["a"].price_per_hour, kinds["b"].price_per_hour) == (2.5, 0.0)
    assert {n.node: n.domain for n in snapshot(cluster.desk).nodes} == {"a": "r1", "b": ""}


def test_unmeasured_network_is_one_island():
    assert {n.island for n in snapshot(Cluster().desk).nodes} == {UNKNOWN_ISLAND}


def test_alternatives_become_options_with_their_sizes():
    cluster = Cluster()
    spec = job(
        workers=4,
        min_workers=2,
        alternatives=(Alternative(labels={"zone": "x"}, islands=1), Alternative(share=0.75)),
    )
    cluster.submit("first", workers=4)
    cluster.submit("gpt", **{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name != "name"})
    options = snapshot(cluster.desk).asks[0].options
    assert [(o.selector, o.islands, o.least, o.most) for o in options] == [
        ({"zone": ("x",)}, 1, 2, 4),
        ({}, 0, 2, 3),
    ]


def test_alternative_is_taken_in_order_and_its_size_is_the_runs():
    cluster = Cluster()
    cluster.submit("first", workers=1)
    run = cluster.submit(workers=4, alternatives=(Alternative(), Alternative(share=0.75)))
    assert (run.state, run.size, run.option) == (RunState.PLACED, 3, 1)
    placed = [r for r in cluster.records if isinstance(r, RunPlaced)][-1]
    assert "not 1. anywhere: room for 3 of 4 workers is free now, 4 fit in all" in placed.reason


def test_what_a_run_gives_up_stays_its_own_until_its_processes_are_gone():
    cluster = Cluster()
    run = cluster.submit(workers=4, min_workers=2, priority=10)
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(run)
    urgent = cluster.submit("urgent", workers=2, priority=90)
    seen = snapshot(cluster.desk)
    assert (len(seen.grants[0].nodes), len(seen.grants[0].leaving)) == (4, 2)
    assert urgent.state is RunState.QUEUED
    assert [(r.workers, len(r.leaving), r.yielded) for r in cluster.records if isinstance(r, RunResized)] == [
        (2, 2, True)
    ]
    assert run.disturbed == [cluster.now]


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_smaller_run_gives_up_its_highest_ranks_and_keeps_its_spare():
    cluster = Cluster()
    run = cluster.submit(workers=3, min_workers=1, spares=1)
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(run)
    ranks = {run.trainers[x.trainer].seat: x.rank for x in run.members}
    assert [ranks[s] for s in superfluous(run, 1)] == [2, 1]
    assert superfluous(run, 3) == ()


def test_run_that_was_made_smaller_by_a_person_does_not_grow_back_by_itself():
    cluster = Cluster()
    run = cluster.submit(workers=4, min_workers=1)
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(run)
    cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=2, reason="asked"))
    for trainer in [t for t in run.trainers.values() if t.ended is not None]:
        fact = m.TrainerExited(trainer=trainer.trainer, run="gpt", pid=1, exit_status=-9)
        cluster.tell(ev.AgentSaid(node=trainer.node, fact=fact))
    cluster.tick(30)
    assert (run.size, run.most, len(run.seats)) == (2, 2, 2)
    cluster.reply(ev.ResizeAsked(request="q", run="gpt", workers=4, reason="asked"))
    assert (run.size, run.most, len(run.seats)) == (4, 4, 4)


@pytest.mark.parametrize(("kind", "words"), [(JobKind.SERVE, "serves a model"), (JobKind.TRAIN, "nothing to suspend")])
def test_what_cannot_be_suspended_says_why(kind, words):
    cluster = Cluster()
    cluster.submit(workers=1, kind=kind)
    cluster.reply(ev.StopAsked(request="q", run="gpt", reason="over"))
    assert words in cluster.reply(ev.SuspendAsked(request="q", run="gpt", reason="asked")).problem.problem


def test_run_that_waits_is_held_and_let_go():
    cluster = Cluster()
    cluster.submit("first", workers=4)
    run = cluster.submit(workers=1)
    cluster.reply(ev.SuspendAsked(request="q", run="gpt", reason="not now"))
    cluster.reply(ev.StopAsked(request="q", run="first", reason="over"))
    cluster.tick(2)
    assert (run.state, run.held) == (RunState.QUEUED, True)
    assert why(cluster.desk, run).reason == "held until somebody resumes it: not now"
    cluster.reply(ev.ResumeAsked(request="q", run="gpt", reason="now"))
    assert run.state is RunState.PLACED


def test_run_that_is_ending_gives_no_reason_to_refuse_another_or_to_forget_who_waits():
    cluster = Cluster()
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    run = cluster.submit("first", workers=3)
    cluster.running(run)
    head = cluster.submit("head", workers=4)
    cluster.reply(ev.StopAsked(request="s", run="first", reason="enough"))
    assert run.state is RunState.STOPPING
    late = cluster.submit("late", workers=4)
    assert cluster.answer.problem is None
    small = cluster.submit("small", workers=1)
    cluster.tick(2)
    assert [waits.state for waits in (head, late, small)] == [RunState.QUEUED] * 3
    assert why(cluster.desk, head).position == 1


def test_drained_node_is_no_reason_to_refuse_for_ever():
    cluster = Cluster()
    cluster.reply(ev.DrainAsked(request="d", node="a", within_s=30, reason="maintenance"))
    run = cluster.submit(workers=4)
    assert cluster.answer.problem is None
    assert run.state is RunState.QUEUED
    cluster.reply(ev.UndrainAsked(request="u", node="a"))
    cluster.tick(2)
    assert run.state is RunState.PLACED


def test_better_place_is_looked_for_when_room_changes_and_each_minute_though_nobody_waits():
    cluster = Cluster()
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(cluster.submit(workers=2))
    cluster.tick(2)
    before = cluster.desk.decided
    cluster.tick(5)
    assert cluster.desk.decided is before
    cluster.tick(MOVES_S)
    after = cluster.desk.decided
    assert after is not before
    cluster.reply(ev.DrainAsked(request="d", node="b", within_s=30, reason="maintenance"))
    assert cluster.desk.decided is not after


def test_run_grows_by_other_nodes_than_those_it_avoids():
    cluster = Cluster()
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    run = cluster.submit(workers=4, min_workers=1)
    cluster.running(run)
    cluster.reply(ev.ResizeAsked(request="z", run="gpt", workers=1, reason="for a while"))
    run.avoided["b"] = cluster.desk.clock + 1000.0
    seats = [seat.seat for seat in run.seats.values() if not seat.leaving]
    grown = Grow(run="gpt", adds=("b", "a", "b"), to=4, reason=Idle(before=1, after=4, gain_s=1.0, cost_s=0.0))
    carry_out(cluster.desk, Decisions(at=cluster.desk.now, grows=(grown,)))
    assert [s.node for s in run.seats.values() if not s.leaving and s.seat not in seats] == ["a"]
    assert run.size == 2


# -- questions -------------------------------------------------------------------------------------------------------


def test_plan_of_a_job_that_fits_names_its_nodes_and_changes_nothing():
    cluster = Cluster()
    view = plan(cluster.desk, job(workers=3))
    assert (view.verdict, view.workers, sorted(view.nodes)) == ("starts", 3, ["a", "a", "b"])
    assert view.price_per_hour == pytest.approx(2.5)
    assert cluster.desk.cluster.runs == {}
    assert cluster.records == []


def test_plan_is_what_becomes_of_the_job():
    cluster = Cluster()
    cluster.submit("first", workers=1)
    view = plan(cluster.desk, job(workers=2))
    run = cluster.submit(workers=2)
    assert sorted(s.node for s in run.seats.values()) == sorted(view.nodes)
    assert view.reason == [r for r in cluster.records if isinstance(r, RunPlaced)][-1].reason


def test_plan_of_an_urgent_job_names_who_would_yield():
    cluster = Cluster()
    run = cluster.submit(workers=4, min_workers=2, priority=10)
    view = plan(cluster.desk, job("urgent", workers=2, priority=90))
    assert (view.verdict, view.position) == ("waits", 1)
    assert [(y.run, y.before, y.after) for y in view.yields] == [("gpt", 4, 2)]
    assert run.size == 4


def test_plan_of_a_job_that_can_never_fit_says_what_is_lacking():
    view = plan(Cluster().desk, job(workers=9))
    assert view.verdict == "never"
    assert "5 CPU more are needed" in view.reason


def test_plan_counts_the_machines_that_an_autoscaler_would_have_to_start():
    cluster = Cluster()
    offers = (MachineOffer(kind="big", most=4, cpus=4.0), MachineOffer(kind="small", most=1, cpus=1.0))
    cluster.reply(ev.MachinesOffered(request="q", offers=offers))
    cluster.submit("first", workers=4)
    view = plan(cluster.desk, job(workers=8))
    assert (view.verdict, view.to_start) == ("waits", {"big": 2})


def test_plan_with_machines_to_start_tells_what_they_cost_and_how_fast_the_job_would_be():
    cluster = Cluster()
    labels = {"price": "3.5", "device": "H200"}
    cluster.reply(ev.MachinesOffered(request="q", offers=(MachineOffer(kind="big", most=4, cpus=4.0, labels=labels),)))
    view = plan(cluster.desk, job(workers=8, speeds={"h200": 10.0, "cpu": 1.0}, batch=40))
    assert (view.verdict, view.to_start, view.price_per_hour, view.workers) == ("waits", {"big": 2}, 7.0, 8)
    assert view.step_s is not None


def test_plan_for_an_unknown_queue_is_refused():
    with pytest.raises(SpecError, match="no such queue"):
        plan(Cluster().desk, job(queue="lab"))


def test_why_of_a_run_that_waits_tells_each_alternative_and_its_place():
    cluster = Cluster()
    cluster.submit("first", workers=4)
    run = cluster.submit(workers=2, alternatives=(Alternative(labels={"zone": "x"}), Alternative(share=0.5)))
    view = why(cluster.desk, run)
    assert (view.position, view.waiting, view.priority) == (1, 1, 50)
    assert [r.kind for r in view.rejected] == ["no-room", "no-room", "nobody-yields"]


def test_why_of_a_run_that_runs_tells_why_it_was_placed():
    cluster = Cluster()
    view = why(cluster.desk, cluster.submit(workers=2))
    assert view.reason.startswith("placed: as asked: 2 workers on 1 node of 1 island (cpu)")


def test_queues_show_what_they_hold_and_what_is_fair():
    cluster = Cluster()
    cluster.share(quota("default", 3, weight=3.0), quota("lab", 1))
    cluster.submit(workers=2)
    found = {q.name: q for q in queues(cluster.desk)}
    assert (found["default"].share, found["default"].fair_share, found["default"].running) == (0.5, 0.75, 1)
    assert found["lab"].quotas == ("any: 1 CPU, 0 GPU",)


def test_share_of_a_queue_is_averaged_over_its_half_life():
    cluster = Cluster()
    cluster.submit(workers=2)
    cluster.now += 86_400.0
    cluster.desk.now = cluster.now
    account(cluster.desk)
    assert cluster.desk.usage["default", None].share == pytest.approx(0.25)


# -- moves -----------------------------------------------------------------------------------------------------------


def test_worker_that_moves_stays_until_its_replacement_is_ready():
    cluster = Cluster()
    run = cluster.submit(workers=2)
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(run)
    better = Better(before_per_s=1.0, after_per_s=2.0, islands_before=2, islands_after=1, gain_s=300.0, cost_s=32.0)
    known = len(cluster.desk.records)
    carry_out(cluster.desk, Decisions(at=0.0, moves=(Move(run="gpt", gives=("a",), takes=("b",), reason=better),)))
    cluster.records += cluster.desk.records[known:]
    assert [s.node for s in run.seats.values()] == ["a", "a", "b"]
    assert (run.epoch, run.lacking()) == (1, 0)
    assert why(cluster.desk, run).reason.split("resized: ")[1].startswith("2.00 times the samples/s on 1 island")
    seen = snapshot(cluster.desk).grants[0]
    assert (sorted(seen.nodes), seen.leaving) == (["a", "a", "b"], ("a",))
    cluster.tick(1)
    assert run.epoch == 1
    fresh = next(t for t in run.active() if t.node == "b")
    ready = m.TrainerReady(trainer=fresh.trainer, host="h", port=1)
    cluster.tell(ev.AgentSaid(node="b", fact=m.TrainerSaid(run="gpt", fact=ready)))
    assert (run.epoch, [x.trainer for x in run.members]) == (2, ["gpt-t0", "gpt-t2"])
    assert run.reason == "gpt-t1 moves to other nodes, gpt-t2 joins"
    again = Cluster(cluster.records, 2).desk.cluster.runs["gpt"]
    assert {s.seat: (s.leaving, s.replaced) for s in again.seats.values()}["gpt-s1"] == (True, True)


def test_what_members_need_for_a_grain_becomes_their_devices_measured_speed():
    cluster = Cluster()
    run = cluster.submit(workers=2)
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
    cluster.running(run)
    for step in range(1, 12):
        for member in run.members:
            told = {"epoch": 1, "step": step, "at": 1.0, "step_s": 1.1, "samples": 32, "grains": 4}
            fact = m.StepCommitted(trainer=member.trainer, compute_s=1.0, wait_s=0.1, sync_bytes=4096, **told)
            cluster.tell(ev.AgentSaid(node=member.node, fact=m.TrainerSaid(run="gpt", fact=fact)))
    wish = snapshot(cluster.desk).grants[0].ask
    assert (wish.batch, wish.measured) == (32.0, {"cpu": pytest.approx(16.0)})
    assert wish.sync_bytes == 4096
    # It waits again, its trainers are gone, and what it did on which device is still known.
    cluster.reply(ev.SuspendAsked(request="z", run="gpt", reason="for a while"))
    for trainer in run.active():
        ended = m.TrainerFinished(trainer=trainer.trainer, step=11, suspended=True)
        cluster.tell(ev.AgentSaid(node=trainer.node, fact=m.TrainerSaid(run="gpt", fact=ended)))
        gone = m.TrainerExited(trainer=trainer.trainer, run="gpt", pid=1, exit_status=0)
        cluster.tell(ev.AgentSaid(node=trainer.node, fact=gone))
    assert run.state is RunState.QUEUED
    wish = ask(run.spec, run)
    assert (wish.batch, wish.measured, wish.sync_bytes) == (32.0, {"cpu": pytest.approx(16.0)}, 4096)


def test_declared_batch_and_bytes_of_a_step_count_until_they_are_measured():
    wish = ask(check_spec(job(workers=2, batch=64, sync_mib=1.5)))
    assert (wish.batch, wish.sync_bytes) == (64.0, 1.5 * 2**20)
    for field in ("batch", "sync_mib"):
        with pytest.raises(SpecError, match=f"{field}=-1: "):
            check_spec(job(**{field: -1}))


def test_speeds_are_declared_by_devices_in_whatever_letters_and_labels_of_the_autoscaler_count():
    assert ask(job(speeds={"H200": 9.0})).declared == {"h200": 9.0}
    cluster = Cluster(labels={"a": {"device": "H200", "market": "spot"}, "b": {"ray.io/accelerator-type": "A100"}})
    kinds = {node.node: node.kind for node in snapshot(cluster.desk).nodes}
    assert [(kinds[n].device, kinds[n].spot) for n in ("a", "b")] == [("h200", True), ("a100", False)]


def test_declared_speeds_choose_between_unlike_devices():
    labels = {"a": {"ray.io/accelerator-type": "old"}, "b": {"ray.io/accelerator-type": "new"}}
    for speeds, node in (({"old": 1.0, "new": 3.0}, "b"), ({"old": 3.0, "new": 1.0}, "a")):
        view = plan(Cluster(labels=labels).desk, job(workers=2, speeds=speeds))
        assert set(view.nodes) == {node}
    with pytest.raises(SpecError, match=r"speeds\.new=-1\.0: samples a second, above 0"):
        check_spec(job(speeds={"new": -1.0}))
