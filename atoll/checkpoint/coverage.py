"""Whether boxes hold each element of each tensor exactly once, proven from the boxes alone.

They do if and only if no two of them have an element in common and their volumes add up to the tensor's. Where they do
not, the faults are named: what two boxes hold, and the holes, found by halving a tensor until a part is all hole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.checkpoint.boxes import Box, overlap, without
from atoll.checkpoint.columns import Boxes, Ints, columns, meetings, stacked, wholes
from atoll.checkpoint.logical import Logical

# How many faults are told: one names the culprit, and a state without any boxes has as many as tensors.
LIMIT = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """`box` of `tensor` is a hole (`rows` empty), reaches out of the tensor (one row), or is held by two rows."""

    tensor: str
    box: Box
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        what = ("is in no pack", "reaches out of its tensor", "is in two packs")[len(self.rows)]
        return f"{self.tensor}{self.box} {what}"


def coverage_problem(logicals: Sequence[Logical], boxes: Boxes | Iterable[tuple[str, Box]]) -> str:
    """Empty where `boxes` hold each element of all `logicals` exactly once; else what is wrong, by tensor and box."""
    if not isinstance(boxes, Boxes):
        known = {one.name for one in logicals}
        named = list(boxes)
        strange = next((name for name, _ in named if name not in known), None)
        if strange is not None:
            return f"tensor {strange!r} is in a pack and not in the state"
        boxes = columns(logicals, named)
    faults = list(itertools.islice(coverage_faults(logicals, boxes), LIMIT + 1))
    if not faults:
        return ""
    more = f", and {'more than ' * (len(faults) > LIMIT)}{min(len(faults), LIMIT + 1) - 1} other faults"
    return f"{faults[0]}{more if len(faults) > 1 else ''}"


def coverage_faults(logicals: Sequence[Logical], boxes: Boxes) -> Iterator[Fault]:
    """All that is wrong, one after the other: boxes out of their tensors, then what is held twice, then holes."""
    full = wholes(logicals)
    outside = np.flatnonzero(
        ((boxes.start < 0) | (boxes.stop < boxes.start) | (boxes.stop > full.stop[boxes.tensor])).any(axis=1)
    )
    for row in outside.tolist():
        yield Fault(logicals[int(boxes.tensor[row])].name, boxes.box(row, logicals), (row,))
    if len(outside):
        return
    order = np.lexsort((boxes.start[:, 0], boxes.tensor))
    boxes = boxes.take(order)
    met = meetings(boxes, boxes)
    pairs = np.flatnonzero(met.one < met.other)
    common = Boxes(boxes.tensor[met.one[pairs]], met.start[pairs], met.stop[pairs])
    for pair, one, other in zip(range(len(pairs)), order[met.one[pairs]], order[met.other[pairs]], strict=True):
        yield Fault(logicals[int(common.tensor[pair])].name, common.box(pair, logicals), (int(one), int(other)))
    yield from _holes(logicals, _apart(logicals, boxes, met.one[pairs], met.other[pairs]), full)


def _apart(logicals: Sequence[Logical], boxes: Boxes, one: Ints, other: Ints) -> Boxes:
    """The same elements in boxes that do not overlap: of each pair the second gives way."""
    if not len(one):
        return boxes
    kept = boxes.take(np.setdiff1d(np.arange(len(boxes)), other))
    rest: list[tuple[str, Box]] = []
    for row in np.unique(other).tolist():
        left = [boxes.box(row, logicals)]
        for before in one[other == row].tolist():
            taken = boxes.box(before, logicals)
            left = [piece for box in left for piece in _less(box, taken)]
        rest += ((logicals[int(boxes.tensor[row])].name, box) for box in left)
    together = stacked((kept, columns(logicals, rest)))
    return together.take(np.argsort(together.tensor, kind="stable"))


def _less(box: Box, taken: Box) -> list[Box]:
    common = overlap(box, taken)
    return [box] if common is None else without(box, common)


def _holes(logicals: Sequence[Logical], boxes: Boxes, full: Boxes) -> Iterator[Fault]:
    """Boxes do not overlap here, so volumes tell where anything lacks."""
    held = np.zeros(len(logicals), dtype=np.int64)
    np.add.at(held, boxes.tensor, boxes.volumes())
    begins = np.searchsorted(boxes.tensor, np.arange(len(logicals) + 1))
    for tensor in np.flatnonzero(held != full.volumes()).tolist():
        mine = boxes.take(np.arange(begins[tensor], begins[tensor + 1]))
        for hole in untouched(full.take(np.array([tensor])), mine):
            yield Fault(logicals[tensor].name, hole.box(0, logicals))


def untouched(part: Boxes, held: Boxes) -> Iterator[Boxes]:
    """The parts of `part`, one row, that no box of `held` touches; those do not overlap."""
    waiting = [(part, held)]
    while waiting:
        part, held = waiting.pop()
        start, stop = np.maximum(held.start, part.start), np.minimum(held.stop, part.stop)
        inside = np.flatnonzero((start < stop).all(axis=1))
        if not len(inside):
            if part.volumes()[0]:
                yield part
            continue
        held = Boxes(held.tensor[inside], start[inside], stop[inside])
        if held.volumes().sum() == part.volumes()[0]:
            continue
        low, high = _cut(part, held)
        waiting += [(high, held), (low, held)]


def _cut(part: Boxes, held: Boxes) -> tuple[Boxes, Boxes]:
    """In two at an edge of a box, the median one of the dimension that has most: no hole is cut without need."""
    edges = [
        np.unique(np.concatenate((held.start[:, dim], held.stop[:, dim]))) for dim in range(part.dims)
    ]  # fmt: skip
    inner = [e[(e > part.start[0, dim]) & (e < part.stop[0, dim])] for dim, e in enumerate(edges)]
    dim = max(range(part.dims), key=lambda d: len(inner[d]))
    at = inner[dim][len(inner[dim]) // 2]
    low, high = part.stop.copy(), part.start.copy()
    low[0, dim] = high[0, dim] = at
    return Boxes(part.tensor, part.start, low), Boxes(part.tensor, high, part.stop)
