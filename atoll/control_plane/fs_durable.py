"""Where a cluster keeps what is to outlive it: `durable.json` in its folder, written from ATOLL_DATABASE and the like.

Without it: SQLite files and an archive in the cluster's own folder, which outlive driver, control plane and Ray, and the
head's disk alone can take away. A database and an archive elsewhere outlive that, too. Control plane and web process read
this file, since neither has the environment of whoever started the cluster.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from atoll.config import Config
from atoll.control_plane.arrow_metrics import DAY_S, MetricsArchive
from atoll.control_plane.fs_cluster import private_dir, write_private
from atoll.control_plane.sql_archive import Archivist
from atoll.control_plane.sql_store import Place, checked_url
from atoll.errors import ClusterError, SchemaError
from atoll.schema.codec import decode_as, to_plain

NAME = "durable.json"
# A season; a GiB is some tens of millions of steps.
KEEP_DAYS = 90.0
KEEP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """`database`: a PostgreSQL URL, "" for SQLite files; `archive`: a folder or URI, "" for the cluster's own folder."""

    database: str = ""
    archive: str = ""
    keep_days: float = KEEP_DAYS
    keep_bytes: int = KEEP_BYTES

    @property
    def keep_s(self) -> float:
        """How long metrics and logs of ended runs stay."""
        return self.keep_days * DAY_S

    def journal(self, cluster_dir: Path) -> Place:
        """Where the journal lies."""
        return self.database or cluster_dir / "journal.sqlite"

    def history(self, cluster_dir: Path) -> Place:
        """Where the history lies."""
        return self.database or cluster_dir / "history.sqlite"

    def opened_archive(self, cluster_dir: Path) -> MetricsArchive:
        """The archive of metrics. Raises `ClusterError`."""
        return MetricsArchive(self.archive or str(private_dir(cluster_dir / "archive").absolute()))

    def archivist(self, cluster_dir: Path) -> Archivist:
        """Who fills the archive. Raises `ClusterError`."""
        archive = self.opened_archive(cluster_dir)
        return Archivist(self.history(cluster_dir), archive, keep_s=self.keep_s, keep_bytes=self.keep_bytes)


def settle(cluster_dir: Path, settings: Config) -> Durable:
    """What a cluster that is started keeps where: as it always did, and what `settings` say for the first time.

    Raises `ClusterError` where that would leave decisions behind: a journal does not move by itself.
    """
    before = load(cluster_dir)
    wanted = replace(
        before,
        database=settings.database or before.database,
        archive=settings.archive or before.archive,
        keep_days=before.keep_days if settings.keep_days is None else _days(settings.keep_days),
    )
    if wanted.database != before.database and (before.database or (cluster_dir / "journal.sqlite").exists()):
        kept = "another database" if before.database else f"{cluster_dir}/journal.sqlite"
        raise ClusterError(
            f"ATOLL_DATABASE names another database, and the runs of this cluster are in {kept}; unset it, "
            "or start anew under another ATOLL_HOME"
        )
    if wanted != before:
        save(cluster_dir, wanted)
    return wanted


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < math.inf:
        raise ClusterError(f"ATOLL_KEEP_DAYS={text!r}: a number of days, 0 or more")
    return days


def save(cluster_dir: Path, durable: Durable) -> None:
    """Write the file, closed to others: a URL may hold a password. Raises `ClusterError` for a URL that is none."""
    if durable.database:
        checked_url(durable.database)
    write_private(cluster_dir / NAME, json.dumps(to_plain(durable), indent=2) + "\n")


def load(cluster_dir: Path) -> Durable:
    """What the file says; the defaults where there is none. Raises `ClusterError` where it is damaged.

    A damaged file is no reason to fall back to an empty SQLite file: the runs would seem lost.
    """
    path = cluster_dir / NAME
    try:
        return decode_as(Durable, path.read_bytes())
    except FileNotFoundError:
        return Durable()
    except (OSError, SchemaError) as error:
        raise ClusterError(f"{path} cannot be read: {error}; correct it, or delete it to use SQLite files") from None
