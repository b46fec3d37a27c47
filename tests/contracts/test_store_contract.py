"""What journal, history and archive promise, held on SQLite files and, where a server can be had, on PostgreSQL."""

import itertools
import json
import subprocess
import sys

import postgres_server
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane import sql_history, sql_journal
from atoll.control_plane.arrow_metrics import MetricsArchive
from atoll.control_plane.sql_archive import SETTLED_S, Archivist
from atoll.control_plane.sql_history import HistoryReader, HistoryWriter
from atoll.control_plane.sql_journal import Journal
from atoll.control_plane.sql_store import checked_url
from atoll.errors import ClusterError
from atoll.schema.codec import from_plain
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.views import CheckpointView, MetricPoint, RunState, RunView

SPEC = JobSpec(name="n", working_dir="/", file="f.py", config={"lr": 0.1, "text": "\0é"})
RECORDS = (
    r.RunSubmitted(run="r", spec=SPEC, run_dir="/d", secret="00", at=1.0),
    r.RunPlaced(run="r", at=2.5),
    r.RunEnded(run="r", at=1e9 + 0.123456),
)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server():
    if reason := postgres_server.missing():
        pytest.skip(reason)
    made = postgres_server.PostgresServer()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request, tmp_path):
    """Where the journal and where the history lie."""
    if request.param == "sqlite":
        return tmp_path / "journal.sqlite", tmp_path / "history.sqlite"
    url = request.getfixturevalue("server").url(f"t{next(NUMBERS)}")
    return url, url


def opened(place, wait_s=0.2):
    return Journal(place, pid=1, at=1.0, wait_s=wait_s)


def plain_engine(place):
    url = checked_url(place) if isinstance(place, str) else f"sqlite:///{place}"
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)


def run_view(run="r", ended_at=None):
    return RunView(
        run=run, name="n", kind=JobKind.TRAIN, state=RunState.SUCCEEDED if ended_at else RunState.RUNNING, reason="",
        submitted_at=1.0, ended_at=ended_at, epoch=1, workers_wanted=1, members=1, spares=0, step=0, last=None,
        checkpoint=None,
    )  # fmt: skip


def point(step, **metrics):
    return MetricPoint(step=step, at=1e9 + step, step_s=0.1, samples=8, members=2, epoch=1, metrics=metrics)


def wrote(place, *effects):
    writer = HistoryWriter(place)
    for effect in effects:
        writer.put(effect)
    writer.close()
    assert not writer.problem


# -- the journal -----------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_under_a_higher_incarnation(places):
    journal = opened(places[0])
    journal.append(RECORDS[:2])
    journal.append(RECORDS[2:])
    assert journal.has_room()
    journal.close()
    again = opened(places[0])
    assert (tuple(again.records()), again.incarnation) == (RECORDS, 2)
    again.close()


def test_second_control_plane_is_refused_while_the_first_lives(places):
    first = opened(places[0])
    with pytest.raises(ClusterError, match="held by another control plane"):
        opened(places[0])
    first.close()
    opened(places[0]).close()


def test_append_that_fails_half_way_leaves_nothing(places):
    journal = opened(places[0])
    with pytest.raises(Exception):  # noqa: B017 - whatever the driver raises for a value that is none
        journal.append((RECORDS[0], object()))
    assert journal.records() == []
    journal.append(RECORDS[:1])
    assert journal.records() == [RECORDS[0]]
    journal.close()


@pytest.mark.parametrize(("part", "which"), [("journal", 0), ("history", 1)])
def test_tables_of_a_newer_build_are_refused_and_left_alone(places, part, which):
    opened(places[0]).close()
    wrote(places[1])
    engine = plain_engine(places[which])
    with engine.connect() as connection:
        connection.execute(text(f"UPDATE versions SET version = 99 WHERE part = '{part}'"))
    with pytest.raises(
        ClusterError, match=rf"the {part} was written by a newer Atoll \(its form is 99, this build knows"
    ):
        opened(places[0]) if part == "journal" else HistoryWriter(places[1])
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT version FROM versions WHERE part = '{part}'")).scalar() == 99
    engine.dispose()


