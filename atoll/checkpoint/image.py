"""Where everything that one rank writes of a save lies: in its files, and in the slab that holds their image.

A *duty* is what one rank has to write: its own, or that of a rank that this one stands in for. Each duty is a pack, which
is a safetensors file of its own, and the own one is ranges of the shared weights file, too, whose header and offsets follow from the whole
tensors alone, so that several ranks fill one file without a word between them. The slab holds all of it as the bytes
that the files get, own duty first: staging a box is one copy, and writing and checksums read straight on.

A range of the shared file lies in the slab at the same place within a page as in the file, so that all whole pages of
it can be written directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.extents import Extent, Extents, extents_of
from atoll.checkpoint.logical import Logical
from atoll.errors import CheckpointError

SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
LENGTH_BYTES = 8
PAGE = 4096

# One box of one tensor.
Piece = tuple[Logical, Box]


@dataclass(frozen=True, slots=True)
class Place:
    """A box as it is stored: `bytes` of `file` from `offset`, row-major; it is staged at `at` of the slab."""

    logical: Logical
    box: Box
    file: str
    offset: int
    bytes: int
    at: int


@dataclass(frozen=True, slots=True)
class Run:
    """`bytes` of `file` from `begin`, which lie at `at` of the slab.

    The file has `total` bytes at its end; an `exclusive` one is written by this rank alone.
    """

    file: str
    begin: int
    bytes: int
    at: int
    total: int
    exclusive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """What is written for `rank`, and where its boxes lie."""

    rank: int
    runs: tuple[Run, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A slab's content: `texts` are headers at their places, the rest is staged."""

    duties: tuple[Duty, ...]
    texts: tuple[tuple[int, bytes], ...]
    length: int

    def places(self) -> Iterable[Place]:
        """Of all duties, in the order of the slab."""
        return (place for duty in self.duties for place in duty.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A shared file of whole tensors. `begins` has the offset of each, by the name that it has in the state."""

    file: str
    header: bytes
    begins: Mapping[str, int]
    total: int

    def takes(self, logical: Logical, box: Box) -> bool:
        """Whether this box of it is one run of bytes in the file."""
        return logical.name in self.begins and is_run(logical, box)


def is_run(logical: Logical, box: Box) -> bool:
    """Whether the box is one range of rows: its bytes lie together in the whole tensor."""
    return box == whole(logical.shape) or (
        box.start[1:] == (0,) * (len(box.start) - 1) and box.stop[1:] == logical.shape[1:]
    )


def shared_weights(file: str, logicals: Iterable[Logical], prefix: str) -> Weights:
    """The shared file of the tensors named `prefix`.*, under their names without it."""
    mine = [one for one in logicals if one.name.startswith(f"{prefix}.")]
    header, begins = _entries((one.name.removeprefix(f"{prefix}."), one, whole(one.shape)) for one in mine)
    text = _text(header)
    offsets = dict(zip((one.name for one in _ordered(mine)), begins, strict=True))
    total = len(text) + sum(one.size_bytes for one in mine)
    return Weights(file=file, header=text, begins={n: len(text) + at for n, at in offsets.items()}, total=total)


def draw(duties: Sequence[tuple[int, str, Sequence[Piece]]], weights: Weights | None = None) -> Image:
    """The image of these duties: (rank, file of its pack, what it writes). Raises `CheckpointError` for a type.

    Only the first, a rank's own, has ranges of the shared file.
    """
    at, drawn = 0, list[Duty]()
    texts: list[tuple[int, bytes]] = []
    for number, (rank, file, pieces) in enumerate(duties):
        weights = weights if number == 0 else None
        shared = [p for p in pieces if weights is not None and weights.takes(*p)]
        packed = [p for p in pieces if weights is None or not weights.takes(*p)]
        runs, places = list[Run](), list[Place]()
        if packed:
            run, places, text = _pack(file, packed, at)
            runs.append(run)
            texts.append((at, text))
            at = run.at + run.bytes
        if weights is not None:
            ranges, more, heads, at = _ranges(weights, shared, at, header=rank == 0)
            runs += ranges
            texts += heads
            places += more
        at = -(-at // PAGE) * PAGE
        drawn.append(Duty(rank=rank, runs=tuple(runs), places=tuple(places)))
    return Image(duties=tuple(drawn), texts=tuple(texts), length=at)


def _pack(file: str, pieces: Sequence[Piece], at: int) -> tuple[Run, list[Place], bytes]:
    """A pack that lies at `at`, the beginning of a page."""
    ordered = sorted(pieces, key=lambda p: (-p[0].itemsize, p[0].name, p[1]))
    names = _unique([entry_name(*p) for p in ordered])
    header, begins = _entries((n, *p) for n, p in zip(names, ordered, strict=True))
    text = _text(header)
    places = []
    end = len(text)
    for (logical, box), begin in zip(ordered, begins, strict=True):
        offset, size = len(text) + begin, box.count * logical.itemsize
        places.append(Place(logical, box, file, offset, size, at + offset))
        end = offset + size
    return Run(file, 0, end, at, end, exclusive=True), places, text


def _ranges(
    weights: Weights, pieces: Sequence[Piece], at: int, *, header: bool
) -> tuple[list[Run], list[Place], list[tuple[int, bytes]], int]:
    """Ranges of the shared file, those that touch as one; the header belongs to rank 0."""
    wanted = sorted((weights.begins[one.name] + _skipped(one, box), one, box) for one, box in pieces if box.count)
    spans = [[0, len(weights.header)]] if header else []
    for begin, one, box in wanted:
        end = begin + box.count * one.itemsize
        if spans and spans[-1][1] == begin:
            spans[-1][1] = end
        else:
            spans.append([begin, end])
    runs, places = list[Run](), list[Place]()
    rest = iter(wanted)
    coming = next(rest, None)
    for begin, end in spans:
        at += (begin - at) % PAGE
        runs.append(Run(weights.file, begin, end - begin, at, weights.total, exclusive=False))
        while coming is not None and coming[0] < end:
            offset, one, box = coming
            places.append(Place(one, box, weights.file, offset, box.count * one.itemsize, at + offset - begin))
            coming = next(rest, None)
        at += end - begin
    texts = [(runs[0].at, weights.header)] if header else []
    return runs, places, texts, at


def _skipped(logical: Logical, box: Box) -> int:
    """Bytes of the whole tensor that lie before the rows of the box."""
    if not logical.shape or not logical.shape[0]:
        return 0
    return box.start[0] * (logical.size_bytes // logical.shape[0])


def entry_name(logical: Logical, box: Box) -> str:
    """How a box is called in a pack: by the tensor's name where it is all of it."""
    return logical.name if box == whole(logical.shape) else f"{logical.name}{box}"


def safetensors_type(logical: Logical) -> str:
    """Its type in a header. Raises `CheckpointError`."""
    if logical.dtype not in SAFETENSORS:
        raise CheckpointError(
            f"tensor {logical.name!r} has type torch.{logical.dtype}, which safetensors cannot hold; convert it"
        )
    return SAFETENSORS[logical.dtype]


def _ordered(logicals: Iterable[Logical]) -> list[Logical]:
    """Wide types first, so that every tensor begins at a multiple of its element size."""
    return sorted(logicals, key=lambda one: (-one.itemsize, one.name))


def _entries(named: Iterable[tuple[str, Logical, Box]]) -> tuple[dict[str, Any], list[int]]:
    """The header's entries in the order of the file, and where each begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, begins = 0, list[int]()
    for name, logical, box in sorted(named, key=lambda e: (-e[1].itemsize, e[1].name, e[2])):
        end = offset + box.count * logical.itemsize
        header[name] = {
            "dtype": safetensors_type(logical),
            "shape": list(box.shape),
            "data_offsets": [offset, end],
        }
        begins.append(offset)
        offset = end
    return header, begins


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        free = name
        while free in taken or free == "__metadata__":
            free += "'"
        taken.add(free)
        found.append(free)
    return found


def _text(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def extents(duty: Duty, by: int) -> Extents:
    """Where the boxes of a duty lie, in columns, as `by` wrote them."""
    logicals = dict.fromkeys(place.logical for place in duty.places)
    rows = (Extent(p.logical.name, p.box, p.file, by, p.offset, p.bytes) for p in duty.places)
    return extents_of(logicals, rows)
