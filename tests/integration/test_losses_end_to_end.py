"""Whole runs on a real embedded cluster: workers, control plane and drivers are killed, and no step or sample is lost."""

from __future__ import annotations

import itertools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
SCRIPTS = Path(__file__).parent / "scripts"
STEPS = 60
# A digest that took 100 ms is made again after 20 s; a step takes 55 ms.
FLIPPED_STEPS = 500


def submit(client, **changes):
    from atoll.schema.spec import JobSpec

    config = {"steps": STEPS, "pause_s": 0.05} | changes.pop("config", {})
    fields = {"name": "tiny", "working_dir": str(SCRIPTS), "file": str(SCRIPTS / "tiny.py"), "workers": 3, "seed": 5}
    return client.submit(JobSpec(**(fields | {"config": config, "detach": True} | changes)))


def wait_until(client, run, condition, what, limit_s=90.0):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        view = client.run(run)
        if condition(view):
            return view
        assert not view.state.ended, f"{what}: the run ended before as {view.state}: {view.reason}"
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {limit_s} s; {client.run(run)}")


def wait_end(client, run, limit_s=120.0):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        view = client.run(run)
        if view.state.ended:
            return view
        time.sleep(0.1)
    raise AssertionError(f"the run did not end within {limit_s} s: {client.run(run)}")


def worker(view, rank):
    return next(t for t in view.trainers if t.role == "worker" and t.rank == rank)


def losses(client, run):
    return {p.step: p.metrics["loss"] for p in client.metrics(run)}


def account_of(home, run):
    from atoll.workers.fs_account import read_account

    found = read_account(home / "runs" / run)
    return found.steps, found.lost, found.repeated, found.gaps


@pytest.fixture(scope="module")
def cluster(ray_cluster):
    """The cluster, its client and its control plane's own status."""
    import atoll

    with atoll.Client(ray_cluster.rest_url, ray_cluster.token) as client:
        yield Cluster(client, ray_cluster.home, ray_cluster.cluster_dir)


@dataclass
class Cluster:
    client: object
    home: Path
    directory: Path

    def status(self):
        """Pid, incarnation and start of the control plane, by its own word; waits for one to answer."""
        from atoll.control_plane import fs_cluster
        from atoll.control_plane.grpc_client import invoke_once
        from atoll.errors import ConnectError

        record = fs_cluster.load(self.directory)
        secret = bytes.fromhex((self.directory / "secret").read_text())
        deadline = time.monotonic() + 30
        while True:
            try:
                return invoke_once(record.control, secret, "status", {}, deadline_s=2)
            except ConnectError:
                assert time.monotonic() < deadline, "no control plane answers"
                time.sleep(0.2)


def test_losses_of_a_run_with_two_kills_equal_those_of_an_undisturbed_run(cluster):
    client = cluster.client
    calm = submit(client)
    assert wait_end(client, calm).exit_code == 0
    struck = submit(client)
    for rank, step in ((1, 15), (0, 35)):
        view = wait_until(client, struck, lambda v, s=step: v.step >= s and v.members == 3, f"step {step}")
        os.kill(worker(view, rank).pid, signal.SIGKILL)
    view = wait_end(client, struck)
    assert (view.state, view.exit_code) == ("succeeded", 0)
    assert view.epoch >= 3
    expected, found = losses(client, calm), losses(client, struck)
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    assert max(abs(found[s] - expected[s]) for s in expected) < 1e-5
    assert account_of(cluster.home, struck) == (STEPS, 0, 0, ())


def test_control_plane_killed_in_a_run_delays_no_step_and_comes_back(cluster):
    client = cluster.client
    before = cluster.status()
    run = submit(client, config={"steps": 120, "pause_s": 0.1})
    wait_until(client, run, lambda v: v.step >= 10, "step 10")
    os.kill(before["pid"], signal.SIGKILL)
    view = wait_end(client, run)
    assert view.exit_code == 0
    assert view.epoch == 1
    after = cluster.status()
    assert after["incarnation"] > before["incarnation"]
    points = client.metrics(run)
    assert [p.step for p in points] == list(range(1, 121))
    # A step takes a tenth of a second; the control plane is away for more than one.
    assert max(b.at - a.at for a, b in itertools.pairwise(points)) < 5.0


