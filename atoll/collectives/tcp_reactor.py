"""One thread that moves the bytes of one epoch: an event loop over the sockets of all peers.

Operations are generators: they queue sends, post receives and yield the tickets they wait for, so several are in flight
at once and point-to-point messages cannot deadlock with collectives. Bytes are received straight into posted memory;
what comes before its receive is posted is kept aside. The loop reads from every peer all the time, also when nothing is
asked of it: the end of a peer's stream is seen within a millisecond, and ends the epoch here (`on_end`).

The end: once `end` was called, operations queue nothing more, so that what they read from a caller's buffer later can
reach nobody. Then peers get a last frame (ABORT with the culprit's name, or BYE) and a short while to take it, all at the same time.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field

from atoll.collectives.tcp_peer import EpochEnded, Peer, Ticket
from atoll.collectives.wire import Frame, Header, Kind, farewell
from atoll.collectives.work import Usage

# How long a closing side tries to get its last frame out. Peers read all the time and answer within milliseconds; only
# one that was stopped or cut off takes the whole of it, and a recovery waits for it.
FAREWELL_S = 0.1
_SCRAP_BYTES = 1 << 18

Operation = Generator[list[Ticket], None, None]
Key = tuple[int, int, int, int]  # (rank, lane, sequence, part)


@dataclass(slots=True)
class _Running:
    operation: Operation
    usage: Usage
    tickets: list[Ticket] = field(default_factory=list)

    def ready(self) -> bool:
        return all(ticket.done for ticket in self.tickets)

    def waited(self, seconds: float) -> None:
        """Count a pause of the loop as starved if bytes are missing, else as blocked."""
        if any(not t.done and t.view is not None for t in self.tickets):
            self.usage.starved_s += seconds
        else:
            self.usage.blocked_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Farewell:
    frame: bytes
    drop: bool
    unreachable: int | None


class Reactor:
    """The loop. `on_end(reason, culprit_rank, culprit_name)` runs on its thread, once, when the epoch cannot go on."""

    def __init__(
        self, epoch: int, sockets: dict[int, socket.socket], on_end: Callable[[str, int | None, str | None], None]
    ) -> None:
        self._epoch, self._on_end = epoch, on_end
        self._peers = {r: Peer(r, s, epoch, place=self._place, deliver=self._deliver) for r, s in sockets.items()}
        self._posted: dict[Key, Ticket] = {}
        self._early: dict[Key, memoryview] = {}
        self._waiting: list[_Running] = []
        self._asked: deque[_Running] = deque()
        self._now_running = Usage()
        self._writers: set[int] = set()
        self._ending: _Farewell | None = None
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        for peer in self._peers.values():
            self._selector.register(peer.sock, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name=f"atoll-epoch-{epoch}", daemon=True)
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def start(self, operation: Operation, usage: Usage) -> None:
        """Have the loop run `operation`; operations begin in the order of these calls."""
        self._asked.append(_Running(operation, usage))
        self._poke()

    def end(self, kind: Kind, reason: str = "", culprit: str | None = None, *, unreachable: int | None = None) -> None:
        """End the loop with a last frame of `kind` to all peers; `unreachable` is not waited for. The first call counts."""
        last = _Farewell(
            frame=farewell(kind, self._epoch, reason, culprit), drop=kind is Kind.ABORT, unreachable=unreachable
        )
        with self._lock:
            self._ending = self._ending or last
        self._poke()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _poke(self) -> None:
        with self._lock, suppress(OSError):
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # -- for operations, on the loop's thread ------------------------------------------------------------------------

    def send(self, rank: int, lane: int, sequence: int, part: int, view: memoryview) -> Ticket:
        """Queue `view`, whose memory must not change until the ticket is done; nothing is queued after `end`."""
        ticket, peer = Ticket(), self._peers[rank]
        self._now_running.sent_bytes += len(view)
        if self._ending is None:
            peer.send(Header(Kind.DATA, lane, self._epoch, sequence, part, len(view)), view, ticket)
            self._watch(peer)
        return ticket

    def post(self, rank: int, lane: int, sequence: int, part: int, view: memoryview) -> Ticket:
        """Receive exactly `len(view)` bytes into `view`."""
        key, ticket = (rank, lane, sequence, part), Ticket(view)
        self._now_running.received_bytes += len(view)
        early = self._early.pop(key, None)
        if early is not None:
            self._fill(rank, ticket, early)
        elif self._peers[rank].gone:
            raise EpochEnded(f"rank {rank} has left the epoch")
        else:
            self._posted[key] = ticket
        return ticket

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._ending is None:
                self._turn()
        except EpochEnded as end:
            self._on_end(end.reason, end.rank, end.name)
        except Exception as error:  # noqa: BLE001 - the loop's outer edge: it becomes an event, the epoch ends
            self._on_end(f"fault in the transport: {type(error).__name__}: {error}", None, None)
        finally:
            self._part()
            self._dispose()

    def _turn(self) -> None:
        while self._asked:
            self._advance(self._asked.popleft())
        for key, events in self._select():
            peer = key.data
            if peer is None:
                os.eventfd_read(self._wake)
                continue
            if events & selectors.EVENT_WRITE:
                peer.flush()
            if events & selectors.EVENT_READ:
                peer.read()
            self._watch(peer)
        waiting, self._waiting = self._waiting, []
        for running in waiting:
            self._advance(running)

    def _select(self) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._waiting:
            return self._selector.select()
        started = time.monotonic()
        ready = self._selector.select()
        seconds = time.monotonic() - started
        for running in self._waiting:
            running.waited(seconds)
        return ready

    def _advance(self, running: _Running) -> None:
        self._now_running = running.usage
        while running.ready():
            tickets = next(running.operation, None)
            if tickets is None:
                return
            running.tickets = tickets
        self._waiting.append(running)

    def _watch(self, peer: Peer) -> None:
        """Have the loop woken for what this peer can do next."""
        if peer.gone:
            self._let_go(peer)
        elif peer.has_output != (peer.rank in self._writers):
            self._writers ^= {peer.rank}
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.has_output else 0)
            self._selector.modify(peer.sock, events, peer)

    def _let_go(self, peer: Peer) -> None:
        """A peer has left in good order: the epoch goes on unless an operation needs it."""
        if peer.sock.fileno() < 0:
            return
        needed = peer.has_output or any(rank == peer.rank for rank, *_ in self._posted)
        self._selector.unregister(peer.sock)
        peer.close()
        if needed:
            raise EpochEnded(f"rank {peer.rank} has left the epoch")

    # -- bytes that came ---------------------------------------------------------------------------------------------

    def _place(self, rank: int, header: Header) -> memoryview:
        ticket = self._posted.get((rank, header.lane, header.sequence, header.part))
        if ticket is not None and ticket.view is not None:
            return ticket.view
        return memoryview(bytearray(header.length))

    def _deliver(self, rank: int, frame: Frame) -> None:
        header = frame.header
        key = (rank, header.lane, header.sequence, header.part)
        ticket = self._posted.pop(key, None)
        if ticket is None:
            self._early[key] = frame.body
        else:
            self._fill(rank, ticket, frame.body)

    def _fill(self, rank: int, ticket: Ticket, body: memoryview) -> None:
        view = ticket.view
        if view is not None and body is not view:  # it came, or began to come, before it was posted
            if len(body) != len(view):
                raise EpochEnded(
                    f"rank {rank} sent {len(body)} bytes for {len(view)}: the ranks call different operations"
                )
            view[:] = body
        ticket.done = True

    # -- the end -----------------------------------------------------------------------------------------------------

    def _part(self) -> None:
        last = self._ending
        if last is None:  # `on_end` itself failed: the peers see the close
            return
        scrap = memoryview(bytearray(_SCRAP_BYTES))
        staying = [peer for peer in self._peers.values() if not peer.gone]
        for peer in staying:
            peer.finish_with(last.frame, drop=last.drop)
        staying = [peer for peer in staying if not peer.part(scrap) and peer.rank != last.unreachable]
        deadline = time.monotonic() + FAREWELL_S
        with selectors.DefaultSelector() as selector:
            for peer in staying:
                selector.register(peer.sock, _events(peer), peer)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.data.part(scrap):
                        selector.unregister(key.data.sock)
                    else:
                        selector.modify(key.data.sock, _events(key.data), key.data)

    def _dispose(self) -> None:
        for running in (*self._waiting, *self._asked):
            running.operation.close()
        self._selector.close()
        for peer in self._peers.values():
            peer.close()
        with self._lock:
            os.close(self._wake)
            self._wake = -1


def _events(peer: Peer) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.has_output else 0)
