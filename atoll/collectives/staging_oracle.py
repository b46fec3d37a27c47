"""Schedules of `staging` on integers: every rank of every island in one process, steps in any order that waits allow.

Each rank has its host, which issues steps one after the other, and its queues, which carry them out one after the other.
Wherever several may go on, chance picks: a wait that is missing gives, for some order, a wrong sum, a value that nobody
wrote, or ranks of an island that call their library in unlike orders.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from atoll.collectives.staging import Layout, Mark, Piece, Queue, Stage, Step, pieces_of, shard, width
from atoll.errors import InternalError

_STREAMS = (Queue.ISLAND, Queue.DOWN, Queue.UP)
Cells = list[int | None]


@dataclass(slots=True)
class _Rank:
    """One rank's memory and what it has yet to do."""

    number: int
    values: Sequence[int]
    todo: deque[Step]
    device: list[Cells]
    pinned: list[Cells]
    result: Cells
    queues: dict[Queue, deque[Step]] = field(default_factory=lambda: {q: deque() for q in _STREAMS})
    done: set[Mark] = field(default_factory=set)
    slots: dict[int, int] = field(default_factory=dict)
    crossing: dict[int, list[Piece]] = field(default_factory=dict)

    def head(self, queue: Queue) -> Step | None:
        """The next step of a queue, where nothing holds it up."""
        waiting = self.queues[queue]
        return waiting[0] if waiting and self.done.issuperset(waiting[0].queue_waits) else None


def run(
    layout: Layout,
    values: Sequence[Sequence[int]],
    ranges: Sequence[tuple[int, int]],
    steps: Sequence[Step],
    chance: random.Random,
) -> list[Cells]:
    """The result of each rank, whose contribution is `values[rank]`, for chunks at `ranges`.

    Raises `InternalError` where the ranks wait for one another or an island's ranks disagree on what to call next.
    """
    return _Run(layout, values, ranges, steps, chance).results()


class _Run:
    def __init__(
        self,
        layout: Layout,
        values: Sequence[Sequence[int]],
        ranges: Sequence[tuple[int, int]],
        steps: Sequence[Step],
        chance: random.Random,
    ) -> None:
        self._layout, self._ranges, self._chance = layout, ranges, chance
        slots = 1 + max(step.slot for step in steps)
        longest = max(end - start for start, end in ranges)
        self._ranks = [
            _Rank(
                number=r,
                values=values[r],
                todo=deque(steps),
                device=[[None] * longest for _ in range(slots)],
                pinned=[[None] * longest for _ in range(slots)],
                result=[None] * len(values[r]),
            )
            for r in range(len(values))
        ]

    def results(self) -> list[Cells]:
        while any(r.todo or any(r.queues.values()) or r.crossing for r in self._ranks):
            possible = self._possible()
            if not possible:
                raise InternalError(f"the ranks wait for one another: {[r.todo[0] for r in self._ranks if r.todo]}")
            self._chance.choice(possible)()
        return [r.result for r in self._ranks]

    def _possible(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for rank in self._ranks:
            if rank.todo and rank.done.issuperset(rank.todo[0].host_waits):
                found.append(functools.partial(self._issue, rank))
            copies = (q for q in (Queue.DOWN, Queue.UP) if rank.head(q))
            found += [functools.partial(self._copy, rank, queue) for queue in copies]
            for chunk, piece in ((c, p) for c, left in rank.crossing.items() for p in left):
                if rank.number == piece.members[0] and self._all_have(chunk, piece):
                    found.append(functools.partial(self._cross, chunk, piece))
        for island in self._layout.islands:
            if all(self._ranks[r].head(Queue.ISLAND) for r in island):
                found.append(functools.partial(self._together, island))
        return found

    def _issue(self, rank: _Rank) -> None:
        step = rank.todo.popleft()
        rank.slots[step.chunk] = step.slot
        start, end = self._ranges[step.chunk]
        if step.queue is not Queue.HOST:
            rank.queues[step.queue].append(step)
        elif left := list(pieces_of(end - start, self._layout, rank.number)):
            rank.crossing[step.chunk] = left
        else:
            rank.done.add(step.mark)

    def _all_have(self, chunk: int, piece: Piece) -> bool:
        return all(piece in self._ranks[member].crossing.get(chunk, ()) for member in piece.members)

    def _owned(self, rank: int, chunk: int) -> tuple[int, int, int]:
        """(start, end) within the chunk of what a rank owns, and the chunk's length."""
        start, end = self._ranges[chunk]
        island, position = self._layout.place(rank)
        return *shard(end - start, self._layout.sizes[island], position), end - start

    def _copy(self, rank: _Rank, queue: Queue) -> None:
        step = rank.queues[queue].popleft()
        source, target = (rank.device, rank.pinned) if queue is Queue.DOWN else (rank.pinned, rank.device)
        target[step.slot][:] = source[step.slot]
        rank.done.add(step.mark)

    def _cross(self, chunk: int, piece: Piece) -> None:
        """All owners of a piece have it on their hosts: each gets the sum."""
        cells = [self._cells(member, chunk, piece) for member in piece.members]
        for i in range(piece.end - piece.start):
            total = _total([memory[first + i] for memory, first in cells])
            for memory, first in cells:
                memory[first + i] = total
        for member in piece.members:
            rank = self._ranks[member]
            rank.crossing[chunk].remove(piece)
            if not rank.crossing[chunk]:
                del rank.crossing[chunk]
                rank.done.add(Mark(Stage.CROSS, chunk))

    def _cells(self, member: int, chunk: int, piece: Piece) -> tuple[Cells, int]:
        """The host memory in which a member has the piece, and where it begins there."""
        rank = self._ranks[member]
        return rank.pinned[rank.slots[chunk]], piece.start - self._owned(member, chunk)[0]

    def _together(self, island: tuple[int, ...]) -> None:
        steps = {self._ranks[r].queues[Queue.ISLAND].popleft() for r in island}
        calls = {step.mark for step in steps}
        if len(calls) != 1:
            raise InternalError(f"the ranks {island} call their library in unlike orders: {calls}")
        step = steps.pop()
        start, end = self._ranges[step.chunk]
        each = width(end - start, len(island))
        for r in island:
            rank = self._ranks[r]
            if step.stage is Stage.REDUCE:
                first, last, _ = self._owned(r, step.chunk)
                for i in range(first, last):
                    rank.device[step.slot][i - first] = sum(self._ranks[m].values[start + i] for m in island)
            elif step.stage is Stage.GATHER:
                for i in range(end - start):
                    owner = self._ranks[island[i // each]]
                    rank.result[start + i] = owner.device[step.slot][i % each]
            else:
                rank.result[:] = [sum(self._ranks[m].values[i] for m in island) for i in range(len(rank.values))]
            rank.done.add(step.mark)


def _total(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
