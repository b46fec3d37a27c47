"""One thread that moves the bytes of one epoch: an event loop over the sockets of all peers.

Operations are generators: they queue sends, post receives, spawn parts of themselves, and yield the tickets they wait
for, so several are in flight at once and point-to-point messages cannot deadlock with collectives. Bytes are received
straight into posted memory; what comes before its receive is posted is kept aside (`tcp_mail`). The loop reads from every
peer all the time, also when nothing is asked of it: the end of a peer's stream is seen within a millisecond, and ends
the epoch here (`on_end`).

The end: `end` takes the callers' memory out of the loop's hands. Operations queue nothing more and nothing is received,
and what is left of a frame that stands half-sent is copied, so that what its owner does with a buffer afterwards reaches
nobody. Then peers get a last frame (ABORT with the culprit's name, or BYE) and a short while to take it, all at the same
time. For those whose kernel answers nothing, as that of a host behind a cut, an ABORT does not wait.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from atoll.collectives.call import NO_CALL
from atoll.collectives.tcp_links import Line, unanswered
from atoll.collectives.tcp_mail import Mail
from atoll.collectives.tcp_peer import EpochEnded, Peer, Ticket
from atoll.collectives.tcp_waits import Told, Waits
from atoll.collectives.telemetry import Trace
from atoll.collectives.waits import LOOK_S, STALL_S, Wait
from atoll.collectives.wire import Abort, Frame, Header, Kind, farewell

# How long a closing side tries to get its last frame out: peers answer within milliseconds, unless they just stopped.
FAREWELL_S = 0.2
# How long the end waits for the turn in hand: a turn takes a millisecond or two, more on an overloaded machine.
HANDS_S = 0.04
_SCRAP_BYTES = 1 << 18

Operation = Generator[list[Ticket], None, None]


class Running:
    """An operation, or a part of one, on the loop."""

    __slots__ = (
        "call", "finished", "missing", "number", "operation", "reactor", "relayed", "sequence", "since_s", "source", "trace",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, operation: Operation, trace: Trace) -> None:
        self.reactor, self.operation, self.trace = reactor, operation, trace
        self.number, self.call = 0, NO_CALL
        self.sequence: int | None = None  # of a collective that is open
        self.since_s = 0.0  # when this rank said what it means
        self.source: int | None = None  # of whom a message is expected
        self.relayed = False  # whoever has not entered keeps all waiting
        self.finished = Ticket()
        self.missing = 0

    def told(self, ticket: Ticket) -> None:
        """One of the tickets that it waits for is done."""
        if ticket.edge is not None and ticket.view is not None:
            ticket.edge.got(self.reactor.now)
        self.missing -= 1
        if not self.missing:
            self.reactor.ready.append(self)

    def waits_for(self, tickets: list[Ticket]) -> bool:
        """Be told of those that are not done; False where all are."""
        for ticket in tickets:
            if not ticket.done:
                self.missing += 1
                ticket.owners += (self,)
                if ticket.edge is not None and ticket.view is not None:
                    ticket.edge.waits(self.reactor.now)
        return self.missing > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Farewell:
    frame: bytes
    drop: bool
    unreachable: int | None


class Reactor:
    """The loop of `rank`; `local` are the peers on its own host.

    `silent`, once it ended by an ABORT: the peers that answered nothing, with their usual round trip.

    On its thread: `on_end`, once, when the epoch cannot go on; `on_wait`, when an operation waits long for others (`waits`).
    """

    def __init__(
        self,
        epoch: int,
        sockets: Mapping[int, socket.socket | Sequence[socket.socket]],
        on_end: Callable[[EpochEnded], None],
        *,
        rank: int = 0,
        local: Collection[int] = (),
        on_wait: Told | None = None,
    ) -> None:
        self._epoch, self._on_end = epoch, on_end
        self._mail = Mail(rank, self.complete)
        self._dirty: list[Peer] = []
        self._lines = {
            peer: [self._peer(peer, s, local=peer in local) for s in _listed(found)] for peer, found in sockets.items()
        }
        self._peers = [peer for lines in self._lines.values() for peer in lines]
        self._waits = Waits(rank, self._lines, self._mail, on_wait)
        for peer in self._peers:
            peer.on_progress = self._waits.heard
        self.now = self._look_s = time.monotonic()
        self.ready: deque[Running] = deque()
        self._asked: deque[Running] = deque()
        self._started = 0
        self._current = Running(self, _nothing(), Trace())
        self._writers: set[Peer] = set()
        self._open: set[Running] = set()
        self._ending: _Farewell | None = None
        self.silent: dict[Peer, float] | None = None
        self._lock = threading.Lock()
        self._kept = self._watched = False
        self._hands = threading.RLock()  # held while callers' memory may be read or written
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        for peer in self._peers:
            self._selector.register(peer.sock, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name=f"atoll-epoch-{epoch}", daemon=True)
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def start(self, operation: Operation, trace: Trace) -> None:
        """Have the loop run `operation`; operations begin in the order of these calls."""
        self._asked.append(Running(self, operation, trace))
        self._poke()

    def end(self, kind: Kind, why: Abort | None = None, *, unreachable: int | None = None) -> None:
        """End the loop with a last frame of `kind` to all peers; `unreachable` is not waited for. The first call counts.

        When this returns, callers' memory is neither read nor written any more.
        """
        frame = farewell(kind, self._epoch, why)
        last = _Farewell(frame=frame, drop=kind is Kind.ABORT, unreachable=unreachable)
        with self._lock:
            self._ending = self._ending or last
        self._poke()
        if self._hands.acquire(timeout=HANDS_S):
            self._keep()
            self._hands.release()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work of the loop's thread that touches no caller's memory and takes long: the end need not wait for it."""
        self._hands.release()
        try:
            yield
        finally:
            self._hands.acquire()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def waiting(self) -> Wait | None:
        """Whom the oldest operation in flight waits for, as of the last look."""
        return self._waits.current

    def sockets(self) -> dict[int, list[socket.socket]]:
        """The connections to each peer, for reading what the kernel counts of them."""
        return {rank: [peer.sock for peer in lines] for rank, lines in self._lines.items()}

    def lines(self) -> dict[int, list[Line]]:
        """The connections to each peer with what they carried; on the loop's thread."""
        return {rank: [Line(peer.sock, peer.pressure) for peer in lines] for rank, lines in self._lines.items()}

    def _poke(self) -> None:
        with self._lock, suppress(OSError):
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # -- for operations, on the loop's thread ------------------------------------------------------------------------

    def open(self, call: bytes, sequence: int | None = None, *, relayed: bool = False) -> None:
        """The operation says what it means, before it sends or posts; `sequence`: of a collective, which all mean alike.

        `relayed`: ranks pass on what others gave, so that it cannot end before all have entered.
        """
        current = self._current
        current.call, current.sequence = call, sequence
        current.since_s, current.relayed = self.now, relayed
        if sequence is not None:
            self._waits.progress.enters(sequence)
            self._mail.open(sequence, call)

    def send(self, rank: int, lane: int, sequence: int, part: int, view: memoryview) -> Ticket:
        """Queue `view`, whose memory must not change until the ticket is done; nothing is queued after `end`."""
        running, lines = self._current, self._lines[rank]
        edge = running.trace.edge(rank)
        ticket = Ticket(edge=edge)
        if edge is not None:
            edge.sent_bytes += len(view)
        if self._ending is None:
            # Messages of one lane stay in order; parts of a collective may take any of a link's connections.
            peer = lines[part % len(lines) if lane == 0 else 0]
            header = Header(Kind.DATA, lane, self._epoch, sequence, part, len(view), running.call)
            if peer.send(header, view, ticket, (running.number, part)):
                self._dirty.append(peer)
        return ticket

    def post(
        self, rank: int, lane: int, sequence: int, part: int, view: memoryview, *, borrows: bool = False
    ) -> Ticket:
        """Receive exactly `len(view)` bytes into `view`; `borrows`: or have them lent where they lie (`Ticket.lent`)."""
        edge = self._current.trace.edge(rank)
        if edge is not None:
            edge.received_bytes += len(view)
        ticket = Ticket(view, edge, borrows=borrows)
        if not self._mail.post(ticket, (rank, lane, sequence, part)) and self._has_left(rank):
            raise EpochEnded(f"rank {rank} has left the epoch")
        return ticket

    def post_message(self, rank: int | None, lane: int, view: memoryview) -> Ticket:
        """Receive the next message of `lane` (above 0) from `rank`, or from any if None; the ticket's `rank` tells whose."""
        self._current.source = rank
        edge = None if rank is None else self._current.trace.edge(rank)
        if edge is not None:
            edge.received_bytes += len(view)
        ticket = Ticket(view, edge)
        if not self._mail.expect(ticket, rank, lane, self._current.call) and rank is not None and self._has_left(rank):
            raise EpochEnded(f"rank {rank} has left the epoch")
        return ticket

    def spawn(self, part: Operation) -> Ticket:
        """Run `part` beside the others of its operation; the ticket is done when it ends."""
        of = self._current
        running = Running(self, part, of.trace)
        running.number, running.call = of.number, of.call
        self._open.add(running)
        self.ready.append(running)
        return running.finished

    def _has_left(self, rank: int) -> bool:
        return all(peer.gone for peer in self._lines[rank])

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._turn([])
            while self._ending is None:
                self._turn(self._select())
        except EpochEnded as end:
            self._on_end(end)
        except Exception as error:  # noqa: BLE001 - the loop's outer edge: it becomes an event, the epoch ends
            self._on_end(EpochEnded(f"fault in the transport: {type(error).__name__}: {error}"))
        finally:
            self._waits.ends()
            self._part()
            self._dispose()

    def _select(self) -> list[tuple[selectors.SelectorKey, int]]:
        self._watched = bool(self._open) or self._waits.told
        before, events = self.now, self._selector.select(LOOK_S if self._watched else None)
        if self._watched and time.monotonic() - before > STALL_S:
            self._waits.woke(time.monotonic())
        return events

    def _turn(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        self.now = time.monotonic()
        with self._hands:
            if self._ending is None:
                self._serve(events)

    def _serve(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            peer = key.data
            if peer is None:
                os.eventfd_read(self._wake)
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(peer)
            if mask & selectors.EVENT_READ:
                peer.read_s = self.now
                peer.read()
                if peer.gone:
                    self._let_go(peer)
                elif peer.wants_to_write and peer not in self._writers:
                    self._dirty.append(peer)  # it made room, or has to be answered
            # What came goes on before more is read: it is in the cache, and another rank waits for it.
            self._work()
        self._work()
        if self._watched and self.now >= self._look_s:
            self._look_s = self.now + LOOK_S
            self._waits.look(self._open, self.now)
            self._work()  # what it asks

    def _work(self) -> None:
        while self._asked:
            self._begin(self._asked.popleft())
        while self.ready or self._dirty:
            while self.ready:
                self._advance(self.ready.popleft())
            dirty = list(self._dirty)
            self._dirty.clear()
            for peer in dirty:
                self._flush(peer)

    def _begin(self, running: Running) -> None:
        self._started += 1
        running.number = self._started
        self._open.add(running)
        running.trace.entered_s = self.now
        self._advance(running)

    def _advance(self, running: Running) -> None:
        self._current = running
        while True:
            tickets = next(running.operation, None)
            if tickets is None:
                self._open.discard(running)
                if running.sequence is not None:
                    self._mail.close(running.sequence)
                self.complete(running.finished)
                return
            if running.waits_for(tickets):
                return

    def complete(self, ticket: Ticket) -> None:
        """A ticket is done: a frame has left, a body is there, or whatever else an operation waits for."""
        ticket.done = True
        for owner in ticket.owners:
            owner.told(ticket)

    def _flush(self, peer: Peer) -> None:
        """Send what the socket takes; for the rest the loop is woken."""
        if peer.gone:
            return
        front = peer.front
        if not peer.flush():
            self._let_go(peer)
            return
        blocked = peer.wants_to_write
        if peer in self._writers:
            if front is not None:
                front.blocked_s += self.now - peer.blocked_since
            if not blocked:
                peer.pressure.ends(self.now)
                self._writers.discard(peer)
                self._selector.modify(peer.sock, selectors.EVENT_READ, peer)
        elif blocked:
            peer.pressure.begins(self.now)
            self._writers.add(peer)
            self._selector.modify(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
        peer.blocked_since = self.now

    def _let_go(self, peer: Peer) -> None:
        """A peer has left in good order: the epoch goes on unless an operation needs it."""
        if peer.sock.fileno() < 0:
            return
        unsent = peer.owes
        self._selector.unregister(peer.sock)
        self._writers.discard(peer)
        peer.close()
        if unsent or (self._has_left(peer.rank) and self._mail.awaits(peer.rank)):
            raise EpochEnded(f"rank {peer.rank} has left the epoch")

    # -- bytes that came ---------------------------------------------------------------------------------------------

    def _peer(self, rank: int, sock: socket.socket, *, local: bool) -> Peer:
        return Peer(
            rank,
            sock,
            self._epoch,
            place=self._place,
            deliver=self._deliver,
            done=self.complete,
            dirty=self._dirty.append,
            local=local,
        )

    def _place(self, peer: Peer, header: Header) -> memoryview:
        if not header.lane:
            self._waits.progress.heard(peer.rank, header.sequence)
        peer.claimed = self._mail.claim(peer.rank, header)
        if peer.claimed is not None and peer.claimed.view is not None:
            return peer.claimed.view
        return self._mail.space(header.length)

    def _deliver(self, peer: Peer, frame: Frame) -> None:
        self._mail.deliver(peer.rank, frame, peer.claimed, self.now)
        peer.claimed = None

    # -- the end -----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Copy, once, what is still to leave."""
        if self._ending is not None and not self._kept:
            self._kept = True
            for peer in self._peers:
                peer.keep(all_of_it=not self._ending.drop)

    def _part(self) -> None:
        last = self._ending
        if last is None:  # `on_end` itself failed: the peers see the close
            return
        with self._hands:
            self._keep()
        scrap = memoryview(bytearray(_SCRAP_BYTES))
        staying = [peer for peer in self._peers if not peer.gone]
        silent = {p: rtt_s for p in staying if (rtt_s := unanswered(p.sock)) is not None} if last.drop else {}
        self.silent = silent if last.drop else None
        for peer in staying:
            peer.finish_with(last.frame, drop=last.drop)
        staying = [p for p in staying if not p.part(scrap) and p not in silent and p.rank != last.unreachable]
        deadline = time.monotonic() + FAREWELL_S
        with selectors.DefaultSelector() as selector:
            for peer in staying:
                selector.register(peer.sock, peer.events, peer)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.data.part(scrap):
                        selector.unregister(key.data.sock)
                    else:
                        selector.modify(key.data.sock, key.data.events, key.data)

    def _dispose(self) -> None:
        for running in (*self._open, *self._asked):
            running.operation.close()
        self._selector.close()
        for peer in self._peers:
            peer.close()
        with self._lock:
            os.close(self._wake)
            self._wake = -1


def _listed(found: socket.socket | Sequence[socket.socket]) -> Sequence[socket.socket]:
    return [found] if isinstance(found, socket.socket) else found


def _nothing() -> Operation:
    yield from ()
