"""Memory that two ranks of one host share, one ring for each direction of a connection.

The sender owns the ring: it copies a body in and tells where it lies in a frame of a few bytes; the receiver copies it out,
or adds straight from it, and says so. Nothing is named in a file system: the receiver opens the sender's memory through
`/proc/<pid>/fd`, and a secret at its start proves that it is the right one. Where that cannot be done (another container,
another user) the connection carries all by itself.
"""

from __future__ import annotations

import hmac
import json
import mmap
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

# Several slices of the largest size, and little enough to stay in a processor's cache.
RING_BYTES = 4 << 20
# A body below this costs less inside its frame than beside it.
SMALLEST_BYTES = 8 * 1024
_TOKEN_BYTES = 32


Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(slots=True)
class _Body:
    end: int
    freed: bool = False


class Outbox:
    """The sender's end. Raises `OSError` where there is no memory to share."""

    def __init__(self) -> None:
        self.ready = False  # the receiver has it open
        self._token = os.urandom(_TOKEN_BYTES)
        self._fd = os.memfd_create("atoll-ring", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _TOKEN_BYTES + RING_BYTES)
        self._memory = np.frombuffer(mmap.mmap(self._fd, _TOKEN_BYTES + RING_BYTES), np.uint8)
        self._memory[:_TOKEN_BYTES] = np.frombuffer(self._token, np.uint8)
        # Positions count up for ever; where they lie in the ring is their rest.
        self._head, self._tail = 0, 0
        self._bodies: deque[_Body] = deque()
        self._by_place: dict[int, _Body] = {}

    def invitation(self) -> bytes:
        """What the receiver needs to open it."""
        return json.dumps({"pid": os.getpid(), "fd": self._fd, "token": self._token.hex()}).encode()

    def takes(self, size: int) -> bool:
        """True for bodies that travel in the ring, now or as soon as there is room."""
        return self.ready and SMALLEST_BYTES <= size <= RING_BYTES // 2

    def put(self, body: memoryview) -> int | None:
        """Copy `body` in; returns where it lies, or None while there is no room."""
        size = len(body)
        start = self._head % RING_BYTES
        # In one piece: what does not fit before the end begins at the start.
        skipped = RING_BYTES - start if start + size > RING_BYTES else 0
        if self._head + skipped + size - self._tail > RING_BYTES:
            return None
        at = _TOKEN_BYTES + (0 if skipped else start)
        self._memory[at : at + size] = np.frombuffer(body, np.uint8)
        self._head += skipped + size
        body_ = _Body(self._head)
        self._bodies.append(body_)
        self._by_place[at] = body_
        return at

    def freed(self, at: int) -> None:
        """The receiver needs the body at `at` no more. Room is made from the oldest on."""
        body = self._by_place.pop(at, None)
        if body is not None:
            body.freed = True
        while self._bodies and self._bodies[0].freed:
            self._tail = self._bodies.popleft().end

    def opened(self) -> None:
        """The receiver has it open: no name is needed any more."""
        self.ready = True
        self._close_fd()

    def close(self) -> None:
        """Let go of it."""
        self.ready = False
        self._close_fd()
        self._memory = np.empty(0, np.uint8)

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Inbox:
    """The receiver's end."""

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory

    @classmethod
    def open(cls, invitation: bytes) -> Inbox | None:
        """The ring that a sender invites to; None where it cannot be reached or is not what was meant."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(invitation)
            fd = os.open(f"/proc/{int(said['pid'])}/fd/{int(said['fd'])}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                memory = np.frombuffer(mmap.mmap(fd, _TOKEN_BYTES + RING_BYTES, prot=mmap.PROT_READ), np.uint8)
            finally:
                os.close(fd)
            if hmac.compare_digest(memory[:_TOKEN_BYTES].tobytes(), bytes.fromhex(said["token"])):
                return cls(memory)
        return None

    def holds(self, at: int, size: int) -> bool:
        """Whether there can be a body of `size` bytes at `at`."""
        return at >= _TOKEN_BYTES and size > 0 and at + size <= self._memory.size

    def body(self, at: int, size: int) -> Bytes:
        """The body itself, until it is freed."""
        return self._memory[at : at + size]

    def close(self) -> None:
        """Let go of it."""
        self._memory = np.empty(0, np.uint8)
