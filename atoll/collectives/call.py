"""What a rank means by an operation: sixteen bytes in every frame of it, so that ranks that mean different things notice.

Ranks that disagree on type, size or plan would add up the wrong bytes or wait for ever. Each frame says what its sender
called; whoever has called something else ends the epoch with both in the reason.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from atoll.errors import HandshakeError

_FORM = struct.Struct("!BBBBIQ")
CALL_BYTES = _FORM.size
NO_CALL = bytes(CALL_BYTES)

KINDS = (
    "", "all_reduce", "all_gather", "broadcast", "send", "reduce", "reduce_scatter", "all_gather_into", "all_to_all",
    "gather", "scatter", "tuning",
)  # fmt: skip
DTYPES = (
    "", "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "other",
)  # fmt: skip
OPS = ("", "sum", "min", "max", "product", "band", "bor", "bxor", "avg")
CODECS = ("", "bf16", "int8", "onebit", "ternary")


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as its caller means it. `count` elements; `plan` is the plan's digest, 0 for a fixed one."""

    kind: str
    dtype: str = ""
    count: int = 0
    op: str = ""
    codec: str = ""
    plan: int = 0

    def __str__(self) -> str:
        words = [self.kind, *([self.op] if self.op else [])]
        if self.dtype:
            words.append(f"of {self.dtype}[{self.count}]")
        elif self.count:
            words.append(f"of {self.count} bytes")
        if self.codec:
            words.append(f"in {self.codec}")
        return " ".join(words)


@functools.lru_cache(maxsize=1024)
def pack(call: Call) -> bytes:
    """The call's `CALL_BYTES` bytes."""
    numbers = (KINDS.index(call.kind), _number(DTYPES, call.dtype), _number(OPS, call.op), _number(CODECS, call.codec))
    return _FORM.pack(*numbers, call.plan, call.count)


def unpack(data: bytes) -> Call:
    """The call in `data`. Raises `HandshakeError` for numbers that no peer of this protocol sends."""
    kind, dtype, op, codec, plan, count = _FORM.unpack(data)
    try:
        return Call(KINDS[kind], DTYPES[dtype], count, OPS[op], CODECS[codec], plan)
    except IndexError:
        raise HandshakeError(f"an operation of kind {kind}, type {dtype}, op {op}, codec {codec}") from None


def difference(here: bytes, there: bytes, *, rank: int, peer: int) -> str:
    """In what the call of this `rank` differs from its `peer`'s, in words that name both."""
    mine, theirs = unpack(here), unpack(there)
    if str(mine) != str(theirs):
        return f"different operations: rank {peer} calls {theirs}, rank {rank} {mine}"
    return f"different plans for {mine}: {theirs.plan:08x} on rank {peer}, {mine.plan:08x} on rank {rank}"


def _number(words: tuple[str, ...], word: str) -> int:
    return words.index(word) if word in words else words.index("other")
