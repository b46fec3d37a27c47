"""The journal: one SQLite file of records, on disk before `append` returns, held by one process at a time.

`open_journal` takes SQLite's exclusive lock, waits a while for a predecessor to die, and counts up the incarnation. A
killed holder's lock is gone with it; a frozen one keeps it, and its successor gives up, so two can never both decide.
Law 8: space for a few hundred more decisions is given to the write-ahead log beforehand, and a reserve lies beside it.
On a full disk new work is refused first (`has_room`); what is decided goes into the log, and when that is full the
reserve is given up for the records that end epochs, trainers and runs.

On PostgreSQL the lock is an advisory one of the session, which the server gives back when the session ends or its host is
silent for some ten seconds. So that a holder which lost it without noticing cannot decide either, every append asks, in
its own transaction, whether it is still the last incarnation.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from atoll.control_plane.fs_reserve import log_of, widen
from atoll.control_plane.records import RECORDS, VITAL, Record
from atoll.control_plane.sql_store import Place, Step, begin, is_file, upgrade, writer_engine
from atoll.errors import ClusterError, SchemaError
from atoll.schema.codec import encode
from atoll.schema.ids import Incarnation

RESERVE_BYTES = 4 << 20
# SQLite begins the log anew after 1000 pages, 4 MiB; on a full disk it may have to go on from there. A decision takes
# three pages or so.
LOG_BYTES = 8 << 20
# Below this much free space new work is refused while the reserve is still whole.
LOW_BYTES = 16 << 20

# The n-th step makes tables of version n. A kind of record that older builds do not know is a step, too: they must refuse.
STEPS = (
    Step(
        note="records and incarnations, as of the first release",
        statements=(
            "CREATE TABLE IF NOT EXISTS records (seq {serial}, incarnation INTEGER, body TEXT)",
            "CREATE TABLE IF NOT EXISTS incarnations (incarnation INTEGER PRIMARY KEY, pid INTEGER, at DOUBLE PRECISION)",
        ),
    ),
    Step(note="records of the arbiter: sizes of runs, suspensions, moves"),
)
# "atoll" as a number: whoever holds this lock of a database decides.
_LOCK = 0x61746F6C6C
_ASK_LOCK_S = 0.1


class Journal:
    """An open journal. `incarnation` is this holder's number."""

    def __init__(self, place: Place, *, pid: int, at: float, wait_s: float) -> None:
        # A file of its own has its space and reserve beside it; a server sees to that itself.
        self._path = Path(place) if is_file(place) else None
        self._reserve = self._path.with_suffix(".reserve") if self._path else None
        self._wait_s = wait_s
        self._engine = writer_engine(place, wait_s, poolclass=StaticPool)
        try:
            self._connection = self._engine.connect()
            try:
                self.incarnation = self._begin(pid, at)
            except BaseException:
                self._connection.close()
                raise
        except (OperationalError, ClusterError) as error:
            self._engine.dispose()
            raise _refused(place, error) from None
        self._refill()

    def _begin(self, pid: int, at: float) -> Incarnation:
        """A control plane that is started again on a full disk has to be able to lead, too."""
        if self._path is None:
            _lock(self._connection, self._wait_s)
            return _take(self._connection, pid, at)
        try:
            return _take(self._connection, pid, at)
        except OperationalError as error:
            if not _is_full(error) or not self._has_reserve():
                raise
            self._give_up_reserve()
            return _take(self._connection, pid, at)

    def records(self) -> list[Record]:
        """Everything decided so far, in order."""
        rows = self._connection.execute(text("SELECT body FROM records ORDER BY seq"))
        try:
            return [RECORDS.decode(body) for (body,) in rows]
        except SchemaError as error:
            raise ClusterError(
                f"the journal holds what this build cannot read: {error}; install the Atoll that wrote it, or a later one"
            ) from None

    def append(self, records: tuple[Record, ...]) -> None:
        """Make `records` durable, all or none. Raises `OperationalError` where even the reserve does not suffice."""
        try:
            self._write(records)
        except OperationalError:
            if not any(isinstance(r, VITAL) for r in records) or not self._has_reserve():
                raise
            self._give_up_reserve()
            self._write(records)

    def has_room(self) -> bool:
        """True while new work may be accepted."""
        if self._path is None:
            return True
        self._refill()
        return self._has_reserve() and shutil.disk_usage(self._path.parent).free >= LOW_BYTES

    def close(self) -> None:
        """Give the lock back."""
        self._connection.close()
        self._engine.dispose()

    def _write(self, records: tuple[Record, ...]) -> None:
        rows = [{"n": self.incarnation, "body": encode(r).decode()} for r in records]
        begin(self._connection)
        try:
            _still_last(self._connection, self.incarnation)
            self._connection.execute(text("INSERT INTO records (incarnation, body) VALUES (:n, :body)"), rows)
            self._connection.execute(text("COMMIT"))
        except (OperationalError, ClusterError):
            with contextlib.suppress(OperationalError):  # SQLite may have rolled back by itself
                self._connection.execute(text("ROLLBACK"))
            raise

    def _has_reserve(self) -> bool:
        return self._reserve is not None and self._reserve.exists()

    def _give_up_reserve(self) -> None:
        """Its space goes to the log at once: others write on this disk, too."""
        if self._path is None or self._reserve is None:
            return
        self._reserve.unlink()
        log = log_of(self._path)
        widen(log, (log.stat().st_size if log.exists() else 0) + RESERVE_BYTES * 3 // 4)

    def _refill(self) -> None:
        """The log's space first. Nothing to do where both have it."""
        if self._path is None or self._reserve is None:
            return
        if widen(log_of(self._path), LOG_BYTES) and not widen(self._reserve, RESERVE_BYTES):
            self._reserve.unlink(missing_ok=True)


def _is_full(error: OperationalError) -> bool:
    return "full" in str(error.orig)


def _refused(place: Place, error: OperationalError | ClusterError) -> ClusterError:
    """Why the journal cannot be opened, and what to do."""
    if isinstance(error, ClusterError):
        return error
    if not is_file(place):
        return ClusterError(f"the journal's database does not answer: {error.orig}; see ATOLL_DATABASE")
    if _is_full(error):
        return ClusterError(f"the disk of the journal {place} is full: {error.orig}; free some space")
    return ClusterError(f"the journal {place} is held by another control plane: {error.orig}")


def _lock(connection: Connection, wait_s: float) -> None:
    """Take the lock of a database, waiting a while for a predecessor to die. Raises `ClusterError`."""
    until = time.monotonic() + wait_s
    while not connection.execute(text(f"SELECT pg_try_advisory_lock({_LOCK})")).scalar():
        if time.monotonic() >= until:
            raise ClusterError("the journal is held by another control plane on the same database; end that one first")
        time.sleep(_ASK_LOCK_S)


def _take(connection: Connection, pid: int, at: float) -> Incarnation:
    if connection.dialect.name == "sqlite":
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(text(f"PRAGMA {pragma}"))
        connection.execute(text("BEGIN EXCLUSIVE"))
    else:
        begin(connection)
    try:
        upgrade(connection, "journal", STEPS)
        last = connection.execute(text("SELECT MAX(incarnation) FROM incarnations")).scalar()
        number = int(last or 0) + 1
        row = {"n": number, "pid": pid, "at": at}
        connection.execute(text("INSERT INTO incarnations VALUES (:n, :pid, :at)"), row)
        connection.execute(text("COMMIT"))
    except (OperationalError, ClusterError):
        with contextlib.suppress(OperationalError):
            connection.execute(text("ROLLBACK"))
        raise
    return Incarnation(number)


def _still_last(connection: Connection, own: Incarnation) -> None:
    """Raises `ClusterError` where another control plane took over. The lock keeps one from beginning meanwhile."""
    if connection.dialect.name == "sqlite":
        return  # its lock cannot be lost unnoticed
    connection.execute(text("LOCK TABLE incarnations IN SHARE MODE"))
    last = connection.execute(text("SELECT MAX(incarnation) FROM incarnations")).scalar()
    if int(last or 0) != own:
        raise ClusterError(f"control plane {last} took over the journal from this one, {own}; this one ends")