def test_worker_lost_while_the_control_plane_is_away_is_replaced_on_its_return(cluster):
    client = cluster.client
    run = submit(client, config={"steps": 80, "pause_s": 0.05})
    view = wait_until(client, run, lambda v: v.step >= 10 and v.members == 3, "step 10")
    os.kill(cluster.status()["pid"], signal.SIGKILL)
    os.kill(worker(view, 2).pid, signal.SIGKILL)
    assert wait_end(client, run).exit_code == 0
    assert account_of(cluster.home, run) == (80, 0, 0, ())


def test_loss_that_is_nan_stops_the_run_with_the_step_named_before_it_commits(cluster):
    run = submit(cluster.client, config={"nan_at": 7})
    view = wait_end(cluster.client, run)
    assert view.state == "failed"
    assert "step 7" in view.reason
    assert max(losses(cluster.client, run)) == 6


def flipped(cluster, **changes):
    """A run in which a bit of rank 1's weights flips, with steps enough to notice it; and its story."""
    from atoll.schema.harm import Harm, HarmWish

    client = cluster.client
    run = submit(client, chaos=True, config={"steps": FLIPPED_STEPS, "pause_s": 0.05}, **changes)
    view = wait_until(client, run, lambda v: v.step >= 40 and v.members == 3, "step 40")
    victim = worker(view, 1).trainer
    client.harm(run, HarmWish(trainer=victim, harm=Harm.FLIP))
    assert wait_end(client, run).state == "succeeded"
    return run, victim, client.events(run)


def test_bit_that_flips_in_one_worker_is_named_and_the_worker_replaced(cluster):
    run, victim, told = flipped(cluster)
    (lost,) = [e for e in told if e.kind == "lost"]
    assert lost.subject == victim
    assert lost.text.startswith("corrupt: after step ")
    assert len([e for e in told if e.kind == "tainted"]) == 1
    assert account_of(cluster.home, run) == (FLIPPED_STEPS, 0, 0, ())


def test_run_that_wants_no_tainted_step_goes_back_before_the_flip(cluster):
    # By default replicas are compared as often as that costs little: on a busy machine too seldom for three checkpoints.
    changes = {"checkpoint_every": 10, "keep_checkpoints": 50, "compare_every": 10}
    _, victim, told = flipped(cluster, corrupt="rollback", **changes)
    story = "\n".join(f"{e.at:.2f} {e.kind} {e.subject}: {e.text}" for e in told)
    assert [e.subject for e in told if e.kind == "lost"] == [victim], story
    assert len([e for e in told if e.kind == "rewound" and "to the checkpoint of step" in e.text]) == 1, story


def test_script_that_raises_fails_the_run_with_its_own_words(cluster):
    view = wait_end(cluster.client, submit(cluster.client, config={"raise_at": 3}))
    assert view.state == "failed"
    assert "the script's own mistake" in view.reason


def test_run_resumes_on_another_number_of_workers(cluster):
    client = cluster.client
    first = submit(client, checkpoint_every=10, config={"steps": 30})
    assert wait_end(client, first).exit_code == 0
    newest = client.checkpoints(first)[-1]
    directory = str(Path(newest.path).parent)
    second = submit(client, workers=2, resume=directory, checkpoint_every=10, config={"steps": 60})
    assert wait_end(client, second).exit_code == 0
    assert min(losses(client, second)) == newest.step + 1


def test_request_that_can_never_fit_is_refused_at_once(cluster):
    from atoll.errors import CapacityError

    with pytest.raises(CapacityError, match="64"):
        submit(cluster.client, workers=64, cpus_per_worker=1.0)


def test_drained_node_is_proven_empty_and_its_run_goes_on_once_it_is_taken_back(cluster):
    client = cluster.client
    run = submit(client, workers=1, spares=0, config={"steps": 400, "pause_s": 0.05}, checkpoint_every=5)
    view = wait_until(client, run, lambda v: v.checkpoint is not None, "a checkpoint")
    pid, node = worker(view, 0).pid, worker(view, 0).node
    client.drain(node, 1.0, "this test")
    deadline = time.monotonic() + 30
    while (drain := client.nodes()[0].drain) is None or not drain.left:
        assert time.monotonic() < deadline, drain
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    told = [(e.kind, e.text) for e in client.story(node)]
    assert told[-1] == ("drained", "no process of any run is left there")
    assert not client.run(run).state.ended
    client.undrain(node)
    kept = client.run(run).checkpoint.step
    wait_until(client, run, lambda v: v.step > kept and v.epoch > view.epoch, "steps after the drain")
    client.stop(run)
    wait_end(client, run)
