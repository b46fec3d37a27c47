"""One connection to one peer of an epoch: frames out by priority, frames in through a `Reader`, never blocking.

Earlier operations go first, and within one its earlier parts: the plan's order. Only what the kernel takes has left our
hands, so its unsent backlog is kept short, or bulk that was queued first would stand before what is urgent.

Bodies for a rank of the same host travel in shared memory, once both sides have it open; their frames say where.

Who is to blame for a broken connection is what the peer itself said last: before a failed send becomes this peer's
fault, what it had already sent is read to the end, because a peer that aborts names the culprit in its last frame and
then closes (and the close makes our send fail).
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import math
import selectors
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np

from atoll.collectives.shm_ring import Bytes, Inbox, Outbox
from atoll.collectives.tcp_links import Pressure
from atoll.collectives.telemetry import Edge
from atoll.collectives.wire import Frame, Header, Kind, Reader, pack, pack_place, read_abort, unpack_place
from atoll.errors import HandshakeError, InternalError

# One turn of the loop takes at most this much from one peer, so that what came is added while it is in the cache.
READ_ONCE_BYTES = 1 << 20
# Frames of one sendmsg call: enough that small ones share a call; a large one goes alone.
_GATHER_FRAMES = 8
_GATHER_BYTES = 1 << 18

# A link of 1 Gbit/s brings packets faster than Python takes them one by one (measured: 7 s of a core for each GB, against
# 0.6 s in large pieces).
WAKE_BYTES = 1 << 17
# A few milliseconds of a fast link: enough to keep it busy between two turns of the loop. A slow one needs less, and shows
# what it carries only while it has more to carry than that.
BACKLOG_BYTES, LEAST_BACKLOG_BYTES = 1 << 18, 1 << 15
BACKLOG_S = 0.01
_TCP_NOTSENT_LOWAT = 25  # the socket module has no name for it

Priority = tuple[int, int]  # (operation, part): lower goes first
_FIRST: Priority = (-1, -1)


class EpochEnded(Exception):
    """The epoch cannot go on: `rank` broke its connection, or `name` is whom the peer that aborted blames.

    `differ`: no rank is to blame but the program, which calls different operations on its ranks.
    """

    def __init__(self, reason: str, *, rank: int | None = None, name: str | None = None, differ: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.rank, self.name, self.differ = reason, rank, name, differ


class Ticket:
    """A send, a receive (then with its memory) or a part of the work that an operation waits for."""

    __slots__ = ("borrows", "done", "edge", "free", "lent", "owners", "rank", "view")

    def __init__(self, view: memoryview | None = None, edge: Edge | None = None, *, borrows: bool = False) -> None:
        self.view, self.edge = view, edge
        # Of a receive whose bytes are only read, once: they may be `lent` where they lie, until `free` is called.
        self.borrows = borrows
        self.lent: Bytes | None = None
        self.free: Callable[[], None] | None = None
        self.done = False
        self.rank = -1  # of a receive from any rank: who sent it
        self.owners: tuple[Waiter, ...] = ()  # several of what a window tells: all operations of the next but one


class Waiter(Protocol):
    """Who is told that a ticket is done."""

    def told(self, ticket: Ticket) -> None:
        """`ticket` is done."""


class Outgoing:
    """One frame on its way out."""

    __slots__ = ("began", "body", "edge", "header", "ticket", "views")

    def __init__(self, ticket: Ticket | None, edge: Edge | None, header: Header, body: memoryview) -> None:
        self.ticket, self.edge, self.began = ticket, edge, False
        self.header, self.body = header, body
        self.views = [memoryview(pack(header)), *([body] if len(body) else [])]

    @classmethod
    def raw(cls, last: bytes) -> Outgoing:
        """Whole frames as bytes."""
        frame = cls.__new__(cls)
        frame.ticket, frame.edge, frame.began, frame.views = None, None, False, [memoryview(last)]
        return frame

    def share(self, ring: Outbox) -> bool:
        """Put the body into shared memory if it travels there; False while that has no room."""
        if self.header.kind is not Kind.DATA or not ring.takes(len(self.body)):
            return True
        at = ring.put(self.body)
        if at is None:
            return False
        place = pack_place(at, len(self.body))
        header = dataclasses.replace(self.header, kind=Kind.SHARED, length=len(place))
        self.views = [memoryview(pack(header) + place)]
        return True

    def keep(self) -> None:
        """Copy what is still to be sent."""
        self.views = [memoryview(bytes(view)) for view in self.views]
        if not self.began:
            self.body = self.views[-1] if len(self.body) else self.body

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

    `done` is told each ticket whose frame has left, `dirty` that it has something to send of itself.
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
        dirty: Callable[[Peer], None],
        local: bool = False,
    ) -> None:
        sock.settimeout(0.0)
        shorten_backlog(sock)
        self.rank, self.sock, self.epoch = rank, sock, epoch
        self.host = host_of(sock)
        self.leaving = False  # it said BYE
        self.gone = False  # its stream ended after that
        self.claimed: Ticket | None = None  # for whom the body under way is received
        self.pressure = Pressure(sock)
        self.blocked_since = 0.0
        self.read_s = 0.0  # when the loop last took in what came
        self._wakes_at = 1
        self._place, self._deliver, self._done, self._dirty = place, deliver, done, dirty
        self.on_progress: Callable[[Peer, Frame], None] = _ignore  # takes each PROGRESS frame
        self._word: Outgoing | None = None
        self._reader = Reader(epoch, lambda header: place(self, header))
        self._queue: list[tuple[Priority, int, Outgoing]] = []  # a heap
        self._out: deque[Outgoing] = deque()  # taken from the queue: they leave in this order
        self._number = itertools.count()
        self._outbox: Outbox | None = None
        self._inbox: Inbox | None = None
        self._full = False  # the ring has no room for what is to leave next
        if local:
            self._invite()

    @property
    def wants_to_write(self) -> bool:
        """True while something waits for the socket, and not for the peer to make room."""
        return bool(self._out or (self._queue and not self._full))

    @property
    def has_output(self) -> bool:
        """True while something waits for the socket to take it."""
        return bool(self._out or self._queue)

    @property
    def events(self) -> int:
        """What a selector is to tell of it at the end."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.has_output else 0)

    @property
    def owes(self) -> bool:
        """True while something of an operation waits for the socket to take it."""
        return any(frame.ticket is not None for frame in [*self._out, *(queued[-1] for queued in self._queue)])

    @property
    def front(self) -> Edge | None:
        """The operation whose bytes are to leave next."""
        return self._out[0].edge if self._out else None

    def send(self, header: Header, body: memoryview, ticket: Ticket, priority: Priority) -> bool:
        """Queue a frame; True where nothing was before it, so that it can be flushed at once."""
        if self.gone:
            raise EpochEnded(f"rank {self.rank} has left the epoch")
        idle = not self.has_output
        frame = Outgoing(ticket, ticket.edge, header, body)
        heapq.heappush(self._queue, (priority, next(self._number), frame))
        return idle

    def _invite(self) -> None:
        with suppress(OSError):
            self._outbox = Outbox()
            self._say(Kind.RING, self._outbox.invitation())

    def say_progress(self, part: int, word: bytes) -> None:
        """How far the ranks are; nothing where the last such word is still here."""
        if not self.gone and (self._word is None or not self._word.views):
            self._word = self._say(Kind.PROGRESS, word, part)

    def _free(self, place: bytes) -> None:
        self._say(Kind.FREED, place)

    def _say(self, kind: Kind, body: bytes = b"", part: int = 0) -> Outgoing:
        """A word to the peer, before all else."""
        frame = Outgoing(None, None, Header(kind, 0, self.epoch, 0, part, len(body)), memoryview(body))
        heapq.heappush(self._queue, (_FIRST, next(self._number), frame))
        self._full = False  # this needs no room there
        self._dirty(self)
        return frame

    def flush(self) -> bool:
        """Send what the socket takes; False where the peer has left and is owed nothing."""
        try:
            self._flush()
        except BlockingIOError:
            return True
        except OSError as error:
            self._read_to_the_end()
            if not self.leaving or self.owes:
                raise self._lost(error.strerror or str(error)) from None
            self.gone = True
        return not self.gone

    def read(self) -> None:
        """Take in what came, at most `READ_ONCE_BYTES`."""
        try:
            with suppress(BlockingIOError):
                self._read(READ_ONCE_BYTES)
            if not self.gone:
                self._sleep_until(min(self._reader.missing, WAKE_BYTES))
        except OSError as error:
            if not self.leaving:
                raise self._lost(error.strerror or str(error)) from None
            self.gone = True  # after its BYE: a word to it crossed its close

    def keep(self, *, all_of_it: bool) -> None:
        """Copy what is still to leave, of frames that began or of all: their memory goes back to its owner."""
        for frame in (*self._out, *(entry[-1] for entry in self._queue)):
            if all_of_it or frame.began:
                frame.keep()

    def finish_with(self, last: bytes, *, drop: bool) -> None:
        """Nothing comes after `last`. `drop`: what has not begun to leave is left out."""
        # A frame that stands half-sent must be finished, or the last one would be read as its rest.
        kept = [frame for frame in self._out if frame.began or not drop]
        if not drop:
            kept += [heapq.heappop(self._queue)[-1] for _ in range(len(self._queue))]
        self._queue.clear()
        self._out = deque([*kept, Outgoing.raw(last)])

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
        for end in (self._outbox, self._inbox):
            if end is not None:
                end.close()
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
            frame = self._queue[0][-1]
            if self._outbox is not None and not frame.share(self._outbox):
                self._full = True
                break
            heapq.heappop(self._queue)
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
            raise EpochEnded(f"rank {self.rank}: {error}", differ=True) from None

    def _take(self, frame: Frame) -> None:
        match frame.header.kind:
            case Kind.DATA:
                self._deliver(self, frame)
            case Kind.BYE:
                self.leaving = True
            case Kind.ABORT:
                why = read_abort(frame.body)
                raise EpochEnded(why.reason, name=why.culprit, differ=why.differ)
            case Kind.RING:
                self._meet_in_memory(bytes(frame.body))
            case Kind.SHARED:
                self._take_shared(frame)
            case Kind.FREED:
                if self._outbox is not None:
                    self._outbox.freed(self._where(frame)[0])
                self._full = False
            case Kind.PROGRESS:
                self.on_progress(self, frame)

    def _meet_in_memory(self, invitation: bytes) -> None:
        if not invitation:
            if self._outbox is not None:
                self._outbox.opened()
            return
        self._inbox = Inbox.open(invitation)
        if self._inbox is not None:
            self._say(Kind.RING)

    def _take_shared(self, frame: Frame) -> None:
        at, size = self._where(frame)
        if self._inbox is None or not self._inbox.holds(at, size):
            raise EpochEnded(f"rank {self.rank}: {size} bytes at {at} of no shared memory", rank=self.rank)
        header = dataclasses.replace(frame.header, kind=Kind.DATA, length=size)
        view = self._place(self, header)
        if len(view) != size:
            raise EpochEnded(
                f"rank {self.rank}: {size} bytes came for {len(view)}: the ranks call different operations",
                differ=True,
            )
        body, free = self._inbox.body(at, size), functools.partial(self._free, bytes(frame.body))
        ticket = self.claimed
        if ticket is not None and ticket.borrows and ticket.owners:
            # Someone waits for it and will use it in this very turn: where it lies is good enough.
            ticket.lent, ticket.free = body, free
        else:
            np.frombuffer(view, np.uint8)[:] = body
            free()
        self._deliver(self, Frame(header, view))

    def _where(self, frame: Frame) -> tuple[int, int]:
        try:
            return unpack_place(frame.body)
        except HandshakeError as error:
            raise EpochEnded(f"rank {self.rank}: {error}", rank=self.rank) from None

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


def _ignore(_peer: Peer, _frame: Frame) -> None:
    """Of a peer that nobody watches."""


def host_of(sock: socket.socket) -> str:
    """The address at the other end; "" where there is none."""
    with suppress(OSError):
        return "" if sock.family == socket.AF_UNIX else str(sock.getpeername()[0])
    return ""


def shorten_backlog(sock: socket.socket, bandwidth: float = math.inf) -> None:
    """Have the kernel take no more once enough for a link of this many bytes/s is unsent; what is on the way counts not."""
    size = min(max(LEAST_BACKLOG_BYTES, BACKLOG_S * bandwidth), BACKLOG_BYTES)
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, round(size))
