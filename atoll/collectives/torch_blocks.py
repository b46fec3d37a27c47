"""What codes of blocks have in common: where scales and values lie in a code, tiles that stay in cache, planes of bits.

A code is `width` float32 scales for each block of `BLOCK` values, then the values. A short last block is filled up with
zeros while it is worked on; what fills it is never sent. Memory for one tile is taken once an operation and written over
by every tile, since passes over fresh memory cost several times those over what is in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint32]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]

# A scale for so many values costs 0.1 % of them, and one outlier spoils no more than so many. With 256, normal values would
# lose a tenth less and take a third more time: every row costs numpy a start.
BLOCK = 1024
# 32 blocks of float32 and what is made of them stay in 512 KiB of cache; with 8, calls of numpy take twice the time of the
# work in them, with 64 a tenth less than with 32.
TILE = 32
# Below this the inverse of a scale overflows; such a block counts as zero.
TINY = np.float32(1e-35)


@dataclass(frozen=True, slots=True)
class Tile:
    """Values [start, end) of an array, which are `rows` blocks from block `first`."""

    first: int
    rows: int
    start: int
    end: int

    @property
    def missing(self) -> int:
        """Values that the last block lacks."""
        return self.rows * BLOCK - (self.end - self.start)


class Workspace:
    """Memory [TILE, BLOCK] for one tile: values, two of words, two planes of bits. Pages never touched cost nothing."""

    def __init__(self, count: int) -> None:
        shape = (min(TILE, blocks(count)), BLOCK)
        self._floats = np.empty(shape, np.float32)
        self._words, self._others = np.empty(shape, np.uint32), np.empty(shape, np.uint32)
        self._one, self._other = np.empty(shape, np.bool_), np.empty(shape, np.bool_)

    def floats(self, rows: int) -> Floats:
        """[rows, BLOCK]."""
        return self._floats[:rows]

    def words(self, rows: int) -> Words:
        """[rows, BLOCK]."""
        return self._words[:rows]

    def others(self, rows: int) -> Words:
        """[rows, BLOCK]."""
        return self._others[:rows]

    def planes(self, rows: int) -> tuple[Bits, Bits]:
        """Twice [rows, BLOCK]."""
        return self._one[:rows], self._other[:rows]


class Blocked:
    """A code with scales; subclasses say how a tile becomes scales and codes, and what codes stand for."""

    name = ""
    width = 1

    def encoded_bytes(self, count: int) -> int:
        """Scales, then values."""
        return 4 * self.width * blocks(count) + self.values_bytes(count)

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int | None = 0) -> None:
        """See `Codec`."""
        scales, codes = self._parts(out, values.size)
        work = Workspace(values.size)
        with np.errstate(all="ignore"):
            for tile in tiles(values.size):
                scale = scales[tile.first : tile.first + tile.rows]
                code = self._encode(rows_of(values, tile), scale, codes, tile, work, seed)
                if tile.missing:
                    filled = self._value(code, scale, np.empty((tile.rows, BLOCK), np.float32), work)
                    decoded[tile.start : tile.end] = filled.reshape(-1)[: -tile.missing]
                else:
                    self._value(code, scale, decoded[tile.start : tile.end].reshape(tile.rows, BLOCK), work)

    def decode_add(self, data: Bytes, out: Floats) -> None:
        """See `Codec`."""
        scales, codes = self._parts(data, out.size)
        work = Workspace(out.size)
        with np.errstate(all="ignore"):
            for tile in tiles(out.size):
                code = self._decode(codes, tile, work)
                scale = scales[tile.first : tile.first + tile.rows]
                value = self._value(code, scale, work.floats(tile.rows), work)
                place = out[tile.start : tile.end]
                np.add(place, value.reshape(-1)[: place.size], out=place)

    def _parts(self, data: Bytes, count: int) -> tuple[Floats, Bytes]:
        edge = 4 * self.width * blocks(count)
        return data[:edge].view(np.float32).reshape(-1, self.width), data[edge:]

    def values_bytes(self, count: int) -> int:
        """Bytes of the values without their scales."""
        raise NotImplementedError

    def _encode(
        self, values: Floats, scale: Floats, codes: Bytes, tile: Tile, work: Workspace, seed: int | None
    ) -> Any:
        """Scales and codes of `values` [rows, BLOCK], which are `tile`; returns the codes as `_decode` gives them."""
        raise NotImplementedError

    def _decode(self, codes: Bytes, tile: Tile, work: Workspace) -> Any:
        """The codes of `tile`, for `_value`."""
        raise NotImplementedError

    def _value(self, code: Any, scale: Floats, out: Floats, work: Workspace) -> Floats:
        """What codes stand for, into `out` [rows, BLOCK]."""
        raise NotImplementedError


def blocks(count: int) -> int:
    """Of so many values."""
    return -(-count // BLOCK)


def tiles(count: int) -> Iterator[Tile]:
    """That cover `count` values."""
    for first in range(0, blocks(count), TILE):
        rows = min(TILE, blocks(count) - first)
        yield Tile(first, rows, first * BLOCK, min(count, (first + TILE) * BLOCK))


def rows_of(values: Any, tile: Tile) -> Any:
    """The values of `tile` as [rows, BLOCK]; a short last block is filled up with zeros."""
    here = values[tile.start : tile.end]
    if tile.missing:
        here = np.concatenate([here, np.zeros(tile.missing, values.dtype)])
    return here.reshape(tile.rows, BLOCK)


def largest_by_block(values: Floats) -> Floats:
    """[count]: the largest size in each value's block."""
    largest = [np.abs(rows_of(values, tile)).max(1) for tile in tiles(values.size)]
    return np.repeat(np.concatenate([*largest, np.empty(0, np.float32)]), BLOCK)[: values.size]


def put_plane(bits: Bits, plane: Bytes, tile: Tile) -> None:
    """The bits of `tile` to where they lie in `plane`."""
    packed = np.packbits(bits.reshape(-1))
    room = plane[tile.start // 8 : tile.start // 8 + packed.size]
    room[:] = packed[: room.size]


def plane_of(plane: Bytes, tile: Tile, out: Bits) -> Bits:
    """The bits of `tile` into `out` [rows, BLOCK]; what fills a short block up is 0."""
    if not tile.missing:
        return np.unpackbits(plane[tile.start // 8 : tile.end // 8]).view(np.bool_).reshape(out.shape)
    bits = np.unpackbits(plane[tile.start // 8 :], count=tile.end - tile.start).view(np.bool_)
    flat = out.reshape(-1)
    flat[: bits.size] = bits
    flat[bits.size :] = False
    return out


def ones_in(bits: Bits) -> Any:
    """[rows]: how many bits of each row are set. Eight counters side by side, none of which passes BLOCK / 8."""
    return bits.view(np.uint64).sum(1).view(np.uint8).reshape(-1, 8).sum(1, dtype=np.int64)
