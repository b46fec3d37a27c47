from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from atoll.schema.sharing_views import GoodputView, QueueView, TopView
from atoll.schema.views import RunState
from atoll.ui import prometheus


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_text_is_what_prometheus_parses(run, node, point, checkpoint):
    views = [run(last=point(9, loss=1.5), checkpoint=checkpoint()), run("r2", state=RunState.FAILED)]
    found = samples(prometheus.render(views, [node(), node("b", alive=False)]))
    labels = (("kind", "train"), ("name", "gpt"), ("run", "r1"))
    assert found["atoll_run_step", *labels] == 10
    assert found["atoll_run_members", *labels] == 4
    assert found["atoll_run_metric", ("kind", "train"), ("metric", "loss"), ("name", "gpt"), ("run", "r1")] == 1.5
    assert found["atoll_run_checkpoint_timestamp_seconds", *labels] == 150.0
    assert found["atoll_runs", ("state", "failed")] == 1
    assert found["atoll_node_up", ("node", "b")] == 0


def test_failed_saves_of_a_run_are_a_counter(run):
    text = prometheus.render([run(failed_saves=3)], [])
    assert "# TYPE atoll_run_checkpoints_failed_total counter\n" in text
    labels = (("kind", "train"), ("name", "gpt"), ("run", "r1"))
    assert samples(text)["atoll_run_checkpoints_failed_total", *labels] == 3


def test_ended_runs_have_no_members(run):
    found = samples(prometheus.render([run(state=RunState.STOPPED)], []))
    assert not [key for key in found if key[0] == "atoll_run_members"]


def test_every_state_is_counted_even_at_zero():
    found = samples(prometheus.render([], []))
    assert {key[1][1] for key in found} == {state.value for state in RunState}


def test_odd_characters_and_values_survive():
    text = prometheus.family(
        "x", "Odd.", [prometheus.Sample(labels={"a": 'q"\\\nz'}, value=v) for v in (math.nan, math.inf, -math.inf)]
    )
    (family,) = text_string_to_metric_families(text)
    assert {sample.labels["a"] for sample in family.samples} == {'q"\\\nz'}
    assert [line.rpartition(" ")[2] for line in text.splitlines()[2:]] == ["NaN", "+Inf", "-Inf"]


def test_a_family_without_samples_is_left_out():
    assert prometheus.family("x", "Nothing.", []) == ""


def test_queues_and_device_seconds_are_shown_while_the_control_plane_answers():
    queue = QueueView(
        name="lab", weight=1.0, cohort="", share=0.5, lately=0.25, fair_share=1.0, running=2, waiting=1, quotas=()
    )
    spent = GoodputView(by="run", name="gpt", useful=8.0, lost=2.0)
    found = samples(prometheus.render([], [], TopView(at=1.0, since=0.0, queues=(queue,), goodput=(spent,))))
    assert found["atoll_queue_share", ("queue", "lab")] == 0.5
    assert found["atoll_queue_waiting", ("queue", "lab")] == 1
    assert found["atoll_device_seconds", ("by", "run"), ("name", "gpt"), ("use", "lost")] == 2.0
    assert ("atoll_device_seconds", ("by", "run"), ("name", "gpt"), ("use", "idle")) not in found
