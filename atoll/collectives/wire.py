"""Frames between two ranks of one epoch: a fixed header, then `length` bytes; and how a stream is cut into them.

Every frame carries its epoch, so that bytes of an older membership are refused and not summed, and what its sender
called (`call`), so that ranks which call different things notice. `lane` keeps point-to-point messages apart from
collectives, `sequence` numbers the operations of one lane, `part` the messages of one operation.

`Reader` does no I/O: it names the memory where the next bytes of the stream belong (`space`), and is told how many came
(`fed`). So a body is received straight into the memory of the operation that waits for it, wherever the stream is cut.
After an error it stays in error: a stream that lost its frame boundary can never be trusted again.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

from atoll.collectives.call import CALL_BYTES, NO_CALL
from atoll.errors import HandshakeError, InternalError

MAGIC = b"ATLF"
PROTOCOL = 4
_HEADER = struct.Struct(f"!4sBBHIIIQ{CALL_BYTES}s")
HEADER_BYTES = _HEADER.size
_PLACE = struct.Struct("!QQ")
# A length above this is a damaged or foreign header, not a tensor of ours.
LARGEST_BYTES = 1 << 40
# A reason for people fits easily; anything longer is not an ABORT of ours.
LARGEST_FAREWELL_BYTES = 1 << 16
LANES = 1 << 16


class Kind(enum.IntEnum):
    """What follows the header."""

    DATA = 1
    ABORT = 2  # body: JSON {"reason", "culprit", "differ"}
    BYE = 3  # this side closes on purpose; what follows is the end of the stream
    RING = 4  # an invitation to memory that both sides share; an empty body: it is open
    SHARED = 5  # like DATA, but the body is in that memory: this one says where
    FREED = 6  # the body there, at this place, is needed no more
    PROGRESS = 7  # how far the ranks are, as `waits.Progress` says it; `part` 0 asks for the same


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Header:
    """One frame's address. `lane` 0 carries collectives."""

    kind: Kind
    lane: int
    epoch: int
    sequence: int
    part: int
    length: int
    call: bytes = NO_CALL


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame."""

    header: Header
    body: memoryview


def pack(header: Header) -> bytes:
    """The header's `HEADER_BYTES` bytes."""
    address = (header.kind, header.lane, header.epoch, header.sequence, header.part)
    return _HEADER.pack(MAGIC, PROTOCOL, *address, header.length, header.call)


def unpack(data: bytes | bytearray | memoryview) -> Header:
    """The header in `data`. Raises `HandshakeError` for bytes that no peer of this protocol sends."""
    magic, protocol, number, lane, epoch, sequence, part, length, call = _HEADER.unpack(data)
    if magic != MAGIC or protocol != PROTOCOL:
        raise HandshakeError(f"not a frame of protocol {PROTOCOL}: {bytes(data[:8])!r}")
    kind = _KINDS.get(number)
    if kind is None or length > (LARGEST_BYTES if kind is Kind.DATA else LARGEST_FAREWELL_BYTES):
        raise HandshakeError(f"frame of kind {number} and {length} bytes: damaged stream")
    return Header(kind, lane, epoch, sequence, part, length, call)


def pack_place(at: int, size: int) -> bytes:
    """The body of a SHARED frame: where, and how many bytes."""
    return _PLACE.pack(at, size)


def unpack_place(body: memoryview) -> tuple[int, int]:
    """(where, how many bytes). Raises `HandshakeError` for anything else."""
    if len(body) != _PLACE.size:
        raise HandshakeError(f"a place in shared memory of {len(body)} bytes; it has {_PLACE.size}")
    at, size = _PLACE.unpack(body)
    return at, size


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a rank ended the epoch, and the name of the rank at fault. `differ`: the ranks called different operations."""

    reason: str
    culprit: str | None = None
    differ: bool = False


def farewell(kind: Kind, epoch: int, why: Abort | None = None) -> bytes:
    """The last frame of a stream: BYE, or ABORT with its reasons."""
    body = b""
    if kind is Kind.ABORT and why is not None:
        # Cut, so that the receiver never takes a long reason for a damaged stream: JSON needs up to 12 bytes a letter.
        reason = why.reason[: LARGEST_FAREWELL_BYTES // 16]
        body = json.dumps({"reason": reason, "culprit": why.culprit, "differ": why.differ}).encode()
    return pack(Header(kind, 0, epoch, 0, 0, len(body))) + body


def read_abort(body: bytes | memoryview) -> Abort:
    """What an ABORT's body says; one that cannot be read still aborts."""
    try:
        said = json.loads(bytes(body))
        culprit = None if said["culprit"] is None else str(said["culprit"])
        return Abort(str(said["reason"]), culprit, said.get("differ") is True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Abort("a peer aborted and its reason cannot be read")


class Reader:
    """Cuts one peer's stream into frames of `epoch`. `place` names the memory for a DATA body of its header's length."""

    def __init__(self, epoch: int, place: Callable[[Header], memoryview]) -> None:
        self._epoch, self._place = epoch, place
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._header: Header | None = None
        self._target = self._head
        self._filled = 0
        self._problem: str | None = None

    @property
    def at_boundary(self) -> bool:
        """True where no frame is half received."""
        return self._header is None and self._filled == 0

    @property
    def missing(self) -> int:
        """How many bytes complete a body under way; 1 between frames."""
        return 1 if self._header is None else len(self._target) - self._filled

    def space(self) -> memoryview:
        """Where the next bytes of the stream go; never empty. Raises `HandshakeError` once the stream was damaged."""
        if self._problem is not None:
            raise HandshakeError(self._problem)
        return self._target[self._filled :]

    def fed(self, count: int) -> Frame | None:
        """`count` bytes were put into `space()`; returns the frame that they complete, if any.

        Raises `HandshakeError` for a damaged stream, `InternalError` for a body of another length than was expected.
        """
        self._filled += count
        if self._filled < len(self._target):
            return None
        try:
            return self._full()
        except (HandshakeError, InternalError) as error:
            self._problem = str(error)
            raise

    def _full(self) -> Frame | None:
        if self._header is None:
            self._header = self._checked(unpack(self._head))
            self._target = self._body_of(self._header)
            self._filled = 0
            if self._header.length > 0:
                return None
        header, body = self._header, self._target
        self._header, self._target, self._filled = None, self._head, 0
        return Frame(header, body)

    def _checked(self, header: Header) -> Header:
        if header.epoch != self._epoch:
            raise HandshakeError(f"a frame of epoch {header.epoch} in epoch {self._epoch}")
        return header

    def _body_of(self, header: Header) -> memoryview:
        body = self._place(header) if header.kind is Kind.DATA else memoryview(bytearray(header.length))
        if len(body) != header.length:
            raise InternalError(f"{header.length} bytes came for {len(body)}: the ranks call different operations")
        return body
