"""Ranges of a tensor: where a piece lies in the whole.

A box is a range in each dimension of a tensor, in the coordinates of the whole tensor. All arithmetic of layouts,
packs, coverage and reshards is done on boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """From `start` to before `stop`, in each dimension. A scalar's box has no dimensions and one element."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Its extent in each dimension."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def count(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """As in an array's subscript: `[0:4,2:3]`."""
        return "[" + ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Where it lies in a tensor that holds `outer`."""
        return tuple(
            slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True)
        )  # fmt: skip


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return Box((0,) * len(shape), tuple(shape))


def chunk(shape: Sequence[int], dim: int | None, parts: int, index: int) -> Box:
    """Part `index` of a tensor that is cut along `dim` as `torch.chunk` cuts it; all of it without a `dim`.

    The first parts are the full ones; the last may be smaller or empty, where `parts` does not divide the extent.
    """
    if dim is None:
        return whole(shape)
    extent = shape[dim]
    step = -(-extent // parts)
    start, stop = (0,) * len(shape), tuple(shape)
    low, high = min(index * step, extent), min((index + 1) * step, extent)
    return Box((*start[:dim], low, *start[dim + 1 :]), (*stop[:dim], high, *stop[dim + 1 :]))


def overlap(one: Box, other: Box) -> Box | None:
    """What lies in both; None where nothing does."""
    start = tuple(max(a, b) for a, b in zip(one.start, other.start, strict=True))
    stop = tuple(min(a, b) for a, b in zip(one.stop, other.stop, strict=True))
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return None
    return Box(start, stop)


def without(box: Box, hole: Box) -> list[Box]:
    """`box` less `hole`, which lies in it, as boxes that do not overlap: two at most for each dimension."""
    rest = []
    start, stop = list(box.start), list(box.stop)
    for dim in range(len(start)):
        if start[dim] < hole.start[dim]:
            rest.append(Box(tuple(start), (*stop[:dim], hole.start[dim], *stop[dim + 1 :])))
        if hole.stop[dim] < stop[dim]:
            rest.append(Box((*start[:dim], hole.stop[dim], *start[dim + 1 :]), tuple(stop)))
        start[dim], stop[dim] = hole.start[dim], hole.stop[dim]
    return rest
