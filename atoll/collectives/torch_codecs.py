"""Codecs for what crosses slow links: float32 values in fewer bytes, with a known error.

A code is cut in blocks of `BLOCK` values with a scale of their own, so that a large value spoils its neighbours only. All
work is in tiles that stay in a core's cache. `decode_add` adds exactly what `encode` reports as `decoded`: what a sender
adds of itself is bit for bit what its peers add of it. Blocks with an infinity or NaN decode to such, so that a step's vote
sees them. Off unless asked for.

| name    | bytes of 4 | method                                                                                          |
|---------|-----------:|-------------------------------------------------------------------------------------------------|
| bf16    |       2    | round to nearest even                                                                           |
| int8    |       1.00 | symmetric, scale by the block's maximum (block floating point, as QSDP, Markov et al., 2023)    |
| onebit  |       0.13 | sign, and the mean of each sign (Seide et al., 2014); needs residuals                           |
| ternary |       0.25 | {-s, 0, s}, rounded by chance so that the mean is right (TernGrad, Wen et al., 2017)            |
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from atoll.errors import InternalError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# A scale for so many values costs 0.1 % of them, and one outlier spoils no more than so many.
BLOCK = 1024
# 16 blocks of float32 and what is made of them stay in 256 KiB of cache.
_TILE = 16
# Below this the inverse of a scale overflows; such a block counts as zero.
_TINY = np.float32(1e-35)


class Codec(Protocol):
    """One way of writing float32 values in fewer bytes."""

    name: str

    def encoded_bytes(self, count: int) -> int:
        """Bytes of `count` values."""

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int = 0) -> None:
        """`values` [count] into `out` [encoded_bytes]; `decoded` [count] gets what receivers will read.

        `seed`: for codecs that round by chance; the same seed gives the same bytes.
        """

    def decode_add(self, data: Bytes, out: Floats) -> None:
        """`out` [count] += the values in `data`."""

    def error_bound(self, values: Floats) -> Floats:
        """[count]: at most by so much `decoded` is off, each value by itself."""


class Bf16:
    """The upper half of a float32, rounded to nearest, ties to even."""

    name = "bf16"

    def encoded_bytes(self, count: int) -> int:
        """Two a value."""
        return 2 * count

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int = 0) -> None:  # noqa: ARG002 - as Codec
        """See `Codec`."""
        codes, step = out.view(np.uint16), _TILE * BLOCK
        for start in range(0, values.size, step):
            tile = values[start : start + step]
            bits = tile.view(np.uint32)
            rounded = bits >> np.uint32(16)
            rounded &= np.uint32(1)
            rounded += np.uint32(0x7FFF)
            rounded += bits
            rounded >>= np.uint32(16)
            lost = np.isnan(tile)
            if lost.any():  # rounding would carry a NaN's bits into its sign
                rounded[lost] = np.uint32(0x7FC0)
            codes[start : start + step] = rounded
            rounded <<= np.uint32(16)
            decoded[start : start + step] = rounded.view(np.float32)

    def decode_add(self, data: Bytes, out: Floats) -> None:
        """See `Codec`."""
        codes, step = data.view(np.uint16), _TILE * BLOCK
        for start in range(0, out.size, step):
            wide = codes[start : start + step].astype(np.uint32)
            wide <<= np.uint32(16)
            out[start : start + step] += wide.view(np.float32)

    def error_bound(self, values: Floats) -> Floats:
        """Half of the last of eight bits."""
        return np.abs(values) * np.float32(2**-8) + np.float32(2**-133)


class _Blocked:
    """A code of `width` scales for each block, then `values_bytes` for the values; a last block may be short."""

    name = ""
    width = 1

    def encoded_bytes(self, count: int) -> int:
        """Scales, then values."""
        return 4 * self.width * _blocks(count) + self.values_bytes(count)

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int = 0) -> None:
        """See `Codec`."""
        scales, codes = self._parts(out, values.size)
        with np.errstate(all="ignore"):
            for first, rows, start, end in _tiles(values.size):
                scale = scales[first : first + rows]
                tile = _rows(values[start:end], rows)
                code = self._encode(tile, scale, codes, (start, end), seed)
                decoded[start:end] = self._value(code, scale).reshape(-1)[: end - start]

    def decode_add(self, data: Bytes, out: Floats) -> None:
        """See `Codec`."""
        scales, codes = self._parts(data, out.size)
        with np.errstate(all="ignore"):
            for first, rows, start, end in _tiles(out.size):
                code = self._decode(codes, start, end, rows)
                out[start:end] += self._value(code, scales[first : first + rows]).reshape(-1)[: end - start]

    def _parts(self, data: Bytes, count: int) -> tuple[Floats, Bytes]:
        edge = 4 * self.width * _blocks(count)
        return data[:edge].view(np.float32).reshape(-1, self.width), data[edge:]

    def values_bytes(self, count: int) -> int:
        """Bytes of the values without their scales."""
        raise NotImplementedError

    def _encode(self, tile: Floats, scale: Floats, codes: Bytes, span: tuple[int, int], seed: int) -> Any:
        """Scales and codes of `tile` [rows, BLOCK], the values of `span`; returns the codes as `_decode` gives them."""
        raise NotImplementedError

    def _decode(self, codes: Bytes, start: int, end: int, rows: int) -> Any:
        """The codes [rows, BLOCK] of values [start, end)."""
        raise NotImplementedError

    def _value(self, code: Any, scale: Floats) -> Floats:
        """What [rows, BLOCK] codes stand for."""
        raise NotImplementedError


class Int8(_Blocked):
    """-127 to 127 times the block's scale."""

    name = "int8"

    def values_bytes(self, count: int) -> int:
        """One a value."""
        return count

    def _encode(self, tile: Floats, scale: Floats, codes: Bytes, span: tuple[int, int], seed: int) -> Any:  # noqa: ARG002
        largest = np.maximum(tile.max(1, keepdims=True), -tile.min(1, keepdims=True))
        scale[:] = largest / np.float32(127)
        code = tile * np.where(largest > _TINY, np.float32(127) / largest, np.float32(0))
        np.rint(code, out=code)
        strange = ~np.isfinite(largest[:, 0])
        if strange.any():
            code[strange] = 1
        bytes_ = codes.view(np.int8)[slice(*span)]
        np.copyto(bytes_, code.reshape(-1)[: bytes_.size], casting="unsafe")
        return code

    def _decode(self, codes: Bytes, start: int, end: int, rows: int) -> Any:
        return _rows(codes.view(np.int8)[start:end].astype(np.float32), rows)

    def _value(self, code: Any, scale: Floats) -> Floats:
        code *= scale
        value: Floats = code
        return value

    def error_bound(self, values: Floats) -> Floats:
        """Half a step of the block's scale."""
        return _spread(values, lambda rows: np.abs(rows).max(1) / np.float32(253.9) + _TINY)


