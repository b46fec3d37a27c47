"""On a Ray cluster that was started by hand: `ray job submit`, and Ray's own controller away for two minutes.

Ray is started with `ray start` in a home and folder of its own, and ended by pid.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray_by_hand import RAY, HandStarted

from atoll.clock import SystemClock

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]
SCRIPTS = Path(__file__).parent / "scripts"
now = SystemClock().now
OUTAGE_S = 120


@pytest.fixture(scope="module")
def by_hand():
    ray = HandStarted.fresh()
    ray.start()
    yield ray
    ray.down()


def test_ray_job_submit_runs_the_script_and_gives_its_result(by_hand, eventually):
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        f"http://127.0.0.1:{by_hand.dashboard}",
        "--working-dir",
        str(SCRIPTS),
    ]
    command += ["--submission-id", "tiny-by-ray", "--runtime-env-json"]
    command += [f'{{"env_vars": {{"ATOLL_HOME": "{by_hand.env["ATOLL_HOME"]}"}}}}', "--", sys.executable, "tiny.py"]

    def submitted():
        # Ray's own job agent comes up some seconds after `ray start` has returned.
        done = subprocess.run(command, env=by_hand.env, capture_output=True, text=True, timeout=150, check=False)
        return None if "No available agent" in done.stderr else done

    done = eventually(submitted, 90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    from atoll.workers.fs_account import read_account

    account = read_account(Path(by_hand.env["ATOLL_HOME"]) / "runs" / "tiny-by-ray")
    assert (account.steps, account.lost, account.repeated) == (60, 0, 0)


def test_two_minutes_without_rays_controller_cost_no_step(by_hand, eventually):
    import atoll
    from atoll import config, launch
    from atoll.schema.spec import JobSpec

    settings = config.load({**by_hand.env, "RAY_ADDRESS": by_hand.address})
    found = launch.find(settings, None, may_embed=False, say=lambda _text: None)
    with atoll.Client(found.target.url, found.target.token) as client:
        spec = JobSpec(
            name="tiny",
            working_dir=str(SCRIPTS),
            file="tiny.py",
            workers=3,
            detach=True,
            config={"steps": 5000, "pause_s": 0.15},
        )
        run = client.submit(spec)
        eventually(lambda: client.run(run).step > 10, 60)
        os.kill(by_hand.gcs().pid, signal.SIGKILL)
        struck = now()
        eventually(lambda: now() - struck > OUTAGE_S, OUTAGE_S + 10)
        by_hand.start()
        back = now()
        eventually(lambda: (last := client.run(run).last) and last.at > back, 60)
        client.stop(run, reason="seen enough")
        eventually(lambda: client.run(run).state.ended, 60)
        view, points = client.run(run), client.metrics(run)
        story = [(event.at, event.kind, event.text) for event in client.events(run)]
    assert view.state == "stopped"
    # Nobody was lost or joined: on a busy machine the same members may share the work anew.
    later = [text for _, kind, text in story if kind == "epoch"][1:]
    assert all("grains by speed" in text for text in later), "\n".join(f"{at:.2f} {k}: {t}" for at, k, t in story)
    assert [p.step for p in points] == list(range(1, view.step + 1))
    # Steps take a fifth of a second; Ray's controller was away for two minutes, and its raylet with it.
    assert max(b.at - a.at for a, b in itertools.pairwise(points)) < 10
    assert sum(struck < p.at < back for p in points) > OUTAGE_S
