"""What a state is made of, whoever holds it: logical tensors, and who holds which boxes of them.

A logical tensor is a coordinate space with a name and an element type; its values lie on ranks, in boxes. Ranks of one
replica group hold the same values of the same box: its holders. `RankLayout` is what one rank says of itself. The
layouts of all ranks together decide who writes what, so no rank has to ask another at a save.

Types are named as torch names them (`float32`), without importing it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from atoll.checkpoint.boxes import Box, Shape
from atoll.errors import CheckpointError

# Bytes of an element. A type that is not here cannot be checkpointed.
ITEMSIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}


@dataclass(frozen=True, slots=True)
class Logical:
    """A tensor as a whole. `dtype` is a key of `ITEMSIZES`."""

    name: str
    dtype: str
    shape: Shape

    @property
    def itemsize(self) -> int:
        """Bytes of an element. Raises `CheckpointError` naming the tensor where the type is unknown."""
        if self.dtype not in ITEMSIZES:
            raise CheckpointError(f"tensor {self.name!r} has type {self.dtype}, which no checkpoint holds; convert it")
        return ITEMSIZES[self.dtype]

    @property
    def count(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.count * self.itemsize


@dataclass(frozen=True, slots=True)
class Held:
    """A box of logical tensor `tensor`, and the ranks that hold these very values, ascending."""

    tensor: str
    box: Box
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """What `rank`, on host `node`, holds: `held` are its boxes of `logicals`."""

    rank: int
    node: str
    logicals: tuple[Logical, ...]
    held: tuple[Held, ...]

    def as_plain(self) -> dict[str, Any]:
        """For JSON. Each tensor's boxes stand with it, so that no name is written twice."""
        index = {logical.name: i for i, logical in enumerate(self.logicals)}
        return {
            "rank": self.rank,
            "node": self.node,
            "logicals": [[one.name, one.dtype, list(one.shape)] for one in self.logicals],
            "held": [[index[h.tensor], list(h.box.start), list(h.box.stop), list(h.holders)] for h in self.held],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> RankLayout:
        """What `as_plain` told. Raises `CheckpointError` where it tells no layout."""
        try:
            logicals = tuple(Logical(str(n), str(t), tuple(map(int, shape))) for n, t, shape in plain["logicals"])
            held = tuple(
                Held(logicals[i].name, Box(tuple(map(int, a)), tuple(map(int, b))), tuple(map(int, who)))
                for i, a, b, who in plain["held"]
            )
            return cls(rank=int(plain["rank"]), node=str(plain["node"]), logicals=logicals, held=held)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"a rank told of no readable layout: {error!r}") from None
