"""The two small files of a checkpoint, as values: a pack's sidecar and the commit record.

A commit record on disk is `{"record": ..., "xxh3": ...}`; the checksum is over the record's canonical JSON, so that an
edited record is noticed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from atoll.errors import CheckpointError, SchemaError
from atoll.schema.codec import from_plain, to_plain

FORMAT = 1
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """One pack: `blocks[i]` is the xxh3_64 (hex) of bytes [i, i+1) * `block_bytes` of the file.

    `tree` is the state's JSON part; the writer of rank 0 gives it, the others leave it empty.
    """

    file: str
    run: str
    step: int
    epoch: int
    rank: int
    size: int
    bytes: int
    block_bytes: int
    blocks: tuple[str, ...]
    tensors: tuple[str, ...]
    tree: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A checkpoint that counts. It exists, whole, or the checkpoint does not."""

    format: int
    run: str
    step: int
    epoch: int
    at: float
    packs: tuple[PackRecord, ...]
    tree: dict[str, Any]

    def size_bytes(self) -> int:
        """Bytes of all packs."""
        return sum(p.bytes for p in self.packs)


def canonical(record: CommitRecord | PackRecord) -> bytes:
    """The JSON that checksums are taken of."""
    return json.dumps(to_plain(record), sort_keys=True, separators=(",", ":")).encode()


def seal(record: CommitRecord | PackRecord, checksum: str) -> bytes:
    """The file's content."""
    return json.dumps({"record": to_plain(record), "xxh3": checksum}).encode()


def open_sealed(cls: type[Any], data: bytes, where: str) -> tuple[Any, str]:
    """(record, the checksum that stands beside it). Raises `CheckpointError` naming the file."""
    try:
        plain = json.loads(data)
        return from_plain(cls, plain["record"]), str(plain["xxh3"])
    except (ValueError, KeyError, TypeError, SchemaError) as error:
        raise CheckpointError(f"{where} is not a readable record: {error}; use an older checkpoint") from None
