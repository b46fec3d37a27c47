"""One connection to one peer of an epoch: frames out by priority, frames in through a `Reader`, never blocking.

Earlier operations go first, and within one its earlier parts: the plan's order. Only what the kernel takes has left our
hands, so its unsent backlog is kept short, or bulk that was queued first would stand before what is urgent.

Who is to blame for a broken connection is what the peer itself said last: before a failed send becomes this peer's
fault, what it had already sent is read to the end, because a peer that aborts names the culprit in its last frame and
then closes (and the close makes our send fail).
"""

from __future__ import annotations

import heapq
import itertools
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from atoll.collectives.tcp_links import Pressure
from atoll.collectives.telemetry import Edge
from atoll.collectives.wire import Frame, Header, Kind, Reader, pack, read_abort
from atoll.errors import HandshakeError, InternalError

# One turn of the loop takes at most this much from one peer, so that what came is added while it is in the cache.
READ_ONCE_BYTES = 1 << 20
# Frames of one sendmsg call: enough that small ones share a call; a large one goes alone.
_GATHER_FRAMES = 8
_GATHER_BYTES = 1 << 18

# A link of 1 Gbit/s brings packets faster than Python takes them one by one (measured: 7 s of a core for each GB, against
# 0.6 s in large pieces).
WAKE_BYTES = 1 << 17
# A few milliseconds of a fast link: enough to keep it busy between two turns of the loop.
BACKLOG_BYTES = 1 << 18
_TCP_NOTSENT_LOWAT = 25  # the socket module has no name for it

Priority = tuple[int, int]  # (operation, part): lower goes first


class EpochEnded(Exception):
    """The epoch cannot go on: `rank` broke its connection, or `name` is whom the peer that aborted blames."""

    def __init__(self, reason: str, *, rank: int | None = None, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.rank, self.name = reason, rank, name


class Ticket:
    """A send, a receive (then with its memory) or a part of the work that an operation waits for."""

    __slots__ = ("done", "edge", "owner", "rank", "view")

    def __init__(self, view: memoryview | None = None, edge: Edge | None = None) -> None:
        self.view, self.edge = view, edge
        self.done = False
        self.rank = -1  # of a receive from any rank: who sent it
        self.owner: Waiter | None = None


class Waiter(Protocol):
    """Who is told that a ticket is done."""

    def told(self, ticket: Ticket) -> None:
        """`ticket` is done."""


class Outgoing:
    """One frame on its way out."""

    __slots__ = ("began", "edge", "ticket", "views")

    def __init__(self, ticket: Ticket | None, edge: Edge | None, *views: memoryview) -> None:
        self.ticket, self.edge, self.began = ticket, edge, False
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
    """A stream to and from `rank`. `place` names the memory for a body, `deliver` takes each whole DATA frame.

    `done` is told each ticket whose frame has left.
    """

    def __init__(
        self,
        rank: int,
        sock: socket.socket,
        epoch: int,
        *,
        place: Callable[[Peer, Header], memoryview],
        deliver: Callable[[Peer, Frame], None],
        done: Callable[[Ticket], None],
    ) -> None:
        sock.settimeout(0.0)
        shorten_backlog(sock)
        self.rank, self.sock, self.epoch = rank, sock, epoch
        self.leaving = False  # it said BYE
        self.gone = False  # its stream ended after that
        self.claimed: Ticket | None = None  # for whom the body under way is received
        self.pressure = Pressure(sock)
        self.blocked_since = 0.0
        self._wakes_at = 1
        self._deliver, self._done = deliver, done
        self._reader = Reader(epoch, lambda header: place(self, header))
        self._queue: list[tuple[Priority, int, Outgoing]] = []  # a heap
        self._out: deque[Outgoing] = deque()  # taken from the queue: they leave in this order
        self._number = itertools.count()

    @property
    def has_output(self) -> bool:
        """True while something waits for the socket to take it."""
        return bool(self._out or self._queue)

    @property
    def front(self) -> Edge | None:
        """The operation whose bytes are to leave next."""
        return self._out[0].edge if self._out else None

    def send(self, header: Header, body: memoryview, ticket: Ticket, priority: Priority) -> bool:
        """Queue a frame; True where nothing was before it, so that it can be flushed at once."""
        if self.gone:
            raise EpochEnded(f"rank {self.rank} has left the epoch")
        idle = not self.has_output
        frame = Outgoing(ticket, ticket.edge, memoryview(pack(header)), body)
        heapq.heappush(self._queue, (priority, next(self._number), frame))
        return idle

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
            with suppress(BlockingIOError):
                self._read(READ_ONCE_BYTES)
            if not self.gone:
                self._sleep_until(min(self._reader.missing, WAKE_BYTES))
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None

    def finish_with(self, last: bytes, *, drop: bool) -> None:
        """Nothing comes after `last`. `drop`: what has not begun to leave is left out."""
        # A frame that stands half-sent must be finished, or the last one would be read as its rest.
        kept = [frame for frame in self._out if frame.began or not drop]
        if not drop:
            kept += [heapq.heappop(self._queue)[-1] for _ in range(len(self._queue))]
        self._queue.clear()
        self._out = deque([*kept, Outgoing(None, None, memoryview(last))])

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
        self._queue.clear()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _flush(self) -> None:
        while views := self._gathered():
            count = self.sock.sendmsg(views)
            while self._out:
                front = self._out[0]
                count = front.advance(count)
                if front.views:
                    break
                self._out.popleft()
                if front.ticket is not None:
                    self._done(front.ticket)

    def _gathered(self) -> list[memoryview]:
        """What the next call sends: frames that are under way, then the first of the queue."""
        size = sum(len(view) for frame in self._out for view in frame.views)
        while self._queue and size < _GATHER_BYTES and len(self._out) < _GATHER_FRAMES:
            frame = heapq.heappop(self._queue)[-1]
            self._out.append(frame)
            size += sum(map(len, frame.views))
        return [view for frame in self._out for view in frame.views]

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

    def _sleep_until(self, wanted: int) -> None:
        """Have the kernel wake the loop once `wanted` bytes are there, or the end, and not for every packet."""
        if wanted != self._wakes_at:
            self._wakes_at = wanted
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

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
                self._deliver(self, frame)
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


def shorten_backlog(sock: socket.socket) -> None:
    """Have the kernel take no more once `BACKLOG_BYTES` are unsent; what it has on the way does not count."""
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, BACKLOG_BYTES)
