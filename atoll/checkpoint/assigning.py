"""Which holder of a box writes it, and which stands by: decided alike by every rank, from the layouts of all.

Boxes with one holder are its own. The others go, largest first, to the holder that has least to write so far (the LPT
rule, Graham 1969: where all ranks hold everything, the fullest share is at most 4/3 of the best). A second copy is staged
by the next holder after the owner, in the ring of holders, that is on another host, and by the next one on the same host
where there is no other: a host takes all its ranks with it. Nobody has to ask anybody.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.logical import Logical, RankLayout
from atoll.errors import CheckpointError

Piece = tuple[str, Box]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Of each rank: the boxes that it writes, and those of which it stages a second copy; in order of names and places."""

    own: tuple[tuple[Piece, ...], ...]
    second: tuple[tuple[Piece, ...], ...]


def assign(layouts: Sequence[RankLayout], *, redundancy: int = 1) -> Assignment:
    """Owners of all boxes. Raises `CheckpointError` where the layouts contradict each other.

    `layouts` are those of ranks 0, 1, ... in order. With `redundancy` 0 nobody stands by; with more than 1, that many do.
    """
    ranks = [layout.rank for layout in layouts]
    if ranks != list(range(len(layouts))):
        raise CheckpointError(f"layouts of ranks {ranks} were given; a save needs those of all ranks, in order")
    logicals = _agreed(layouts)
    holders = _holders(layouts, logicals)
    nodes = [layout.node for layout in layouts]
    own: list[list[Piece]] = [[] for _ in layouts]
    second: list[list[Piece]] = [[] for _ in layouts]
    for piece, owner in _owners(holders, logicals, len(layouts)).items():
        own[owner].append(piece)
        for standby in _standbys(owner, holders[piece], nodes, redundancy):
            second[standby].append(piece)
    return Assignment(own=tuple(tuple(sorted(p)) for p in own), second=tuple(tuple(sorted(p)) for p in second))


def _agreed(layouts: Sequence[RankLayout]) -> dict[str, Logical]:
    """All tensors; those that two ranks know are the same."""
    found: dict[str, tuple[int, Logical]] = {}
    for layout in layouts:
        for one in layout.logicals:
            rank, known = found.setdefault(one.name, (layout.rank, one))
            if known != one:
                raise CheckpointError(
                    f"{one.name} is {known.dtype}{list(known.shape)} on rank {rank} and {one.dtype}{list(one.shape)} on "
                    f"rank {layout.rank}; ranks that train one model have the same tensors"
                )
    return {name: logical for name, (_, logical) in found.items()}


def _holders(layouts: Sequence[RankLayout], logicals: Mapping[str, Logical]) -> dict[Piece, tuple[int, ...]]:
    """Who holds each box, as its holders themselves say."""
    holders: dict[Piece, tuple[int, ...]] = {}
    said: dict[Piece, list[int]] = {}
    for layout in layouts:
        for one in layout.held:
            piece = (one.tensor, one.box)
            if one.tensor not in logicals:
                raise CheckpointError(
                    f"rank {layout.rank} holds {one.tensor}{one.box} of a tensor that it does not name"
                )
            if holders.setdefault(piece, one.holders) != one.holders:
                raise CheckpointError(
                    f"{one.tensor}{one.box} is held by {one.holders} as rank {layout.rank} says, by {holders[piece]} as "
                    f"rank {said[piece][0]} does"
                )
            said.setdefault(piece, []).append(layout.rank)
    for piece, ranks in said.items():
        if tuple(ranks) != holders[piece]:
            raise CheckpointError(
                f"{piece[0]}{piece[1]} should be held by ranks {holders[piece]}, and ranks {tuple(ranks)} say they do"
            )
    return holders


def _owners(
    holders: Mapping[Piece, tuple[int, ...]], logicals: Mapping[str, Logical], ranks: int
) -> dict[Piece, int]:  # fmt: skip
    # An empty box counts as a byte, so that a million of them are shared out too.
    sizes = {piece: max(1, piece[1].count * logicals[piece[0]].itemsize) for piece in holders}
    owners = {piece: who[0] for piece, who in holders.items() if len(who) == 1}
    loads = [0] * ranks
    for piece, owner in owners.items():
        loads[owner] += sizes[piece]
    shared = sorted((p for p in holders if p not in owners), key=lambda p: (-sizes[p], p))
    everyone = tuple(range(ranks))
    # Where all ranks hold a box, a heap finds the least loaded one; other groups are small enough to be searched.
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for piece in shared:
        if holders[piece] == everyone:
            while heap[0][0] != loads[heap[0][1]]:
                heapq.heapreplace(heap, (loads[heap[0][1]], heap[0][1]))
            owner = heap[0][1]
        else:
            owner = min(holders[piece], key=lambda rank: (loads[rank], rank))
        owners[piece] = owner
        loads[owner] += sizes[piece]
    return owners


def _standbys(owner: int, holders: tuple[int, ...], nodes: Sequence[str], redundancy: int) -> list[int]:
    """The holders after the owner in their ring, those on other hosts first."""
    at = holders.index(owner)
    ring = holders[at + 1 :] + holders[:at]
    return sorted(ring, key=lambda rank: nodes[rank] == nodes[owner])[:redundancy]
