import time

import pytest
from imagined_network import imagined_network

from atoll.control_plane import effects as fx
from atoll.control_plane import sql_history
from atoll.control_plane.sql_history import HistoryReader, HistoryWriter
from atoll.control_plane.sql_store import Step
from atoll.schema.codec import from_plain
from atoll.schema.spec import JobKind
from atoll.schema.views import CheckpointView, EventView, MetricPoint, NodeView, RunState, RunView, TopologyView


def run_view(run="r", at=1.0, step=0):
    return RunView(
        run=run,
        name="n",
        kind=JobKind.TRAIN,
        state=RunState.RUNNING,
        reason="",
        submitted_at=at,
        ended_at=None,
        epoch=1,
        workers_wanted=1,
        members=1,
        spares=0,
        step=step,
        last=None,
        checkpoint=None,
    )


def note(text, run="r", subject="r", cause="1.1"):
    return fx.Note(run=run, subject=subject, kind="k", text=text, cause=cause, at=1.0)


def point(step):
    return MetricPoint(step=step, at=1.0, step_s=0.1, samples=8, members=2, epoch=1, metrics={"loss": 1.0})


@pytest.fixture
def written(tmp_path):
    def write(*effects):
        writer = HistoryWriter(tmp_path / "h.sqlite")
        for effect in effects:
            writer.put(effect)
        writer.close()
        return HistoryReader(tmp_path / "h.sqlite")

    return write


def test_newest_view_of_a_run_stands_and_runs_come_in_order(written):
    reader = written(
        fx.ShowRun(view=run_view("b", 2.0)),
        fx.ShowRun(view=run_view("a", 1.0, step=1)),
        fx.ShowRun(view=run_view("a", 1.0, step=9)),
    )
    views = [from_plain(RunView, body) for body in reader.runs()]
    assert [(v.run, v.step) for v in views] == [("a", 9), ("b", 0)]
    assert reader.run("a")["step"] == 9
    assert reader.run("none") is None
    reader.close()


def test_events_are_numbered_and_found_by_run_subject_and_cause(written):
    reader = written(note("one"), note("two", run="s", subject="t0", cause="1.2"), note("three", subject="t1"))
    seqs = [from_plain(EventView, row).seq for row in reader.events()]
    assert seqs == [1, 2, 3]
    assert [e["text"] for e in reader.events("r")] == ["one", "three"]
    assert [e["text"] for e in reader.events(subject="t0")] == ["two"]
    assert [e["text"] for e in reader.events(subject="1.1")] == ["one", "three"]
    assert [e["text"] for e in reader.events(after=1, limit=1)] == ["two"]
    reader.close()


def test_metrics_said_twice_are_kept_once(written):
    reader = written(*(fx.ShowMetric(run="r", point=point(s)) for s in (1, 2, 2, 3)))
    assert [from_plain(MetricPoint, p).step for p in reader.metrics("r")] == [1, 2, 3]
    assert [p["step"] for p in reader.metrics("r", after_step=1, limit=1)] == [2]
    reader.close()


def test_checkpoints_and_nodes_are_kept(written):
    kept = CheckpointView(run="r", step=10, path="/c", bytes=1, seconds=0.1, at=1.0)
    node = NodeView(node="n", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=1.0, agent=True)
    reader = written(fx.ShowCheckpoint(view=kept), fx.ShowNode(view=node))
    assert [from_plain(CheckpointView, c) for c in reader.checkpoints("r")] == [kept]
    assert [from_plain(NodeView, n) for n in reader.nodes()] == [node]
    reader.close()


def test_the_newest_network_is_kept(written):
    first, second = (fx.ShowTopology(view=imagined_network(at)) for at in (1e9, 2e9))
    reader = written(first, second)
    assert from_plain(TopologyView, reader.topology()) == second.view
    reader.close()


def test_a_history_without_a_network_says_so(written):
    reader = written(note("one"))
    assert reader.topology() is None
    reader.close()


def test_next_writer_goes_on_counting(written):
    written(note("one")).close()
    reader = written(note("two"))
    assert [e["seq"] for e in reader.events()] == [1, 2]
    reader.close()


def test_full_disk_costs_lines_and_not_the_writer(tmp_path):
    path = tmp_path / "history.sqlite"
    writer = HistoryWriter(path)

    # The limit is the connection's own, and the thread has another: the batch is written here, as the thread would.
    with writer._engine.connect() as connection:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {used}")
        writer._write(connection, [note("x" * 1_000_000)])
        assert "full" in writer.problem
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        writer._write(connection, [note("later")])
    writer.close()
    reader = HistoryReader(path)
    assert [e["text"] for e in reader.events()] == ["later"]
    reader.close()


def test_what_a_full_disk_refuses_is_kept_and_written_when_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_history, "AGAIN_S", 0.01)
    insert = dict(sql_history._INSERT)
    monkeypatch.setitem(sql_history._INSERT, fx.Note, "INSERT INTO no_such_table VALUES (1)")
    writer = HistoryWriter(tmp_path / "h.sqlite")
    reader = HistoryReader(tmp_path / "h.sqlite")
    writer.put(note("one"))
    writer.put(fx.ShowRun(view=run_view()))
    while not writer.problem:
        time.sleep(0.005)
    assert reader.events() == []
    monkeypatch.setitem(sql_history._INSERT, fx.Note, insert[fx.Note])
    writer.put(note("two"))
    writer.close()
    assert [e["text"] for e in reader.events()] == ["one", "two"]
    assert reader.run("r")
    reader.close()


def test_full_disk_keeps_no_history_writer_from_beginning(tmp_path, monkeypatch):
    steps = sql_history.STEPS
    monkeypatch.setattr(sql_history, "STEPS", (Step(note="none", statements=("CREATE TABLE no such thing",)),))
    writer = HistoryWriter(tmp_path / "h.sqlite")
    assert writer.problem
    monkeypatch.setattr(sql_history, "STEPS", steps)
    writer.put(note("one"))
    writer.close()
    reader = HistoryReader(tmp_path / "h.sqlite")
    assert [e["text"] for e in reader.events()] == ["one"]
    reader.close()


def test_of_views_the_newest_waits_and_of_lines_the_last():
    views = [fx.ShowRun(view=run_view(step=step)) for step in range(3)]
    lines = [note(str(n)) for n in range(sql_history.KEPT + 5)]
    assert sql_history.newest([*views, *lines]) == [*lines, views[-1]]
    assert sql_history.last([*lines, views[-1]]) == [*lines[5:], views[-1]]
    pieces = [fx.KeepLog(run="r", trainer="t", start=n, stop=n + 1, text="x", at=1.0) for n in range(300)]
    assert sql_history.last([*pieces, lines[0]]) == [lines[0], *pieces[-sql_history.KEPT_PIECES :]]


def test_disk_with_room_keeps_a_burst_of_any_length(written, monkeypatch):
    monkeypatch.setattr(sql_history, "KEPT", 3)
    reader = written(*(note(str(n)) for n in range(10)))
    assert len(reader.events()) == 10
    reader.close()
