"""Measurements of ended runs as Parquet files, one a run: `metrics/RUN.parquet` in a folder or a store of objects.

Columns are those of `MetricPoint`, and `metric.NAME` for each that a step reported (null where one did not), so that any
reader of Parquet can work on them. Rows are in order of steps, in groups: a reader of what comes after a step skips whole
groups by their statistics. A file appears under its name when it is whole. Files go when they are older than is asked
for, and the oldest first when all of them are too large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from atoll.errors import ClusterError
from atoll.schema.ids import Epoch, RunId, Step
from atoll.schema.views import MetricPoint

DAY_S = 86_400.0
# Groups that are read whole: some MB at a dozen metrics.
ROWS = 20_000
_PREFIX = "metric."
_ENDING = ".parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A file of the archive."""

    run: RunId
    bytes: int
    at: float


class MetricsArchive:
    """The files under `uri`: a path, or what `pyarrow.fs` opens (`s3://bucket/folder`). Raises `ClusterError`."""

    def __init__(self, uri: str) -> None:
        import pyarrow as pa  # noqa: PLC0415 - 200 ms that a web process without ended runs does not need
        from pyarrow import fs  # noqa: PLC0415 - as above

        self.uri = uri
        try:
            self._files, base = fs.FileSystem.from_uri(uri)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ClusterError(f"ATOLL_ARCHIVE={uri!r} cannot be opened: {error}") from None
        self._folder = f"{base.rstrip('/')}/metrics"

    def write(self, run: RunId, names: Iterable[str], batches: Iterable[list[MetricPoint]]) -> int:
        """Make the file of a run out of its points in order of steps; `names` are all metrics in them. The rows."""
        from pyarrow import parquet  # noqa: PLC0415 - as above

        self._files.create_dir(self._folder, recursive=True)
        schema, rows = _schema(sorted(names)), 0
        fresh = f"{self._folder}/.{run}.new"
        with self._files.open_output_stream(fresh) as sink, parquet.ParquetWriter(sink, schema) as writer:
            for batch in batches:
                writer.write_table(_table(batch, schema))
                rows += len(batch)
        self._files.move(fresh, self._path(run))
        return rows

    def points(self, run: RunId, after_step: int, limit: int) -> list[MetricPoint]:
        """Up to `limit` points above `after_step`, oldest first; none where there is no such file."""
        from pyarrow import parquet  # noqa: PLC0415 - as above

        with contextlib.suppress(FileNotFoundError):
            found = parquet.read_table(self._path(run), filesystem=self._files, filters=[("step", ">", after_step)])
            return [_point(row) for row in found.slice(0, limit).to_pylist()]
        return []

    def kept(self) -> list[Kept]:
        """Every file, the oldest first."""
        from pyarrow import fs  # noqa: PLC0415 - as above

        infos = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        found = [
            Kept(run=RunId(i.base_name.removesuffix(_ENDING)), bytes=i.size, at=i.mtime.timestamp())
            for i in infos
            if i.base_name.endswith(_ENDING)
        ]
        return sorted(found, key=lambda k: (k.at, k.run))

    def drop(self, run: RunId) -> None:
        """Delete the file of a run, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(run))

    def _path(self, run: RunId) -> str:
        return f"{self._folder}/{run}{_ENDING}"


def surplus(kept: list[Kept], *, now: float, keep_s: float, keep_bytes: int) -> list[RunId]:
    """Which files are to go: those older than `keep_s`, then the oldest while all are more than `keep_bytes`."""
    total, gone = sum(k.bytes for k in kept), []
    for file in kept:
        if now - file.at <= keep_s and total <= keep_bytes:
            break
        gone.append(file.run)
        total -= file.bytes
    return gone


def _schema(names: list[str]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - as above

    fixed = [("step", pa.int64()), ("at", pa.float64()), ("step_s", pa.float64()), ("samples", pa.int64())]
    fixed += [("members", pa.int32()), ("epoch", pa.int64())]
    return pa.schema([*fixed, *((_PREFIX + name, pa.float64()) for name in names)])


def _table(batch: list[MetricPoint], schema: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - as above

    def values(name: str) -> Iterator[Any]:
        if name.startswith(_PREFIX):
            return (point.metrics.get(name.removeprefix(_PREFIX)) for point in batch)
        return (getattr(point, name) for point in batch)

    return pa.table({field.name: pa.array(list(values(field.name)), field.type) for field in schema}, schema=schema)


def _point(row: dict[str, Any]) -> MetricPoint:
    metrics = {k.removeprefix(_PREFIX): v for k, v in row.items() if k.startswith(_PREFIX) and v is not None}
    return MetricPoint(
        step=Step(row["step"]),
        at=row["at"],
        step_s=row["step_s"],
        samples=row["samples"],
        members=row["members"],
        epoch=Epoch(row["epoch"]),
        metrics=metrics,
    )
