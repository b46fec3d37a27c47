"""The control plane in a real Ray: it may die, Ray's controller may die, and training does not notice."""

import itertools
import shutil
import signal
import time

import psutil
import pytest
from embedded_cluster import PROGRAM, Cluster

from atoll.control_plane import fs_cluster, ray_bootstrap
from atoll.errors import CapacityError, PortInUse
from atoll.schema.views import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster(ray_cluster):
    made = Cluster(ray_cluster)
    yield made
    made.reader.close()


def longest_gap(commits):
    return max(b[1] - a[1] for a, b in itertools.pairwise(commits))


def control_process(cluster):
    return psutil.Process(cluster.call("status")["pid"])


def test_second_start_finds_the_first_cluster(ray_cluster, cluster_home):
    assert ray_bootstrap.ensure(None, cluster_home) == ray_cluster


def test_everything_listens_on_loopback_only(ray_cluster):
    family = ray_bootstrap._family(fs_cluster.load(ray_cluster.cluster_dir).head)
    open_to = {
        c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr
    }
    assert open_to <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_secrets_are_closed_to_others(ray_cluster):
    for path in (ray_cluster.home / "token", *ray_cluster.cluster_dir.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_port_in_use_is_said_before_anything_is_started(tmp_path, ray_cluster):
    taken = fs_cluster.load(ray_cluster.cluster_dir).web_port
    with pytest.raises(PortInUse, match=str(taken)):
        ray_bootstrap.ensure(None, tmp_path, port=taken)


def test_run_that_can_never_fit_is_refused_at_once(cluster, tmp_path):
    with pytest.raises(
        CapacityError, match=r"never fit: as asked: 64 workers of 0.4 CPU do not fit even when all is free: 5 do"
    ):
        cluster.submit(tmp_path, 1, workers=64)


def test_logs_outlive_the_files_that_trainers_wrote(cluster, tmp_path, eventually):
    import atoll

    says = PROGRAM.replace("    torch.manual_seed", "    print('said', flush=True)\n    torch.manual_seed")
    run = cluster.submit(tmp_path, 5, program=says)
    view = eventually(lambda: cluster.reader.run(run) and (v := cluster.view(run)).state.ended and v, 60)
    assert view.state is RunState.SUCCEEDED, view.reason
    writers = [t.trainer for t in view.trainers if t.rank is not None or t.role == "gone"]
    eventually(lambda: any(cluster.reader.log(run, name, 0, 99) for name in writers))
    shutil.rmtree(cluster.info.home / "runs" / run / "logs")
    with atoll.Client(cluster.info.rest_url, (cluster.info.home / "token").read_text().strip()) as client:
        assert "said\n" in "".join(piece.text for piece in client.logs(run))
        assert [point.step for point in client.metrics(run)] == [1, 2, 3, 4, 5]


def test_killed_worker_and_killed_control_plane_cost_no_step(cluster, tmp_path, eventually):
    run = cluster.submit(tmp_path, 160)
    eventually(lambda: cluster.reader.run(run) and cluster.step(run) > 20, 60)
    victim = next(t for t in cluster.view(run).trainers if t.rank == 0)
    psutil.Process(victim.pid).kill()
    eventually(lambda: cluster.view(run).epoch >= 2)
    before = cluster.call("status")["incarnation"]
    control_process(cluster).kill()
    eventually(lambda: cluster.call("status")["incarnation"] > before)
    view = eventually(lambda: (v := cluster.view(run)).state.ended and v, 60)
    assert view.state is RunState.SUCCEEDED, view.reason
    assert cluster.committed(run) == list(range(1, 161))
    assert longest_gap(cluster.commits(run)) < 2.0


def test_frozen_control_plane_is_replaced_by_a_new_incarnation(cluster, eventually):
    before = cluster.call("status")["incarnation"]
    control_process(cluster).send_signal(signal.SIGSTOP)
    eventually(lambda: cluster.call("status", deadline_s=15.0)["incarnation"] > before, 30)


def test_dead_controller_of_ray_costs_no_step(cluster, tmp_path, eventually):
    run = cluster.submit(tmp_path, 300)
    eventually(lambda: cluster.reader.run(run) and cluster.step(run) > 20, 60)
    before = cluster.call("status")["incarnation"]
    family = ray_bootstrap._family(cluster.record.head)
    next(p for p in family if "gcs_server" in p.name()).kill()
    time.sleep(3)
    eventually(lambda: cluster.call("status", deadline_s=60.0)["incarnation"] > before, 60)
    view = eventually(lambda: (v := cluster.view(run)).state.ended and v, 60)
    assert view.state is RunState.SUCCEEDED, view.reason
    assert cluster.committed(run) == list(range(1, 301))
    assert longest_gap(cluster.commits(run)) < 2.0


def test_stop_ends_at_a_step_boundary(cluster, tmp_path, eventually):
    run = cluster.submit(tmp_path, 10_000)
    eventually(lambda: cluster.reader.run(run) and cluster.step(run) > 5, 60)
    cluster.call("stop", {"run": run, "reason": "enough"})
    view = eventually(lambda: (v := cluster.view(run)).state.ended and v, 40)
    assert (view.state, view.reason, view.exit_code) == (RunState.STOPPED, "enough", 130)
