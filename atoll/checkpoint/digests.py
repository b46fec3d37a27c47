"""A digest of a tensor that does not depend on how it is cut: of each box a number, and their sum tells the tensor.

    D(tensor) = seed(name, type, shape) + sum over all elements of mix(bits + (index + 1) * GAMMA)   mod 2^64

`bits` are an element's bytes as a little-endian number, `index` its place in row-major order in the whole tensor, `mix`
the output function of SplitMix64 and `GAMMA` its increment. A sum has no order, so boxes of any partition, computed by
anybody at any time, add up to the same. `mix` is one-to-one: a change of a single element always changes the digest;
other changes pass with a chance of 2^-64. It finds damage, not forgery. Elements of 16 bytes (complex128) count as two of
8 along one more dimension.

Compiled where the extension was built (`_digest.c`), else in numpy, about ten times slower. `torch_digests` does it
where the tensor lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import xxhash

from atoll.checkpoint.boxes import Box, Shape
from atoll.checkpoint.logical import Logical

try:
    from atoll.checkpoint._digest import boxed
except ImportError:  # built without a compiler
    _compiled: Callable[[Any, Shape, Shape], int] | None = None
else:
    _compiled = boxed

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
# Elements that the numpy form takes at once: its temporary arrays stay within the processor's second cache.
PIECE = 1 << 16
_WORD_BYTES = 8

Array = np.ndarray[Any, np.dtype[Any]]


def compiled() -> bool:
    """Whether the extension is there."""
    return _compiled is not None


def seed(logical: Logical) -> int:
    """What a tensor without elements has as its digest."""
    return xxhash.xxh3_64_intdigest(f"{logical.name}|{logical.dtype}|{tuple(logical.shape)}".encode())


def tensor_digest(logical: Logical, boxes: Iterable[int]) -> int:
    """The tensor's digest from those of boxes that hold each element once."""
    return (seed(logical) + sum(boxes)) & MASK


def digest_bytes(data: bytes | bytearray | memoryview, logical: Logical, box: Box) -> int:
    """The digest of `box` out of its elements' bytes in row-major order."""
    size = min(logical.itemsize, _WORD_BYTES)
    return digest_values(np.frombuffer(data, f"<u{size}").reshape(words(logical, box.shape)), logical, box)


def digest_values(values: Array, logical: Logical, box: Box) -> int:
    """The digest of `box` out of `values` [words of the box], elements' bits as unsigned numbers, strided as they like."""
    whole, start = words(logical, logical.shape), placed(logical, box)
    if values.shape != words(logical, box.shape):
        raise ValueError(f"{logical.name}{box} has elements {words(logical, box.shape)}, not {values.shape}")
    if any(a < 0 or b > extent for a, b, extent in zip(box.start, box.stop, logical.shape, strict=True)):
        raise ValueError(f"{logical.name}{box} reaches out of a tensor of shape {list(logical.shape)}")
    if not values.size:
        return 0
    if _compiled is not None:
        return _compiled(values, whole, start)
    steps = row_major(whole)
    first = sum(at * step for at, step in zip(start, steps, strict=True))
    return _summed(values, steps, first) & MASK


def words(logical: Logical, shape: Shape) -> Shape:
    """`shape` in units that the digest counts."""
    return (*shape, logical.itemsize // _WORD_BYTES) if logical.itemsize > _WORD_BYTES else tuple(shape)


def placed(logical: Logical, box: Box) -> Shape:
    """Where `box` begins, in units that the digest counts."""
    return (*box.start, 0) if logical.itemsize > _WORD_BYTES else box.start


def row_major(shape: Shape) -> Shape:
    """By how much the index grows with each coordinate."""
    steps = [1]
    for extent in reversed(shape[1:]):
        steps.insert(0, steps[0] * extent)
    return tuple(steps[: len(shape)])


def _summed(values: Array, steps: Shape, first: int) -> int:
    if values.size > PIECE:
        dim = int(np.argmax(values.shape))
        half = values.shape[dim] // 2
        low, high = np.split(values, [half], axis=dim)
        return _summed(low, steps, first) + _summed(high, steps, first + half * steps[dim])
    keys: Array = np.array([(first + 1) & MASK], dtype=np.uint64)
    for extent, step in zip(values.shape, steps, strict=True):
        keys = keys[..., None] + np.arange(extent, dtype=np.uint64) * np.uint64(step)
    z: Array = values + keys * np.uint64(GAMMA)
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return int(np.sum(z ^ (z >> np.uint64(SHIFTS[-1])), dtype=np.uint64))