def test_record_that_this_build_does_not_know_is_no_reason_to_decide_without_it(places):
    journal = opened(places[0])
    journal.append(RECORDS[:1])
    journal.close()
    engine = plain_engine(places[0])
    with engine.connect() as connection:
        connection.execute(text("""INSERT INTO records (incarnation, body) VALUES (1, '{"type": "RunTeleported"}')"""))
    engine.dispose()
    journal = opened(places[0])
    with pytest.raises(ClusterError, match=r"'RunTeleported'.*install the Atoll that wrote it"):
        journal.records()
    journal.close()


def test_tables_of_the_first_release_are_brought_forward_with_all_that_they_hold(places):
    """As version 0.1 made and filled them, before tables had a version."""
    first = [sql_journal.STEPS[0].statements, sql_history.STEPS[0].statements]
    for place, statements in zip(places, first, strict=True):
        engine = plain_engine(place)
        with engine.connect() as connection:
            for statement in statements:
                serial = "INTEGER PRIMARY KEY AUTOINCREMENT"
                serial = serial if engine.dialect.name == "sqlite" else "BIGSERIAL PRIMARY KEY"
                connection.execute(text(statement.replace("{serial}", serial)))
        engine.dispose()
    engine = plain_engine(places[0])
    with engine.connect() as connection:
        body = json.dumps({"type": "RunPlaced", "run": "r", "at": 1.0})
        connection.execute(text("INSERT INTO records (incarnation, body) VALUES (4, :body)"), {"body": body})
        connection.execute(text("INSERT INTO incarnations VALUES (4, 1, 1.0)"))
    engine.dispose()
    journal = opened(places[0])
    assert (journal.records(), journal.incarnation) == ([r.RunPlaced(run="r", at=1.0)], 5)
    journal.close()
    engine = plain_engine(places[1])
    with engine.connect() as connection:
        connection.execute(text("""INSERT INTO events (at, run, text) VALUES (1.0, 'r', 'old')"""))
    engine.dispose()
    wrote(places[1], fx.KeepLog(run="r", trainer="t", start=0, stop=3, text="new", at=1.0))
    reader = HistoryReader(places[1])
    assert [e["text"] for e in reader.events("r")] == ["old"]
    assert reader.log("r", "t", 0, 99).text == "new"
    reader.close()


# -- the history -----------------------------------------------------------------------------------------------------


def test_newest_views_lines_points_and_checkpoints_stand(places):
    kept = CheckpointView(run="r", step=10, path="/c", bytes=1 << 40, seconds=0.1, at=1e9 + 0.123456)
    note = fx.Note(run="r", subject="t", kind="k", text="a\0b", cause="1.1", at=1e9 + 0.123456)
    wrote(
        places[1],
        fx.ShowRun(view=run_view()),
        note,
        *(fx.ShowMetric(run="r", point=point(s, loss=1.0)) for s in (1, 2, 2, 3)),
        fx.ShowCheckpoint(view=kept),
    )
    wrote(places[1], fx.ShowRun(view=run_view(ended_at=5.0)), note)
    reader = HistoryReader(places[1])
    assert from_plain(RunView, reader.run("r")) == run_view(ended_at=5.0)
    assert [(e["seq"], e["text"], e["at"]) for e in reader.events("r")] == [
        (1, "a b", 1e9 + 0.123456),
        (2, "a b", 1e9 + 0.123456),
    ]
    assert [p["step"] for p in reader.metrics("r", after_step=1)] == [2, 3]
    assert [from_plain(CheckpointView, c) for c in reader.checkpoints("r")] == [kept]
    reader.close()


def log_piece(start, body):
    return fx.KeepLog(run="r", trainer="t", start=start, stop=start + len(body.encode()), text=body, at=1.0)


