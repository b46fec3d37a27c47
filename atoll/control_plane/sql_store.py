"""Where journal and history lie: SQLite files of a folder, the default, or one PostgreSQL database by its URL.

Statements are written once, for both: upserts as `ON CONFLICT`, floats as `DOUBLE PRECISION`, and of what differs only a
number that counts itself and bytes, as `{serial}` and `{bytes}`. Tables have a version. `upgrade` brings older ones to
this build's, step by step in one transaction, and refuses those of a newer build before anything is read or written:
what a newer build has decided may be in a form that this one would misread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool

from atoll.errors import ClusterError

# A host that lost its link must give its locks back within seconds, not in two hours; Linux asks 5 + 3 x 2 s long.
_KEEPALIVE = {"idle": 5, "interval": 2, "count": 3}
_WORDS = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "bytes": "BLOB"},
    "postgresql": {"serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "bytes": "BYTEA"},
}
_VERSIONS = "CREATE TABLE IF NOT EXISTS versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
Place = Path | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What makes tables of version n - 1 those of version n, the n-th of a list. `note` says why, for readers."""

    note: str
    statements: tuple[str, ...] = ()


def is_file(place: Place) -> bool:
    """True for a SQLite file, false for the URL of a server."""
    return isinstance(place, Path)


def writer_engine(place: Place, wait_s: float, **more: Any) -> Engine:
    """An engine that may write; a SQLite file is made, readable by its owner alone. Raises `ClusterError`."""
    if isinstance(place, Path):
        place.touch(mode=0o600, exist_ok=True)
        given = {"timeout": wait_s, "check_same_thread": False}
        return create_engine(f"sqlite:///{place}", isolation_level="AUTOCOMMIT", connect_args=given, **more)
    return _server_engine(place, wait_s, more)


def reader_engine(place: Place, wait_s: float, pool: type[Pool]) -> Engine:
    """An engine that only reads."""
    if isinstance(place, Path):
        url, given = f"sqlite:///file:{place}?mode=ro&uri=true", {"timeout": wait_s, "check_same_thread": False}
        return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=pool, connect_args=given)
    return _server_engine(
        place, wait_s, {"poolclass": pool, "pool_pre_ping": True}, "-c default_transaction_read_only=on"
    )


def _server_engine(url: str, wait_s: float, more: dict[str, Any], options: str = "") -> Engine:
    given = {"connect_timeout": max(2, round(wait_s)), "application_name": "atoll"}
    given |= {f"keepalives_{name}": value for name, value in _KEEPALIVE.items()}
    settings = [f"-c tcp_keepalives_{name}={value}" for name, value in _KEEPALIVE.items()]
    given["options"] = " ".join([*settings, options]).strip()
    try:
        return create_engine(checked_url(url), isolation_level="AUTOCOMMIT", connect_args=given, **more)
    except ModuleNotFoundError as error:
        raise ClusterError(f"no driver for the database: {error}; pip install 'atoll[postgres]' on the head") from None


def checked_url(url: str) -> str:
    """`url` as SQLAlchemy wants it, `postgres://` included, with psycopg as its driver. Raises `ClusterError`."""
    try:
        made = make_url(url)
        if made.drivername in {"postgres", "postgresql"}:
            made = made.set(drivername="postgresql+psycopg")
    except (ArgumentError, NoSuchModuleError):
        raise ClusterError("ATOLL_DATABASE is no URL; write postgresql://user:password@host/database") from None
    if made.get_backend_name() != "postgresql":
        raise ClusterError(
            f"ATOLL_DATABASE names {made.get_backend_name()!r}; it can be postgresql://..., or be left out"
        )
    return made.render_as_string(hide_password=False)


def in_words_of(connection: Connection, statement: str) -> str:
    """`statement` with what differs between the two put in."""
    for name, word in _WORDS[connection.dialect.name].items():
        statement = statement.replace(f"{{{name}}}", word)
    return statement


def begin(connection: Connection) -> None:
    """Open a transaction for writing. The one who writes waits for its turn here, not half-way."""
    connection.execute(text("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN"))


def upgrade(connection: Connection, part: str, steps: Sequence[Step]) -> int:
    """Within a transaction: make the tables of `part` those of this build. Returns the version that they had.

    Raises `ClusterError` where they are of a newer build; nothing is changed then.
    """
    connection.execute(text(_VERSIONS))
    found = connection.execute(text("SELECT version FROM versions WHERE part = :part"), {"part": part}).scalar()
    version = int(found or 0)
    if version > len(steps):
        raise ClusterError(
            f"the {part} was written by a newer Atoll (its form is {version}, this build knows {len(steps)}); "
            "install that version again, or a later one: what it decided must not be misread"
        )
    for step in steps[version:]:
        for statement in step.statements:
            connection.execute(text(in_words_of(connection, statement)))
    if version < len(steps):
        row = {"part": part, "version": len(steps)}
        connection.execute(
            text(
                "INSERT INTO versions (part, version) VALUES (:part, :version)"
                " ON CONFLICT (part) DO UPDATE SET version = excluded.version"
            ),
            row,
        )
    return version
