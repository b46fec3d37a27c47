"""Codecs of one and two bits a value: the sign alone, and the sign or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from atoll.collectives.torch_blocks import (
    BLOCK,
    TINY,
    Bits,
    Blocked,
    Bytes,
    Floats,
    Tile,
    Words,
    Workspace,
    largest_by_block,
    ones_in,
    plane_of,
    put_plane,
)

# Of the mean size of a block's values: what is larger is sent. Loses about least of normal values (Li et al., 2016).
_WORTH_SENDING = 0.75
# A scale is a rounded mean: so much more than the largest of what it is made of.
_ROUNDED = np.float32(1.0001)


class OneBit(Blocked):
    """The sign; values of one sign in a block become their mean. Its loss is large: use it with residuals."""

    name = "onebit"
    width = 2

    def values_bytes(self, count: int) -> int:
        """A bit a value."""
        return -(-count // 8)

    def _encode(
        self,
        values: Floats,
        scale: Floats,
        codes: Bytes,
        tile: Tile,
        work: Workspace,
        seed: int | None,  # noqa: ARG002
    ) -> Any:
        up, _ = work.planes(tile.rows)
        np.greater_equal(values, np.float32(0), out=up)
        put_plane(up, codes, tile)
        number = ones_in(up)
        numbers = np.stack([number, BLOCK - number], 1)
        numbers[-1, 0] -= tile.missing  # zeros that fill a short block up have no part in its mean
        np.maximum(numbers, 1, out=numbers)
        scale[:] = _sums_by_sign(values, work.floats(tile.rows)) / numbers
        beyond = ~np.isfinite(scale).all(1)
        if beyond.any():  # a sum may pass the largest float32 where the mean does not; what is not finite stays so
            exact = values[beyond].astype(np.float64)
            scale[beyond] = _sums_by_sign(exact, np.empty_like(exact)) / numbers[beyond]
        return up

    def _decode(self, codes: Bytes, tile: Tile, work: Workspace) -> Any:
        return plane_of(codes, tile, work.planes(tile.rows)[0])

    def _value(self, code: Any, scale: Floats, out: Floats, work: Workspace) -> Floats:  # noqa: ARG002
        # A choice between two patterns of bits by a product and an exclusive or: exact, and much faster than `where`.
        up, down = scale.view(np.uint32)[:, :1], scale.view(np.uint32)[:, 1:]
        bits = out.view(np.uint32)
        np.copyto(bits, code.view(np.uint8))
        np.multiply(bits, up ^ down, out=bits)
        np.bitwise_xor(bits, down, out=bits)
        return out

    def error_bound(self, values: Floats) -> Floats:
        """The largest of the block: a value and the mean of its sign both lie between that and 0."""
        return largest_by_block(values) * _ROUNDED + TINY


class Ternary(Blocked):
    """-s, 0 or s.

    With a seed, s is the block's maximum and |value| / s the chance that it is not 0: right in the mean (TernGrad), but
    more is lost than was there, so that residuals on top of it would grow without end. Those who keep residuals give no
    seed: values above a threshold become their mean size, which always leaves less than there was.
    """

    name = "ternary"

    def values_bytes(self, count: int) -> int:
        """A bit for being there, one for being negative."""
        return 2 * -(-count // 8)

    def _encode(
        self, values: Floats, scale: Floats, codes: Bytes, tile: Tile, work: Workspace, seed: int | None
    ) -> Any:
        size = np.abs(values, out=work.floats(tile.rows))
        there, down = work.planes(tile.rows)
        if seed is None:
            _kept(size, there, scale)
        else:
            scale[:, 0] = size.max(1)
            chances = _chances(tile, seed, work)
            chances *= scale
            np.greater(size, chances, out=there)
        there[~np.isfinite(scale[:, 0])] = True
        np.less(values, np.float32(0), out=down)
        np.logical_and(down, there, out=down)
        half = codes.size // 2
        put_plane(there, codes[:half], tile)
        put_plane(down, codes[half:], tile)
        return there, down

    def _decode(self, codes: Bytes, tile: Tile, work: Workspace) -> Any:
        half, (there, down) = codes.size // 2, work.planes(tile.rows)
        return plane_of(codes[:half], tile, there), plane_of(codes[half:], tile, down)

    def _value(self, code: Any, scale: Floats, out: Floats, work: Workspace) -> Floats:  # noqa: ARG002
        there, down = (plane.view(np.int8) for plane in code)
        np.left_shift(down, 1, out=down)
        np.subtract(there, down, out=there)
        np.copyto(out, there)
        return np.multiply(out, scale, out=out)

    def error_bound(self, values: Floats) -> Floats:
        """The largest of the block."""
        return largest_by_block(values) * _ROUNDED + TINY


def _sums_by_sign(values: Any, room: Any) -> Any:
    """[rows, 2]: of the positive values of each row, and of the negative."""
    up = np.einsum("ij->i", np.maximum(values, 0, out=room))
    return np.stack([up, np.einsum("ij->i", np.minimum(values, 0, out=room))], 1)


def _kept(size: Any, there: Bits, scale: Any) -> None:
    """Which of `size` [rows, BLOCK] are worth sending, and as what. Overwrites `size`."""
    total = np.einsum("ij->i", size)
    beyond = ~np.isfinite(total)
    exact = size[beyond].astype(np.float64) if size.dtype == np.float32 and beyond.any() else None
    np.greater(size, total[:, None] * size.dtype.type(_WORTH_SENDING / BLOCK), out=there)
    np.multiply(size, there, out=size)
    scale[:, 0] = np.einsum("ij->i", size) / np.maximum(ones_in(there), 1)
    if exact is not None:  # as in OneBit: a sum that passes the largest float32, or what is not finite
        again, by_row = np.empty(exact.shape, np.bool_), np.empty((exact.shape[0], 1))
        _kept(exact, again, by_row)
        there[beyond], scale[beyond] = again, by_row


def _chances(tile: Tile, seed: int, work: Workspace) -> Floats:
    """[rows, BLOCK] numbers in [0, 1): a hash of seed and place (the finisher of MurmurHash3), so the same on every host."""
    x: Words = work.words(tile.rows)
    x[:] = np.arange(tile.start, tile.start + x.size, dtype=np.uint32).reshape(x.shape)
    x ^= np.uint32(seed & 0xFFFFFFFF)
    room = work.others(tile.rows)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        np.right_shift(x, np.uint32(shift), out=room)
        x ^= room
        if factor != 1:
            x *= np.uint32(factor)
    x >>= np.uint32(8)
    chances = room.view(np.float32)
    np.copyto(chances, x.view(np.int32), casting="unsafe")  # 24 bits: exact, and the signed way has an instruction
    chances *= np.float32(2**-24)
    return chances
