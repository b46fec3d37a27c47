"""A real agent, its zygote and trainers, led by a control plane that is a gRPC server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from agent_cluster import Cluster, FakeControl, quiet, wait_gone

from atoll.clock import SystemClock
from atoll.schema.messages import (
    DoctorReport,
    Examine,
    FenceTrainer,
    ForgetTrainer,
    LeaveNode,
    LogChunk,
    NodeLeaving,
    PeerProbed,
    PeersWatched,
    ProbePeer,
    ReadLog,
    StepCommitted,
    StopAtBoundary,
    TellTrainer,
    TrainerFailed,
    TrainerFinished,
    TrainerSaid,
    TrainerWatched,
    WatchedPeer,
    WatchPeers,
)
from atoll.schema.topology import Nic
from atoll.workers.agent_launch_runtime import launch
from atoll.workers.beat_runtime import Beats
from atoll.workers.probe_runtime import ProbeService
from atoll.workers.proc_runtime import lives, read_stat, start_ticks

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cluster for tests that leave its agent as they found it."""
    cluster = Cluster(tmp_path_factory.mktemp("shared"), deep=True)
    cluster.launch()
    yield cluster
    cluster.close()
    assert not (cluster.state_dir / "agent.sock").exists()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.launch()
    yield cluster
    cluster.close()


def test_agent_is_outside_the_tree_of_whoever_launched_it(shared):
    parents = [p.pid for p in psutil.Process(shared.pid).parents()]
    assert os.getpid() not in parents
    assert read_stat(shared.pid).session == shared.pid


def test_a_second_launch_finds_the_agent_that_serves_already(shared):
    assert launch(shared.config()) == shared.pid


def test_a_trainer_runs_the_function_and_finishes_with_its_output_in_its_log(shared):
    shared.start("quick", "quick")
    assert shared.control.exited("quick").exit_status == 0
    shared.control.said("quick", TrainerFinished)
    assert shared.log("quick") == "loaded job\nhello from env True True\n"
    assert Path(shared.run_dir, "logs", "quick.log").stat().st_mode & 0o077 == 0


def test_an_agent_probes_and_is_probed_and_says_again_what_it_measured(shared):
    hello = shared.control.hellos[0]
    assert [(n.name, n.host) for n in hello.nics] == [("lo", "127.0.0.1")]
    assert [(d.nic, d.host) for d in hello.doors] == [("lo", "127.0.0.1")]
    order = {"request": "there", "nic": "lo", "burst_s": 0.002, "limit_s": 10.0}

    async def both_ways():
        peer = ProbeService("peer", (Nic(name="lo", host="127.0.0.2"),), shared.secret, SystemClock().now)
        serving = asyncio.create_task(peer.serve())
        try:
            shared.control.command(ProbePeer(peer="peer", host="127.0.0.1", door=peer.doors[0], **order))
            there = await asyncio.to_thread(shared.control.wait, lambda f: isinstance(f, PeerProbed))
            back = await peer.measure(ProbePeer(peer=hello.node, host="127.0.0.2", door=hello.doors[0], **order))
            return there, back
        finally:
            peer.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    there, back = asyncio.run(both_ways())
    assert (there.problem, back.problem) == ("", "")
    assert [(k.source, k.target) for k in there.links] == [(hello.node, "peer"), ("peer", hello.node)]
    assert all(k.bandwidth > 1e6 for k in (*there.links, *back.links))
    shared.restart_control()
    assert shared.control.hello().probes == (there,)


def test_a_warm_zygote_starts_a_trainer_within_two_seconds(shared):
    shared.start("first", "quick")
    shared.control.exited("first")
    began = time.monotonic()
    shared.start("second", "quick")
    shared.control.exited("second")
    assert time.monotonic() - began < 2.0


def test_spawned_processes_can_import_the_users_module(shared):
    shared.start("spawner", "spawned")
    assert shared.control.exited("spawner").exit_status == 0
    assert "answer 42" in shared.log("spawner")


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("no-file", {"file": "absent.py"}, "'absent.py'"),
        ("no-function", {"function": "absent"}, "'absent'"),
        ("no-dir", {"working_dir": "/no/such/dir"}, "'/no/such/dir'"),
    ],
)
def test_a_missing_path_or_function_is_named(shared, name, changes, named):
    shared.start(name, **changes)
    failed = shared.control.said(name, TrainerFailed)
    assert failed.code == "script-not-found"
    assert named in failed.problem
    assert shared.control.exited(name).exit_status == 1


