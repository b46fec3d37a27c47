"""Where the local part of a DTensor lies in the whole, and which ranks hold the same part.

Each placement, from left to right, cuts what is left of its dimension as `torch.chunk` does. torch's strided shard, which
combined meshes (fully_shard over tensor parallelism) use to cut the right mesh dimension first, cuts into `split_factor`
chunks, those into one for each rank, and a rank's part is its piece of every chunk, one after the other. So a dimension
of a local part is a list of ranges of the whole, and the part itself a product of such lists. Nothing of this asks
torch's own helpers, whose names and meaning change between versions; placements are told apart by what they carry.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from atoll.checkpoint.boxes import Box, Shape
from atoll.errors import StateError

# From, to before: of one dimension.
Range = tuple[int, int]


def local_boxes(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[tuple[Box, Box]]:
    """The local part as boxes: where each lies in the whole, and where in the local tensor. Empty parts have none."""
    ranges: list[list[Range]] = [[(0, extent)] for extent in shape]
    for placement, size, at in zip(placements, mesh, coordinate, strict=True):
        if isinstance(placement, Replicate):
            continue
        dim = placement.dim
        factor = int(getattr(placement, "split_factor", 1))
        ranges[dim] = [
            piece for part in range(factor) for piece in chunked(chunked(ranges[dim], factor, part), size, at)
        ]  # fmt: skip
    return product([joined(one) for one in ranges])


def chunked(ranges: Sequence[Range], parts: int, index: int) -> list[Range]:
    """Part `index` of what the ranges hold one after the other, cut as `torch.chunk` cuts: late parts may be empty."""
    extent = sum(b - a for a, b in ranges)
    step = -(-extent // parts)
    low, high = min(index * step, extent), min((index + 1) * step, extent)
    found, passed = [], 0
    for a, b in ranges:
        start, stop = max(a, a + low - passed), min(b, a + high - passed)
        if start < stop:
            found.append((start, stop))
        passed += b - a
    return found


def joined(ranges: Sequence[Range]) -> list[Range]:
    """Ranges that follow each other as one."""
    found: list[Range] = []
    for a, b in ranges:
        if found and found[-1][1] == a:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return found


def product(ranges: Sequence[Sequence[Range]]) -> list[tuple[Box, Box]]:
    """The boxes of a part whose dimensions are lists of ranges, and where they lie in it."""
    placed: list[list[tuple[Range, Range]]] = []
    for dim in ranges:
        ends = list(itertools.accumulate(b - a for a, b in dim))
        placed.append([((a, b), (end - (b - a), end)) for (a, b), end in zip(dim, ends, strict=True)])
    return [
        (Box(*_corners([there for there, _ in row])), Box(*_corners([here for _, here in row])))
        for row in itertools.product(*placed)
    ]


def _corners(row: Sequence[Range]) -> tuple[Shape, Shape]:
    return tuple(a for a, _ in row), tuple(b for _, b in row)


def coordinate_of(mesh: DeviceMesh) -> tuple[int, ...] | None:
    """This rank's place in a mesh. torch takes equal meshes for one, whosever they are, so a mesh is not asked whose."""
    found = (mesh.mesh == dist.get_rank()).nonzero().tolist()
    return tuple(found[0]) if found else None


def parts_of(tensor: DTensor, name: str) -> list[tuple[Box, Box]]:
    """As `local_boxes`, of a DTensor of this rank. Raises `StateError` where its values are no values yet."""
    for placement in tensor.placements:
        if not isinstance(placement, Replicate) and not hasattr(placement, "dim"):
            raise StateError(f"{name} is placed as {placement}: a sum that is not complete; redistribute it first")
    coordinate = coordinate_of(tensor.device_mesh)
    if coordinate is None:
        return []
    return local_boxes(tensor.shape, tuple(tensor.device_mesh.shape), coordinate, tensor.placements)


def holders_of(tensor: DTensor, copies: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The ranks that hold this rank's part: its mesh's along all replicated dimensions, and each one's `copies`."""
    mesh = tensor.device_mesh
    coordinate = coordinate_of(mesh)
    if coordinate is None:
        return ()
    index = tuple(
        slice(None) if isinstance(placement, Replicate) else at
        for placement, at in zip(tensor.placements, coordinate, strict=True)
    )
    ranks = mesh.mesh[index].reshape(-1).tolist()
    return tuple(sorted({other for rank in ranks for other in copies.get(rank, (rank,))}))
