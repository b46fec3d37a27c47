"""One thread that moves the bytes of one epoch: an event loop over the sockets of all peers.

Operations are generators: they queue sends, post receives and yield the tickets they wait for, so several are in flight
at once and point-to-point messages cannot deadlock with collectives. Bytes are received straight into posted memory;
what comes before its receive is posted is kept aside. The loop reads from every peer all the time, also when nothing is
asked of it: the end of a peer's stream is seen within a millisecond, and ends the epoch here (`on_end`).
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field

from atoll.collectives.wire import HEADER_BYTES, Header, Kind, pack, unpack
from atoll.errors import HandshakeError

# How long a closing side tries to get its last frame (ABORT, BYE) out; peers read all the time, so this is ample.
FAREWELL_S = 0.2
_READ_ONCE_BYTES = 8 << 20

Key = tuple[int, int, int, int]  # (rank, lane, sequence, part)


@dataclass(slots=True)
class Ticket:
    """A receive or a flush that an operation waits for."""

    view: memoryview | None = None
    done: bool = False


Operation = Generator[list[Ticket], None, None]


@dataclass(slots=True)
class Outgoing:
    """Bytes waiting to be sent: a frame's header, or the body that follows it."""

    view: memoryview
    ticket: Ticket | None
    is_header: bool


@dataclass(slots=True, eq=False)
class Peer:
    """One connection and where it stands in its stream."""

    rank: int
    sock: socket.socket
    out: deque[Outgoing] = field(default_factory=deque)
    head: bytearray = field(default_factory=lambda: bytearray(HEADER_BYTES))
    filled: int = 0
    header: Header | None = None
    body: memoryview | None = None
    leaving: bool = False
    gone: bool = False
    writing: bool = False


@dataclass(slots=True)
class Traffic:
    """What moved, for telemetry: bytes both ways, and seconds in which some operation waited for bytes to come in."""

    sent_bytes: int = 0
    received_bytes: int = 0
    starved_s: float = 0.0


