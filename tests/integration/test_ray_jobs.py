"""`ray job submit` against a cluster started by hand: what Ray says of a job and what Atoll says of its run agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_by_hand import ATOLL, RAY, HandStarted

from atoll.clock import SystemClock
from atoll.schema.queues import QueueWish, Sharing

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]
SCRIPTS = Path(__file__).parent / "scripts"
RAYS_GRACE_S = 3.0
now = SystemClock().now


@dataclass(frozen=True)
class Jobs:
    """Ray's commands as a user types them, and both sides' words about a job."""

    ray: HandStarted

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ray.dashboard}"

    def submit(self, name: str, *entrypoint: str, metadata: dict[str, str] | None = None, wait: bool = True) -> Any:
        command = [RAY, "job", "submit", "--address", self.url, "--working-dir", str(SCRIPTS), "--submission-id", name]
        command += ["--metadata-json", json.dumps(metadata or {}), *([] if wait else ["--no-wait"])]
        command += ["--runtime-env-json", json.dumps({"env_vars": {"ATOLL_HOME": self.ray.env["ATOLL_HOME"]}})]
        return self._run([*command, "--", *entrypoint])

    def stop(self, name: str) -> None:
        """As `ray job stop` does; its own start takes seconds."""
        assert httpx.post(f"{self.url}/api/jobs/{name}/stop", trust_env=False).json()["stopped"]

    def _run(self, command: list[str]) -> Any:
        return subprocess.run(command, env=self.ray.env, capture_output=True, text=True, timeout=150, check=False)

    def info(self, name: str) -> dict[str, Any]:
        return httpx.get(f"{self.url}/api/jobs/{name}", trust_env=False).json()

    def logs(self, name: str) -> str:
        return httpx.get(f"{self.url}/api/jobs/{name}/logs", trust_env=False).json()["logs"]


@pytest.fixture(scope="module")
def jobs():
    ray = HandStarted.fresh()
    ray.start()
    made = Jobs(ray)
    for _ in range(60):  # Ray's own job agent comes up some seconds after `ray start` has returned
        if "No available agent" not in made.submit("ready", "true").stderr:
            break
    yield made
    ray.down()


@pytest.fixture(scope="module")
def client(jobs):
    import atoll
    from atoll import config, launch

    settings = config.load({**jobs.ray.env, "RAY_ADDRESS": jobs.ray.address})
    found = launch.find(settings, None, may_embed=False, say=lambda _text: None)
    with atoll.Client(found.target.url, found.target.token) as made:
        yield made


def test_job_file_with_metadata_runs_under_rays_id_and_both_sides_agree(jobs, client):
    client.set_queues(Sharing(queue=(QueueWish(name="default"), QueueWish(name="research", weight=2.0))))
    told = {"atoll.queue": "research", "atoll.priority": "50", "atoll.config.lr": "0.25", "team": "mine"}
    done = jobs.submit("by-file", ATOLL, "run", "job.toml", metadata=told)
    assert done.returncode == 0, done.stdout + done.stderr
    view, info = client.run("by-file"), jobs.info("by-file")
    assert (view.state, view.step, view.exit_code, info["status"]) == ("succeeded", 40, 0, "SUCCEEDED")
    assert (view.spec.queue, view.spec.priority, view.spec.config) == ("research", 50, {"steps": 40, "lr": 0.25})
    # What a trainer prints is in `ray job logs`, with its name.
    assert re.search(r"^\(t\d\) tiny begins, lr 0.25$", jobs.logs("by-file"), re.MULTILINE), jobs.logs("by-file")
    assert jobs.info("by-file")["metadata"]["atoll.queue"] == "research"


def test_misspelt_metadata_ends_the_job_with_the_nearest_key(jobs, client):
    done = jobs.submit("typo", sys.executable, "tiny.py", metadata={"atoll.prioritty": "50"})
    assert done.returncode != 0
    info = jobs.info("typo")
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    assert "the nearest valid key is 'atoll.priority' (invalid-spec)" in jobs.logs("typo")
    assert "typo" not in {run.run for run in client.runs()}


def test_failed_run_gives_its_exit_code_to_ray(jobs, client):
    jobs.submit("raises", sys.executable, "tiny.py", metadata={"atoll.config.raise_at": "3", "atoll.workers": "2"})
    view, info = client.run("raises"), jobs.info("raises")
    assert (view.state, info["status"], info["driver_exit_code"]) == ("failed", "FAILED", view.exit_code)
    assert "the script's own mistake" in jobs.logs("raises")


def reach(client, eventually, run, step):
    """Wait until the run has committed `step`; its view then."""

    def there():
        view = client.run(run)
        assert not view.state.ended, view.reason
        return view if view.step >= step else None

    eventually(lambda: run in {r.run for r in client.runs()}, 60)
    try:
        return eventually(there, 90)
    except AssertionError:
        story = [f"{e.kind} {e.subject}: {e.text}" for e in client.story(run)]
        raise AssertionError("\n".join(story)) from None


def test_stopped_job_ends_its_run_at_a_step_boundary_long_after_ray_killed_the_driver(jobs, client, eventually):
    from atoll.workers.fs_account import read_account

    told = {"atoll.config.pause_s": "12", "atoll.workers": "2", "atoll.spares": "0", "atoll.stop_grace": "40s"}
    jobs.submit("stopped", sys.executable, "tiny.py", metadata=told, wait=False)
    before = reach(client, eventually, "stopped", 1)
    asked = now()
    jobs.stop("stopped")
    view = eventually(lambda: (v := client.run("stopped")).state.ended and v, 60)
    # Ray ends a driver after 3 s; the step that had just begun took its twelve, and is committed. Members agree on a
    # boundary one step ahead where the wish came after they had begun.
    assert (view.state, view.step - before.step) in {("stopped", 1), ("stopped", 2)}
    assert view.ended_at - asked > RAYS_GRACE_S
    assert "SIGTERM to the attached driver" in view.reason
    assert jobs.info("stopped")["status"] == "STOPPED"
    account = read_account(Path(jobs.ray.env["ATOLL_HOME"]) / "runs" / "stopped")
    assert (account.steps, account.lost, account.repeated) == (view.step, 0, 0)


def test_detached_run_outlives_its_job_and_is_stopped_by_atoll(jobs, client, eventually):
    told = {"atoll.detach": "true", "atoll.config.steps": "5000", "atoll.config.pause_s": "0.1", "atoll.workers": "2"}
    done = jobs.submit("outlives", sys.executable, "tiny.py", metadata=told)
    assert (done.returncode, jobs.info("outlives")["status"]) == (0, "SUCCEEDED")
    reach(client, eventually, "outlives", 5)
    client.stop("outlives")
    assert eventually(lambda: (v := client.run("outlives")).state.ended and v, 60).state == "stopped"
