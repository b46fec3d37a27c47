"""The small files of a checkpoint, as values: what each rank says of what it wrote, and the commit record.

On disk each is `{"record": ..., "xxh3": ...}`. The checksum is over the record's canonical JSON as it stands in the
file, not over what this build understands of it: an edited record is noticed, and one with the fields of another build
still reads.

A segment is a run of bytes of one file that one rank wrote; its checksums count from its own beginning. What lies in a
segment is said by the table of the rank's extents, which the word and the record name with its checksum.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

import xxhash

from atoll.checkpoint import format1
from atoll.checkpoint.logical import ITEMSIZES, Logical
from atoll.errors import CheckpointError, SchemaError
from atoll.schema.codec import from_plain, to_plain

FORMAT = 2
# Small enough to say where damage is, large enough that a million of them is 4 TB.
BLOCK_BYTES = 4 << 20


class NewerFormat(CheckpointError):
    """The record is whole, and of a format that this build does not know: no damage, and nothing to set aside.

    `run` is whose it is, as far as that can be told.
    """

    def __init__(self, problem: str, *, run: str) -> None:
        super().__init__(problem)
        self.run = run


T = TypeVar("T", bound="CommitRecord | Word | Request | format1.CommitRecord")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Bytes [begin, begin + bytes) of `file`, written by `rank`; `sums` packs the xxh3_64 of each of its blocks."""

    rank: int
    file: str
    begin: int
    bytes: int
    block_bytes: int
    sums: str

    def blocks(self) -> Sequence[int]:
        """The checksum of each block. Raises `CheckpointError` where their number is not that of the blocks."""
        count = -(-self.bytes // self.block_bytes)
        try:
            return struct.unpack(f"<{count}Q", base64.b64decode(self.sums, validate=True))
        except (struct.error, binascii.Error):
            raise CheckpointError(f"{self.file} from byte {self.begin} has not one checksum for each block") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The file of a rank's extents; `xxh3` (hex) is over all of it."""

    file: str
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What `by` wrote of the part of `rank`, or why there is nothing (`problem`).

    `wrote` and `held` have the digest (hex) of each box that it wrote or holds too, by `box_key`. `logicals` are the
    tensors of these boxes. `state` is a checksum over all tensors of the save, `writers` are the ranks that have
    anything to write in it: every rank knows them from the layouts of all. `standby` are the ranks whose part this one
    can write in their place. `tree` is the state's JSON part, where this rank gives it. `export` is empty, or the reason
    why there is no shared file of weights; `beside` are the small files that go with one, by name.
    """

    run: str
    step: int
    epoch: int
    rank: int
    size: int
    by: int
    segments: tuple[Segment, ...] = ()
    table: Table | None = None
    logicals: tuple[Logical, ...] = ()
    wrote: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    state: str = ""
    writers: tuple[int, ...] = ()
    standby: tuple[int, ...] = ()
    tree: dict[str, Any] | None = None
    weights: str = ""
    export: str = ""
    beside: dict[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The leader of epoch `lead` asks those who can to write the part of `rank` in this save."""

    run: str
    step: int
    epoch: int
    rank: int
    size: int
    lead: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A tensor of the state as a whole; `digest` (hex) does not depend on how it was divided."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def logical(self) -> Logical:
        """Without its digest."""
        return Logical(self.name, self.dtype, self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A checkpoint that counts. It exists, whole, or the checkpoint does not."""

    format: int
    run: str
    step: int
    epoch: int
    size: int
    at: float
    segments: tuple[Segment, ...]
    tables: tuple[Table, ...]
    tensors: tuple[TensorRecord, ...]
    tree: dict[str, Any]
    words: tuple[str, ...]
    weights: str = ""
    export: str = ""
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """All that it names, words included."""
        return (
            *dict.fromkeys(s.file for s in self.segments),
            *(t.file for t in self.tables),
            *self.words,
            *self.beside,
        )

    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(s.bytes for s in self.segments)


def packed_sums(sums: Iterable[int]) -> str:
    """Checksums as a segment holds them."""
    found = tuple(sums)
    return base64.b64encode(struct.pack(f"<{len(found)}Q", *found)).decode()


def state_sum(logicals: Iterable[Logical]) -> str:
    """16 hex digits over names, types and shapes of all tensors of a save."""
    lines = sorted({f"{one.name}|{one.dtype}|{one.shape}" for one in logicals})
    return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())


def pack_stem(*, run: str, epoch: int, rank: int, size: int, by: int | None = None) -> str:
    """A pack's name without its suffix. The tag keeps runs that share a folder from each other's files.

    `by` is who wrote it in the rank's place.
    """
    return f"e{epoch}-r{rank}of{size}-{run_tag(run)}" + ("" if by is None or by == rank else f"-by{by}")


def run_tag(run: str) -> str:
    """Eight characters that stand for a run in file names."""
    return xxhash.xxh3_64_hexdigest(run.encode())[:8]


def seal(record: CommitRecord | Word | Request) -> bytes:
    """The file's content."""
    plain = to_plain(record)
    return _text({"record": plain, "xxh3": _checksum(plain)})


def unseal(cls: type[T], data: bytes, where: str) -> T:
    """The record in `data`. Raises `CheckpointError` naming the file, `NewerFormat` where it is whole all the same."""
    plain, problem = _opened(data)
    if plain is not None and not problem and _is_newer(plain):
        raise NewerFormat(f"{where} {_newer_words(plain)}", run=str(plain.get("run", "")))
    if plain is not None and cls in {CommitRecord, format1.CommitRecord}:
        problem = _format_problem(plain, cls) or problem
    if plain is None or problem:
        raise CheckpointError(f"{where} {problem}")
    try:
        found = from_plain(cls, plain)
    except (ValueError, KeyError, TypeError, SchemaError) as error:
        raise CheckpointError(f"{where} is not a readable record: {error}") from None
    if wrong := _impossible(found):
        raise CheckpointError(f"{where} is not a readable record: {wrong}")
    return found


def unseal_commit(data: bytes, where: str) -> CommitRecord | format1.CommitRecord:
    """A commit record of either format. Raises `CheckpointError` naming the file, `NewerFormat` as `unseal` does."""
    plain, _ = _opened(data)
    if plain is not None and plain.get("format") == format1.FORMAT:
        return unseal(format1.CommitRecord, data, where)
    return unseal(CommitRecord, data, where)


def _opened(data: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        whole = json.loads(data)
        plain, written = whole["record"], str(whole["xxh3"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return None, f"is not a readable record: {error}"
    if not isinstance(plain, dict):
        return None, "is not a readable record: its record is no object"
    found = _checksum(plain)
    if found != written:
        return plain, f"was changed after it was written: checksum {found}, {written} was written"
    # A number or an escape that is written otherwise means the same; but nobody writes it so, so a bit has flipped.
    # How a newer format is written is not known here: its checksum alone counts.
    if plain.get("format") != format1.FORMAT and not _is_newer(plain) and _text(whole) != data:
        return plain, "was changed after it was written: it means the same, but is written otherwise"
    return plain, ""


def _impossible(record: CommitRecord | Word | Request | format1.CommitRecord) -> str:
    """What no writer writes: names that lead out of the step's folder, numbers that no file has, unknown types.

    The checksum only says that the record is as it was written, not by whom.
    """
    match record:
        case CommitRecord():
            parts: Iterable[Segment | Table | format1.PackRecord] = (*record.segments, *record.tables)
            names: Iterable[str] = (*record.files, *filter(None, [record.weights]))
            logicals = [one.logical for one in record.tensors]
        case Word():
            parts = (*record.segments, *([record.table] if record.table is not None else []))
            names = (*(one.file for one in parts), *record.beside, *filter(None, [record.weights]))
            logicals = list(record.logicals)
        case format1.CommitRecord():
            parts, names, logicals = record.packs, record.files, []
        case _:
            return ""
    out = next((n for n in names if n in {"", ".", ".."} or PurePath(n).name != n or "\0" in n), None)
    if out is not None:
        return f"it names {out!r}, which is no file of its own folder"
    numbers = (n for p in parts for n in (p.bytes, getattr(p, "begin", 0), getattr(p, "block_bytes", 1) - 1))
    if any(n < 0 for n in numbers):
        return "it has a part that begins, or is as long, as no file is"
    odd = next((o for o in logicals if o.dtype not in ITEMSIZES or any(n < 0 for n in o.shape)), None)
    return f"it has tensor {odd.name!r} of type {odd.dtype} and shape {list(odd.shape)}" if odd is not None else ""


def _format_problem(plain: dict[str, Any], cls: type[Any]) -> str:
    wanted = FORMAT if cls is CommitRecord else format1.FORMAT
    if plain.get("format") in {format1.FORMAT, FORMAT} or "format" not in plain:
        return "" if plain.get("format") == wanted else f"is not a readable record of format {wanted}"
    return _newer_words(plain)


def _is_newer(plain: dict[str, Any]) -> bool:
    found = plain.get("format")
    return isinstance(found, int) and found > FORMAT


def _newer_words(plain: dict[str, Any]) -> str:
    return (
        f"has format {plain['format']}, this build reads up to {FORMAT}: a newer Atoll wrote it; use that one, or move "
        "the step away to do without it"
    )


def _text(whole: Any) -> bytes:
    return json.dumps(whole, separators=(",", ":")).encode()


def _checksum(plain: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