def test_an_error_while_importing_is_told_with_the_users_own_frames(shared):
    (shared.work / "broken.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    shared.start("broken", file="broken.py")
    failed = shared.control.said("broken", TrainerFailed)
    assert (failed.code, failed.problem) == ("program-failed", "ZeroDivisionError: division by zero")
    frames = [line for line in failed.traceback.splitlines() if "File " in line]
    assert len(frames) == 2
    assert all("broken.py" in line for line in frames)


def test_an_error_of_the_function_exits_with_one(shared):
    shared.start("bad", "bad")
    exited = shared.control.exited("bad")
    assert exited.exit_status == 1
    assert "no such luck" in exited.log_tail


def test_a_fence_ends_a_trainer_and_what_it_started(shared):
    shared.start("fenced")
    child = shared.child_of("fenced")
    pid = shared.control.started("fenced").pid
    shared.control.command(FenceTrainer(run="run-1", trainer="fenced", reason="test"))
    exited = shared.control.exited("fenced")
    assert (exited.pid, exited.exit_status) == (pid, -signal.SIGKILL)
    assert not psutil.pid_exists(pid)
    wait_gone(child.pid, start_ticks(child.pid))


def test_a_stop_reaches_the_trainer_and_it_finishes(shared):
    shared.start("stopped")
    shared.control.command(TellTrainer(trainer="stopped", command=StopAtBoundary(reason="user")))
    assert shared.control.exited("stopped").exit_status == 0


def test_sigterm_of_one_trainer_is_its_loss_and_no_wish_to_stop_the_run(shared):
    shared.start("terminated")
    shared.child_of("terminated")
    os.kill(shared.control.started("terminated").pid, signal.SIGTERM)
    assert shared.control.exited("terminated").exit_status == -signal.SIGTERM


def test_logs_are_read_in_parts_and_from_the_end(shared):
    shared.start("logged", "quick")
    shared.control.exited("logged")
    shared.control.command(ReadLog(request="a", run="run-1", trainer="logged", offset=7, limit=3))
    shared.control.command(ReadLog(request="b", run="run-1", trainer="logged", offset=-5, limit=100))
    shared.control.command(ReadLog(request="c", run="run-1", trainer="absent", offset=0, limit=100))
    a, b, c = (shared.control.wait(lambda f, r=r: isinstance(f, LogChunk) and f.request == r) for r in "abc")
    assert (a.text, a.next_offset) == ("job", 10)
    assert b.text == "True\n"
    assert "absent" in c.problem


def test_a_notice_on_the_node_reaches_the_control_plane(shared):
    notice = shared.state_dir.parent / "notice"
    notice.write_text("90s\n")
    try:
        told = shared.control.wait(lambda f: isinstance(f, NodeLeaving))
    finally:
        notice.unlink()
    assert told.node == "node-127-0-0-1"
    assert 60 < told.left_s <= 90


def test_a_stopped_trainer_is_told_of_and_a_stopped_agent_says_how_late_it_was(shared):
    shared.start("still")
    pid = shared.control.started("still").pid
    shared.control.said("still", StepCommitted)

    def look(true):
        return shared.control.wait(lambda f: isinstance(f, TrainerWatched) and f.trainer == "still" and true(f))

    assert look(lambda f: f.cpu_s > 0 and f.beat_age_s > 0).state in "RSD"
    os.kill(pid, signal.SIGSTOP)
    look(lambda f: f.state == "T" and f.beat_age_s > 0.5)
    os.kill(shared.pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(shared.pid, signal.SIGCONT)
    late = look(lambda f: f.behind_s > 0.8)
    assert late.beat_age_s < 10
    os.kill(pid, signal.SIGCONT)
    shared.control.command(FenceTrainer(run="run-1", trainer="still", reason="test"))
    shared.control.exited("still")
    assert not list(shared.state_dir.glob("pulse-still"))


def test_agents_hear_each_other_and_tell_of_the_one_that_ended(shared):
    peer = Beats("peer", (Nic(name="lo", host="127.0.0.2"),), first=1)
    try:
        key = "5a" * 32
        doors = shared.control.hellos[-1].beats
        peer.obey(WatchPeers(beat=(WatchedPeer(node="n", doors=doors),), listen=(shared.config()["node"],), key=key))
        order = WatchPeers(beat=(WatchedPeer(node="peer", doors=peer.doors),), listen=("peer",), key=key)
        shared.control.command(order)
        heard = []
        for _ in range(100):
            heard.append(peer.tick(now=time.monotonic(), behind_s=0.0))
            told = [f for f in shared.control.facts if isinstance(f, PeersWatched)]
            if told and told[-1].heard and any(f and f.heard for f in heard):
                break
            time.sleep(0.1)
        assert told[-1].heard == ("peer",)
        shared.control.wait(lambda f: isinstance(f, PeersWatched) and [p.node for p in f.silent] == ["peer"])
    finally:
        peer.close()
        shared.control.command(WatchPeers(beat=(), listen=(), key=""))


def test_the_doctor_examines_the_node(shared):
    shared.control.command(Examine(request="d", now=time.time()))  # noqa: TID251 - the real clocks are compared
    report = shared.control.wait(lambda f: isinstance(f, DoctorReport))
    found = {f.check: f for f in report.findings}
    assert {"atoll", "torch", "ray", "zygote", "clock", "disk", "ports", "open files", "cores", "devices"} <= set(found)
    assert found["zygote"].ok, found["zygote"]
    assert found["clock"].ok, found["clock"]


def test_a_peer_without_the_secret_is_not_listened_to(shared):
    other = FakeControl(b"x" * 32, incarnation=9)
    try:
        config = shared.config() | {
            "control": f"127.0.0.1:{other.port}",
            "state_dir": str(shared.state_dir.parent / "o"),
        }
        pid = launch(config)
        ticks = start_ticks(pid)
        time.sleep(1.5)
        assert other.hellos == []
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid, ticks)
        other.close()


def test_trainers_survive_a_control_plane_and_their_words_wait_for_the_next(cluster):
    cluster.start("t1")
    cluster.control.said("t1", StepCommitted)
    last = max(f.fact.step for f in list(cluster.control.facts) if isinstance(f, TrainerSaid))
    cluster.control.close()
    time.sleep(1.0)
    control = FakeControl(cluster.secret, port=cluster.control.port, incarnation=2)
    cluster.control = control
    began = time.monotonic()
    (found,) = control.hello().trainers
    assert time.monotonic() - began < 1.5
    assert (found.trainer, found.exit_status) == ("t1", None)
    control.wait(lambda f: isinstance(f, TrainerSaid) and f.fact.step > last + 20)
    steps = [f.fact.step for f in list(control.facts) if isinstance(f, TrainerSaid)]
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert steps[0] <= last + 1


def test_an_older_control_plane_is_refused(cluster):
    cluster.restart_control(incarnation=5).hello()
    old = cluster.restart_control(incarnation=4)
    time.sleep(1.0)
    old_steps = len(old.facts)
    old.command(LeaveNode(reason="from the past"))
    time.sleep(1.0)
    assert lives(cluster.pid, cluster.ticks)
    assert old_steps == len([f for f in old.facts if not quiet(f)])
    cluster.restart_control(incarnation=5).hello()


def test_a_killed_trainer_is_reported_with_its_signal(cluster):
    cluster.start("t1")
    child = cluster.child_of("t1")
    os.kill(cluster.control.started("t1").pid, signal.SIGKILL)
    assert cluster.control.exited("t1").exit_status == -signal.SIGKILL
    wait_gone(child.pid, start_ticks(child.pid))
    cluster.control.command(ForgetTrainer(trainer="t1"))
    time.sleep(0.3)
    assert cluster.restart_control(incarnation=2).hello().trainers == ()


def test_trainers_survive_their_zygote_and_their_exit_is_still_proven(cluster):
    cluster.start("t1")
    started = cluster.control.started("t1")
    cluster.child_of("t1")
    zygote = cluster.zygote()
    zygote.kill()
    cluster.await_other_zygote(zygote.pid)
    cluster.start("t2", "quick")
    assert cluster.control.exited("t2").exit_status == 0
    assert lives(started.pid, started.start_ticks)
    os.kill(started.pid, signal.SIGKILL)
    assert cluster.control.exited("t1").exit_status == -signal.SIGKILL


def test_trainers_survive_their_agent_and_the_next_one_takes_them_over(cluster):
    cluster.start("t1")
    cluster.control.said("t1", StepCommitted)
    started = cluster.control.started("t1")
    os.kill(cluster.pid, signal.SIGKILL)
    wait_gone(cluster.pid, cluster.ticks)
    cluster.restart_control(incarnation=2)
    (found,) = cluster.launch().trainers
    assert (found.pid, found.start_ticks, found.seat) == (started.pid, started.start_ticks, "s")
    cluster.control.said("t1", StepCommitted)
    cluster.control.command(FenceTrainer(run="run-1", trainer="t1", reason="test"))
    cluster.control.exited("t1")
    assert not lives(started.pid, started.start_ticks)


def test_leaving_ends_every_process_of_the_node(cluster):
    cluster.start("t1")
    trainer, child, zygote = cluster.control.started("t1"), cluster.child_of("t1"), cluster.zygote()
    pids = [(p, start_ticks(p)) for p in (trainer.pid, child.pid, zygote.pid, cluster.pid)]
    cluster.control.command(LeaveNode(reason="down"))
    for pid, ticks in pids:
        wait_gone(pid, ticks)
    cluster.control.exited("t1")
    assert sorted(p.name for p in cluster.state_dir.iterdir()) == ["agent.lock", "agent.log"]


def test_an_agent_of_another_cluster_makes_way(cluster):
    cluster.start("t1")
    started = cluster.control.started("t1")
    first, cluster.secret = (cluster.pid, cluster.ticks), secrets.token_bytes(32)
    cluster.restart_control()
    assert cluster.launch().trainers == ()
    assert cluster.pid != first[0]
    wait_gone(*first)
    wait_gone(started.pid, started.start_ticks)


@pytest.fixture
def head(tmp_path):
    """A cluster on whose only node the agent supervises; a sleeping process stands for the control plane's pid."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    cluster = Cluster(tmp_path)
    cluster.head = port
    stand_in = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    cluster.control.process = (stand_in.pid, start_ticks(stand_in.pid))
    cluster.launch()
    yield cluster, stand_in
    stand_in.kill()
    stand_in.wait()
    cluster.close()


def children_of(cluster):
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((cluster.state_dir / "children.json").read_text())["children"]
    return {}


def web_of(cluster, other_than=0):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        web = children_of(cluster).get("atoll.control_plane.web_server")
        if web and web["pid"] != other_than:
            return web["pid"], web["start_ticks"]
        time.sleep(0.05)
    raise AssertionError("no other web process was started")


def test_a_frozen_control_plane_is_killed_by_the_heads_agent(head):
    cluster, stand_in = head
    time.sleep(4.0)
    assert stand_in.poll() is None
    cluster.control.beat = False
    time.sleep(4.0)  # silent, but not shown to be more than slow
    assert stand_in.poll() is None
    stand_in.send_signal(signal.SIGSTOP)
    assert stand_in.wait(6.0) == -signal.SIGKILL


def test_the_web_process_is_started_again_adopted_and_ended_on_leaving(head):
    cluster, _ = head
    first = web_of(cluster)
    os.kill(first[0], signal.SIGKILL)
    second = web_of(cluster, other_than=first[0])
    os.kill(cluster.pid, signal.SIGKILL)
    wait_gone(cluster.pid, cluster.ticks)
    cluster.launch()
    third = web_of(cluster)
    assert third == second or not lives(*second)  # adopted, unless it could not stay
    cluster.control.command(LeaveNode(reason="down"))
    wait_gone(cluster.pid, cluster.ticks)
    assert not lives(*third)
