"""One connection to one peer of an epoch: frames out of a queue, frames in through a `Reader`, never blocking.

Who is to blame for a broken connection is what the peer itself said last: before a failed send becomes this peer's
fault, what it had already sent is read to the end, because a peer that aborts names the culprit in its last frame and
then closes (and the close makes our send fail).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from atoll.collectives.wire import Frame, Header, Kind, Reader, pack, read_abort
from atoll.errors import HandshakeError, InternalError

# One turn of the loop takes at most this much from one peer, so that what came is added while it is in the cache.
READ_ONCE_BYTES = 1 << 20
# Buffers of one sendmsg call; far below the kernel's limit of 1024.
_GATHER = 16


class EpochEnded(Exception):
    """The epoch cannot go on: `rank` broke its connection, or `name` is whom the peer that aborted blames."""

    def __init__(self, reason: str, *, rank: int | None = None, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.rank, self.name = reason, rank, name


@dataclass(slots=True)
class Ticket:
    """A send or a receive (then with its memory) that an operation waits for."""

    view: memoryview | None = None
    done: bool = False


class Outgoing:
    """One frame on its way out."""

    __slots__ = ("began", "ticket", "views")

    def __init__(self, ticket: Ticket | None, *views: memoryview) -> None:
        self.ticket, self.began = ticket, False
        self.views = [view for view in views if len(view)]

    def advance(self, count: int) -> int:
        """Count `count` sent bytes off; returns those that belong to the next frame."""
        while count and self.views:
            self.began = True
            front = self.views[0]
            if count < len(front):
                self.views[0] = front[count:]
                return 0
            count -= len(front)
            del self.views[0]
        return count


class Peer:
    """The stream to and from `rank`. `place` names the memory for a body, `deliver` takes each whole DATA frame."""

    def __init__(
        self,
        rank: int,
        sock: socket.socket,
        epoch: int,
        *,
        place: Callable[[int, Header], memoryview],
        deliver: Callable[[int, Frame], None],
    ) -> None:
        sock.settimeout(0.0)
        self.rank, self.sock, self.epoch = rank, sock, epoch
        self.leaving = False  # it said BYE
        self.gone = False  # its stream ended after that
        self._deliver = deliver
        self._reader = Reader(epoch, lambda header: place(rank, header))
        self._out: deque[Outgoing] = deque()

    @property
    def has_output(self) -> bool:
        """True while something waits for the socket to take it."""
        return bool(self._out)

    def send(self, header: Header, body: memoryview, ticket: Ticket) -> None:
        """Queue a frame and send what the socket takes."""
        if self.gone:
            raise EpochEnded(f"rank {self.rank} has left the epoch")
        self._out.append(Outgoing(ticket, memoryview(pack(header)), body))
        if len(self._out) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            self._flush()
        except BlockingIOError:
            return
        except OSError as error:
            self._read_to_the_end()
            raise self._lost(error.strerror or str(error)) from None

    def read(self) -> None:
        """Take in what came, at most `READ_ONCE_BYTES`."""
        try:
            self._read(READ_ONCE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None

    def finish_with(self, last: bytes, *, drop: bool) -> None:
        """Nothing comes after `last`. `drop`: what has not begun to leave is left out."""
        # A frame that stands half-sent must be finished, or the last one would be read as its rest.
        kept = [frame for frame in self._out if frame.began or not drop]
        self._out = deque([*kept, Outgoing(None, memoryview(last))])

    def part(self, scrap: memoryview) -> bool:
        """Send and throw away what comes, without waiting; True once both directions are at their end."""
        try:
            if self._out:
                with suppress(BlockingIOError):
                    self._flush()
                    self.sock.shutdown(socket.SHUT_WR)
            # To close with bytes unread would reset the connection and destroy the last frame on its way.
            while self.sock.recv_into(scrap):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Let go of the socket."""
        self.gone = True
        self._out.clear()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _flush(self) -> None:
        while self._out:
            views = [view for frame, _ in zip(self._out, range(_GATHER // 2), strict=False) for view in frame.views]
            count = self.sock.sendmsg(views)
            while self._out:
                front = self._out[0]
                count = front.advance(count)
                if front.views:
                    break
                self._out.popleft()
                if front.ticket is not None:
                    front.ticket.done = True

    def _read(self, budget: int) -> None:
        while budget > 0:
            space = self._reader.space()
            count = self.sock.recv_into(space)
            if count == 0:
                self._stream_ended()
                return
            budget -= count
            frame = self._cut(count)
            if frame is not None:
                self._take(frame)
            if count < len(space):  # nothing more is there: asking again would cost a call and an exception
                return

    def _cut(self, count: int) -> Frame | None:
        try:
            return self._reader.fed(count)
        except HandshakeError as error:
            raise EpochEnded(f"rank {self.rank}: {error}", rank=self.rank) from None
        except InternalError as error:
            raise EpochEnded(f"rank {self.rank}: {error}") from None

    def _take(self, frame: Frame) -> None:
        match frame.header.kind:
            case Kind.DATA:
                self._deliver(self.rank, frame)
            case Kind.BYE:
                self.leaving = True
            case Kind.ABORT:
                reason, culprit = read_abort(frame.body)
                raise EpochEnded(reason, name=culprit)

    def _read_to_the_end(self) -> None:
        with suppress(OSError):
            while not self.gone:  # ends by an error: no more bytes, or no more stream
                self._read(READ_ONCE_BYTES)

    def _stream_ended(self) -> None:
        if not self.leaving or not self._reader.at_boundary:
            raise self._lost("its connection closed")
        self.gone = True

    def _lost(self, what: str) -> EpochEnded:
        if self.leaving:
            return EpochEnded(f"rank {self.rank} has left the epoch")
        return EpochEnded(f"rank {self.rank}: {what}", rank=self.rank)
