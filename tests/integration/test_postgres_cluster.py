"""A cluster whose journal and history lie in PostgreSQL: its control plane is killed, and nothing of a run is lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import postgres_server
import psutil
import pytest
from embedded_cluster import Cluster

from atoll.control_plane import fs_cluster, fs_durable, ray_bootstrap
from atoll.control_plane.sql_history import HistoryReader
from atoll.schema.views import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def server():
    if reason := postgres_server.missing():
        pytest.skip(reason)
    made = postgres_server.PostgresServer()
    yield made
    made.close()


@pytest.fixture
def cluster(server, monkeypatch):
    home = Path(tempfile.mkdtemp(prefix="atoll-g-", dir="/tmp"))
    url = server.url("cluster")
    monkeypatch.setenv("ATOLL_DATABASE", url)
    info = ray_bootstrap.ensure(None, home, port=fs_cluster.free_port("127.0.0.1"), cpus=2)
    made = Cluster(info)
    made.reader.close()
    made.reader = HistoryReader(url)
    yield made
    made.reader.close()
    ray_bootstrap.shutdown(info)
    shutil.rmtree(home, ignore_errors=True)


def test_run_goes_on_over_the_death_of_its_control_plane_and_all_of_it_is_in_the_database(
    cluster, tmp_path, eventually
):
    assert fs_durable.load(cluster.info.cluster_dir).database.startswith("postgresql://")
    assert not {"journal.sqlite", "history.sqlite"} & {path.name for path in cluster.info.cluster_dir.iterdir()}
    run = cluster.submit(tmp_path, 120)
    eventually(lambda: cluster.reader.run(run) and cluster.step(run) > 10, 90)
    before = cluster.call("status")
    psutil.Process(before["pid"]).kill()
    eventually(lambda: cluster.call("status")["incarnation"] > before["incarnation"], 60)
    view = eventually(lambda: (v := cluster.view(run)).state.ended and v, 90)
    assert (view.state, view.step) == (RunState.SUCCEEDED, 120), view.reason
    assert [p["step"] for p in cluster.reader.metrics(run)] == list(range(1, 121))
    assert cluster.call("status")["history_problem"] == ""
