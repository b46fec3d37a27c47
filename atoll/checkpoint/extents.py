"""The extents of a checkpoint as columns: which box of which tensor lies where in which file, written by which rank.

A million of them are numbers in a few arrays; names stand once in `logicals` and `files`. Rows are in the order of
tensors and begins, so that the rows of one tensor follow each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.columns import Boxes, Flags, Ints, columns, width
from atoll.checkpoint.logical import Logical


@dataclass(frozen=True, slots=True)
class Extent:
    """One box as stored: row-major at `offset` of `file`."""

    tensor: str
    box: Box
    file: str
    rank: int
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """`boxes` [n] with numbers of `logicals`; `file` (numbers of `files`), `rank`, `offset` and `bytes` [n]."""

    logicals: tuple[Logical, ...]
    files: tuple[str, ...]
    boxes: Boxes
    file: Ints
    rank: Ints
    offset: Ints
    bytes: Ints

    def __len__(self) -> int:
        return len(self.file)

    def take(self, rows: Ints | Flags) -> Extents:
        """Some rows."""
        return Extents(
            logicals=self.logicals,
            files=self.files,
            boxes=self.boxes.take(rows),
            file=self.file[rows],
            rank=self.rank[rows],
            offset=self.offset[rows],
            bytes=self.bytes[rows],
        )

    def ordered(self) -> Extents:
        """By tensor, then begin."""
        begins = tuple(self.boxes.start[:, dim] for dim in range(self.boxes.dims - 1, -1, -1))
        return self.take(np.lexsort((*begins, self.boxes.tensor)))

    def extent(self, row: int) -> Extent:
        """One row."""
        return Extent(
            tensor=self.logicals[int(self.boxes.tensor[row])].name,
            box=self.boxes.box(row, self.logicals),
            file=self.files[int(self.file[row])],
            rank=int(self.rank[row]),
            offset=int(self.offset[row]),
            bytes=int(self.bytes[row]),
        )

    def impossible(self) -> Extent | None:
        """One whose bytes are not those of its box, if there is any."""
        sizes = np.array([one.itemsize for one in self.logicals], dtype=np.int64)[self.boxes.tensor]
        wrong = np.flatnonzero(self.bytes != self.boxes.volumes() * sizes)
        return self.extent(int(wrong[0])) if len(wrong) else None

    def outside(self, file: str, spans: Iterable[tuple[int, int]]) -> Extent | None:
        """One in `file` that lies in none of the `spans` of its bytes, if there is any."""
        rows = np.flatnonzero((self.file == self.files.index(file)) & (self.bytes > 0))
        # No byte lies in the first, so that each extent has one that begins before it.
        ordered = [(-1, -1), *sorted(spans)]
        begins, ends = (np.array([span[i] for span in ordered], dtype=np.int64) for i in (0, 1))
        before = np.searchsorted(begins, self.offset[rows], side="right") - 1
        wrong = rows[self.offset[rows] + self.bytes[rows] > ends[before]]
        return self.extent(int(wrong[0])) if len(wrong) else None


def extents_of(logicals: Iterable[Logical], rows: Iterable[Extent]) -> Extents:
    """Extents as columns, in their order. Raises `CheckpointError` for a tensor that `logicals` do not have."""
    named, found = tuple(logicals), list(rows)
    files = {name: i for i, name in enumerate(dict.fromkeys(one.file for one in found))}
    return Extents(
        logicals=named,
        files=tuple(files),
        boxes=columns(named, ((one.tensor, one.box) for one in found)),
        file=np.array([files[one.file] for one in found], dtype=np.int64),
        rank=np.array([one.rank for one in found], dtype=np.int64),
        offset=np.array([one.offset for one in found], dtype=np.int64),
        bytes=np.array([one.bytes for one in found], dtype=np.int64),
    ).ordered()


def merged(parts: Iterable[Extents], logicals: Iterable[Logical] = ()) -> Extents:
    """The extents of several ranks as one table. A tensor that two tell of must be the same.

    `logicals` are tensors to begin the numbers with, whether there are extents of them or not.
    """
    tables = list(parts)
    number = {logical: i for i, logical in enumerate(logicals)}
    files: dict[str, int] = {}
    for table in tables:
        for logical in table.logicals:
            number.setdefault(logical, len(number))
        for file in table.files:
            files.setdefault(file, len(files))
    dims = width(number)
    tensors = [np.array([number[one] for one in t.logicals], dtype=np.int64)[t.boxes.tensor] for t in tables]
    named = [np.array([files[one] for one in t.files], dtype=np.int64)[t.file] for t in tables]
    none = np.zeros(0, dtype=np.int64)
    return Extents(
        logicals=tuple(number),
        files=tuple(files),
        boxes=Boxes(
            np.concatenate((none, *tensors)),
            np.concatenate((none.reshape(0, dims), *(_filled(t.boxes.start, dims, 0) for t in tables))),
            np.concatenate((none.reshape(0, dims), *(_filled(t.boxes.stop, dims, 1) for t in tables))),
        ),
        file=np.concatenate((none, *named)),
        rank=np.concatenate((none, *(t.rank for t in tables))),
        offset=np.concatenate((none, *(t.offset for t in tables))),
        bytes=np.concatenate((none, *(t.bytes for t in tables))),
    ).ordered()


def _filled(corners: Ints, dims: int, by: int) -> Ints:
    """With the dimensions that wider tensors have, and without those that none has."""
    filled: Ints = np.full((len(corners), dims), by, dtype=np.int64)
    common = min(dims, corners.shape[1])
    filled[:, :common] = corners[:, :common]
    return filled


@dataclass(frozen=True, kw_only=True)
class Lying:
    """Extents with the ways to find them: by tensor and box, and by file and bytes. `extents` are `ordered`."""

    extents: Extents

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {one.name: i for i, one in enumerate(self.extents.logicals)}

    @cached_property
    def _files(self) -> dict[str, tuple[Ints, Ints, Ints]]:
        """Of each file, in the order of its bytes: the rows, where they begin, and the highest end up to there."""
        found = {}
        order = np.lexsort((self.extents.offset, self.extents.file))
        begins = np.searchsorted(self.extents.file[order], np.arange(len(self.extents.files) + 1))
        for at, name in enumerate(self.extents.files):
            rows = order[begins[at] : begins[at + 1]]
            offset = self.extents.offset[rows]
            found[name] = (rows, offset, np.maximum.accumulate(offset + self.extents.bytes[rows]))
        return found

    def of(self, tensor: str, box: Box) -> Iterator[Extent]:
        """The extents of a tensor that have elements in common with a box."""
        number = self._numbers.get(tensor)
        if number is None:
            return
        boxes = self.extents.boxes
        low, high = np.searchsorted(boxes.tensor, (number, number + 1))
        dims = len(box.start)
        meet = (boxes.start[low:high, :dims] < box.stop).all(1) & (boxes.stop[low:high, :dims] > box.start).all(1)
        for row in np.flatnonzero(meet):
            yield self.extents.extent(int(low + row))

    def within(self, file: str, begin: int, end: int | None = None) -> Iterator[Extent]:
        """The extents that have any of bytes [begin, end) of a file, in their order."""
        if file not in self._files:
            return
        rows, offset, ends = self._files[file]
        first = np.searchsorted(ends, begin, side="right")
        last = len(rows) if end is None else np.searchsorted(offset, end)
        for row in rows[first:last]:
            one = self.extents.extent(int(row))
            if one.offset + one.bytes > begin:
                yield one