def test_log_is_read_from_any_place_and_said_twice_kept_once(places):
    wrote(places[1], log_piece(0, "one\n"), log_piece(4, "twö\0\n"), log_piece(0, "one\n"))
    reader = HistoryReader(places[1])
    whole, offset = "", 0
    while (chunk := reader.log("r", "t", offset, 3)).next_offset > offset:
        whole, offset = whole + chunk.text, chunk.next_offset
    assert (whole, offset) == ("one\ntwö\0\n", 10)
    assert reader.log("r", "t", -5, 99).text == "wö\0\n"
    assert reader.log("r", "other", 0, 9) is None
    reader.close()


def test_log_beyond_its_size_loses_its_beginning_and_says_so(places, monkeypatch):
    monkeypatch.setattr(sql_history, "LOG_KEPT_BYTES", 20)
    wrote(places[1], *(log_piece(10 * n, f"line {n:>4}\n") for n in range(9)))
    reader = HistoryReader(places[1])
    chunk = reader.log("r", "t", 0, 99)
    assert chunk.text == "[70 bytes of this log were not kept]\nline    7\n"
    assert reader.log("r", "t", chunk.next_offset, 99).text == "line    8\n"
    reader.close()


# -- the archive -----------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    return MetricsArchive(str(tmp_path / "archive"))


def tidy(places, archive, now, **bounds):
    """As a control plane that is started for it."""
    made = Archivist(places[1], archive, **{"keep_s": 1e9, "keep_bytes": 1 << 30, **bounds})
    try:
        return made.tidy(now)
    finally:
        made.close()


def test_points_of_an_ended_run_move_to_parquet_and_read_as_before(places, archive, monkeypatch):
    monkeypatch.setattr("atoll.control_plane.sql_archive._DELETED_AT_ONCE", 3)
    points = [point(s, loss=1.0 / s, **({"lr": 0.1} if s > 4 else {})) for s in range(1, 9)]
    wrote(places[1], fx.ShowRun(view=run_view(ended_at=100.0)), fx.ShowRun(view=run_view("on")))
    wrote(places[1], *(fx.ShowMetric(run=run, point=p) for run in ("r", "on") for p in points))
    reader, bare = HistoryReader(places[1], lambda: archive), HistoryReader(places[1])
    before = reader.metrics("r", after_step=2, limit=4)
    assert tidy(places, archive, 100.0 + SETTLED_S - 1) == []
    assert tidy(places, archive, 100.0 + SETTLED_S) == ["r"]
    assert reader.metrics("r", after_step=2, limit=4) == before
    assert [from_plain(MetricPoint, p) for p in reader.metrics("r")] == points
    assert len(reader.metrics("on")) == 8
    assert bare.metrics("r") == []
    assert tidy(places, archive, 1e9) == []
    bare.close()
    reader.close()


def test_crash_between_file_and_deletion_loses_and_doubles_nothing(places, archive, monkeypatch):
    points = [point(s, loss=0.5) for s in range(1, 6)]
    wrote(places[1], fx.ShowRun(view=run_view(ended_at=1.0)), *(fx.ShowMetric(run="r", point=p) for p in points))
    reader = HistoryReader(places[1], lambda: archive)

    def dies(*_):
        raise OSError("power")

    for step in ("begin", "_delete_points"):
        with monkeypatch.context() as broken:
            broken.setattr(f"atoll.control_plane.sql_archive.{step}", dies)
            with pytest.raises(OSError, match="power"):
                tidy(places, archive, 100.0)
        assert [from_plain(MetricPoint, p) for p in reader.metrics("r")] == points
    tidy(places, archive, 100.0)
    assert [from_plain(MetricPoint, p) for p in reader.metrics("r")] == points
    reader.close()


