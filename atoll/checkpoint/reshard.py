"""Which piece of which tensor goes from whom to whom: boxes that are held, boxes that are wanted, copies between them.

A box is a range in each dimension of a tensor, in the coordinates of the whole tensor. A source holds the values of its
box; a target wants those of its own. The planner covers every target with pieces of sources, each element exactly once,
the cheapest source first (`cost`), among equals the one that has least to send so far, among those the lowest rank. What
no source holds is an error that names it: a state with a hole is never put together.

All members compute the same plan from the same boxes, so nobody asks anybody what to send. The same planner serves every
change of shape: restore, a spare in the place of a loss, another number of ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from atoll.checkpoint.boxes import Box, overlap, without
from atoll.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Source:
    """`rank` holds `box` of a tensor; `key` says in which of its holdings."""

    rank: int
    key: str
    box: Box


@dataclass(frozen=True, slots=True)
class Target:
    """`rank` wants `box` of a tensor."""

    rank: int
    box: Box


@dataclass(frozen=True, slots=True)
class Copy:
    """`box` of tensor `name`: from holding `key` of rank `source` to rank `target`."""

    name: str
    source: int
    key: str
    target: int
    box: Box


# (source, target): what a byte costs, in any unit; 0 for the same rank.
Cost = Callable[[int, int], float]


def nearest(source: int, target: int) -> float:
    """Own memory first, anybody else alike."""
    return 0.0 if source == target else 1.0


class Planner:
    """Plans one tensor after the other, and shares out what equal sources have to send."""

    def __init__(self, cost: Cost = nearest) -> None:
        self._cost = cost
        self._load: defaultdict[int, int] = defaultdict(int)

    def plan(self, name: str, itemsize: int, sources: Iterable[Source], targets: Iterable[Target]) -> list[Copy]:
        """The copies that fill all `targets`. Raises `CheckpointError` where nobody holds what one wants."""
        held = list(sources)
        return [copy for target in targets for copy in self._fill(name, itemsize, held, target)]

    def _fill(self, name: str, itemsize: int, sources: list[Source], target: Target) -> list[Copy]:
        missing = [target.box] if target.box.count else []
        copies: list[Copy] = []
        for source in sorted(sources, key=lambda s: (self._cost(s.rank, target.rank), self._load[s.rank], s.rank)):
            if not missing:
                break
            found = [(box, part) for box in missing if (part := overlap(box, source.box)) is not None]
            for box, part in found:
                missing.remove(box)
                missing.extend(without(box, part))
                copies.append(Copy(name, source.rank, source.key, target.rank, part))
                if source.rank != target.rank:
                    self._load[source.rank] += part.count * itemsize
        if missing:
            raise CheckpointError(
                f"no one holds {name}{list(zip(missing[0].start, missing[0].stop, strict=True))}, which rank "
                f"{target.rank} needs; {len(sources)} sources hold other parts of it"
            )
        return copies


def messages(copies: Iterable[Copy]) -> dict[tuple[int, int], list[Copy]]:
    """The copies between different ranks, by (source, target), in an order that both ends know."""
    found: dict[tuple[int, int], list[Copy]] = {}
    for copy in copies:
        if copy.source != copy.target:
            found.setdefault((copy.source, copy.target), []).append(copy)
    return found


def frames(copies: Iterable[Copy], itemsizes: Mapping[str, int], large: int) -> list[list[Copy]]:
    """How the copies of one message travel: each of `large` bytes by itself, smaller ones together up to about as many."""
    alone: list[list[Copy]] = []
    together: list[list[Copy]] = []
    room = 0
    for copy in copies:
        size = copy.box.count * itemsizes[copy.name]
        if size >= large:
            alone.append([copy])
        elif size <= room:
            together[-1].append(copy)
            room -= size
        else:
            together.append([copy])
            room = large - size
    return [*together, *alone]