class Reactor:
    """The loop. `on_end(reason, culprit_rank, culprit_name)` runs on its thread, once, when the epoch cannot go on."""

    def __init__(
        self, epoch: int, sockets: dict[int, socket.socket], on_end: Callable[[str, int | None, str | None], None]
    ) -> None:
        self._epoch, self._on_end = epoch, on_end
        self.traffic = Traffic()
        self._peers = {rank: Peer(rank, sock) for rank, sock in sockets.items()}
        self._posted: dict[Key, Ticket] = {}
        self._early: dict[Key, bytearray] = {}
        self._waiting: list[tuple[Operation, list[Ticket]]] = []
        self._asked: deque[Operation] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ending: bytes | None = None
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        for peer in self._peers.values():
            peer.sock.settimeout(0.0)
            self._selector.register(peer.sock, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name=f"atoll-epoch-{epoch}", daemon=True)
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def start(self, operation: Operation) -> None:
        """Have the loop run `operation`; operations begin in the order of these calls."""
        self._asked.append(operation)
        self._poke()

    def end(self, farewell: Kind, reason: str = "", culprit: str | None = None) -> None:
        """Say `farewell` to all peers and end the loop. The first call counts."""
        body = json.dumps({"reason": reason, "culprit": culprit}).encode() if farewell is Kind.ABORT else b""
        with self._lock:
            if self._ending is None:
                self._ending = pack(Header(farewell, 0, self._epoch, 0, 0, len(body))) + body
        self._poke()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _poke(self) -> None:
        with suppress(OSError, ValueError), self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # -- for operations, on the loop's thread ------------------------------------------------------------------------

    def send(self, rank: int, lane: int, sequence: int, part: int, view: memoryview) -> Ticket:
        """Queue `view`, whose memory must not change until the ticket is done."""
        ticket, peer = Ticket(), self._peers[rank]
        head = pack(Header(Kind.DATA, lane, self._epoch, sequence, part, len(view)))
        peer.out.append(Outgoing(memoryview(head), None if len(view) else ticket, is_header=True))
        if len(view):
            peer.out.append(Outgoing(view, ticket, is_header=False))
        self._flush(peer)
        return ticket

    def post(self, rank: int, lane: int, sequence: int, part: int, view: memoryview) -> Ticket:
        """Receive exactly `len(view)` bytes into `view`."""
        key, ticket = (rank, lane, sequence, part), Ticket(view)
        early = self._early.pop(key, None)
        if early is not None:
            self._same_length(rank, len(early), len(view))
            view[:] = early
            ticket.done = True
            return ticket
        self._posted[key] = ticket
        return ticket

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._ending is None:
                self._turn()
        except _PeerEnded as end:
            self._on_end(end.reason, end.rank, end.name)
        except (OSError, HandshakeError) as error:
            self._on_end(f"{type(error).__name__}: {error}", None, None)
        except Exception as error:  # noqa: BLE001 - the loop's outer edge: it becomes an event, the epoch ends
            self._on_end(f"fault in the transport: {type(error).__name__}: {error}", None, None)
        finally:
            self._farewell()
            self._dispose()

    def _turn(self) -> None:
        self._begin_asked()
        started = time.monotonic()
        ready = self._selector.select()
        if self._waiting:
            self.traffic.starved_s += time.monotonic() - started
        for key, events in ready:
            peer = key.data
            if peer is None:
                os.eventfd_read(self._wake)
                continue
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ:
                self._read(peer)
        self._resume()

    def _begin_asked(self) -> None:
        while self._asked:
            self._advance(self._asked.popleft())

    def _resume(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for operation, tickets in waiting:
            if all(t.done for t in tickets):
                self._advance(operation)
            else:
                self._waiting.append((operation, tickets))

    def _advance(self, operation: Operation) -> None:
        try:
            tickets = next(operation)
            while all(t.done for t in tickets):
                tickets = next(operation)
        except StopIteration:
            return
        self._waiting.append((operation, tickets))
        self._check_leavers()

    def _check_leavers(self) -> None:
        for (rank, _, _, _), ticket in self._posted.items():
            if self._peers[rank].gone and not ticket.done:
                raise _PeerEnded(f"rank {rank} has left the epoch", None)

    # -- sockets -----------------------------------------------------------------------------------------------------

    def _flush(self, peer: Peer) -> None:
        try:
            while peer.out:
                front = peer.out[0]
                sent = peer.sock.send(front.view)
                self.traffic.sent_bytes += sent
                if sent < len(front.view):
                    front.view = front.view[sent:]
                    continue
                peer.out.popleft()
                if front.ticket is not None:
                    front.ticket.done = True
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(peer, error) from None
        self._want_write(peer, wanted=bool(peer.out))

    def _want_write(self, peer: Peer, *, wanted: bool) -> None:
        if wanted != peer.writing and not peer.gone:
            peer.writing = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(peer.sock, events, peer)

    def _read(self, peer: Peer) -> None:
        budget = _READ_ONCE_BYTES
        try:
            while budget > 0 and not peer.gone:
                target = peer.body if peer.body is not None else memoryview(peer.head)
                count = peer.sock.recv_into(target[peer.filled :])
                if count == 0:
                    self._stream_ended(peer)
                    return
                budget -= count
                self.traffic.received_bytes += count
                peer.filled += count
                if peer.filled == len(target):
                    self._filled(peer)
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(peer, error) from None

    def _filled(self, peer: Peer) -> None:
        peer.filled = 0
        if peer.header is None:
            self._start_body(peer, unpack(peer.head))
        else:
            header, peer.header = peer.header, None
            self._end_body(peer, header)

    def _start_body(self, peer: Peer, header: Header) -> None:
        if header.epoch != self._epoch:
            raise _PeerEnded(f"rank {peer.rank} speaks of epoch {header.epoch} in epoch {self._epoch}", peer.rank)
        if header.kind is Kind.BYE:
            peer.leaving = True
            return
        key = (peer.rank, header.lane, header.sequence, header.part)
        ticket = self._posted.get(key) if header.kind is Kind.DATA else None
        if ticket is not None and ticket.view is not None:
            self._same_length(peer.rank, header.length, len(ticket.view))
            peer.body = ticket.view
        else:
            peer.body = memoryview(bytearray(header.length))
        peer.header = header
        if header.length == 0:
            self._filled(peer)

    def _end_body(self, peer: Peer, header: Header) -> None:
        body, peer.body = peer.body or memoryview(b""), None
        if header.kind is Kind.ABORT:
            said = json.loads(bytes(body))
            raise _PeerEnded(str(said.get("reason", "")), None, said.get("culprit"))
        key = (peer.rank, header.lane, header.sequence, header.part)
        ticket = self._posted.pop(key, None)
        if ticket is None:
            self._early[key] = bytearray(body)
            return
        if ticket.view is not None and body is not ticket.view:  # posted while its bytes were under way
            self._same_length(peer.rank, len(body), len(ticket.view))
            ticket.view[:] = body
        ticket.done = True

    def _stream_ended(self, peer: Peer) -> None:
        if not peer.leaving:
            raise self._lost(peer, None)
        peer.gone = True
        self._selector.unregister(peer.sock)
        self._check_leavers()

    def _lost(self, peer: Peer, error: OSError | None) -> _PeerEnded:
        if peer.leaving:
            return _PeerEnded(f"rank {peer.rank} has left the epoch", None)
        what = "its connection closed" if error is None else f"its connection failed: {error.strerror or error}"
        return _PeerEnded(f"rank {peer.rank}: {what}", peer.rank)

    def _same_length(self, rank: int, came: int, expected: int) -> None:
        if came != expected:
            raise _PeerEnded(
                f"rank {rank} sent {came} bytes where {expected} were expected: the ranks call different operations",
                None,
            )

    # -- the end -----------------------------------------------------------------------------------------------------

    def _farewell(self) -> None:
        last = self._ending or b""
        deadline = time.monotonic() + FAREWELL_S
        for peer in self._peers.values():
            if peer.gone or not last:
                continue
            # A frame that stands half-sent must be finished, or the farewell would be read as its rest. What has not
            # begun is dropped on an abort; before a BYE everything queued still goes out.
            keep = _begun(peer.out) if unpack(last[:HEADER_BYTES]).kind is Kind.ABORT else len(peer.out)
            queue = [outgoing.view for outgoing in list(peer.out)[:keep]]
            with suppress(OSError):
                for view in [*queue, memoryview(last)]:
                    peer.sock.settimeout(max(0.001, deadline - time.monotonic()))
                    peer.sock.sendall(view)

    def _dispose(self) -> None:
        self._selector.close()
        for peer in self._peers.values():
            with suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
            peer.sock.close()
        with self._lock:
            os.close(self._wake)
            self._wake = -1


def _begun(out: deque[Outgoing]) -> int:
    """How many queued pieces belong to a frame of which some bytes are already sent."""
    if not out:
        return 0
    if not out[0].is_header:
        return 1
    if len(out[0].view) == HEADER_BYTES:
        return 0
    return 2 if len(out) > 1 and not out[1].is_header else 1


class _PeerEnded(Exception):
    """The epoch cannot go on; ends the loop."""

    def __init__(self, reason: str, rank: int | None, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.rank, self.name = reason, rank, name
