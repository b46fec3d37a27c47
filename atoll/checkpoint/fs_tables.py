"""The extents of one rank as an Arrow IPC file, and back.

Columns: the number of the tensor and of the file in the lists of names that the schema's metadata holds, the first and
last corner of the box (as many integers as the tensor has dimensions), offset and bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pyarrow as pa

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.commit import Extent
from atoll.errors import CheckpointError

_CORNER = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    [
        ("tensor", pa.int32()),
        ("start", _CORNER),
        ("stop", _CORNER),
        ("file", pa.int32()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def table_bytes(extents: Sequence[Extent]) -> bytes:
    """The content of the file."""
    tensors = {name: i for i, name in enumerate(dict.fromkeys(e.tensor for e in extents))}
    files = {name: i for i, name in enumerate(dict.fromkeys(e.file for e in extents))}
    columns = [
        [tensors[e.tensor] for e in extents],
        [e.box.start for e in extents],
        [e.box.stop for e in extents],
        [files[e.file] for e in extents],
        [e.offset for e in extents],
        [e.bytes for e in extents],
    ]
    names = {"tensors": json.dumps(list(tensors)), "files": json.dumps(list(files))}
    schema = _SCHEMA.with_metadata(names)
    batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as file:
        file.write_batch(batch)
    return sink.getvalue()


def table_extents(data: bytes) -> list[Extent]:
    """The extents in such a file. Raises `CheckpointError` where it is none."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        names = json.loads(table.schema.metadata[b"tensors"])
        files = json.loads(table.schema.metadata[b"files"])
        rows = zip(*(table.column(name).to_pylist() for name in _SCHEMA.names), strict=True)
        return [
            Extent(names[tensor], Box(tuple(start), tuple(stop)), files[file], offset, size)
            for tensor, start, stop, file, offset, size in rows
        ]
    except (pa.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"a table of extents cannot be read: {error}") from None
