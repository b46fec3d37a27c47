"""What a plan is: for every range of elements, in what order ranks add up, meet and hand on.

A plan is data, the same on all ranks. A *program* is the life of one range: a list of moves that anyone could carry out
one after the other. `Reduce` adds the source's sum into the target's, `Spread` replaces the target's by the source's, in
a `Meet` all members exchange what they have and add it up in the order of the members. Programs depend on nothing but
themselves, so that while one crosses a slow link the next is summed inside an island; earlier programs go first.

Every element is added along one fixed order and either copied from one owner or added in the same order by all who meet:
all ranks end with the same bits. `part_of` is a rank's share in a plan; `plan_oracle` runs plans on integers.
"""

from __future__ import annotations

import enum
import functools
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reduce:
    """The target adds the source's sum to its own."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Spread:
    """The target takes over the source's value."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Meet:
    """Each member gets the sum over all members, added in this order. `coded`: exchanged in the plan's codec."""

    members: tuple[int, ...]
    coded: bool = False


Move = Reduce | Spread | Meet
Moves = tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Elements [start, end) and what is done with them, in this order."""

    start: int
    end: int
    moves: Moves


@dataclass(frozen=True)
class Plan:
    """Programs by priority, over ranks 0 to size-1. `name` tells the recipe, `digest` tells plans apart on the wire."""

    name: str
    size: int
    count: int
    programs: tuple[Program, ...]
    codec: str | None = None

    @functools.cached_property
    def digest(self) -> int:
        """32 bits of all that the plan says."""
        return zlib.crc32(repr((self.name, self.size, self.count, self.programs, self.codec)).encode())


# -- one rank's part -------------------------------------------------------------------------------------------------


class Action(enum.Enum):
    """What a rank does with what comes in."""

    ADD = enum.auto()
    COPY = enum.auto()


@dataclass(frozen=True, slots=True)
class Take:
    """Message `part` from `source`: added or taken over."""

    source: int
    action: Action
    part: int


@dataclass(frozen=True, slots=True)
class Give:
    """What the rank has goes to `target` as message `part`."""

    target: int
    part: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the rank has goes to all other members, theirs come in, all are added in order; every message is `part`."""

    members: tuple[int, ...]
    coded: bool
    part: int


Instruction = Take | Give | Exchange


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part in one program."""

    start: int
    end: int
    instructions: tuple[Instruction, ...]


@functools.lru_cache(maxsize=256)
def part_of(plan: Plan, rank: int) -> tuple[Part, ...]:
    """What `rank` does, program by program; programs without it, or without elements, are left out."""
    widest = max((len(p.moves) for p in plan.programs), default=0)
    parts = (
        Part(p.start, p.end, tuple(_instructions(p.moves, rank, number * widest)))
        for number, p in enumerate(plan.programs)
        if p.end > p.start
    )
    return tuple(part for part in parts if part.instructions)


def _instructions(moves: Moves, rank: int, first: int) -> Iterator[Instruction]:
    for number, move in enumerate(moves, first):
        match move:
            case Reduce(source, target) if rank == source:
                yield Give(target, number)
            case Reduce(source, target) if rank == target:
                yield Take(source, Action.ADD, number)
            case Spread(source, target) if rank == source:
                yield Give(target, number)
            case Spread(source, target) if rank == target:
                yield Take(source, Action.COPY, number)
            case Meet(members, coded) if rank in members:
                yield Exchange(members, coded, number)
            case _:
                pass


# -- ranges ----------------------------------------------------------------------------------------------------------


def cut(start: int, end: int, weights: tuple[float, ...]) -> tuple[tuple[int, int], ...]:
    """[start, end) in one range for each weight, sized by it; the same on every machine."""
    total = sum(weights)
    edges = [start, *(start + round((end - start) * w / total) for w in itertools.accumulate(weights))]
    return tuple(itertools.pairwise(edges))


def even(start: int, end: int, number: int) -> tuple[tuple[int, int], ...]:
    """[start, end) in `number` nearly equal ranges."""
    edges = [start + (end - start) * i // number for i in range(number + 1)]
    return tuple(itertools.pairwise(edges))
