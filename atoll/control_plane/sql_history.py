"""What people see, in SQLite or PostgreSQL: written by the control plane, read by the web process.

Views are kept as the JSON they are shown as. The writer has a thread: the decision loop only appends to a list, and
whatever gathered is written as one transaction a few times a second, of each view only the newest form. On a full disk
space that the file's log was given beforehand lasts a while; then what gathers is kept, the oldest lines of the story
dropped first, and written when there is room. Losing the last moments of it in a crash loses no decision; those are in
the journal.

What trainers wrote is kept too, in pieces, the oldest dropped beyond `LOG_KEPT_BYTES` for each: so logs outlive their
node. Points of a run that ended leave for a Parquet file a while later (`arrow_metrics`), and are read from there.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from atoll.control_plane import effects as fx
from atoll.control_plane.arrow_metrics import MetricsArchive
from atoll.control_plane.fs_reserve import log_of, widen
from atoll.control_plane.sql_store import Place, Step, begin, is_file, reader_engine, upgrade, writer_engine
from atoll.errors import ClusterError
from atoll.schema.codec import encode, to_plain
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import LogChunk

BATCH_S = 0.1
_WAIT_S = 5.0
# Some minutes of a story, in pages of the log; and how many lines wait for a disk that is full, asked how often.
LOG_BYTES = 8 << 20
KEPT, AGAIN_S = 5000, 1.0
# Of 64 KiB: 16 MiB of memory at most.
KEPT_PIECES = 256
# A reader may look before the writer made the file; more waiting than this is shown as an empty page instead.
PAGE = 5000

# Of each trainer's log, and in all pieces together; a long run of many lines keeps its last ones.
LOG_KEPT_BYTES = 4 << 20

# The n-th step makes tables of version n.
STEPS = (
    Step(
        note="as of the first release",
        statements=(
            "CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, at DOUBLE PRECISION, body TEXT)",
            "CREATE TABLE IF NOT EXISTS nodes (node TEXT PRIMARY KEY, body TEXT)",
            "CREATE TABLE IF NOT EXISTS topology (one INTEGER PRIMARY KEY, body TEXT)",
            "CREATE TABLE IF NOT EXISTS checkpoints (run TEXT, step BIGINT, body TEXT, PRIMARY KEY (run, step))",
            "CREATE TABLE IF NOT EXISTS metrics (run TEXT, step BIGINT, body TEXT, PRIMARY KEY (run, step))",
            """CREATE TABLE IF NOT EXISTS events (
                seq {serial}, at DOUBLE PRECISION, run TEXT, subject TEXT, kind TEXT, text TEXT, cause TEXT
            )""",
            "CREATE INDEX IF NOT EXISTS events_by_run ON events (run, seq)",
            "CREATE INDEX IF NOT EXISTS events_by_subject ON events (subject, seq)",
            "CREATE INDEX IF NOT EXISTS events_by_cause ON events (cause, seq)",
        ),
    ),
    Step(
        note="logs outlive their node; points of ended runs leave for Parquet files",
        statements=(
            """CREATE TABLE logs (
                run TEXT, trainer TEXT, start BIGINT, stop BIGINT, at DOUBLE PRECISION, body {bytes},
                PRIMARY KEY (run, trainer, start)
            )""",
            "CREATE TABLE archived (run TEXT PRIMARY KEY, ended DOUBLE PRECISION, points BIGINT)",
        ),
    ),
)
_INSERT = {
    fx.Note: "INSERT INTO events (at, run, subject, kind, text, cause)"
    " VALUES (:at, :run, :subject, :kind, :text, :cause)",
    fx.ShowRun: "INSERT INTO runs (run, at, body) VALUES (:run, :at, :body)"
    " ON CONFLICT (run) DO UPDATE SET at = excluded.at, body = excluded.body",
    fx.ShowNode: "INSERT INTO nodes (node, body) VALUES (:node, :body)"
    " ON CONFLICT (node) DO UPDATE SET body = excluded.body",
    fx.ShowTopology: "INSERT INTO topology (one, body) VALUES (1, :body)"
    " ON CONFLICT (one) DO UPDATE SET body = excluded.body",
    fx.ShowMetric: "INSERT INTO metrics (run, step, body) VALUES (:run, :step, :body)"
    " ON CONFLICT (run, step) DO UPDATE SET body = excluded.body",
    fx.ShowCheckpoint: "INSERT INTO checkpoints (run, step, body) VALUES (:run, :step, :body)"
    " ON CONFLICT (run, step) DO UPDATE SET body = excluded.body",
    fx.KeepLog: "INSERT INTO logs (run, trainer, start, stop, at, body)"
    " VALUES (:run, :trainer, :start, :stop, :at, :body) ON CONFLICT (run, trainer, start) DO NOTHING",
}
_COLUMNS = {
    fx.Note: ("at", "run", "subject", "kind", "cause"),
    fx.KeepLog: ("run", "trainer", "start", "stop", "at"),
}
_ROTATE = "DELETE FROM logs WHERE run = :run AND trainer = :trainer AND stop <= :stop - :kept"
Shown = fx.Note | fx.ShowRun | fx.ShowNode | fx.ShowMetric | fx.ShowCheckpoint | fx.ShowTopology | fx.KeepLog


def _row(effect: Shown) -> dict[str, Any]:
    match effect:
        case fx.Note() | fx.KeepLog():
            plain = {name: getattr(effect, name) for name in _COLUMNS[type(effect)]}
            # PostgreSQL takes no zero in a text.
            return {**plain, "text": effect.text.replace("\0", " "), "body": effect.text.encode()}
        case fx.ShowRun(view=run):
            return {"run": run.run, "at": run.submitted_at, "body": encode(run).decode()}
        case fx.ShowNode(view=node):
            return {"node": node.node, "body": encode(node).decode()}
        case fx.ShowTopology(view=topology):
            return {"body": encode(topology).decode()}
        case fx.ShowMetric(run=run_id, point=point):
            return {"run": run_id, "step": point.step, "body": encode(point).decode()}
        case fx.ShowCheckpoint(view=kept):
            return {"run": kept.run, "step": kept.step, "body": encode(kept).decode()}


class HistoryWriter:
    """The one writer. `put` never blocks; `close` writes what is left."""

    def __init__(self, place: Place) -> None:
        self._path = Path(place) if is_file(place) else None
        self._engine = writer_engine(place, _WAIT_S)
        self._made = False
        self.problem = ""
        try:
            with self._engine.connect() as connection:
                self._make(connection)
        except ClusterError:
            self._engine.dispose()
            raise
        self._changed = threading.Condition()
        self._waiting: list[Shown] = []
        self._closing = False
        self._thread = threading.Thread(target=self._write_on, name="atoll-history", daemon=True)
        self._thread.start()

    def _make(self, connection: Connection) -> None:
        """The tables, where they are not made: a full disk keeps no control plane from its work.

        Raises `ClusterError` where they are a newer build's.
        """
        try:
            if self._path is not None:
                connection.execute(text("PRAGMA journal_mode=WAL"))
                connection.execute(text("PRAGMA synchronous=NORMAL"))
            begin(connection)
            upgrade(connection, "history", STEPS)
            connection.execute(text("COMMIT"))
            self._made = True
        except SQLAlchemyError as error:
            self.problem = str(error)
            _roll_back(connection)
        except ClusterError:
            _roll_back(connection)
            raise

    def log_ends(self) -> dict[tuple[RunId, TrainerId], int]:
        """How far each log was kept."""
        query = "SELECT run, trainer, MAX(stop) FROM logs GROUP BY run, trainer"
        try:
            with self._engine.connect() as connection:
                return {(RunId(r), TrainerId(t)): stop for r, t, stop in connection.execute(text(query))}
        except SQLAlchemyError as error:
            self.problem = str(error)  # kept again from the start: the same pieces
            return {}

    def put(self, effect: Shown) -> None:
        """Have `effect` written soon."""
        with self._changed:
            self._waiting.append(effect)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_WAIT_S)
        self._engine.dispose()

    def _write_on(self) -> None:
        closing, left = False, list[Shown]()
        with self._engine.connect() as connection:
            while not closing:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._waiting) or self._closing, AGAIN_S if left else None)
                    # Gather for a moment: one transaction for a burst of facts.
                    self._changed.wait_for(lambda: self._closing, BATCH_S)
                    batch, self._waiting, closing = left + self._waiting, [], self._closing
                left = self._write(connection, batch)
            if left:  # a connection that broke was found out by this; it has one more try
                self._write(connection, left)

    def _write(self, connection: Connection, batch: list[Shown]) -> list[Shown]:
        """What could not be written, to be tried again."""
        wanted = newest(batch)
        try:
            if not self._made:
                self._make(connection)
            begin(connection)
            for effect in wanted:
                connection.execute(text(_INSERT[type(effect)]), _row(effect))
            for kept in {(e.run, e.trainer): e for e in wanted if isinstance(e, fx.KeepLog)}.values():
                row = {"run": kept.run, "trainer": kept.trainer, "stop": kept.stop, "kept": LOG_KEPT_BYTES}
                connection.execute(text(_ROTATE), row)
            connection.execute(text("COMMIT"))
        except SQLAlchemyError as error:
            # A full disk or a server that is away costs the pages their newest lines for a while, never a decision.
            self.problem = str(error)
            _roll_back(connection)
            return last(wanted)
        self.problem = ""
        if self._path is not None:
            widen(log_of(self._path), LOG_BYTES)
        return []


def _roll_back(connection: Connection) -> None:
    with contextlib.suppress(SQLAlchemyError):  # SQLite may have rolled back by itself, a lost connection has
        connection.execute(text("ROLLBACK"))
    # Lets go of a connection that broke; the next statement opens another.
    connection.rollback()


def newest(batch: list[Shown]) -> list[Shown]:
    """Lines and points, and of each run's, node's and network's view the last one alone."""
    views: dict[object, Shown] = {}
    lines: list[Shown] = []
    for effect in batch:
        match effect:
            case fx.ShowRun(view=view):
                views[fx.ShowRun, view.run] = effect
            case fx.ShowNode(view=node):
                views[fx.ShowNode, node.node] = effect
            case fx.ShowTopology():
                views[fx.ShowTopology] = effect
            case _:
                lines.append(effect)
    return lines + list(views.values())


