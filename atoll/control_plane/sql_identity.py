"""Users, tokens, teams, the audit log and the keys of submissions, in a SQL file beside the history.

The web process alone writes it, each change durable before it returns: a token that was shown is kept, a revoked one stays
revoked, and a line of the audit log is there before what it tells of is done. Tokens are kept as `identity` says, never
themselves. The audit log holds the last million changes, and apart from them the last of what was refused or signed in, so
that nobody pushes out the lines of changes by calls that change nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from atoll.control_plane.identity import Directory, Token, User
from atoll.errors import ClusterError
from atoll.schema.people import AuditLine, Role

# At a wish a second, day and night, the last twelve days; some 200 MB.
AUDIT_KEPT = 1_000_000
TOLD_KEPT = 100_000
_PRUNE_EVERY = 1_000
_WAIT_S = 5.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, role TEXT, team TEXT, made_at REAL)",
    """CREATE TABLE IF NOT EXISTS tokens (
        token_id TEXT PRIMARY KEY, name TEXT, salt BLOB, digest BLOB, made_at REAL, expires_at REAL, ended_at REAL
    )""",
    "CREATE TABLE IF NOT EXISTS teams (team TEXT, queue TEXT, PRIMARY KEY (team, queue))",
    "CREATE TABLE IF NOT EXISTS signed_out (session TEXT PRIMARY KEY, until REAL)",
    """CREATE TABLE IF NOT EXISTS audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, name TEXT, role TEXT, source TEXT, method TEXT, path TEXT,
        status INTEGER, code TEXT, note TEXT
    )""",
    "CREATE INDEX IF NOT EXISTS audit_by_name ON audit (name, seq)",
    "CREATE TABLE IF NOT EXISTS wishes (name TEXT, key TEXT, digest TEXT, run TEXT, at REAL, PRIMARY KEY (name, key))",
)
# A file of before has lines without it; all count as changes.
_SORTED = "ALTER TABLE audit ADD COLUMN changes INTEGER NOT NULL DEFAULT 1"
_BY_SORT = "CREATE INDEX IF NOT EXISTS audit_by_sort ON audit (changes, seq)"
_USER = "INSERT OR REPLACE INTO users VALUES (:name, :role, :team, :made_at)"
_TOKEN = "INSERT OR REPLACE INTO tokens VALUES (:token_id, :name, :salt, :digest, :made_at, :expires_at, :ended_at)"  # noqa: S105 - SQL
_AUDIT = (
    "INSERT INTO audit (at, name, role, source, method, path, status, code, note, changes)"
    " VALUES (:at, :user, :role, :source, :method, :path, :status, :code, :note, :changes)"
)
_PRUNE = (
    "DELETE FROM audit WHERE changes = :changes AND seq <="
    " (SELECT seq FROM audit WHERE changes = :changes ORDER BY seq DESC LIMIT 1 OFFSET :kept)"
)


class IdentityStore:
    """The open file; in memory without one. Calls block, and may come from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        if path is not None:
            path.touch(mode=0o600, exist_ok=True)
        self._engine = create_engine(
            "sqlite://" if path is None else f"sqlite:///{path}",
            poolclass=StaticPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": _WAIT_S, "check_same_thread": False},
        )
        event.listen(self._engine, "connect", _settle)
        try:
            self._connection = self._engine.connect()
            for table in _TABLES:
                self._connection.execute(text(table))
            if "changes" not in {row.name for row in self._connection.execute(text("PRAGMA table_info(audit)"))}:
                self._connection.execute(text(_SORTED))
            self._connection.execute(text(_BY_SORT))
        except DatabaseError as error:
            self._engine.dispose()
            raise ClusterError(f"users cannot be read from {path}: {error.orig}") from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._engine.dispose()

    def load(self, into: Directory, now: float) -> None:
        """Read everything that is known into `into`."""
        for row in self._rows("SELECT * FROM users"):
            into.users[row.name] = User(name=row.name, role=Role(row.role), team=row.team, made_at=row.made_at)
        for row in self._rows("SELECT * FROM tokens"):
            into.tokens[row.token_id] = Token(
                token_id=row.token_id,
                user=row.name,
                salt=row.salt,
                digest=row.digest,
                made_at=row.made_at,
                expires_at=row.expires_at,
                ended_at=row.ended_at,
            )
        for row in self._rows("SELECT * FROM teams ORDER BY team, queue"):
            into.teams[row.team] = (*into.teams.get(row.team, ()), row.queue)
        for row in self._rows("SELECT * FROM signed_out WHERE until > :now", now=now):
            into.signed_out[row.session] = row.until

    def put(self, user: User | None, tokens: list[Token]) -> None:
        """Keep a user and tokens, all or none."""
        changes: list[tuple[str, dict[str, Any]]] = [] if user is None else [(_USER, _user_row(user))]
        self._change([*changes, *((_TOKEN, _token_row(t)) for t in tokens)])

    def remove(self, user: str, tokens: list[Token]) -> None:
        """Forget a user, keep how the tokens ended."""
        forget = ("DELETE FROM users WHERE name = :name", {"name": user})
        self._change([forget, *((_TOKEN, _token_row(t)) for t in tokens)])

    def set_team(self, team: str, queues: tuple[str, ...]) -> None:
        """Keep the queues of a team; without any the team is gone."""
        rows = [("INSERT INTO teams VALUES (:team, :queue)", {"team": team, "queue": q}) for q in queues]
        self._change([("DELETE FROM teams WHERE team = :team", {"team": team}), *rows])

    def sign_out(self, session: str, until: float, now: float) -> None:
        """Remember that a session ended."""
        forget = ("DELETE FROM signed_out WHERE until <= :now", {"now": now})
        keep = ("INSERT OR REPLACE INTO signed_out VALUES (:session, :until)", {"session": session, "until": until})
        self._change([forget, keep])

    # -- audit -------------------------------------------------------------------------------------------------------

    def begin(self, line: AuditLine, *, changes: bool = True) -> int:
        """Write a line; its number. `changes`: something is about to be changed, rather than was refused."""
        row = {name: getattr(line, name) for name in AuditLine.__slots__ if name != "seq"} | {"changes": changes}
        with self._lock:
            seq = int(self._execute(_AUDIT, row).lastrowid)
            if seq % _PRUNE_EVERY == 0:
                self._execute(_PRUNE, {"changes": True, "kept": AUDIT_KEPT})
                self._execute(_PRUNE, {"changes": False, "kept": TOLD_KEPT})
        return seq

    def finish(self, seq: int, status: int, code: str, note: str) -> None:
        """Say what came of it."""
        query = "UPDATE audit SET status = :status, code = :code, note = :note WHERE seq = :seq"
        self._change([(query, {"seq": seq, "status": status, "code": code, "note": note})])

    def audit(self, before: int, limit: int, user: str | None) -> list[AuditLine]:
        """Up to `limit` lines numbered below `before` (0: the last ones), newest first."""
        where = "(:before = 0 OR seq < :before) AND (:name IS NULL OR name = :name)"
        query = f"SELECT * FROM audit WHERE {where} ORDER BY seq DESC LIMIT :limit"  # noqa: S608 - constants above
        return [
            AuditLine(
                seq=row.seq,
                at=row.at,
                user=row.name,
                role=row.role,
                source=row.source,
                method=row.method,
                path=row.path,
                status=row.status,
                code=row.code,
                note=row.note,
            )
            for row in self._rows(query, before=before, limit=limit, name=user)
        ]

    # -- submissions that may come twice -----------------------------------------------------------------------------

    def wish(self, user: str, key: str, digest: str, run: str, at: float, forget: float) -> tuple[str, str]:
        """The (digest, run) kept under this key of `user`: what is given, unless the key was used before."""
        row = {"name": user, "key": key, "digest": digest, "run": run, "at": at}
        self._change(
            [
                ("DELETE FROM wishes WHERE at < :forget", {"forget": forget}),
                ("INSERT OR IGNORE INTO wishes VALUES (:name, :key, :digest, :run, :at)", row),
            ]
        )
        found = self._rows("SELECT digest, run FROM wishes WHERE name = :name AND key = :key", name=user, key=key)[0]
        return str(found.digest), str(found.run)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _rows(self, query: str, **given: Any) -> list[Any]:
        with self._lock:
            return list(self._execute(query, given))

    def _change(self, changes: list[tuple[str, dict[str, Any]]]) -> None:
        with self._lock:
            self._execute("BEGIN IMMEDIATE", {})
            try:
                for query, row in changes:
                    self._execute(query, row)
            except BaseException:
                self._connection.exec_driver_sql("ROLLBACK")
                raise
            self._execute("COMMIT", {})

    def _execute(self, query: str, given: Mapping[str, Any]) -> Any:
        try:
            return self._connection.execute(text(query), dict(given))
        except DatabaseError as error:
            raise ClusterError(
                f"{self._path} cannot be written or read ({error.orig}), so nothing was done; free some space"
            ) from None


def _settle(connection: Any, _: Any) -> None:
    # One writer; FULL, so that what was answered outlives a power cut.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _user_row(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": user.role.value, "team": user.team, "made_at": user.made_at}


def _token_row(token: Token) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "name": token.user,
        "salt": token.salt,
        "digest": token.digest,
        "made_at": token.made_at,
        "expires_at": token.expires_at,
        "ended_at": token.ended_at,
    }
