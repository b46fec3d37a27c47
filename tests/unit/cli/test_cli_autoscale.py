"""`atoll cluster` and what `atoll autoscale` makes of a cluster's views."""

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from atoll import cli_autoscale
from atoll.cli_autoscale import RestCluster, asks, offers_of, provider_of, standing, standings
from atoll.cli_cluster import read_scaling
from atoll.client import Client
from atoll.control_plane.autoscaling.command_provider_runtime import CommandProvider
from atoll.control_plane.autoscaling.ray_provider import RayProvider
from atoll.errors import ClusterError, SpecError
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.views import DrainView, NodeView, RunState, RunView, TrainerView

LOST = (("works", False), ("attached", True), ("silent", False))
FILE = """
cluster = "c"
provider = "{provider}"
[types.small]
cpus = 4
max = 3
labels = {{ pool = "x" }}
[settings.command]
launch = ["l", "{{instance}}"]
terminate = ["t", "{{instance}}"]
list = ["ls"]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "autoscaler.toml"
    path.write_text(FILE.format(provider="command"))
    return path


def test_check_tells_what_the_file_allows(atoll, file):
    said = atoll("cluster", "check", str(file))[1]
    assert "is well: cluster c, provider command, no budget" in said
    assert "small: 0 to 3 of 4 CPU" in said


def test_check_tells_each_fault_with_its_line(atoll, file):
    file.write_text('cluster = "c"\n[types.a]\ncpu = 4\nmax = 0\n')
    code, _, said = atoll("cluster", "check", str(file))
    assert code == SpecError.exit_code
    assert f"{file}:3: [types.a] cpu = 4: unknown key; did you mean 'cpus'?" in said
    assert f"{file}:4: [types.a] max = 0: it is 1 or more" in said


def test_render_prints_or_writes_the_file(atoll, file, tmp_path):
    said = atoll("cluster", "render", str(file), "--to", "kuberay")[1]
    assert said.startswith("# Rendered by `atoll cluster render --to kuberay autoscaler.toml`")
    out = tmp_path / "out.yaml"
    atoll("cluster", "render", str(file), "--to", "kuberay", "--out", str(out))
    assert out.read_text() == said
    assert yaml.safe_load(said)["kind"] == "RayCluster"


def test_schema_is_json(atoll):
    assert json.loads(atoll("cluster", "schema")[1])["properties"]["types"]


def test_missing_file_is_told(atoll, tmp_path):
    code, _, said = atoll("cluster", "check", str(tmp_path / "none.toml"))
    assert code == SpecError.exit_code
    assert "cannot read" in said


def test_provider_is_the_one_that_the_file_names(file):
    assert isinstance(provider_of(read_scaling(file), file), CommandProvider)
    file.write_text(FILE.format(provider="ray"))
    assert isinstance(provider_of(read_scaling(file), file, address="10.0.0.1:6379"), RayProvider)
    with pytest.raises(SpecError, match="--address"):
        provider_of(read_scaling(file), file)


def test_second_autoscaler_of_a_machine_is_refused(tmp_path):
    with (tmp_path / "autoscale.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match="runs already"), cli_autoscale._alone(tmp_path):
            pass


# -- views -------------------------------------------------------------------------------------------------------------


def spec(**options):
    return JobSpec(name="r", working_dir="/", file="f.py", **options)


def run(name, state=RunState.QUEUED, trainers=(), at=0.0, **options):
    return RunView(
        run=RunId(name),
        name=name,
        kind=JobKind.TRAIN,
        state=state,
        reason="",
        submitted_at=at,
        ended_at=None,
        epoch=0,
        workers_wanted=1,
        members=0,
        spares=0,
        step=0,
        last=None,
        checkpoint=None,
        trainers=tuple(
            TrainerView(trainer=TrainerId(f"t{n}"), node=NodeId(node), role=role, rank=None, pid=1, state="")
            for n, (node, role) in enumerate(trainers)
        ),
        spec=spec(**options),
    )


def node(**options):
    plain = {"address": "a", "alive": True, "cpus": 4.0, "gpus": 0.0, "cpus_free": 4.0, "agent": True}
    return NodeView(node=NodeId("n"), **{**plain, **options})


def test_who_waits_is_in_order_of_priority_then_submission():
    held = replace(run("held"), held=True)
    runs = [
        held,
        run("late", at=9.0),
        run("early", at=1.0),
        run("high", at=5.0, priority=80),
        run("on", RunState.RUNNING),
    ]
    assert [ask.run for ask in asks(runs)] == ["high", "early", "late"]
    (seen,) = asks([replace(run("s", speeds={"a10g": 1.0}), measured={"a10g": 3.0})])
    assert (seen.measured, seen.declared) == ({"a10g": 3.0}, {"a10g": 1.0})
    (elastic,) = asks([run("e", workers=6, min_workers=2, cpus_per_worker=0.5)])
    assert (elastic.least, elastic.most, elastic.each.cpus) == (2, 6, 5_000)


def test_seat_without_a_trainer_yet_keeps_a_node_from_being_empty():
    seen = standing(node(cpus_free=3.0), [])
    assert (seen.trainers, seen.empty, seen.free.cpus) == (0, False, 30_000)


def test_drained_node_counts_its_trainers_itself_and_gone_ones_not():
    here = run("r", RunState.RUNNING, [("n", "worker"), ("n", "gone"), ("other", "worker")], cpus_per_worker=1.5)
    drain = DrainView(until=0.0, reason="a notice on the node (spot)", trainers=1, left=False)
    seen = standing(node(cpus_free=0.0, drain=drain), [here])
    assert (seen.trainers, seen.free.cpus, seen.noticed, seen.left) == (1, 25_000, True, False)
    left = DrainView(until=0.0, reason="asked by `atoll drain`", trainers=0, left=True)
    assert standing(node(cpus_free=0.0, drain=left), []).empty


def test_look_keeps_a_node_that_ray_has_lost_while_its_agent_or_a_trainer_is_there(cluster, file):
    lost = [replace(node(alive=False, agent=agent, cpus_free=0.0), node=NodeId(name)) for name, agent in LOST]
    cluster.reader.hosts.extend(lost)
    cluster.reader.views["r"] = run("r", RunState.RUNNING, [("works", "worker"), ("silent", "gone")])
    with Client(cluster.url, "cli-test-token") as client:
        seen = {n.node: n for n in RestCluster(client, read_scaling(file)).look().nodes if not n.alive}
    assert {name: found.empty for name, found in seen.items()} == {"works": False, "attached": True}


def test_node_that_is_not_listed_counts_while_a_run_has_trainers_there():
    runs = [run("r", RunState.RUNNING, [("unlisted", "worker"), ("over", "gone")])]
    (seen,) = standings([], runs)
    assert (seen.node, seen.alive, seen.trainers, seen.empty) == ("unlisted", False, 1, False)


def test_look_asks_for_the_spec_of_a_run_once(cluster, file, monkeypatch):
    waiting = run("r", workers=3)
    cluster.reader.views["r"] = waiting
    asked = []
    real = Client.run
    monkeypatch.setattr(Client, "run", lambda self, name: asked.append(name) or real(self, name))
    with Client(cluster.url, "cli-test-token") as client:
        door = RestCluster(client, read_scaling(file))
        sights = [door.look() for _ in range(3)]
    assert [[a.least for a in sight.asks if a.run == "r"] for sight in sights] == [[3]] * 3
    assert asked.count("r") == 1


def test_look_offers_the_machines_first_and_then_seldom(cluster, file):
    scaling = read_scaling(file)
    with Client(cluster.url, "cli-test-token") as client:
        door = RestCluster(client, scaling)
        sight = door.look()
        door.look()
        door.note("start small-1: r waits")
        door.look()
    offered = [body for method, body in cluster.control.asked if method == "offer"]
    assert [body["decisions"] for body in offered] == [[], ["start small-1: r waits"]]
    (offer,) = offered[0]["offers"]
    assert (offer["kind"], offer["most"], offer["cpus"], offer["labels"]["pool"]) == ("small", 3, 4.0, "x")
    assert {n.node for n in sight.nodes} <= {n.node for n in cluster.reader.hosts}
    assert offers_of(scaling).offers[0].kind == "small"


def test_published_schema_is_the_one_that_is_printed(atoll):
    kept = (Path(__file__).resolve().parents[3] / "docs/autoscaler.schema.json").read_text("utf-8")
    assert kept == atoll("cluster", "schema")[1]
