"""On a Ray cluster that was started by hand: `ray job submit`, and Ray's own controller away for two minutes.

Ray is started with `ray start` in a home and folder of its own, and ended by pid.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from atoll.clock import SystemClock

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]
SCRIPTS = Path(__file__).parent / "scripts"
now = SystemClock().now
RAY = str(Path(sys.executable).parent / "ray")
OUTAGE_S = 120


class HandStarted:
    """`ray start --head` on fixed ports, which can be started again after a crash."""

    def __init__(self, home: Path) -> None:
        from atoll.control_plane.fs_cluster import free_port

        self.home = home
        self.port, self.dashboard, self.job_agent = (free_port("127.0.0.1") for _ in range(3))
        inherited = os.environ.items()  # noqa: TID251 - a stranger's shell, less what this one says of Ray and Atoll
        self.env = {k: v for k, v in inherited if not k.startswith(("RAY_", "ATOLL_"))} | {
            "HOME": str(home),
            "ATOLL_HOME": str(home / "atoll"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.address = ""

    def start(self) -> None:
        command = [RAY, "start", "--head", "--port", str(self.port), "--dashboard-port", str(self.dashboard)]
        # Another Ray on this machine may hold the default port of the job agent.
        command += ["--dashboard-agent-listen-port", str(self.job_agent)]
        command += ["--num-cpus", "2", "--temp-dir", str(self.home / "r"), "--disable-usage-stats"]
        out = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=90, check=False)
        assert out.returncode == 0, out.stdout + out.stderr
        found = re.search(r"--address='([^']+)'", re.sub(r"\x1b\[[0-9;]*m", "", out.stdout))
        assert found, out.stdout
        self.address = found[1]

    def processes(self) -> list[psutil.Process]:
        return [
            p for p in psutil.process_iter(["cmdline"]) if any(str(self.home) in w for w in p.info["cmdline"] or ())
        ]

    def gcs(self) -> psutil.Process:
        return next(p for p in self.processes() if "gcs_server" in p.info["cmdline"][0])

    def end(self) -> None:
        left = self.processes()
        for process in left:
            with_kill(process)
        psutil.wait_procs(left, timeout=10)


def with_kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@pytest.fixture(scope="module")
def by_hand():
    home = Path(tempfile.mkdtemp(prefix="atoll-h-", dir="/tmp"))
    ray = HandStarted(home)
    ray.start()
    yield ray
    subprocess.run(
        [str(Path(sys.executable).parent / "atoll"), "down"], env=ray.env, capture_output=True, timeout=60, check=False
    )
    ray.end()
    left = [" ".join(p.info["cmdline"])[:200] for p in ray.processes()]
    shutil.rmtree(home, ignore_errors=True)
    assert left == []


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
    assert (view.state, view.epoch) == ("stopped", 1)
    assert [p.step for p in points] == list(range(1, view.step + 1))
    # Steps take a fifth of a second; Ray's controller was away for two minutes, and its raylet with it.
    assert max(b.at - a.at for a, b in itertools.pairwise(points)) < 10
    assert sum(struck < p.at < back for p in points) > OUTAGE_S
