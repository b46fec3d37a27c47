"""Runs that share one real cluster: one shrinks for another and grows back, one is suspended and goes on; no step is lost."""

import pytest
from embedded_cluster import Cluster

from atoll.schema.views import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

MANY = 100_000


@pytest.fixture
def cluster(ray_cluster):
    made = Cluster(ray_cluster)
    yield made
    for run in made.reader.runs():
        if RunState(run["state"]) not in {RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED}:
            made.call("stop", {"run": run["run"], "reason": "the test is over"})
    made.reader.close()


def events(cluster, run, kind):
    return [e for e in cluster.reader.events(run) if e["kind"] == kind]


def stopped(cluster, run, eventually):
    cluster.call("stop", {"run": run, "reason": "seen enough"})
    return eventually(lambda: (v := cluster.view(run)).state.ended and v, 90)


def test_elastic_run_shrinks_for_one_of_higher_priority_and_grows_back(cluster, tmp_path, eventually):
    elastic = cluster.submit(tmp_path, MANY, name="elastic", workers=4, min_workers=2, spares=0, priority=20)
    eventually(lambda: cluster.reader.run(elastic) and cluster.step(elastic) > 10, 120)
    assert cluster.view(elastic).members == 4
    urgent = cluster.submit(tmp_path, 30, name="urgent", workers=3, spares=0, priority=90)
    told = eventually(lambda: events(cluster, elastic, "resized"), 60)[0]
    assert f"{urgent} (priority 90) needs its nodes: from 4 to 2 workers" in told["text"]
    eventually(lambda: len(events(cluster, elastic, "seat-freed")) == 2, 60)
    assert eventually(lambda: cluster.view(urgent).state.ended, 120)
    assert cluster.view(urgent).state is RunState.SUCCEEDED
    assert cluster.committed(urgent) == list(range(1, 31))
    eventually(lambda: cluster.view(elastic).members == 4, 120)
    back = cluster.step(elastic)
    eventually(lambda: cluster.step(elastic) > back + 10, 60)
    sizes = [e["text"].split()[0] for e in events(cluster, elastic, "resized")]
    assert sizes[0] == "2"
    assert sizes[-1] == "4"
    view = stopped(cluster, elastic, eventually)
    assert cluster.committed(elastic) == list(range(1, view.step + 1))


def test_suspended_run_goes_on_from_its_checkpoint(cluster, tmp_path, eventually):
    run = cluster.submit(tmp_path, MANY, name="patient", workers=2, spares=0)
    eventually(lambda: cluster.reader.run(run) and cluster.step(run) > 10, 120)
    cluster.call("suspend", {"run": run, "reason": "for a while"})
    eventually(lambda: cluster.view(run).state is RunState.QUEUED, 120)
    at = cluster.view(run).step
    assert cluster.view(run).checkpoint.step == at
    assert cluster.committed(run) == list(range(1, at + 1))
    assert "held until somebody resumes it" in cluster.call("why", {"run": run})["reason"]
    cluster.call("resume", {"run": run})
    eventually(lambda: cluster.step(run) > at + 10, 120)
    view = stopped(cluster, run, eventually)
    assert cluster.committed(run) == list(range(1, view.step + 1))
