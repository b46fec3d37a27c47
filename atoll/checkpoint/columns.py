"""Many boxes of many tensors as columns, and which of them meet: the arithmetic of a million rows.

Boxes of fewer dimensions than the widest are filled up with [0:1], so that a row is a tensor's number and two corners.
Two sets of boxes meet by cells: the distinct begins of one set cut every dimension of its tensor into intervals, at most
about four times as many cells as the tensor has boxes (more begins are taken together); each box is entered in all cells
it touches, and boxes in one cell are compared. What meets in several cells counts in the one where the common part
begins. Layouts are cut like that themselves, so a cell holds few boxes, and the work grows with boxes and meetings, not
with their product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.logical import Logical
from atoll.errors import CheckpointError

Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
# Cells for each box of a tensor: enough that uneven cuts share no cell, few enough that wide boxes fill not many.
CELLS = 4


@dataclass(frozen=True, slots=True)
class Boxes:
    """`tensor` [n] are numbers, `start` and `stop` [n, dims] corners."""

    tensor: Ints
    start: Ints
    stop: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def dims(self) -> int:
        """Dimensions of the widest tensor, one at least."""
        return int(self.start.shape[1])

    def volumes(self) -> Ints:
        """Elements of each box [n]."""
        found = self.stop[:, 0] - self.start[:, 0]
        for dim in range(1, self.dims):
            found *= self.stop[:, dim] - self.start[:, dim]
        return found

    def take(self, rows: Ints | Flags) -> Boxes:
        """Some rows."""
        return Boxes(self.tensor[rows], self.start[rows], self.stop[rows])

    def box(self, row: int, logicals: Sequence[Logical]) -> Box:
        """One row as a box."""
        dims = len(logicals[int(self.tensor[row])].shape)
        return Box(tuple(self.start[row, :dims].tolist()), tuple(self.stop[row, :dims].tolist()))


def width(logicals: Iterable[Logical]) -> int:
    """How many dimensions columns for these tensors have."""
    return max((len(one.shape) for one in logicals), default=1) or 1


def columns(logicals: Sequence[Logical], boxes: Iterable[tuple[str, Box]]) -> Boxes:
    """Named boxes as columns; a tensor's number is its place in `logicals`. Raises `CheckpointError` for unknown names."""
    number = {one.name: i for i, one in enumerate(logicals)}
    dims = width(logicals)
    tensors: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    for name, box in boxes:
        if name not in number:
            raise CheckpointError(f"a box {box} of tensor {name!r}, which the state does not have")
        logical = logicals[number[name]]
        if len(box.start) != len(logical.shape) or len(box.stop) != len(logical.shape):
            raise CheckpointError(f"{name}{box} has other dimensions than the tensor's {list(logical.shape)}")
        fill = dims - len(box.start)
        tensors.append(number[name])
        starts += (*box.start, *(0,) * fill)
        stops += (*box.stop, *(1,) * fill)
    return Boxes(
        np.array(tensors, dtype=np.int64),
        np.array(starts, dtype=np.int64).reshape(-1, dims),
        np.array(stops, dtype=np.int64).reshape(-1, dims),
    )


def stacked(boxes: Sequence[Boxes]) -> Boxes:
    """One set after the other; at least one, of equal width."""
    return Boxes(
        np.concatenate([one.tensor for one in boxes]),
        np.concatenate([one.start for one in boxes]),
        np.concatenate([one.stop for one in boxes]),
    )


def wholes(logicals: Sequence[Logical]) -> Boxes:
    """Each tensor's own box, in their order."""
    return columns(logicals, ((one.name, Box((0,) * len(one.shape), tuple(one.shape))) for one in logicals))


@dataclass(frozen=True, slots=True)
class Meetings:
    """`one` and `other` [m] are rows of two sets of boxes, `start` and `stop` [m, dims] what lies in both."""

    one: Ints
    other: Ints
    start: Ints
    stop: Ints


def meetings(one: Boxes, other: Boxes) -> Meetings:
    """All pairs of boxes of one tensor with elements in common, by rows of `other`, then of `one`.

    Fastest where rows stand in the order of tensors and begins: then searches stay within the processor's caches.
    """
    tensors = int(max(one.tensor.max(initial=-1), other.tensor.max(initial=-1))) + 1
    mine, theirs = np.flatnonzero(one.volumes() > 0), np.flatnonzero(other.volumes() > 0)
    grid = _grid(one if len(mine) == len(one) else one.take(mine), other, tensors)
    my_cell, my_row = _entered(grid, one, mine)
    their_cell, their_row = (my_cell, my_row) if other is one else _entered(grid, other, theirs)
    order = np.argsort(my_cell, kind="stable")
    my_cell, my_row = my_cell[order], my_row[order]
    begins = np.flatnonzero(np.diff(my_cell, prepend=-1) > 0)
    filled, sizes = my_cell[begins], np.diff(np.append(begins, len(my_cell)))
    found = np.minimum(np.searchsorted(filled, their_cell), max(len(filled) - 1, 0))
    hit = filled[found] == their_cell if len(filled) else np.zeros(len(their_cell), dtype=np.bool_)
    first, count = begins[found[hit]], sizes[found[hit]]
    their_cell, their_row = their_cell[hit], their_row[hit]
    a, b = my_row[_ranges(first, count)], np.repeat(their_row, count)
    start, stop = np.maximum(one.start[a], other.start[b]), np.minimum(one.stop[a], other.stop[b])
    cell = np.repeat(their_cell, count)
    # Indexing copies every column: where a step drops nothing, as in most layouts, it is left out.
    real = start[:, 0] < stop[:, 0]
    for dim in range(1, one.dims):
        real &= start[:, dim] < stop[:, dim]
    if not real.all():
        a, b, start, stop, cell = a[real], b[real], start[real], stop[real], cell[real]
    here = grid.cells(one.tensor[a], start) == cell
    if not here.all():
        a, b, start, stop = a[here], b[here], start[here], stop[here]
    place = b * max(len(one), 1) + a
    if (place[1:] >= place[:-1]).all():
        return Meetings(a, b, start, stop)
    order = np.argsort(place)
    return Meetings(a[order], b[order], start[order], stop[order])