class OneBit(_Blocked):
    """The sign; values of one sign in a block become their mean. Its loss is large: use it with residuals."""

    name = "onebit"
    width = 2

    def values_bytes(self, count: int) -> int:
        """A bit a value."""
        return -(-count // 8)

    def _encode(self, tile: Floats, scale: Floats, codes: Bytes, span: tuple[int, int], seed: int) -> Any:  # noqa: ARG002
        start, end = span
        up = tile >= 0
        _means(tile, up, scale)
        filled = tile.size - (end - start)
        if filled:  # what fills a short block up has no part in its means
            _means(tile[-1:, :-filled], up[-1:, :-filled], scale[-1:])
        _pack(up, codes, start)
        return up

    def _decode(self, codes: Bytes, start: int, end: int, rows: int) -> Any:
        return _unpack(codes, start, end, rows)

    def _value(self, code: Any, scale: Floats) -> Floats:
        return np.where(code, scale[:, :1], scale[:, 1:])

    def error_bound(self, values: Floats) -> Floats:
        """From the smallest to the largest of the block; means lie between."""
        return _spread(values, lambda rows: np.abs(rows).max(1) * np.float32(2.001) + _TINY)


class Ternary(_Blocked):
    """-s, 0 or s, where s is the block's maximum: |value| / s is the chance that it is not 0, so the mean is right."""

    name = "ternary"

    def values_bytes(self, count: int) -> int:
        """A bit for being there, one for the sign."""
        return 2 * -(-count // 8)

    def _encode(self, tile: Floats, scale: Floats, codes: Bytes, span: tuple[int, int], seed: int) -> Any:
        start, size = span[0], np.abs(tile)
        scale[:] = size.max(1, keepdims=True)
        there = size > _chances(start, tile.size, seed).reshape(tile.shape) * scale
        strange = ~np.isfinite(scale[:, 0])
        if strange.any():
            there[strange] = True
        up = tile >= 0
        half = codes.size // 2
        _pack(there, codes[:half], start)
        _pack(up, codes[half:], start)
        return there, up

    def _decode(self, codes: Bytes, start: int, end: int, rows: int) -> Any:
        half = codes.size // 2
        return _unpack(codes[:half], start, end, rows), _unpack(codes[half:], start, end, rows)

    def _value(self, code: Any, scale: Floats) -> Floats:
        there, up = code
        return np.where(there, np.where(up, scale, -scale), np.float32(0))

    def error_bound(self, values: Floats) -> Floats:
        """The block's maximum."""
        return _spread(values, lambda rows: np.abs(rows).max(1) + _TINY)


CODECS: dict[str, Codec] = {c.name: c for c in (Bf16(), Int8(), OneBit(), Ternary())}


def codec(name: str) -> Codec:
    """The codec of this name. Raises `InternalError` for an unknown one."""
    if name not in CODECS:
        raise InternalError(f"codec {name!r}: there are {', '.join(CODECS)}")
    return CODECS[name]


def ratio(name: str) -> float:
    """Encoded bytes for a byte of float32."""
    return codec(name).encoded_bytes(64 * BLOCK) / (4 * 64 * BLOCK)


# -- blocks and tiles ------------------------------------------------------------------------------------------------


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _tiles(count: int) -> list[tuple[int, int, int, int]]:
    """(first block, blocks, first value, end) of each tile."""
    blocks = _blocks(count)
    return [
        (first, min(_TILE, blocks - first), first * BLOCK, min(count, (first + _TILE) * BLOCK))
        for first in range(0, blocks, _TILE)
    ]


def _rows(values: Any, rows: int) -> Any:
    """[rows, BLOCK]; a short last block is filled up with its last value, which changes neither maximum nor finiteness."""
    missing = rows * BLOCK - values.size
    if missing:
        values = np.concatenate([values, np.full(missing, values[-1], values.dtype)])
    return values.reshape(rows, BLOCK)


def _means(rows: Floats, up: Any, scale: Floats) -> None:
    """`scale` [blocks, 2]: the mean of the values of each row that are `up`, and of the others."""
    number, total = up.sum(1), np.where(up, rows, np.float32(0)).sum(1)
    scale[:, 0] = total / np.maximum(number, 1)
    scale[:, 1] = (rows.sum(1) - total) / np.maximum(rows.shape[1] - number, 1)


def _spread(values: Floats, of: Any) -> Floats:
    """`of` ([blocks, BLOCK] -> [blocks]), for each value."""
    if not values.size:
        return values.copy()
    rows = _rows(values, _blocks(values.size))
    spread: Floats = np.repeat(of(rows).astype(np.float32), BLOCK)[: values.size]
    return spread


def _pack(bits: Any, codes: Bytes, start: int) -> None:
    packed = np.packbits(bits.reshape(-1))
    room = codes[start // 8 : start // 8 + packed.size]
    room[:] = packed[: room.size]


def _unpack(codes: Bytes, start: int, end: int, rows: int) -> Any:
    bits = np.unpackbits(codes[start // 8 : -(-end // 8)], count=end - start)
    return _rows(bits, rows).view(np.bool_)


def _chances(start: int, count: int, seed: int) -> Floats:
    """[count] numbers in [0, 1): a hash of seed and place (the finisher of MurmurHash3), so the same on every rank."""
    x = np.arange(start, start + count, dtype=np.uint32)
    x ^= np.uint32(seed & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    x >>= np.uint32(8)
    return x.astype(np.float32) * np.float32(2**-24)
