"""The reshard planner for whole states: a million source boxes, and as many targets, in columns.

The law is `reshard`'s: each target is covered with pieces of sources, each element once, the cheapest source first. Here
sources with the same box are taken together first (a class: the replicas of a shard), targets meet classes, and for each
piece one of the cheapest members sends. Where several are equally cheap they take turns, the largest pieces first, so
that what two of them send differs by one piece at most. Tensors in which sources overlap each other otherwise go to
`reshard.Planner`, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.checkpoint.columns import Boxes, Flags, Ints, meetings, stacked
from atoll.checkpoint.coverage import untouched
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.reshard import Planner, Source, Target
from atoll.errors import CheckpointError

# The golden ratio as a fraction of 2^64: spreads neighbours.
_ODD = 0x9E3779B97F4A7C15
Floats = np.ndarray[Any, np.dtype[np.float64]]
# (ranks of sources, ranks of targets): what a byte costs between each pair.
Costs = Callable[[Ints, Ints], Floats]


def nearest(sources: Ints, targets: Ints) -> Floats:
    """Own memory first, anybody else alike."""
    found: Floats = (sources != targets).astype(np.float64)
    return found


@dataclass(frozen=True, slots=True)
class Copies:
    """`boxes` [n] go from row `source` of the sources to row `target` of the targets; in the order of targets."""

    source: Ints
    target: Ints
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Boxes and the ranks that hold, or want, them [n]."""

    boxes: Boxes
    rank: Ints

    def take(self, rows: Ints | Flags) -> Holdings:
        """Some rows."""
        return Holdings(self.boxes.take(rows), self.rank[rows])


def plan_columns(
    logicals: Sequence[Logical],
    sources: Holdings,
    targets: Holdings,
    *,
    cost: Costs = nearest,
    disjoint: bool = False,
) -> Copies:
    """The copies that fill all targets. Raises `CheckpointError` naming what no source holds.

    With `disjoint` the caller knows that sources with different boxes do not overlap: extents of a committed checkpoint,
    whose coverage was proven, need no second proof.
    """
    classes = _classes(sources.boxes)
    distinct = sources.boxes.take(classes.first)
    odd = np.zeros(len(logicals), dtype=np.bool_)
    if not disjoint:
        met = meetings(distinct, distinct)
        odd[distinct.tensor[met.one[met.one != met.other]]] = True
    plain = np.flatnonzero(~odd[targets.boxes.tensor])
    copies = _planned(logicals, sources, classes, distinct, targets.take(plain), cost)
    if not odd.any():
        return copies
    rows = np.flatnonzero(odd[targets.boxes.tensor])
    return _together(
        Copies(copies.source, plain[copies.target], copies.boxes), _one_by_one(logicals, sources, targets, rows, cost)
    )


@dataclass(frozen=True, slots=True)
class _Classes:
    """Sources by equal boxes: members of class i are `member[begin[i] : begin[i + 1]]`, ascending; `first` is one of each."""

    first: Ints
    begin: Ints
    member: Ints


def _classes(boxes: Boxes) -> _Classes:
    keys = (*boxes.stop.T[::-1], *boxes.start.T[::-1], boxes.tensor)
    # Equal boxes have equal sums of this kind, and sorting one column is cheap: most states hold each box once.
    sums = np.zeros(len(boxes), dtype=np.uint64)
    for key in keys:
        sums = (sums ^ (sums >> np.uint64(31)) ^ key.astype(np.uint64)) * np.uint64(_ODD)
    sums.sort()
    if not (sums[1:] == sums[:-1]).any():
        rows = np.arange(len(boxes))
        return _Classes(rows, np.arange(len(boxes) + 1), rows)
    order = np.lexsort(keys) if len(boxes) else np.zeros(0, dtype=np.int64)
    new = np.zeros(len(boxes), dtype=np.bool_)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    begin = np.flatnonzero(new)
    return _Classes(order[begin], np.append(begin, len(boxes)), order)


def _planned(
    logicals: Sequence[Logical],
    sources: Holdings,
    classes: _Classes,
    distinct: Boxes,
    targets: Holdings,
    cost: Costs,
) -> Copies:
    met = meetings(distinct, targets.boxes)
    boxes = Boxes(targets.boxes.tensor[met.other], met.start, met.stop)
    _refuse_holes(logicals, targets, met.other, boxes)
    if len(classes.member) == len(classes.first):
        return Copies(classes.first[met.one], met.other, boxes)
    itemsizes = np.array([one.itemsize for one in logicals], dtype=np.int64)
    source = _chosen(
        sources.rank, classes, met.one, targets.rank[met.other], boxes.volumes() * itemsizes[boxes.tensor], cost
    )
    return Copies(source, met.other, boxes)


