"""Extents as an Arrow IPC file: written in batches, opened by mapping it, each batch verified when it is first used.

Columns: tensor, file, rank (32 bits), offset, bytes (64 bits), start and stop (fixed lists of 64-bit integers, as many as
the widest tensor has dimensions). The schema's metadata holds `tensors` and `files` (JSON), and `index` with its xxh3_64
as `seal`: the rows, the first and last tensor, and the xxh3_64 over the columns of each batch, and the checksums of the
other entries. So opening reads the metadata only, whatever the number of rows, and nothing unverified is ever told.
Whoever writes the file may add entries of its own (`beside`), which are sealed alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from atoll.checkpoint.columns import Boxes, Ints
from atoll.checkpoint.extents import Extents
from atoll.checkpoint.logical import Logical
from atoll.errors import CheckpointError

# Enough rows that a million are sixteen batches, few enough that one is verified in a fraction of a millisecond.
BATCH_ROWS = 1 << 16
_VERSION = 1
_NUMBERS = ("tensor", "file", "rank", "offset", "bytes")
_OWN = ("tensors", "files")


def extents_bytes(extents: Extents, beside: Mapping[str, bytes] | None = None) -> bytes:
    """The file's content. `beside` are more entries of its metadata."""
    schema = _schema(extents.boxes.dims)
    batches = [_batch(extents, schema, at) for at in range(0, len(extents), BATCH_ROWS)]
    entries = {
        "tensors": json.dumps([[one.name, one.dtype, list(one.shape)] for one in extents.logicals]).encode(),
        "files": json.dumps(list(extents.files)).encode(),
        **(beside or {}),
    }
    index = json.dumps(
        {
            "version": _VERSION,
            "dims": extents.boxes.dims,
            "batches": [[len(b), *_span(b), _checksum(b)] for b in batches],
            "entries": {name: xxhash.xxh3_64_hexdigest(value) for name, value in entries.items()},
        }
    ).encode()
    sealed = schema.with_metadata(entries | {"index": index, "seal": xxhash.xxh3_64_hexdigest(index)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, sealed) as file:
        for batch in batches:
            file.write_batch(batch.replace_schema_metadata(sealed.metadata))
    return bytes(sink.getvalue())


def _schema(dims: int) -> Any:
    wide = {"offset", "bytes"}
    numbers = [pa.field(n, pa.int64() if n in wide else pa.int32(), nullable=False) for n in _NUMBERS]
    corner = pa.list_(pa.field("item", pa.int64(), nullable=False), dims)
    return pa.schema([*numbers, pa.field("start", corner, nullable=False), pa.field("stop", corner, nullable=False)])


def _batch(extents: Extents, schema: Any, at: int) -> Any:
    part = extents.take(np.arange(at, min(at + BATCH_ROWS, len(extents))))
    numbers = (part.boxes.tensor, part.file, part.rank, part.offset, part.bytes)
    arrays = [pa.array(n.astype(f.type.to_pandas_dtype())) for n, f in zip(numbers, schema, strict=False)]
    for corner in (part.boxes.start, part.boxes.stop):
        flat = pa.array(np.ascontiguousarray(corner).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field("start").type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _numbers(batch: Any) -> list[Ints]:
    """The columns as they lie in the file."""
    flat = [batch.column(i).to_numpy() for i in range(len(_NUMBERS))]
    # Not `flatten`: for that Arrow loads its library of kernels, 15 MiB of memory beside the first save.
    return [*flat, *(batch.column(name).values.to_numpy() for name in ("start", "stop"))]


def _checksum(batch: Any) -> str:
    sums = xxhash.xxh3_64()
    for column in _numbers(batch):
        sums.update(column.data.cast("B") if len(column) else b"")
    return sums.hexdigest()


def _span(batch: Any) -> tuple[int, int]:
    tensors = batch.column(0).to_numpy()
    return int(tensors.min()), int(tensors.max())


class ExtentFile:
    """An opened table. Raises `CheckpointError`, naming the file, where anything read of it was changed."""

    def __init__(self, data: bytes | memoryview | Path, where: str = "") -> None:
        self.where = where or (str(data) if isinstance(data, Path) else "a table of extents")
        try:
            source = pa.memory_map(str(data)) if isinstance(data, Path) else pa.BufferReader(data)
            self._file = pa.ipc.open_file(source)
            self._metadata = dict(self._file.schema.metadata or {})
            text = self._metadata[b"index"]
            if xxhash.xxh3_64_hexdigest(text).encode() != self._metadata[b"seal"]:
                raise self._changed("its index")
            self._index = json.loads(text)
            version = self._index["version"]
            if version != _VERSION:
                raise CheckpointError(f"{self.where} has version {version}, this build reads {_VERSION}")
            if self._file.num_record_batches != len(self._index["batches"]):
                raise self._changed("its number of batches")
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.where} is no readable table of extents: {error}") from None

    def __len__(self) -> int:
        return sum(rows for rows, *_ in self._index["batches"])

    def _changed(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where} was changed after it was written: {what} does not verify")

    def entry(self, name: str) -> bytes:
        """One entry of the metadata, verified. Raises `CheckpointError` where there is none."""
        data: bytes = self._metadata.get(name.encode(), b"")
        if xxhash.xxh3_64_hexdigest(data) != self._index["entries"].get(name):
            raise self._changed(f"entry {name!r}")
        return data

    @cached_property
    def logicals(self) -> tuple[Logical, ...]:
        """All tensors, by number."""
        return tuple(Logical(name, dtype, tuple(shape)) for name, dtype, shape in json.loads(self.entry("tensors")))

    @cached_property
    def files(self) -> tuple[str, ...]:
        """All files, by number."""
        return tuple(json.loads(self.entry("files")))

    def all(self) -> Extents:
        """All rows."""
        return self._joined(range(len(self._index["batches"])))

    def of(self, names: set[str]) -> Extents:
        """The rows of some tensors; batches without any of them are not read."""
        wanted = np.array([i for i, one in enumerate(self.logicals) if one.name in names], dtype=np.int64)
        batches = [
            i
            for i, (_, first, last, _) in enumerate(self._index["batches"])
            if np.searchsorted(wanted, first) < np.searchsorted(wanted, last, side="right")
        ]
        found = self._joined(batches)
        return found.take(np.isin(found.boxes.tensor, wanted))

    def _joined(self, batches: Any) -> Extents:
        read = [self._read(i) for i in batches]
        dims = self._index["dims"]
        none = [np.zeros(0, dtype=np.int64)] * len(_NUMBERS) + [np.zeros((0, dims), dtype=np.int64)] * 2
        tensor, file, rank, offset, size, start, stop = (
            np.concatenate([np.asarray(part[i], dtype=np.int64) for part in (none, *read)]) for i in range(len(none))
        )
        boxes = Boxes(tensor, start, stop)
        return Extents(
            logicals=self.logicals, files=self.files, boxes=boxes, file=file, rank=rank, offset=offset, bytes=size
        )

    def _read(self, index: int) -> list[Ints]:
        rows, _, _, checksum = self._index["batches"][index]
        try:
            batch = self._file.get_batch(index)
            batch.validate()
            found = _numbers(batch)
            same = batch.schema.equals(_schema(self._index["dims"])) and len(batch) == rows
            same = same and not any(column.null_count for column in batch.columns) and _checksum(batch) == checksum
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.where}, batch {index}: {error}") from None
        if not same:
            raise self._changed(f"batch {index}")
        dims = self._index["dims"]
        return [*found[: len(_NUMBERS)], *(corner.reshape(-1, dims) for corner in found[len(_NUMBERS) :])]
