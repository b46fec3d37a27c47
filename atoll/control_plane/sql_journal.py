"""The journal: one SQLite file of records, on disk before `append` returns, held by one process at a time.

`open_journal` takes SQLite's exclusive lock, waits a while for a predecessor to die, and counts up the incarnation. A
killed holder's lock is gone with it; a frozen one keeps it, and its successor gives up, so two can never both decide.
Law 8: space for a few hundred more decisions is given to the write-ahead log beforehand, and a reserve lies beside it.
On a full disk new work is refused first (`has_room`); what is decided goes into the log, and when that is full the
reserve is given up for the records that end epochs, trainers and runs.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from atoll.control_plane.fs_reserve import log_of, widen
from atoll.control_plane.records import RECORDS, VITAL, Record
from atoll.errors import ClusterError
from atoll.schema.codec import encode
from atoll.schema.ids import Incarnation

RESERVE_BYTES = 4 << 20
# SQLite begins the log anew after 1000 pages, 4 MiB; on a full disk it may have to go on from there. A decision takes
# three pages or so.
LOG_BYTES = 8 << 20
# Below this much free space new work is refused while the reserve is still whole.
LOW_BYTES = 16 << 20

_TABLES = (
    "CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY AUTOINCREMENT, incarnation INTEGER, body TEXT)",
    "CREATE TABLE IF NOT EXISTS incarnations (incarnation INTEGER PRIMARY KEY, pid INTEGER, at REAL)",
)


class Journal:
    """An open journal. `incarnation` is this holder's number."""

    def __init__(self, path: Path, *, pid: int, at: float, wait_s: float) -> None:
        self._path = path
        self._reserve = path.with_suffix(".reserve")
        self._engine = _engine(path, wait_s)
        try:
            self._connection = self._engine.connect()
            self.incarnation = self._begin(pid, at)
        except OperationalError as error:
            self._engine.dispose()
            if _is_full(error):
                raise ClusterError(f"the disk of the journal {path} is full: {error.orig}; free some space") from None
            raise ClusterError(f"the journal {path} is held by another control plane: {error.orig}") from None
        self._refill()

    def _begin(self, pid: int, at: float) -> Incarnation:
        """A control plane that is started again on a full disk has to be able to lead, too."""
        try:
            return _take(self._connection, pid, at)
        except OperationalError as error:
            if not _is_full(error) or not self._reserve.exists():
                raise
            self._give_up_reserve()
            return _take(self._connection, pid, at)

    def records(self) -> list[Record]:
        """Everything decided so far, in order."""
        rows = self._connection.execute(text("SELECT body FROM records ORDER BY seq"))
        return [RECORDS.decode(body) for (body,) in rows]

    def append(self, records: tuple[Record, ...]) -> None:
        """Make `records` durable, all or none. Raises `OperationalError` where even the reserve does not suffice."""
        try:
            self._write(records)
        except OperationalError:
            if not any(isinstance(r, VITAL) for r in records) or not self._reserve.exists():
                raise
            self._give_up_reserve()
            self._write(records)

    def has_room(self) -> bool:
        """True while new work may be accepted."""
        self._refill()
        return self._reserve.exists() and shutil.disk_usage(self._path.parent).free >= LOW_BYTES

    def close(self) -> None:
        """Give the lock back."""
        self._connection.close()
        self._engine.dispose()

    def _write(self, records: tuple[Record, ...]) -> None:
        rows = [{"n": self.incarnation, "body": encode(r).decode()} for r in records]
        self._connection.execute(text("BEGIN IMMEDIATE"))
        try:
            self._connection.execute(text("INSERT INTO records (incarnation, body) VALUES (:n, :body)"), rows)
            self._connection.execute(text("COMMIT"))
        except OperationalError:
            with contextlib.suppress(OperationalError):  # SQLite may have rolled back by itself
                self._connection.execute(text("ROLLBACK"))
            raise

    def _give_up_reserve(self) -> None:
        """Its space goes to the log at once: others write on this disk, too."""
        self._reserve.unlink()
        log = log_of(self._path)
        widen(log, (log.stat().st_size if log.exists() else 0) + RESERVE_BYTES * 3 // 4)

    def _refill(self) -> None:
        """The log's space first. Nothing to do where both have it."""
        if widen(log_of(self._path), LOG_BYTES) and not widen(self._reserve, RESERVE_BYTES):
            self._reserve.unlink(missing_ok=True)


def _is_full(error: OperationalError) -> bool:
    return "full" in str(error.orig)


def _engine(path: Path, wait_s: float) -> Engine:
    path.touch(mode=0o600, exist_ok=True)
    return create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": wait_s, "check_same_thread": False},
    )


def _take(connection: Connection, pid: int, at: float) -> Incarnation:
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(text(f"PRAGMA {pragma}"))
    connection.execute(text("BEGIN EXCLUSIVE"))
    try:
        for table in _TABLES:
            connection.execute(text(table))
        last = connection.execute(text("SELECT MAX(incarnation) FROM incarnations")).scalar()
        number = int(last or 0) + 1
        row = {"n": number, "pid": pid, "at": at}
        connection.execute(text("INSERT INTO incarnations VALUES (:n, :pid, :at)"), row)
        connection.execute(text("COMMIT"))
    except OperationalError:
        with contextlib.suppress(OperationalError):
            connection.execute(text("ROLLBACK"))
        raise
    return Incarnation(number)
