"""Which rank sends which piece to whom, and in what order they are added.

A plan is data: what a rank sends first, and for every piece that comes in, whether it is added or copied and whether it
goes on. The same plan runs on integers in one process (`run`, the oracle) and over sockets (`tcp_communicator`). Every
element is added up along one fixed order of ranks and copied from one owner, so all ranks end with the same bits.

- `direct`: each sends all it has to all, and adds in rank order (`fold_order`); one latency, (P-1) N bytes. For messages
  where latency is the cost.
- `ring`: reduce-scatter then all-gather along the ring of ranks, 2 (P-1)/P N bytes a rank: the bound for equal links
  (Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms", 2009). Each piece travels in slices, so that a slice is
  added and on its way while the next one arrives.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.errors import InternalError

# Up to this many bytes sent by a rank, a ring's 2 (P-1) latencies cost more than the direct plan's extra bytes.
DIRECT_BYTES = 64 * 1024
# Small enough to be added while it is in a core's cache, large enough to hide the cost of a frame (about 20 us).
SLICE_BYTES = 512 * 1024


class Shape(enum.StrEnum):
    """The kinds of plan."""

    DIRECT = "direct"
    RING = "ring"


class Action(enum.StrEnum):
    """What a rank does with a slice that comes in."""

    ADD = "add"
    COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send this slice of this piece as message `part`."""

    piece: int
    slice: int
    part: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Message `part` is this slice: ADD or COPY it, then send it on as message `forward`, unless that is None."""

    piece: int
    slice: int
    part: int
    action: Action
    forward: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One rank's part of a ring all-reduce: what it sends unasked, and what it does with what comes, in that order."""

    to: int
    source: int
    first: tuple[Send, ...]
    takes: tuple[Take, ...]


@functools.lru_cache(maxsize=256)
def ring(size: int, rank: int, slices: int) -> Ring:
    """The part of `rank` in a ring all-reduce of `size` pieces of `slices` slices each."""
    rounds = 2 * (size - 1)
    takes = tuple(
        Take(
            piece=(rank - number - 1) % size,
            slice=piece_slice,
            part=number * slices + piece_slice,
            action=Action.ADD if number < size - 1 else Action.COPY,
            forward=(number + 1) * slices + piece_slice if number + 1 < rounds else None,
        )
        for number in range(rounds)
        for piece_slice in range(slices)
    )
    first = tuple(Send(piece=rank, slice=s, part=s) for s in range(slices))
    return Ring(to=(rank + 1) % size, source=(rank - 1) % size, first=first, takes=takes)


def pieces(count: int, size: int) -> tuple[tuple[int, int], ...]:
    """`count` elements in `size` nearly equal ranges [start, end)."""
    edges = [count * i // size for i in range(size + 1)]
    return tuple(itertools.pairwise(edges))


def cut(count: int, size: int, slices: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The range [start, end) of every slice of every piece."""
    return tuple(
        tuple((start + s, start + e) for s, e in pieces(end - start, slices)) for start, end in pieces(count, size)
    )


def slices_for(size_bytes: int, size: int) -> int:
    """How many slices a piece of a message of `size_bytes` travels in."""
    return max(1, -(-size_bytes // (size * SLICE_BYTES)))


def choose(size_bytes: int, size: int) -> Shape:
    """The better plan for a message of `size_bytes` over `size` ranks."""
    return Shape.DIRECT if size_bytes * (size - 1) <= DIRECT_BYTES else Shape.RING


def fold_order(size: int, rank: int) -> tuple[tuple[int, ...], int]:
    """The direct plan: all contributions in the order they are added, and whose memory `rank` adds them up in.

    Never its own contribution's memory: that may still be on its way out.
    """
    return tuple(range(size)), 1 if rank == 0 else 0


def run_direct(inputs: Sequence[Sequence[int]], add: Callable[[int, int], int]) -> list[list[int]]:
    """The oracle of the direct plan."""
    size = len(inputs)
    results = []
    for rank in range(size):
        order, into = fold_order(size, rank)
        received = {r: list(inputs[r]) for r in range(size)}
        total = received[order[0]]
        for r in order[1:]:
            total = received[into] = [add(a, b) for a, b in zip(total, received[r], strict=True)]
        results.append(total)
    return results


def run(
    inputs: Sequence[Sequence[int]],
    add: Callable[[int, int], int],
    *,
    slices: int = 1,
    pick: Callable[[Sequence[int]], int] = lambda ready: ready[0],
) -> list[list[int]]:
    """The oracle: the ring on integers, all ranks in one process; returns each rank's final values.

    `pick` chooses which of the ranks that can go on goes next: a plan is right if no choice changes the outcome. Raises
    `InternalError` where ranks wait for each other in a circle.
    """
    size = len(inputs)
    ranges = cut(len(inputs[0]), size, slices)
    plans = [ring(size, rank, slices) for rank in range(size)]
    state = [list(values) for values in inputs]
    wires: defaultdict[tuple[int, int], deque[list[int]]] = defaultdict(deque)
    for rank, mine in enumerate(plans):
        for send in mine.first:
            wires[mine.to, send.part].append(_read(state[rank], ranges[send.piece][send.slice]))
    todo = [deque(mine.takes) for mine in plans]
    while any(todo):
        ready = [r for r in range(size) if todo[r] and wires[r, todo[r][0].part]]
        if not ready:
            raise InternalError(f"the ring of {size} ranks in {slices} slices cannot go on: {[len(t) for t in todo]}")
        rank = pick(ready)
        take = todo[rank].popleft()
        place = ranges[take.piece][take.slice]
        _take(state[rank], place, wires[rank, take.part].popleft(), take.action, add)
        if take.forward is not None:
            wires[plans[rank].to, take.forward].append(_read(state[rank], place))
    return state


def _read(values: list[int], place: tuple[int, int]) -> list[int]:
    return values[slice(*place)]


def _take(
    values: list[int], place: tuple[int, int], incoming: list[int], action: Action, add: Callable[[int, int], int]
) -> None:
    start, _ = place
    for offset, value in enumerate(incoming, start):
        values[offset] = add(values[offset], value) if action is Action.ADD else value
