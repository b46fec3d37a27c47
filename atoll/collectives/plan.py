"""Which rank sends which piece to whom, and in what order they are added.

A plan is data: for each round and rank, what it sends and what it does with what comes in. The same plan runs on
integers in one process (`run`, the oracle) and over sockets (`tcp_communicator`). Every element is added up along one
fixed order of ranks and copied from one owner, so all ranks end with the same bits.

- `direct`: each sends all it has to all; one latency, (P-1) N bytes. For messages where latency is the cost.
- `ring`: reduce-scatter then all-gather along the ring of ranks, 2 (P-1)/P N bytes a rank: the bound for equal links
  (Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Below this a ring's 2 (P-1) latencies cost more than the direct plan's extra bytes on any link we know.
DIRECT_BYTES = 16 * 1024


class Action(enum.StrEnum):
    """What a rank does with a piece that comes in."""

    ADD = "add"
    COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """In one round: send piece `give` to `to`; take piece `take` from `source` and ADD or COPY it."""

    to: int
    give: int
    source: int
    take: int
    action: Action


def ring(size: int, rank: int) -> tuple[Move, ...]:
    """The rounds of `rank` in a ring all-reduce over `size` ranks; pieces are numbered 0..size-1."""
    to, source = (rank + 1) % size, (rank - 1) % size
    rounds = size - 1
    reduce = tuple(
        Move(to=to, give=(rank - r) % size, source=source, take=(rank - r - 1) % size, action=Action.ADD)
        for r in range(rounds)
    )
    gather = tuple(
        Move(to=to, give=(rank - r + 1) % size, source=source, take=(rank - r) % size, action=Action.COPY)
        for r in range(rounds)
    )
    return reduce + gather


def pieces(count: int, size: int) -> tuple[tuple[int, int], ...]:
    """`count` elements in `size` nearly equal ranges [start, end)."""
    edges = [count * i // size for i in range(size + 1)]
    return tuple(itertools.pairwise(edges))


def is_direct(size_bytes: int, size: int) -> bool:
    """True where the direct plan is the better one."""
    return size <= 2 or size_bytes * (size - 1) <= DIRECT_BYTES * 4  # noqa: PLR2004 - two ranks: both plans are one


def run(inputs: Sequence[Sequence[int]], add: Callable[[int, int], int]) -> list[list[int]]:
    """The oracle: the ring plan on integers, all ranks in one process; returns each rank's final values."""
    size = len(inputs)
    state = [list(values) for values in inputs]
    ranges = pieces(len(state[0]), size)
    plans = [ring(size, rank) for rank in range(size)]
    for number in range(len(plans[0])):
        sent = [state[rank][slice(*ranges[plans[rank][number].give])] for rank in range(size)]
        for rank in range(size):
            move = plans[rank][number]
            _take(state[rank], ranges[move.take], sent[move.source], move.action, add)
    return state


def _take(
    values: list[int], place: tuple[int, int], incoming: list[int], action: Action, add: Callable[[int, int], int]
) -> None:
    start, _ = place
    for offset, value in enumerate(incoming):
        values[start + offset] = add(values[start + offset], value) if action is Action.ADD else value
