"""How an all-reduce of device memory passes through islands: ranges, and steps with the waits between them, as data.

Inside an island a fast library adds up (reduce-scatter) and hands out (all-gather); between islands only what one rank
of each owns goes over the host. A buffer is cut into chunks, the same on all ranks, and each chunk lives through five
stages: REDUCE leaves every rank of an island with the island's sum of its shard, FETCH copies that to the host, CROSS
adds up over the islands, PUT copies back, GATHER gives every rank the whole chunk. Islands of unlike sizes cut a chunk
at unlike places; a `Piece` lies between two neighbouring cuts of any island, so that one rank of each owns all of it.

`schedule` is the order in which a host thread issues the steps; a step's host waits first for `host_waits`, its queue
then for `queue_waits`. All ranks of an island must call their library in the same order, however their networks differ
in speed: so the order is fixed, REDUCE of chunk k + depth after GATHER of chunk k, and not by who is ready. That order
is also why the `depth` shards in use need no further waits: whoever takes over a slot comes after the GATHER that read
it, in the same queue. `staging_oracle` runs schedules on integers, in any order that the waits allow.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.collectives.islands import islands
from atoll.errors import InternalError
from atoll.schema.ids import NodeId
from atoll.schema.topology import Topology

# At 1 GB/s a shard of this size takes 0.5 ms to cross, well above what a launch, a copy and a message cost beside it;
# and the first one is on its way before much has been summed.
SHARD_BYTES = 512 * 1024
# Shards of whole chunks begin at multiples of this, 16 bytes at least: other addresses are slower for a GPU to read.
ALIGNED_ELEMENTS = 16
# Above it chunks grow: what does not overlap, the first stages of the first chunk and the last of the last, is a 64th each.
MOST_CHUNKS = 64
# Chunks under way at once: one crossing, one on its way to the host, one on its way back, one to spare.
DEPTH = 4


@dataclass(frozen=True)
class Layout:
    """The ranks of each island, in the order of their shards. Every rank of the epoch is in exactly one."""

    islands: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        ranks = sorted(itertools.chain.from_iterable(self.islands))
        if ranks != list(range(len(ranks))) or not all(self.islands):
            raise InternalError(
                f"islands {self.islands}: each rank from 0 on must be in exactly one, none may be empty"
            )

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Ranks in each island."""
        return tuple(len(island) for island in self.islands)

    @property
    def alone(self) -> bool:
        """True where there is nobody to cross to."""
        return len(self.islands) == 1

    def place(self, rank: int) -> tuple[int, int]:
        """(island, position in it) of a rank."""
        for number, island in enumerate(self.islands):
            if rank in island:
                return number, island.index(rank)
        raise InternalError(f"rank {rank} is in none of the islands {self.islands}")


def layout_of(nodes: Sequence[NodeId], topology: Topology) -> Layout:
    """Where the ranks' nodes (in rank order) lie: by innermost islands where links were measured, else by node."""
    leaves = islands(topology).innermost() if topology.links else ()
    leaf_of = {node: number for number, leaf in enumerate(leaves) for node in leaf.nodes}
    found: dict[int | NodeId, list[int]] = {}
    for rank, node in enumerate(nodes):
        found.setdefault(leaf_of.get(node, node), []).append(rank)
    return Layout(tuple(tuple(ranks) for ranks in found.values()))


# -- ranges ----------------------------------------------------------------------------------------------------------


