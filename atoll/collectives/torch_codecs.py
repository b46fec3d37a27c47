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
| ternary |       0.25 | {-s, 0, s}, by chance (TernGrad, Wen et al., 2017), or by a threshold for residuals             |
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from atoll.collectives.torch_blocks import (
    BLOCK,
    TILE,
    TINY,
    Blocked,
    Bytes,
    Floats,
    Tile,
    Workspace,
    largest_by_block,
    rows_of,
)
from atoll.collectives.torch_sign_codecs import OneBit, Ternary
from atoll.errors import InternalError

__all__ = ["BLOCK", "CODECS", "Bf16", "Bytes", "Codec", "Floats", "Int8", "OneBit", "Ternary", "codec", "ratio"]

# 1/127, rounded down: 127 steps of the largest float32 must not pass it.
_BY_127 = np.nextafter(np.float32(1 / 127), np.float32(0))


class Codec(Protocol):
    """One way of writing float32 values in fewer bytes."""

    name: str

    def encoded_bytes(self, count: int) -> int:
        """Bytes of `count` values."""

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int | None = 0) -> None:
        """`values` [count] into `out` [encoded_bytes]; `decoded` [count] gets what receivers will read.

        `seed`: for codecs that round by chance; the same seed gives the same bytes. None where the loss is kept and
        given again with the next values (residuals): then the rounding must leave less than there was.
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

    def encode(self, values: Floats, out: Bytes, decoded: Floats, seed: int | None = 0) -> None:  # noqa: ARG002 - as Codec
        """See `Codec`."""
        codes, step = out.view(np.uint16), TILE * BLOCK
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
        codes, step = data.view(np.uint16), TILE * BLOCK
        for start in range(0, out.size, step):
            wide = codes[start : start + step].astype(np.uint32)
            wide <<= np.uint32(16)
            out[start : start + step] += wide.view(np.float32)

    def error_bound(self, values: Floats) -> Floats:
        """Half of the last of eight bits."""
        return np.abs(values) * np.float32(2**-8) + np.float32(2**-133)


class Int8(Blocked):
    """-127 to 127 times the block's scale."""

    name = "int8"

    def values_bytes(self, count: int) -> int:
        """One a value."""
        return count

    def _encode(
        self,
        values: Floats,
        scale: Floats,
        codes: Bytes,
        tile: Tile,
        work: Workspace,
        seed: int | None,  # noqa: ARG002
    ) -> Any:
        largest = np.maximum(values.max(1, keepdims=True), -values.min(1, keepdims=True))
        scale[:] = largest * _BY_127
        inverse = np.where(largest > TINY, np.float32(127) / largest, np.float32(0))
        code = np.multiply(values, inverse, out=work.floats(tile.rows))
        np.rint(code, out=code)
        code[~np.isfinite(largest[:, 0])] = 1
        bytes_ = codes.view(np.int8)[tile.start : tile.end]
        np.copyto(bytes_, code.reshape(-1)[: bytes_.size], casting="unsafe")
        return code

    def _decode(self, codes: Bytes, tile: Tile, work: Workspace) -> Any:  # noqa: ARG002
        return rows_of(codes.view(np.int8), tile)

    def _value(self, code: Any, scale: Floats, out: Floats, work: Workspace) -> Floats:  # noqa: ARG002
        if code.dtype == np.int8:
            np.copyto(out, code)
            code = out
        np.multiply(code, scale, out=out)
        return out

    def error_bound(self, values: Floats) -> Floats:
        """Half a step of the block's scale."""
        return largest_by_block(values) / np.float32(253.9) + TINY


CODECS: dict[str, Codec] = {c.name: c for c in (Bf16(), Int8(), OneBit(), Ternary())}


def codec(name: str) -> Codec:
    """The codec of this name. Raises `InternalError` for an unknown one."""
    if name not in CODECS:
        raise InternalError(f"codec {name!r}: there are {', '.join(CODECS)}")
    return CODECS[name]


def ratio(name: str) -> float:
    """Encoded bytes for a byte of float32."""
    return codec(name).encoded_bytes(64 * BLOCK) / (4 * 64 * BLOCK)
