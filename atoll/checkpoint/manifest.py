"""The two small files of a checkpoint, as values: a pack's sidecar and the commit record.

On disk each is `{"record": ..., "xxh3": ...}`. The checksum is over the record's canonical JSON as it stands in the
file, not over what this build understands of it: an edited record is noticed, and one with the fields of another build
still reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from atoll.errors import CheckpointError, SchemaError
from atoll.schema.codec import from_plain, to_plain

FORMAT = 1
# Small enough to say where damage is, large enough that a million of them is 4 TB.
BLOCK_BYTES = 4 << 20

T = TypeVar("T", bound="CommitRecord | PackRecord")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """One pack: `blocks[i]` is the xxh3_64 (hex) of bytes [i, i+1) * `block_bytes` of the file.

    `tree` is the state's JSON part; the writer of rank 0 gives it, the others leave it empty. `state` is a checksum of
    the names, types and shapes that this rank divided: unlike ones cannot be put together. `problem` is set where the
    rank could not write its pack; then there is no file.
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
    state: str = ""
    problem: str = ""


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


def pack_stem(*, run: str, epoch: int, rank: int, size: int) -> str:
    """A pack's name without its suffix. The tag keeps runs that share a folder from each other's files."""
    return f"e{epoch}-r{rank}of{size}-{run_tag(run)}"


def run_tag(run: str) -> str:
    """Eight characters that stand for a run in file names."""
    return xxhash.xxh3_64_hexdigest(run.encode())[:8]


def seal(record: CommitRecord | PackRecord) -> bytes:
    """The file's content."""
    plain = to_plain(record)
    return json.dumps({"record": plain, "xxh3": _checksum(plain)}).encode()


def unseal(cls: type[T], data: bytes, where: str) -> T:
    """The record in `data`. Raises `CheckpointError` naming the file."""
    try:
        whole = json.loads(data)
        plain, written = whole["record"], str(whole["xxh3"])
        _check_format(cls, plain, where)
        record = from_plain(cls, plain)
    except (ValueError, KeyError, TypeError, SchemaError) as error:
        raise CheckpointError(f"{where} is not a readable record: {error}") from None
    found = _checksum(plain)
    if found != written:
        raise CheckpointError(f"{where} was changed after it was written: checksum {found}, {written} was written")
    return record


def _check_format(cls: type[Any], plain: dict[str, Any], where: str) -> None:
    if cls is CommitRecord and plain["format"] != FORMAT:
        raise CheckpointError(
            f"{where} has format {plain['format']}, this build reads {FORMAT}; use the Atoll that wrote it"
        )


def _checksum(plain: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