def chunks(count: int, itemsize: int, layout: Layout, shard_bytes: int = SHARD_BYTES) -> tuple[tuple[int, int], ...]:
    """[start, end) of each chunk of `count` elements; all but the last divide evenly in every island."""
    grain = math.lcm(*layout.sizes) * ALIGNED_ELEMENTS
    number = min(MOST_CHUNKS, max(1, count * itemsize // (max(layout.sizes) * shard_bytes)))
    length = max(1, -(-count // (number * grain))) * grain
    return tuple((start, min(start + length, count)) for start in range(0, count, length))


def width(length: int, size: int) -> int:
    """Elements of each shard of a chunk in an island of `size`; the last shards may reach past the chunk's end."""
    return -(-length // size)


def shard(length: int, size: int, position: int) -> tuple[int, int]:
    """[start, end) within a chunk of what the rank at `position` owns."""
    each = width(length, size)
    return min(position * each, length), min((position + 1) * each, length)


@dataclass(frozen=True, slots=True)
class Piece:
    """[start, end) within a chunk, and its owner in each island."""

    start: int
    end: int
    members: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def pieces(length: int, layout: Layout) -> tuple[Piece, ...]:
    """A chunk cut wherever any island cuts it."""
    cuts = {0, length}
    for size in layout.sizes:
        cuts.update(min(position * width(length, size), length) for position in range(size))
    return tuple(
        Piece(start, end, tuple(island[start // width(length, len(island))] for island in layout.islands))
        for start, end in itertools.pairwise(sorted(cuts))
    )


def pieces_of(length: int, layout: Layout, rank: int) -> tuple[Piece, ...]:
    """Those that `rank` owns: side by side, together its shard."""
    return tuple(piece for piece in pieces(length, layout) if rank in piece.members)


# -- steps -----------------------------------------------------------------------------------------------------------


class Stage(enum.StrEnum):
    """What happens to a chunk."""

    REDUCE = "reduce"
    FETCH = "fetch"
    CROSS = "cross"
    PUT = "put"
    GATHER = "gather"
    WHOLE = "whole"  # all of it at once, where there is one island


class Queue(enum.StrEnum):
    """Who carries a step out, in the order of issue: a stream of the device, or the host."""

    ISLAND = "island"
    DOWN = "down"
    UP = "up"
    HOST = "host"


QUEUES = {
    Stage.REDUCE: Queue.ISLAND,
    Stage.FETCH: Queue.DOWN,
    Stage.CROSS: Queue.HOST,
    Stage.PUT: Queue.UP,
    Stage.GATHER: Queue.ISLAND,
    Stage.WHOLE: Queue.ISLAND,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """That a chunk is through a stage: on a device an event, on the host an operation that ended."""

    stage: Stage
    chunk: int


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one chunk in the `slot` that it uses of the shards in memory."""

    stage: Stage
    chunk: int
    slot: int
    host_waits: tuple[Mark, ...] = ()
    queue_waits: tuple[Mark, ...] = ()

    @property
    def queue(self) -> Queue:
        """Who carries it out."""
        return QUEUES[self.stage]

    @property
    def mark(self) -> Mark:
        """What is true afterwards."""
        return Mark(self.stage, self.chunk)


@functools.lru_cache(maxsize=256)
def schedule(number: int, depth: int = DEPTH, *, alone: bool = False) -> tuple[Step, ...]:
    """The steps of `number` chunks in the order of issue, at most `depth` chunks under way. The last one ends all."""
    if number < 1 or depth < 1:
        raise InternalError(f"{number} chunks, {depth} at a time: there must be one at least")
    if alone:
        return (Step(Stage.WHOLE, 0, 0),)
    first = range(min(depth, number))
    steps = [step for k in first for step in _out(k, k)]
    steps += [_over(k, k) for k in first]
    for k in range(number):
        steps += _back(k, k % depth)
        if k + depth < number:
            steps += [*_out(k + depth, k % depth), _over(k + depth, k % depth)]
    return tuple(steps)


def _out(k: int, slot: int) -> tuple[Step, Step]:
    return Step(Stage.REDUCE, k, slot), Step(Stage.FETCH, k, slot, queue_waits=(Mark(Stage.REDUCE, k),))


def _over(k: int, slot: int) -> Step:
    return Step(Stage.CROSS, k, slot, host_waits=(Mark(Stage.FETCH, k),))


def _back(k: int, slot: int) -> tuple[Step, Step]:
    return (
        Step(Stage.PUT, k, slot, host_waits=(Mark(Stage.CROSS, k),)),
        Step(Stage.GATHER, k, slot, queue_waits=(Mark(Stage.PUT, k),)),
    )
