"""Frames between two ranks of one epoch: a fixed header, then `length` bytes.

Every frame carries its epoch, so that bytes of an older membership are refused and not summed. `lane` keeps point-to-
point messages apart from collectives, `sequence` orders the messages of one lane, `part` those of one operation.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from atoll.errors import HandshakeError

MAGIC = b"ATLF"
PROTOCOL = 1
_HEADER = struct.Struct("!4sBBHIIIQ")
HEADER_BYTES = _HEADER.size
# A length above this is a damaged or foreign header, not a tensor of ours.
LARGEST_BYTES = 1 << 40


class Kind(enum.IntEnum):
    """What follows the header."""

    DATA = 1
    ABORT = 2  # body: JSON {"reason", "culprit"}
    BYE = 3  # this side closes on purpose; what follows is the end of the stream


@dataclass(frozen=True, slots=True)
class Header:
    """One frame's address. `lane` 0 carries collectives."""

    kind: Kind
    lane: int
    epoch: int
    sequence: int
    part: int
    length: int


def pack(header: Header) -> bytes:
    """The header's `HEADER_BYTES` bytes."""
    return _HEADER.pack(
        MAGIC, PROTOCOL, header.kind, header.lane, header.epoch, header.sequence, header.part, header.length
    )


def unpack(data: bytes | bytearray | memoryview) -> Header:
    """The header in `data`. Raises `HandshakeError` for bytes that no peer of this protocol sends."""
    magic, protocol, kind, lane, epoch, sequence, part, length = _HEADER.unpack(data)
    if magic != MAGIC or protocol != PROTOCOL:
        raise HandshakeError(f"not a frame of protocol {PROTOCOL}: {bytes(data[:8])!r}")
    if kind not in Kind._value2member_map_ or length > LARGEST_BYTES:
        raise HandshakeError(f"frame of kind {kind} and {length} bytes: damaged stream")
    return Header(Kind(kind), lane, epoch, sequence, part, length)
