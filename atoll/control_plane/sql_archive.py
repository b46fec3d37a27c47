"""Moves the points of ended runs from the history to the archive, and lets old ones go.

A run is moved a minute after its end, when its last points have been written: its file is made first, the rows are deleted
in small transactions behind it, and a row in `archived` between the two says which is which. So a crash at any moment
loses nothing: without that row the file is made again, with it the deletion goes on. The row is also what readers ask
before they look for a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from atoll.control_plane.arrow_metrics import ROWS, MetricsArchive, surplus
from atoll.control_plane.sql_store import Place, begin, writer_engine
from atoll.schema.codec import from_plain
from atoll.schema.ids import RunId
from atoll.schema.views import MetricPoint

# The history is written a tenth of a second behind; trainers' last points take a second at most.
SETTLED_S = 60.0
_WAIT_S = 5.0
# One transaction must not keep the history's writer waiting.
_DELETED_AT_ONCE = 20_000
_PAGE = "SELECT step, body FROM metrics WHERE run = :run AND step > :after ORDER BY step LIMIT :limit"


class Archivist:
    """The one that moves. Call `tidy` from one thread at a time."""

    def __init__(self, place: Place, archive: MetricsArchive, *, keep_s: float, keep_bytes: int) -> None:
        self._engine = writer_engine(place, _WAIT_S)
        self._archive = archive
        self._keep_s, self._keep_bytes = keep_s, keep_bytes

    def tidy(self, now: float) -> list[RunId]:
        """Archive what ended a while ago and drop what is over its time. Returns the runs that were archived."""
        with self._engine.connect() as connection:
            moved = [(run, ended) for run, ended in _ended(connection) if now - ended >= SETTLED_S]
            for run, ended in moved:
                self._move(connection, run, ended)
            for run in _half_moved(connection):
                _delete_points(connection, run)
            for run in surplus(self._archive.kept(), now=now, keep_s=self._keep_s, keep_bytes=self._keep_bytes):
                self._archive.drop(run)
                _execute(connection, "DELETE FROM logs WHERE run = :run", run)
        return [run for run, _ in moved]

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _move(self, connection: Connection, run: RunId, ended: float) -> None:
        names = {name for batch in _batches(connection, run) for point in batch for name in point.metrics}
        count = self._archive.write(run, names, _batches(connection, run))
        begin(connection)
        statement = "INSERT INTO archived (run, ended, points) VALUES (:run, :ended, :points)"
        connection.execute(text(statement), {"run": run, "ended": ended, "points": count})
        connection.execute(text("COMMIT"))


def _ended(connection: Connection) -> list[tuple[RunId, float]]:
    """Runs that ended and are not archived, with the time of their end."""
    rows = connection.execute(text("SELECT run, body FROM runs WHERE run NOT IN (SELECT run FROM archived)"))
    views = [(RunId(run), json.loads(body).get("ended_at")) for run, body in rows]
    return [(run, ended) for run, ended in views if ended is not None]


def _half_moved(connection: Connection) -> list[RunId]:
    query = "SELECT run FROM archived WHERE EXISTS (SELECT 1 FROM metrics WHERE metrics.run = archived.run)"
    return [RunId(run) for (run,) in connection.execute(text(query))]


def _batches(connection: Connection, run: RunId) -> Iterator[list[MetricPoint]]:
    after = -1
    while rows := connection.execute(text(_PAGE), {"run": run, "after": after, "limit": ROWS}).all():
        after = rows[-1][0]
        yield [from_plain(MetricPoint, json.loads(body)) for _, body in rows]


def _delete_points(connection: Connection, run: RunId) -> None:
    while True:
        given: dict[str, Any] = {"run": run, "limit": _DELETED_AT_ONCE}
        query = "SELECT MAX(step) FROM (SELECT step FROM metrics WHERE run = :run ORDER BY step LIMIT :limit) AS first"
        upto = connection.execute(text(query), given).scalar()
        if upto is None:
            return
        _execute(connection, "DELETE FROM metrics WHERE run = :run AND step <= :upto", run, upto=upto)


def _execute(connection: Connection, statement: str, run: RunId, **more: Any) -> None:
    begin(connection)
    connection.execute(text(statement), {"run": run, **more})
    connection.execute(text("COMMIT"))
