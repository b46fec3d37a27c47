"""What people see, in a SQLite file of its own: written by the control plane, read by the web process.

Views are kept as the JSON they are shown as. The writer has a thread: the decision loop only appends to a list, and
whatever gathered is written as one transaction a few times a second, of each view only the newest form. On a full disk
space that the file's log was given beforehand lasts a while; then what gathers is kept, the oldest lines of the story
dropped first, and written when there is room. Losing the last moments of it in a crash loses no decision; those are in
the journal.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from atoll.control_plane import effects as fx
from atoll.control_plane.fs_reserve import log_of, widen
from atoll.schema.codec import encode
from atoll.schema.ids import RunId

BATCH_S = 0.1
_WAIT_S = 5.0
# Some minutes of a story, in pages of the log; and how many lines wait for a disk that is full, asked how often.
LOG_BYTES = 8 << 20
KEPT, AGAIN_S = 5000, 1.0
# A reader may look before the writer made the file; more waiting than this is shown as an empty page instead.
PAGE = 5000

_TABLES = (
    "CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, at REAL, body TEXT)",
    "CREATE TABLE IF NOT EXISTS nodes (node TEXT PRIMARY KEY, body TEXT)",
    "CREATE TABLE IF NOT EXISTS topology (one INTEGER PRIMARY KEY, body TEXT)",
    "CREATE TABLE IF NOT EXISTS checkpoints (run TEXT, step INTEGER, body TEXT, PRIMARY KEY (run, step))",
    "CREATE TABLE IF NOT EXISTS metrics (run TEXT, step INTEGER, body TEXT, PRIMARY KEY (run, step))",
    """CREATE TABLE IF NOT EXISTS events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, run TEXT, subject TEXT, kind TEXT, text TEXT, cause TEXT
    )""",
    "CREATE INDEX IF NOT EXISTS events_by_run ON events (run, seq)",
    "CREATE INDEX IF NOT EXISTS events_by_subject ON events (subject, seq)",
    "CREATE INDEX IF NOT EXISTS events_by_cause ON events (cause, seq)",
)
_INSERT = {
    fx.Note: "INSERT INTO events (at, run, subject, kind, text, cause)"
    " VALUES (:at, :run, :subject, :kind, :text, :cause)",
    fx.ShowRun: "INSERT OR REPLACE INTO runs VALUES (:run, :at, :body)",
    fx.ShowNode: "INSERT OR REPLACE INTO nodes VALUES (:node, :body)",
    fx.ShowTopology: "INSERT OR REPLACE INTO topology VALUES (1, :body)",
    fx.ShowMetric: "INSERT OR REPLACE INTO metrics VALUES (:run, :step, :body)",
    fx.ShowCheckpoint: "INSERT OR REPLACE INTO checkpoints VALUES (:run, :step, :body)",
}
Shown = fx.Note | fx.ShowRun | fx.ShowNode | fx.ShowMetric | fx.ShowCheckpoint | fx.ShowTopology


def _row(effect: Shown) -> dict[str, Any]:
    match effect:
        case fx.Note():
            return {name: getattr(effect, name) for name in ("at", "run", "subject", "kind", "text", "cause")}
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

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._engine = create_engine(
            f"sqlite:///{path}",
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": _WAIT_S, "check_same_thread": False},
        )
        self._made = False
        self.problem = ""
        with self._engine.connect() as connection:
            self._make(connection)
        self._changed = threading.Condition()
        self._waiting: list[Shown] = []
        self._closing = False
        self._thread = threading.Thread(target=self._write_on, name="atoll-history", daemon=True)
        self._thread.start()

    def _make(self, connection: Connection) -> None:
        """The tables, where they are not made: a full disk keeps no control plane from its work."""
        try:
            connection.execute(text("PRAGMA journal_mode=WAL"))
            connection.execute(text("PRAGMA synchronous=NORMAL"))
            for table in _TABLES:
                connection.execute(text(table))
            self._made = True
        except SQLAlchemyError as error:
            self.problem = str(error)

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

    def _write(self, connection: Connection, batch: list[Shown]) -> list[Shown]:
        """What could not be written, to be tried again."""
        wanted = newest(batch)
        try:
            if not self._made:
                self._make(connection)
            connection.execute(text("BEGIN IMMEDIATE"))
            for effect in wanted:
                connection.execute(text(_INSERT[type(effect)]), _row(effect))
            connection.execute(text("COMMIT"))
        except SQLAlchemyError as error:
            # A full disk costs the pages their newest lines for a while, never a decision.
            self.problem = str(error)
            with contextlib.suppress(SQLAlchemyError):  # SQLite may have rolled back by itself
                connection.execute(text("ROLLBACK"))
            return last(wanted)
        widen(log_of(self._path), LOG_BYTES)
        return []


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
    """What waits for a disk that is full: of lines and points no more than the last `KEPT`."""
    views = [e for e in batch if isinstance(e, fx.ShowRun | fx.ShowNode | fx.ShowTopology)]
    return [e for e in batch if not isinstance(e, fx.ShowRun | fx.ShowNode | fx.ShowTopology)][-KEPT:] + views


class HistoryReader:
    """Read-only access for the web process; every answer is plain JSON documents in the form of `schema.views`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: Engine = create_engine(
            f"sqlite:///file:{path}?mode=ro&uri=true",
            isolation_level="AUTOCOMMIT",
            poolclass=QueuePool,
            connect_args={"timeout": _WAIT_S, "check_same_thread": False},
        )

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
        """Committed steps above `after_step`, oldest first."""
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

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _bodies(self, query: str, given: dict[str, Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [json.loads(body) for (body,) in connection.execute(text(query), given)]
