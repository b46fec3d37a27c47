"""A run under random faults, made as a user would: `atoll chaos run`. Nothing is lost, nothing repeated, nothing grows.

The long version is `python -m benchmarks.recovery --part soak`.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
SCRIPTS = Path(__file__).parents[1] / "integration" / "scripts"
SEED = 4
PLAN = f"""
seed = {SEED}
[random]
every_s = 4
until_s = 25
what = ["kill", "stop", "gil"]
"""


def submit(client, **changes):
    from atoll.schema.spec import JobSpec

    fields = {"name": "soak", "working_dir": str(SCRIPTS), "file": str(SCRIPTS / "tiny.py"), "workers": 3}
    fields |= {"seed": 5, "detach": True, "config": {"steps": 100_000, "pause_s": 0.05}}
    return client.submit(JobSpec(**(fields | changes)))


def atoll(cluster, *words):
    command = ["env", f"ATOLL_HOME={cluster.home}", sys.executable, "-c", "from atoll.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def wait_end(client, run, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not (view := client.run(run)).state.ended:
        assert time.monotonic() < deadline, f"{run} did not end: {view}"
        time.sleep(0.1)
    return view


@pytest.fixture
def client(cluster):
    import atoll

    with atoll.Client(cluster.rest_url, cluster.token) as client:
        yield client


def agent_of(client):
    import httpx

    headers = {"Authorization": f"Bearer {client.token}"}
    (pid,) = httpx.get(f"{client.url}/api/status", headers=headers).json()["agents"].values()
    return psutil.Process(pid)


def test_random_faults_lose_and_repeat_nothing(cluster, client, tmp_path):
    from atoll.workers.fs_account import read_account

    (tmp_path / "plan.toml").write_text(PLAN)
    run = submit(client, chaos=True, checkpoint_every=50)
    agent = agent_of(client)
    files = agent.num_fds()
    done = atoll(cluster, "chaos", "run", str(tmp_path / "plan.toml"), run)
    assert done.returncode == 0, done.stderr
    struck = [line for line in done.stdout.splitlines() if " step " in line]
    assert len(struck) >= 3, done.stdout
    before = client.run(run)
    deadline = time.monotonic() + 30
    while client.run(run).step < before.step + 20:
        assert time.monotonic() < deadline, f"seed {SEED}: no steps after the last fault: {client.run(run)}"
        time.sleep(0.1)
    client.stop(run)
    view = wait_end(client, run)
    account = read_account(cluster.home / "runs" / run)
    assert (account.lost, account.repeated, account.gaps, account.problems) == (0, 0, (), ()), f"seed {SEED}"
    assert view.epoch > 1
    # Each living trainer costs its agent a few descriptors; they are gone by now.
    assert agent.num_fds() <= files + 4


def test_run_that_does_not_allow_it_is_not_hurt(cluster, client, tmp_path):
    (tmp_path / "plan.toml").write_text("[[faults]]\nat_s = 0\nwhat = 'kill'\n")
    run = submit(client, workers=1, spares=0)
    done = atoll(cluster, "chaos", "run", str(tmp_path / "plan.toml"), run)
    assert done.returncode != 0
    assert "does not allow chaos" in done.stderr
    client.stop(run)
    assert wait_end(client, run).epoch <= 1
