import dataclasses
import json
import math

import pytest
from imagined_network import imagined_network

from atoll.control_plane.rest_bodies import BODY_LIMIT
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.views import CheckpointView, NodeView, RunState, RunView, TopologyView, unknown_topology


def test_health_answers_without_a_token(site):
    assert site.get("/api/health", token=None).json() == {"ok": True}


def test_submitted_spec_reaches_the_control_plane_unchanged(site, spec):
    answer = site.post("/api/runs", json=to_plain(spec))
    assert (answer.status_code, answer.json()) == (201, {"run": "tiny-1"})
    assert site.control.asked == [("submit", {"spec": to_plain(spec)})]


def test_submitted_spec_that_cannot_run_is_refused_with_field_and_value(site, spec):
    answer = site.post("/api/runs", json={**to_plain(spec), "workers": 0})
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid-spec"
    assert "workers=0" in answer.json()["problem"]
    assert site.control.asked == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid-spec"),
        (b"[]", 400, "invalid-spec"),
        (b'{"name": 3}', 400, "invalid-spec"),
        (b" " * (BODY_LIMIT + 1), 400, "invalid-spec"),
    ],
)
def test_body_that_is_no_spec_is_refused_as_the_callers_fault(site, body, status, code):
    answer = site.post("/api/runs", content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_run_is_shown_with_its_spec_and_listed_without(site):
    site.add_run()
    shown = from_plain(RunView, site.get("/api/runs/tiny-1").json())
    assert shown.spec.name == "tiny"
    assert from_plain(RunView, site.get("/api/runs").json()[0]) == dataclasses.replace(shown, spec=None)


@pytest.mark.parametrize("rest", ["", "/events", "/metrics", "/stream", "/checkpoints", "/logs?trainer=a"])
def test_unknown_run_is_not_found_on_every_route(site, rest):
    answer = site.get(f"/api/runs/nope{rest}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "atoll ls" in answer.json()["problem"]


@pytest.mark.parametrize("run", ["..%2f..%2fetc", "a b", "%00", "-rf"])
def test_run_id_that_is_no_safe_name_reaches_no_file(site, run):
    assert site.get(f"/api/runs/{run}").status_code == 404
    assert site.control.asked == []


def test_stop_passes_the_reason_on(site):
    site.add_run()
    assert site.post("/api/runs/tiny-1/stop", json={"reason": "enough"}).status_code == 202
    assert site.control.asked == [("stop", {"run": "tiny-1", "reason": "enough"})]


def test_beat_of_a_driver_is_passed_on(site):
    site.add_run()
    assert site.post("/api/runs/tiny-1/beat", json={}).status_code == 200
    assert site.control.asked == [("driver_beat", {"run": "tiny-1"})]


def test_reads_go_on_while_the_control_plane_is_away_and_wishes_say_so(site):
    site.add_run()
    site.control.away = True
    assert site.get("/api/runs/tiny-1").status_code == 200
    answer = site.post("/api/runs/tiny-1/stop", json={})
    assert (answer.status_code, answer.json()["code"]) == (503, "cannot-connect")


def test_events_and_metrics_start_behind_the_cursor(site):
    site.add_run()
    for number in range(3):
        site.reader.tell("tiny-1", "tiny-1", "note", f"line {number}")
        site.reader.commit("tiny-1", number + 1, loss=4.0 - number)
    assert [e["text"] for e in site.get("/api/runs/tiny-1/events?after=2").json()] == ["line 2"]
    assert [p["step"] for p in site.get("/api/runs/tiny-1/metrics?after_step=1").json()] == [2, 3]


def test_loss_that_is_no_number_is_told_as_such(site):
    site.add_run()
    site.reader.commit("tiny-1", 1, loss=math.nan)
    point = json.loads(site.get("/api/runs/tiny-1/metrics").text)[0]
    assert math.isnan(point["metrics"]["loss"])


def test_query_that_is_no_number_is_named(site):
    site.add_run()
    answer = site.get("/api/runs/tiny-1/events?after=soon")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-spec")
    assert "after='soon'" in answer.json()["problem"]


@pytest.mark.parametrize(
    "changes",
    [
        {"cpus_per_worker": 1e305},
        {"gpus_per_worker": 1e305},
        {"batch": 10**400},
        {"seed": 10**400},
        {"checkpoint_every": 10**400},
        {"keep_every": 10**400},
        {"keep_for_s": 1e305},
        {"expected_s": 1e305},
        {"sync_mib": 1e305},
        {"speeds": {"cpu": 1e305}},
        {"threads_per_worker": 10**400},
        {"alternatives": [{"islands": 10**400}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_number_that_nothing_can_hold_is_refused_before_anybody_is_asked(site, changes):
    spec = {"name": "tiny", "working_dir": "/w", "file": "t.py", "workers": 2} | changes
    for path in ("/api/runs", "/api/plan"):
        answer = site.post(path, json=spec)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
        assert next(iter(changes)) in answer.json()["problem"]
    assert site.control.asked == []


@pytest.mark.parametrize("changes", [{"cpus": "1e305"}, {"gpus": "Infinity"}, {"cpus": "NaN"}, {"most": "1" * 400}])
def test_offer_that_no_machine_can_be_is_refused(site, changes):
    offer = {"kind": '"big"', "most": "2", "cpus": "4.0"} | changes
    text = ", ".join(f'"{key}": {value}' for key, value in offer.items())
    answer = site.post("/api/machines", content=f'{{"offers": [{{{text}}}]}}')
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
    assert site.control.asked == []


def test_quota_that_no_cluster_can_have_is_refused(site):
    queue = {"name": "q", "quota": [{"flavor": "f", "cpus": 1e305}]}
    answer = site.ask("PUT", "/api/queues", json={"flavor": [{"name": "f"}], "queue": [queue]})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
    assert site.control.asked == []


def test_log_is_read_from_an_offset_or_from_the_end(site):
    site.add_run()
    site.control.logs["tiny-1-t0"] = b"one\ntwo\n"
    assert site.get("/api/runs/tiny-1/logs?trainer=tiny-1-t0&offset=4").json()["text"] == "two\n"
    assert site.get("/api/runs/tiny-1/logs?trainer=tiny-1-t0&offset=-4&limit=3").json()["next_offset"] == 7
    assert site.get("/api/runs/tiny-1/logs?trainer=..%2Fsecret").status_code == 404


def test_checkpoints_come_oldest_first(site):
    site.add_run()
    for step in (20, 10):
        saved = CheckpointView(run="tiny-1", step=step, path=f"/c/{step}", bytes=1, seconds=0.1, at=1.0)
        site.reader.saved.append(saved)
    assert [c["step"] for c in site.get("/api/runs/tiny-1/checkpoints").json()] == [10, 20]


def test_story_finds_a_subject_a_cause_and_all_of_a_run(site):
    site.reader.tell("tiny-1", "tiny-1-t0", "lost", "gone", cause="c9")
    site.reader.tell("tiny-1", "tiny-1", "epoch", "epoch 2", cause="c9")
    assert len(site.get("/api/story?subject=tiny-1-t0").json()) == 1
    assert len(site.get("/api/story?subject=c9").json()) == 2
    assert len(site.get("/api/story?subject=tiny-1").json()) == 1
    site.add_run()
    assert len(site.get("/api/story?subject=tiny-1").json()) == 2
    assert [e["kind"] for e in site.get("/api/story?subject=tiny-1&limit=1").json()] == ["epoch"]
    assert site.get("/api/story?subject=mars").status_code == 404


def test_doctor_nodes_status_and_version_answer(site):
    assert site.get("/api/doctor").json()[0]["check"] == "disk"
    assert site.get("/api/nodes").json() == []
    assert site.get("/api/status").json()["incarnation"] == 1
    assert site.get("/api/version").json()["protocol"] >= 1


def test_prometheus_text_counts_runs_by_state(site):
    site.add_run(state=RunState.RUNNING)
    answer = site.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'atoll_runs{state="running"} 1.0' in answer.text


def test_the_network_is_told_and_is_empty_before_anything_is_known(site):
    assert from_plain(TopologyView, site.get("/api/topology").json()) == unknown_topology()
    site.reader.network = imagined_network(5.0)
    assert from_plain(TopologyView, site.get("/api/topology").json()) == site.reader.network
    schemas = site.get("/api/openapi.json").json()["components"]["schemas"]
    assert {"TopologyView", "IslandView", "LinkView"} <= set(schemas)


def test_openapi_describes_views_and_problems(site):
    described = site.get("/api/openapi.json").json()
    assert {"RunView", "MetricPoint", "ProblemView"} <= set(described["components"]["schemas"])
    assert "/api/runs/{run}/stream" in described["paths"]


def test_unknown_path_is_a_problem_that_names_the_description(site):
    answer = site.get("/api/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "/api/openapi.json" in answer.json()["problem"]


def test_bug_in_the_source_tells_nothing_of_its_inside(site):
    site.reader.runs = lambda: 1 / 0
    answer = site.get("/api/runs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "division" not in answer.text


def a_node(site):
    site.reader.hosts = [
        NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)
    ]


def test_drain_reaches_the_control_plane_and_shows_on_the_node(site):
    a_node(site)
    answer = site.post("/api/nodes/node-1/drain", json={"within_s": 5, "reason": "spot"})
    assert (answer.status_code, answer.json()) == (202, {"node": "node-1", "until": 5.0})
    assert site.control.asked == [("drain", {"node": "node-1", "within_s": 5.0, "reason": "spot"})]
    assert site.get("/api/nodes").json()[0]["drain"]["left"] is True


def test_drain_without_a_body_is_within_half_a_minute(site):
    a_node(site)
    assert site.post("/api/nodes/node-1/drain").status_code == 202
    assert site.control.asked[0][1]["within_s"] == 30.0


def test_undrain_reaches_the_control_plane(site):
    a_node(site)
    assert site.post("/api/nodes/node-1/undrain").json() == {"node": "node-1"}
    assert site.control.asked == [("undrain", {"node": "node-1"})]


@pytest.mark.parametrize("rest", ["drain", "undrain"])
def test_drain_of_what_is_no_node_is_not_found(site, rest):
    for name in ("nope", "a%20b"):
        answer = site.post(f"/api/nodes/{name}/{rest}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_drain_wish_that_is_none_is_refused(site):
    a_node(site)
    answer = site.post("/api/nodes/node-1/drain", json={"within_s": "soon"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
