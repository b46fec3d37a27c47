from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from atoll.ui import charts
from atoll.ui.steps import epoch_spans


def test_short_lines_are_drawn_whole():
    pairs = [[float(i), float(i)] for i in range(10)]
    assert charts.thin(pairs, buckets=5) == pairs


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=400), st.integers(2, 20))
def test_thinning_keeps_order_ends_and_extremes(values, buckets):
    pairs = [[float(i), v] for i, v in enumerate(values)]
    kept = charts.thin(pairs, buckets)
    assert len(kept) <= max(2 * buckets, 0)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (pairs[0], pairs[-1])
    assert {min(v for _, v in kept), max(v for _, v in kept)} == {min(values), max(values)}


def test_a_mark_stands_at_the_first_step_of_each_new_epoch(point):
    spans = epoch_spans([point(1), point(2), point(3, epoch=2), point(4, epoch=5)])
    assert charts.marks(spans)["data"] == [{"name": "e2", "xAxis": 3}, {"name": "e5", "xAxis": 4}]


def test_only_the_newest_marks_are_drawn(point):
    spans = epoch_spans([point(i, epoch=i) for i in range(1, 40)])
    names = [mark["name"] for mark in charts.marks(spans)["data"]]
    assert len(names) == charts.MAX_MARKS
    assert names[-1] == "e39"


def test_held_out_loss_is_dashed_and_has_points_of_its_own(point):
    points = [point(1, loss=3.0, heldout_loss=2.0), point(2, loss=2.5)]
    train, held = charts.loss(points, epoch_spans(points))["series"]
    assert (train["name"], train["data"]) == ("training loss", [[1, 3.0], [2, 2.5]])
    assert (held["name"], held["data"]) == ("held-out loss", [[1, 2.0]])
    assert isinstance(held["lineStyle"]["type"], list)
    assert held["showSymbol"]


def test_step_time_is_in_milliseconds_from_zero(point):
    options = charts.step_time([point(1, step_s=0.25)], [])
    assert options["series"][0]["data"] == [[1, 250.0]]
    assert options["yAxis"]["scale"] is False


def test_throughput_names_its_unit(point):
    points = [point(1, samples=10, step_s=0.5)]
    assert charts.throughput(points, [])["series"][0]["data"] == [[1, 20.0]]
    assert charts.throughput_words(points) == "samples/s, all members together"
    assert charts.throughput_words([]) == ""


def test_options_are_json_and_colours_come_from_the_stylesheet(point):
    points = [point(i, loss=1.0 / i, val_loss=2.0) for i in range(1, 5)]
    text = json.dumps(charts.loss(points, epoch_spans(points)))
    assert "#" not in text
    assert "var(--lagoon)" in text


def test_charts_of_nothing_have_no_series_to_draw():
    assert charts.loss([], [])["series"] == []
    assert charts.throughput([], [])["series"][0]["data"] == []