def test_archive_over_its_size_or_time_loses_its_oldest_with_their_logs(places, archive):
    for run in ("a", "b"):
        wrote(places[1], fx.ShowRun(view=run_view(run, 1.0)), fx.ShowMetric(run=run, point=point(1)))
        wrote(places[1], fx.KeepLog(run=run, trainer="t", start=0, stop=1, text="x", at=1.0))
        tidy(places, archive, 1e3)
    assert [k.run for k in archive.kept()] == ["a", "b"]
    tidy(places, archive, 1e3, keep_bytes=sum(k.bytes for k in archive.kept()) - 1)
    assert [k.run for k in archive.kept()] == ["b"]
    reader = HistoryReader(places[1], lambda: archive)
    assert (reader.metrics("a"), reader.log("a", "t", 0, 9), reader.run("a")["run"]) == ([], None, "a")
    assert reader.log("b", "t", 0, 9).text == "x"
    tidy(places, archive, 1e12, keep_s=0.0)
    assert archive.kept() == []
    reader.close()


# -- a server only ---------------------------------------------------------------------------------------------------


def sessions(url, name="atoll"):
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"


def test_holder_that_lost_its_session_cannot_decide_any_more(server):
    url = server.url(f"t{next(NUMBERS)}")
    first = opened(url)
    engine = plain_engine(url)
    with engine.connect() as connection:
        connection.execute(text(sessions(url)))
        second = opened(url, wait_s=5.0)
        second.append(RECORDS[:1])
        with pytest.raises(Exception, match=r"terminat|took over|closed|lost"):
            first.append(RECORDS[1:2])
        with pytest.raises(Exception):  # noqa: B017 - a second try finds its place taken, or no session
            first.append(RECORDS[1:2])
    assert second.records() == [RECORDS[0]]
    engine.dispose()
    second.close()
    first.close()


def test_history_goes_on_after_its_server_was_away(server):
    url = server.url(f"t{next(NUMBERS)}")
    writer, reader = HistoryWriter(url), HistoryReader(url)
    writer.put(fx.ShowRun(view=run_view("a")))
    engine = plain_engine(url)
    while reader.run("a") is None:
        pass
    with engine.connect() as connection:
        connection.execute(text(sessions(url)))
    writer.put(fx.ShowRun(view=run_view("b")))
    writer.put(fx.ShowRun(view=run_view("c")))
    writer.close()
    assert {run["run"] for run in reader.runs()} == {"a", "b", "c"}
    reader.close()
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "problem"), [("mysql://h/d", "names 'mysql'"), ("nonsense", "is no URL"), ("sqlite:///x", "names 'sqlite'")]
)
def test_url_that_is_no_postgresql_is_refused(url, problem):
    with pytest.raises(ClusterError, match=problem):
        checked_url(url)


# -- killed ----------------------------------------------------------------------------------------------------------

DECIDES = """
import sys
from pathlib import Path
from atoll.control_plane import effects as fx, records as r
from atoll.control_plane.sql_history import HistoryWriter
from atoll.control_plane.sql_journal import Journal

places = [p if "://" in p else Path(p) for p in sys.argv[1:]]
journal, history = Journal(places[0], pid=1, at=1.0, wait_s=15.0), HistoryWriter(places[1])
n = len(journal.records()) // 2
while True:
    n += 1
    journal.append((r.RunPlaced(run=f"r{n}", at=float(n)), r.RunEnded(run=f"r{n}", at=float(n))))
    print(n, flush=True)
"""


def test_control_plane_killed_in_the_middle_of_its_decisions_has_lost_none_that_was_told(places):
    told = 0
    for _ in range(3):
        command = [sys.executable, "-c", DECIDES, *map(str, places)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(25):
                told = int(process.stdout.readline())
            process.kill()
            told = max(
                [told, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n")]
            )
    journal = opened(places[0], wait_s=15.0)
    found = journal.records()
    assert len(found) in {2 * told, 2 * told + 2}  # what was decided and not told yet may be there, whole
    assert found[: 2 * told : 2] == [r.RunPlaced(run=f"r{n}", at=float(n)) for n in range(1, told + 1)]
    assert journal.incarnation == 4
    journal.close()