def _chosen(rank: Ints, classes: _Classes, of: Ints, target: Ints, sizes: Ints, cost: Costs) -> Ints:
    """For each piece, of class `of` and for rank `target`, the row of a source."""
    counts = (classes.begin[1:] - classes.begin[:-1])[of]
    piece = np.repeat(np.arange(len(of)), counts)
    ends = np.cumsum(counts)
    member = classes.member[np.arange(len(piece)) + np.repeat(classes.begin[:-1][of] - ends + counts, counts)]
    prices = cost(rank[member], target[piece])
    cheapest = np.flatnonzero(prices == np.minimum.reduceat(prices, ends - counts)[piece]) if len(of) else piece
    piece, member = piece[cheapest], member[cheapest]
    ties = np.bincount(piece, minlength=len(of))
    begin = np.cumsum(ties) - ties
    # Pieces with the same candidates take turns. A sum of squares of mixed ranks tells sets of candidates apart.
    mixed = (rank[member].astype(np.uint64) + np.uint64(1)) * np.uint64(_ODD)
    mixed ^= mixed >> np.uint64(29)
    candidates = np.add.reduceat(mixed * mixed, begin) if len(of) else mixed
    order = np.lexsort((-sizes, candidates))
    sets = candidates[order]
    starts = np.flatnonzero(np.append(True, sets[1:] != sets[:-1])) if len(of) else order
    turn = np.empty(len(of), dtype=np.int64)
    turn[order] = np.arange(len(of)) - np.repeat(starts, np.diff(np.append(starts, len(of))))
    found: Ints = member[begin + turn % np.maximum(ties, 1)]
    return found


def _refuse_holes(logicals: Sequence[Logical], targets: Holdings, target: Ints, pieces: Boxes) -> None:
    """Pieces of one target do not overlap, so their volumes tell whether they fill it."""
    filled = np.zeros(len(targets.rank), dtype=np.int64)
    np.add.at(filled, target, pieces.volumes())
    short = np.flatnonzero(filled != targets.boxes.volumes())
    if not len(short):
        return
    row = int(short[0])
    hole = next(untouched(targets.boxes.take(short[:1]), pieces.take(target == row)))
    raise CheckpointError(
        f"no one holds {logicals[int(hole.tensor[0])].name}{hole.box(0, logicals)}, which rank {int(targets.rank[row])} needs"
    )


def _one_by_one(
    logicals: Sequence[Logical], sources: Holdings, targets: Holdings, rows: Ints, cost: Costs
) -> Copies:  # fmt: skip
    """Tensors whose sources overlap, by the planner of single tensors."""

    def priced(source: int, target: int) -> float:
        return float(cost(np.array([source]), np.array([target]))[0])

    planner = Planner(priced)
    found: list[tuple[int, int]] = []
    boxes: list[Boxes] = [targets.boxes.take(rows[:0])]
    for tensor in np.unique(targets.boxes.tensor[rows]).tolist():
        logical = logicals[tensor]
        held = [
            Source(int(sources.rank[row]), str(row), sources.boxes.box(row, logicals))
            for row in np.flatnonzero(sources.boxes.tensor == tensor).tolist()
        ]
        for row in rows[targets.boxes.tensor[rows] == tensor].tolist():
            wanted = Target(int(targets.rank[row]), targets.boxes.box(row, logicals))
            for copy in planner.plan(logical.name, logical.itemsize, held, [wanted]):
                found.append((int(copy.key), row))
                boxes.append(_filled(tensor, copy.box.start, copy.box.stop, targets.boxes.dims))
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return Copies(pairs[:, 0], pairs[:, 1], stacked(boxes))


def _filled(tensor: int, start: Sequence[int], stop: Sequence[int], dims: int) -> Boxes:
    fill = dims - len(start)
    return Boxes(np.array([tensor]), np.array([[*start, *(0,) * fill]]), np.array([[*stop, *(1,) * fill]]))


def _together(one: Copies, other: Copies) -> Copies:
    target = np.concatenate((one.target, other.target))
    order = np.argsort(target, kind="stable")
    source = np.concatenate((one.source, other.source))
    return Copies(source[order], target[order], stacked((one.boxes, other.boxes)).take(order))
