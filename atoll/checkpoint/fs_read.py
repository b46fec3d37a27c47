"""Reading boxes out of a committed step: each block once, compared with its checksum before any of it is given away.

A block is read into memory of its own, verified, and then cut: what lies in it of each extent is a range of a box in
row-major order, which is a few boxes again, and each wanted box gets its overlap with them. So a flipped bit never
reaches a model, and what several want of one block costs one reading of it. Beside the destination this takes a block
for each thread.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from atoll.checkpoint.boxes import Box, overlap, whole
from atoll.checkpoint.extents import Extent, Extents, Lying, merged
from atoll.checkpoint.fs_extents import ExtentFile
from atoll.checkpoint.fs_sources import Folder, Source, Unasked
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord, Segment, Table
from atoll.checkpoint.report import BlockFinding
from atoll.errors import CheckpointError

# Reading and hashing give up the interpreter's lock: enough threads to keep a disk and two cores busy.
_THREADS = 4
# Which of a block's tensors was hit nothing tells: so many are named, which is all but for very small ones.
_NAMED = 8
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# Gets a piece of a wanted box: its key, where it lies in the whole tensor, its bits. Called from several threads.
Deliver = Callable[[Hashable, Box, np.ndarray], None]
# Gets each source whose bytes were wrong or gone, and how. Called from several threads.
Damaged = Callable[[Source, str], None]


def _passed_over(_source: Source, _problem: str) -> None:
    """Nobody wants to know: where no other source is left, the problem is raised."""


@dataclass(frozen=True, slots=True)
class Block:
    """Block `index` of segment number `segment`."""

    segment: int
    index: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """`box` of tensor `tensor`."""

    tensor: str
    box: Box


@dataclass(slots=True)
class Reading:
    """One step, opened: its record and the extents of all its tables. `bytes_read` counts what was read.

    `sources` are asked one after the other (none: the directory alone); each that gave what does not verify is told to
    `damaged`.
    """

    directory: Path
    record: CommitRecord
    logicals: Mapping[str, Logical]
    lying: Lying
    segments: Mapping[str, Sequence[tuple[int, Segment]]]
    bytes_read: int = 0
    sources: tuple[Source, ...] = ()
    damaged: Damaged = _passed_over

    # -- what to read ------------------------------------------------------------------------------------------------

    def blocks(self, wanted: Iterable[Wanted]) -> list[Block]:
        """The blocks that hold any of it, in the order of the files. Raises `CheckpointError` for what nobody wrote."""
        found: set[Block] = set()
        for want in wanted:
            logical = self.logicals.get(want.tensor)
            if logical is None:
                raise CheckpointError(
                    f"{self.directory} holds no tensor {want.tensor!r}; it holds {len(self.logicals)} others"
                )
            for extent in self.lying.of(want.tensor, want.box):
                part = overlap(extent.box, want.box)
                if part is not None:
                    found.update(self._spanned(extent, logical.itemsize, part))
        return sorted(found, key=lambda b: (b.segment, b.index))

    def _spanned(self, extent: Extent, itemsize: int, part: Box) -> Iterable[Block]:
        """The blocks between the first and the last byte of `part` that hold any of it."""
        first, rows = _flat(extent.box, part)
        for low, high in rows:
            begin, end = extent.offset + (first + low) * itemsize, extent.offset + (first + high) * itemsize
            number, segment = self._segment(extent.file, begin)
            a, b = (begin - segment.begin) // segment.block_bytes, (end - 1 - segment.begin) // segment.block_bytes
            yield from (Block(number, index) for index in range(a, b + 1))

    def _segment(self, file: str, offset: int) -> tuple[int, Segment]:
        listed = self.segments.get(file, ())
        at = bisect.bisect_right(listed, offset, key=lambda s: s[1].begin) - 1
        if at < 0 or offset >= listed[at][1].begin + listed[at][1].bytes:
            raise CheckpointError(f"{self.directory / file}: no rank wrote byte {offset}, which the step needs")
        return listed[at]

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, wanted: Mapping[Hashable, Wanted], deliver: Deliver, blocks: Iterable[Block] | None = None) -> None:
        """Give away all that is `wanted`, or what `blocks` hold of it. Raises `CheckpointError` for the first bad one."""
        keys: dict[str, list[tuple[Hashable, Box]]] = defaultdict(list)
        for key, want in wanted.items():
            keys[want.tensor].append((key, want.box))
        todo = self.blocks(wanted.values()) if blocks is None else list(blocks)
        numbered = {number: segment for listed in self.segments.values() for number, segment in listed}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="atoll-checkpoint-read") as pool:
            # Bounded by the number of threads: each holds one block, from its reading to its last piece.
            try:
                given = sum(
                    pool.map(lambda block: self._give(numbered[block.segment], block.index, keys, deliver), todo)
                )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        whole = sum(want.box.count for want in wanted.values())
        if blocks is None and given != whole:
            raise CheckpointError(f"{self.directory} has {given} of {whole} elements, or some of them twice")
        self.bytes_read += sum(_length(numbered[b.segment], b.index) for b in todo)

    def _give(
        self, segment: Segment, index: int, keys: Mapping[str, Sequence[tuple[Hashable, Box]]], deliver: Deliver
    ) -> int:
        """How many elements it gave."""
        data = self._block(segment, index)
        begin = segment.begin + index * segment.block_bytes
        return sum(
            self._cut(extent, begin, data, keys.get(extent.tensor, ()), deliver)
            for extent in self.lying.within(segment.file, begin, begin + len(data))
        )

    def _block(self, segment: Segment, index: int) -> memoryview:
        """The bytes of a block, from the first source where they are what was written."""
        problem, unasked = f"{self.directory / segment.file}: nothing has its block {index}", ""
        for source in self.sources or (Folder(self.directory),):
            try:
                data = source.bytes_of(segment, *block_range(segment, index))
                if data is None:
                    continue
                found = check_block(segment, index, data)
                if found is None:
                    return data
                problem = f"{source.where(segment.file)}: {self.named(segment, found).line()}"
            except Unasked as error:
                unasked = f"{error}; {self._holds(segment, index)}"
                continue
            except CheckpointError as error:
                problem = f"{error}; {self._holds(segment, index)}"
            self.damaged(source, problem)
        raise Unasked(unasked) if unasked else CheckpointError(problem)

    def _holds(self, segment: Segment, index: int) -> str:
        """What is in a block that is not there."""
        begin, length = block_range(segment, index)
        return f"it held {self._tensors(segment.file, begin, begin + length)}, written by rank {segment.rank}"

    def _cut(
        self, extent: Extent, begin: int, data: memoryview, wants: Sequence[tuple[Hashable, Box]], deliver: Deliver
    ) -> int:
        if not wants:
            return 0
        size = self.logicals[extent.tensor].itemsize
        low, high = max(extent.offset, begin), min(extent.offset + extent.bytes, begin + len(data))
        at, given = low, 0
        for box in flat_boxes(extent.box, (low - extent.offset) // size, (high - extent.offset) // size):
            values = np.frombuffer(data, dtype=_BITS[size], count=box.count, offset=at - begin).reshape(box.shape)
            at += box.count * size
            for key, want in wants:
                part = overlap(box, want)
                if part is not None:
                    deliver(key, part, values[part.within(box)])
                    given += part.count
        return given

    def named(self, segment: Segment, finding: BlockFinding) -> BlockFinding:
        """The finding with the rank that wrote the block and the tensors it belongs to."""
        what = self._tensors(segment.file, finding.begin, finding.end)
        return replace(finding, of=f"; it holds {what}, written by rank {segment.rank}")

    def _tensors(self, file: str, begin: int, end: int) -> str:
        names = list(dict.fromkeys(e.tensor for e in self.lying.within(file, begin, end)))
        if not names:
            return "the header"
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"tensor {', '.join(map(repr, names[:_NAMED]))}{more}"


def opened(
    directory: Path, record: CommitRecord, sources: Sequence[Source] = (), damaged: Damaged | None = None
) -> Reading:
    """The step in `directory`, its tables verified. Raises `CheckpointError`."""
    asked = tuple(sources) or (Folder(directory),)
    tell = damaged or _passed_over
    lying = Lying(extents=merged(_table(asked, table, tell) for table in record.tables))
    if lacks := _volume_problem(record, lying.extents):
        raise CheckpointError(f"{directory}: {lacks}")
    segments: dict[str, list[tuple[int, Segment]]] = defaultdict(list)
    for number, segment in enumerate(record.segments):
        segments[segment.file].append((number, segment))
    return Reading(
        directory,
        record,
        {t.name: t.logical for t in record.tensors},
        lying,
        {file: sorted(found, key=lambda s: s[1].begin) for file, found in segments.items()},
        sources=asked,
        damaged=tell,
    )


def _volume_problem(record: CommitRecord, extents: Extents) -> str:
    """Whether the tables tell of as many elements as the tensors have: what nobody wrote would be read as anything."""
    if (wrong := extents.impossible()) is not None:
        return f"its tables have {wrong.bytes} bytes for {wrong.tensor}{wrong.box}"
    held = np.zeros(len(extents.logicals), dtype=np.int64)
    np.add.at(held, extents.boxes.tensor, extents.boxes.volumes())
    volumes = dict(zip((one.name for one in extents.logicals), held.tolist(), strict=True))
    for tensor in record.tensors:
        there, count = volumes.get(tensor.name, 0), tensor.logical.count
        if there != count:
            return f"its tables have {there} elements of tensor {tensor.name!r}, which has {count}"
    return ""


def all_blocks(reading: Reading) -> list[Block]:
    """Every block of a step, in the order of its record."""
    return [Block(number, i) for number, s in enumerate(reading.record.segments) for i in range(len(s.blocks()))]


def read_table(directory: Path, table: Table) -> Extents:
    """The extents of one table. Raises `CheckpointError` where it is not what was written."""
    return _table((Folder(directory),), table, _passed_over)


def _table(sources: Sequence[Source], table: Table, damaged: Damaged) -> Extents:
    problem, unasked = f"{table.file} is nowhere", ""
    for source in sources:
        try:
            data = source.small(table.file)
            if data is None:
                continue
            found = xxhash.xxh3_64_hexdigest(data)
            if len(data) == table.bytes and found == table.xxh3:
                return ExtentFile(data, source.where(table.file)).all()
            problem = (
                f"{source.where(table.file)} has checksum {found} over {len(data)} bytes, {table.xxh3} over "
                f"{table.bytes} was written"
            )
        except Unasked as error:
            unasked = str(error)
            continue
        except CheckpointError as error:
            problem = str(error)
        damaged(source, problem)
    raise Unasked(unasked) if unasked else CheckpointError(problem)


def read_block(directory: Path, segment: Segment, index: int) -> memoryview:
    """The bytes of one block, unverified. Raises `CheckpointError` where they are not there."""
    found = Folder(directory).bytes_of(segment, *block_range(segment, index))
    if found is None:
        raise CheckpointError(f"{directory / segment.file} is not there")
    return found


def block_range(segment: Segment, index: int) -> tuple[int, int]:
    """Where a block begins in its file, and its length."""
    return segment.begin + index * segment.block_bytes, _length(segment, index)


def check_block(segment: Segment, index: int, data: memoryview) -> BlockFinding | None:
    """What is wrong with these bytes of a block."""
    expected, found = segment.blocks()[index], xxhash.xxh3_64_intdigest(data)
    if expected == found:
        return None
    begin = segment.begin + index * segment.block_bytes
    return BlockFinding(
        block=index, begin=begin, end=begin + len(data), expected=f"{expected:016x}", found=f"{found:016x}"
    )


def divided(needs: Mapping[int, Iterable[Block]], lengths: Callable[[Block], int]) -> dict[int, list[Block]]:
    """Who reads which block, where several ranks need some: each block is read once, by whoever reads least of those."""
    wanting: dict[Block, list[int]] = defaultdict(list)
    for rank, blocks in needs.items():
        for block in blocks:
            wanting[block].append(rank)
    load: dict[int, int] = defaultdict(int)
    found: dict[int, list[Block]] = {rank: [] for rank in needs}
    for block in sorted(wanting, key=lambda b: (len(wanting[b]), b.segment, b.index)):
        reader = min(wanting[block], key=lambda r: (load[r], r))
        load[reader] += lengths(block)
        found[reader].append(block)
    return {rank: sorted(blocks, key=lambda b: (b.segment, b.index)) for rank, blocks in found.items()}


def flat_boxes(box: Box, low: int, high: int) -> list[Box]:
    """Elements [low, high) of a box in row-major order, as boxes in the same order: two at most for each dimension."""
    return [
        Box(
            tuple(a + o for a, o in zip(start, box.start, strict=True)),
            tuple(b + o for b, o in zip(stop, box.start, strict=True)),
        )
        for start, stop in _ranges(box.shape, low, high)
    ]


def _ranges(shape: Sequence[int], low: int, high: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    if low >= high:
        return []
    if not shape:
        return [((), ())]
    inner, rest = whole(shape[1:]).count, tuple(shape[1:])
    found = []
    row = low // inner
    if low % inner:
        end = min(high, (row + 1) * inner)
        found += [((row, *a), (row + 1, *b)) for a, b in _ranges(rest, low - row * inner, end - row * inner)]
        low, row = end, row + 1
    last = high // inner
    if low < high and last > row:
        found.append(((row, *(0 for _ in rest)), (last, *rest)))
        low = last * inner
    if low < high:
        found += [((last, *a), (last + 1, *b)) for a, b in _ranges(rest, low - last * inner, high - last * inner)]
    return found


def _flat(outer: Box, part: Box) -> tuple[int, list[tuple[int, int]]]:
    """Where `part` lies in `outer`: the flat index of its first element, and its runs of elements after that one."""
    strides: list[int] = []
    step = 1
    for extent in reversed(outer.shape):
        strides.insert(0, step)
        step *= extent
    inner = len(part.shape)
    while inner and part.shape[inner - 1] == outer.shape[inner - 1]:
        inner -= 1
    # All dimensions from `inner` on are whole; the one before it makes the length of a run.
    cut = max(0, inner - 1)
    length = whole(part.shape[cut:]).count if part.shape else 1
    first = sum((a - o) * s for a, o, s in zip(part.start, outer.start, strides, strict=True))
    starts = np.zeros(1, dtype=np.int64)
    for extent, stride in zip(part.shape[:cut], strides[:cut], strict=True):
        starts = (starts[:, None] + np.arange(extent, dtype=np.int64) * stride).reshape(-1)
    return first, [(int(s), int(s) + length) for s in starts]


def _length(segment: Segment, index: int) -> int:
    return min(segment.block_bytes, segment.bytes - index * segment.block_bytes)