@dataclass(frozen=True, slots=True)
class _Grid:
    """For each dimension: `cuts` of all tensors in one ascending row, each tensor's own above its `base` [tensors].

    `first` [dims, tensors] is where a tensor's cuts begin, `merged` how many make an interval, `step` by how much the
    cell's number grows with it.
    """

    base: Ints
    cuts: tuple[Ints, ...]
    first: Ints
    merged: Ints
    step: Ints
    begin: Ints

    def interval(self, dim: int, tensor: Ints, at: Ints) -> Ints:
        """In which interval of its tensor a coordinate lies; before the first cut, in the first."""
        found = np.searchsorted(self.cuts[dim], self.base[dim][tensor] + at, side="right") - 1
        intervals: Ints = np.maximum(found - self.first[dim][tensor], 0) // self.merged[dim][tensor]
        return intervals

    def cells(self, tensor: Ints, at: Ints) -> Ints:
        """The numbers of the cells of points [m, dims]."""
        found = self.begin[tensor].copy()
        for dim in range(at.shape[1]):
            found += self.interval(dim, tensor, at[:, dim]) * self.step[dim][tensor]
        return found


def _grid(boxes: Boxes, other: Boxes, tensors: int) -> _Grid:
    """The cells that a set of boxes makes, for points of another set, too."""
    dims = boxes.dims
    base, first, counts = (np.zeros((dims, tensors), dtype=np.int64) for _ in range(3))
    cuts = []
    for dim in range(dims):
        top = np.zeros(tensors, dtype=np.int64)
        np.maximum.at(top, boxes.tensor, boxes.stop[:, dim])
        np.maximum.at(top, other.tensor, other.stop[:, dim])
        # A tensor's coordinates, less than its highest stop, lie between its base and the next one's.
        base[dim] = np.concatenate(([0], np.cumsum(top[:-1] + 1))) if tensors else top
        ascending = np.sort(base[dim][boxes.tensor] + boxes.start[:, dim])
        cuts.append(ascending[np.diff(ascending, prepend=-1) > 0])
        first[dim] = np.searchsorted(cuts[dim], base[dim])
        counts[dim] = np.diff(np.append(first[dim], len(cuts[dim])))
    intervals = _coarse(np.maximum(counts, 1), np.bincount(boxes.tensor, minlength=tensors))
    merged = -(-np.maximum(counts, 1) // intervals)
    intervals = -(-np.maximum(counts, 1) // merged)
    step = np.ones((dims, tensors), dtype=np.int64)
    for dim in range(dims - 2, -1, -1):
        step[dim] = step[dim + 1] * intervals[dim + 1]
    begin = np.concatenate(([0], np.cumsum(step[0] * intervals[0])[:-1])) if tensors else step[0]
    return _Grid(base, tuple(cuts), first, merged, step, begin)


def _coarse(counts: Ints, boxes: Ints) -> Ints:
    """Intervals of each dimension: as many as cuts, halved where there are most until the cells are few enough."""
    intervals = counts.copy()
    limit = CELLS * boxes + 1
    over = np.flatnonzero(np.prod(intervals.astype(np.float64), axis=0) > limit)
    while len(over):
        most = np.argmax(intervals[:, over], axis=0)
        intervals[most, over] = -(-intervals[most, over] // 2)
        over = over[np.prod(intervals[:, over].astype(np.float64), axis=0) > limit[over]]
    return intervals


def _entered(grid: _Grid, boxes: Boxes, rows: Ints) -> tuple[Ints, Ints]:
    """The numbers of the cells that boxes touch, and for each the row of its box."""
    tensor = boxes.tensor[rows]
    lows, spans = [], []
    for dim in range(boxes.dims):
        low = grid.interval(dim, tensor, boxes.start[rows, dim])
        high = grid.interval(dim, tensor, boxes.stop[rows, dim] - 1)
        lows.append(low)
        spans.append(high - low + 1)
    touched = np.prod(np.stack(spans), axis=0) if spans else np.zeros(0, dtype=np.int64)
    which = np.repeat(np.arange(len(rows)), touched)
    rest = _ranges(np.zeros(len(rows), dtype=np.int64), touched)
    cells = grid.begin[tensor][which]
    for dim in range(boxes.dims - 1, -1, -1):
        span = spans[dim][which]
        cells += (lows[dim][which] + rest % span) * grid.step[dim][tensor][which]
        rest //= span
    return cells, rows[which]


def _ranges(first: Ints, count: Ints) -> Ints:
    """`first[i]` and the `count[i] - 1` numbers after it, one range after the other."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    found: Ints = np.arange(total) + np.repeat(first - ends + count, count)
    return found