def last(batch: list[Shown]) -> list[Shown]:
    """What waits for a disk that is full: of lines and points no more than the last `KEPT`, of logs the last pieces."""
    views = [e for e in batch if isinstance(e, fx.ShowRun | fx.ShowNode | fx.ShowTopology)]
    logs = [e for e in batch if isinstance(e, fx.KeepLog)][-KEPT_PIECES:]
    lines = [e for e in batch if not isinstance(e, fx.ShowRun | fx.ShowNode | fx.ShowTopology | fx.KeepLog)]
    return [*lines[-KEPT:], *logs, *views]


class HistoryReader:
    """Read-only access for the web process; every answer is plain JSON documents in the form of `schema.views`."""

    def __init__(self, place: Place, archive: Callable[[], MetricsArchive] | None = None) -> None:
        self._engine: Engine = reader_engine(place, _WAIT_S, QueuePool)
        self._archive = archive

    def runs(self) -> list[dict[str, Any]]:
        """All runs, oldest first."""
        return self._bodies("SELECT body FROM runs ORDER BY at", {})

    def run(self, run: RunId) -> dict[str, Any] | None:
        """One run, or None."""
        found = self._bodies("SELECT body FROM runs WHERE run = :run", {"run": run})
        return found[0] if found else None

    def nodes(self) -> list[dict[str, Any]]:
        """The hosts."""
        return self._bodies("SELECT body FROM nodes ORDER BY node", {})

    def topology(self) -> dict[str, Any] | None:
        """The network, or None before anything of it was known."""
        found = self._bodies("SELECT body FROM topology", {})
        return found[0] if found else None

    def checkpoints(self, run: RunId) -> list[dict[str, Any]]:
        """Durable checkpoints of a run, by step."""
        return self._bodies("SELECT body FROM checkpoints WHERE run = :run ORDER BY step", {"run": run})

    def metrics(self, run: RunId, after_step: int = -1, limit: int = PAGE) -> list[dict[str, Any]]:
        """Committed steps above `after_step`, oldest first; from the archive once the run's points are there."""
        if self._archive is not None and self._is_archived(run):
            return [to_plain(point) for point in self._archive().points(run, after_step, limit)]
        query = "SELECT body FROM metrics WHERE run = :run AND step > :after ORDER BY step LIMIT :limit"
        return self._bodies(query, {"run": run, "after": after_step, "limit": limit})

    def events(
        self, run: RunId | None = None, after: int = 0, subject: str | None = None, limit: int = PAGE
    ) -> list[dict[str, Any]]:
        """Lines of the story numbered above `after`; `subject` also finds a cause, which several lines share."""
        where = "seq > :after"
        given: dict[str, Any] = {"after": after, "limit": limit}
        if run is not None:
            where, given = where + " AND run = :run", {**given, "run": run}
        if subject is not None:
            where, given = where + " AND (subject = :subject OR cause = :subject)", {**given, "subject": subject}
        # `where` is made of the constants above, values are bound
        query = f"SELECT seq, at, run, subject, kind, text, cause FROM events WHERE {where} ORDER BY seq LIMIT :limit"  # noqa: S608
        with self._engine.connect() as connection:
            return [{"type": "EventView", **row._mapping} for row in connection.execute(text(query), given)]  # noqa: SLF001 - SQLAlchemy's public name

    def log(self, run: RunId, trainer: TrainerId, offset: int, limit: int) -> LogChunk | None:
        """What was kept of a trainer's log from `offset` on, or None where nothing was; a negative one counts from the end.

        Where the beginning was dropped, the answer begins with what is left, and says so.
        """
        given = {"run": run, "trainer": trainer}
        with self._engine.connect() as connection:
            query = "SELECT MIN(start), MAX(stop) FROM logs WHERE run = :run AND trainer = :trainer"
            first, end = connection.execute(text(query), given).one()
            if end is None:
                return None
            wanted = max(end + offset, first) if offset < 0 else offset
            query = (
                "SELECT start, stop, body FROM logs WHERE run = :run AND trainer = :trainer AND stop > :offset"
                " ORDER BY start LIMIT 1"
            )
            piece = connection.execute(text(query), {**given, "offset": wanted}).one_or_none()
        if piece is None:
            return LogChunk(request="", text="", next_offset=max(wanted, end))
        start, stop, body = piece
        skipped = max(wanted - start, 0)
        data = bytes(body)[skipped : skipped + limit]
        whole = skipped + limit >= len(body)
        left_out = f"[{start - wanted} bytes of this log were not kept]\n" if start > wanted else ""
        said = data.decode(errors="ignore")
        following = stop if whole else start + skipped + len(said.encode())
        return LogChunk(request="", text=left_out + said, next_offset=following)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _is_archived(self, run: RunId) -> bool:
        # Its rows may still be there in part.
        with self._engine.connect() as connection:
            return bool(connection.execute(text("SELECT 1 FROM archived WHERE run = :run"), {"run": run}).scalar())

    def _bodies(self, query: str, given: dict[str, Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [json.loads(body) for (body,) in connection.execute(text(query), given)]
