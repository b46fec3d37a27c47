"""The members of one epoch over TCP: collectives in submission order, point-to-point lanes beside them.

A communicator lives as long as its epoch. When a peer's connection ends, when a peer aborts, or when `abort` is called
here, all operations end as poisoned at once and nothing more is sent or summed: the next epoch has its own. Sums run
along the fixed order of `plan`, so every rank gets the same bits; results are written into the caller's buffer only
when complete. Half-precision sums are carried in float32.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import torch

from atoll.collectives import plan
from atoll.collectives.tcp_reactor import Operation, Reactor, Ticket, Traffic
from atoll.collectives.tcp_transport import Listener
from atoll.collectives.wire import Kind
from atoll.collectives.work import Poison, Work
from atoll.errors import PeerError
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member, Membership

ReduceOp = Literal["sum", "min", "max"]

_CARRIED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.uint8}
_COLLECTIVES = 0
_CLOSE_S = 1.0

__all__ = ["Communicator", "Poison", "ReduceOp", "Work", "connect"]


def connect(
    membership: Membership,
    me: TrainerId,
    listener: Listener,
    *,
    deadline_s: float,
    cancelled: Callable[[], bool],
) -> Communicator:
    """The communicator of `membership`, once every pair of members has met.

    Raises `PeerLost` or `HandshakeError` naming the member that did not come within `deadline_s` seconds, at once when
    `cancelled()` turns true.
    """
    mine = next(m for m in membership.members if m.trainer == me)
    deadline = time.monotonic() + deadline_s
    sockets: dict[int, socket.socket] = {}
    # Dialled ranks first: a listener answers by itself, so no two members wait for each other.
    for peer in sorted(membership.members, key=lambda m: (m.rank > mine.rank, m.rank)):
        if peer.rank == mine.rank:
            continue
        try:
            sockets[peer.rank] = (
                listener.dial(peer, me=mine, epoch=membership.epoch, deadline=deadline, cancelled=cancelled)
                if peer.rank < mine.rank
                else listener.claim(membership.epoch, peer.rank, deadline=deadline, cancelled=cancelled)[1]
            )
        except PeerError as error:
            for sock in sockets.values():
                sock.close()
            error.culprit = peer.trainer
            raise
    return Communicator(membership, mine, sockets)


class Communicator:
    """One rank's view of its epoch."""

    def __init__(self, membership: Membership, me: Member, sockets: dict[int, socket.socket]) -> None:
        self.epoch: int = membership.epoch
        self.members: tuple[Member, ...] = membership.members
        self.rank: int = me.rank
        self.size = len(membership.members)
        self.poisoned: Poison | None = None
        self._lock = threading.Lock()
        self._open: set[Work] = set()
        self._listeners: list[Callable[[Poison], None]] = []
        self._sequence = 0
        self._lanes: defaultdict[tuple[str, int, int], int] = defaultdict(int)
        self._reactor = Reactor(self.epoch, sockets, self._peer_ended)

    @property
    def traffic(self) -> Traffic:
        """Bytes moved and seconds starved since the epoch began."""
        return self._reactor.traffic

    # -- operations --------------------------------------------------------------------------------------------------

    def all_reduce(self, buffer: torch.Tensor, *, op: ReduceOp = "sum") -> Work:
        """`buffer` [elements], contiguous, becomes the elementwise `op` over all ranks; asynchronous."""
        sequence, work = self._next(), Work()
        return self._start(work, self._all_reduce(buffer, op, sequence, work))

    def all_gather(self, payload: bytes) -> Work:
        """`result` is the list of every rank's payload, in rank order; lengths may differ."""
        sequence, work = self._next(), Work()
        return self._start(work, self._all_gather(payload, sequence, work))

    def broadcast(self, buffer: torch.Tensor, *, root: int) -> Work:
        """`buffer` [elements], contiguous, becomes that of `root`."""
        sequence, work = self._next(), Work()
        return self._start(work, self._broadcast(buffer, root, sequence, work))

    def barrier(self) -> Work:
        """Done once every rank has called it."""
        return self.all_gather(b"")

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0) -> Work:
        """Send `buffer` [elements] to one rank; matched in order by its `recv` of the same tag."""
        return self._start(work := Work(), self._send(buffer, to, tag, self._lane_next("send", to, tag), work))

    def recv(self, buffer: torch.Tensor, *, source: int, tag: int = 0) -> Work:
        """Receive into `buffer` [elements] what `source` sends with this tag."""
        return self._start(work := Work(), self._recv(buffer, source, tag, self._lane_next("recv", source, tag), work))

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_poison(self, call: Callable[[Poison], None]) -> None:
        """Have `call` run when the epoch ends early here; at once if it has."""
        with self._lock:
            if self.poisoned is None:
                self._listeners.append(call)
                return
        call(self.poisoned)

    def abort(self, reason: str, culprit: TrainerId | None = None) -> None:
        """End the epoch here and tell the peers. From any thread; waiters return before this does."""
        self._poison(Poison(reason=reason, culprit=culprit, epoch=self.epoch))
        self._reactor.end(Kind.ABORT, reason, culprit)

    def close(self) -> None:
        """Leave: operations still open end as poisoned, the peers are told that nobody is to blame."""
        self._reactor.end(Kind.BYE)
        self._poison(Poison(reason="closed", culprit=None, epoch=self.epoch))
        self._reactor.join(_CLOSE_S)

    def _peer_ended(self, reason: str, rank: int | None, name: str | None) -> None:
        culprit = self.members[rank].trainer if rank is not None else None
        culprit = culprit or (TrainerId(name) if name else None)
        self._poison(Poison(reason=reason, culprit=culprit, epoch=self.epoch))
        self._reactor.end(Kind.ABORT, reason, culprit)

    def _poison(self, poison: Poison) -> None:
        with self._lock:
            if self.poisoned is not None:
                return
            self.poisoned = poison
            works, listeners = list(self._open), list(self._listeners)
            self._open.clear()
        for work in works:
            work.spoil(poison)
        for call in listeners:
            call(poison)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        with self._lock:
            self._sequence += 1
            return self._sequence

    def _lane_next(self, way: str, peer: int, tag: int) -> int:
        with self._lock:
            self._lanes[way, peer, tag] += 1
            return self._lanes[way, peer, tag]

    def _start(self, work: Work, operation: Operation) -> Work:
        with self._lock:
            poison = self.poisoned
            if poison is None:
                self._open.add(work)
        if poison is not None:
            work.spoil(poison)
            return work
        work.add_done_callback(self._ended)
        self._reactor.start(operation)
        return work

    def _ended(self, work: Work) -> None:
        with self._lock:
            self._open.discard(work)

    def _others(self) -> list[int]:
        return [r for r in range(self.size) if r != self.rank]

    def _all_reduce(self, buffer: torch.Tensor, op: ReduceOp, sequence: int, work: Work) -> Operation:
        carried = _CARRIED_IN.get(buffer.dtype, buffer.dtype)
        scratch = buffer.detach().to("cpu", carried, copy=True)
        if self.size > 1:
            direct = plan.is_direct(_bytes_of(scratch), self.size)
            yield from (self._direct if direct else self._ring)(scratch, op, sequence)
        work.finish(buffer, write=lambda: _write(buffer, scratch))

    def _direct(self, scratch: torch.Tensor, op: ReduceOp, sequence: int) -> Operation:
        incoming = {rank: torch.empty_like(scratch) for rank in self._others()}
        mine = scratch.clone()
        tickets = [self._reactor.post(r, _COLLECTIVES, sequence, 0, _view(t)) for r, t in incoming.items()]
        for rank in self._others():
            self._reactor.send(rank, _COLLECTIVES, sequence, 0, _view(mine))
        yield tickets
        incoming[self.rank] = mine
        scratch.copy_(incoming[0])
        for rank in range(1, self.size):
            _combine(op, scratch, incoming[rank])

    def _ring(self, scratch: torch.Tensor, op: ReduceOp, sequence: int) -> Operation:
        ranges = plan.pieces(scratch.numel(), self.size)
        piece = [scratch[start:end] for start, end in ranges]
        moves = plan.ring(self.size, self.rank)
        # All receives are posted before the first send, so that bytes land where they belong however early they come.
        targets = [torch.empty_like(piece[m.take]) if m.action is plan.Action.ADD else piece[m.take] for m in moves]
        tickets = [
            self._reactor.post(m.source, _COLLECTIVES, sequence, i, _view(t))
            for i, (m, t) in enumerate(zip(moves, targets, strict=True))
        ]
        sent: list[Ticket] = []
        for i, move in enumerate(moves):
            sent.append(self._reactor.send(move.to, _COLLECTIVES, sequence, i, _view(piece[move.give])))
            yield [tickets[i]]
            if move.action is plan.Action.ADD:
                _combine(op, piece[move.take], targets[i])
        yield sent

    def _all_gather(self, payload: bytes, sequence: int, work: Work) -> Operation:
        lengths = {r: bytearray(8) for r in self._others()}
        tickets = [self._reactor.post(r, _COLLECTIVES, sequence, 0, memoryview(b)) for r, b in lengths.items()]
        for rank in self._others():
            self._reactor.send(rank, _COLLECTIVES, sequence, 0, memoryview(len(payload).to_bytes(8, "big")))
            self._reactor.send(rank, _COLLECTIVES, sequence, 1, memoryview(payload))
        yield tickets
        bodies = {r: bytearray(int.from_bytes(b, "big")) for r, b in lengths.items()}
        yield [self._reactor.post(r, _COLLECTIVES, sequence, 1, memoryview(b)) for r, b in bodies.items()]
        work.finish([payload if r == self.rank else bytes(bodies[r]) for r in range(self.size)])

    def _broadcast(self, buffer: torch.Tensor, root: int, sequence: int, work: Work) -> Operation:
        scratch = buffer.detach().to("cpu", copy=True)
        if self.rank == root:
            yield [self._reactor.send(r, _COLLECTIVES, sequence, 0, _view(scratch)) for r in self._others()]
        else:
            yield [self._reactor.post(root, _COLLECTIVES, sequence, 0, _view(scratch))]
        work.finish(buffer, write=lambda: _write(buffer, scratch))

    def _send(self, buffer: torch.Tensor, to: int, tag: int, sequence: int, work: Work) -> Operation:
        staged = buffer.detach().to("cpu").contiguous()
        yield [self._reactor.send(to, tag + 1, sequence, 0, _view(staged))]
        work.finish(buffer)

    def _recv(self, buffer: torch.Tensor, source: int, tag: int, sequence: int, work: Work) -> Operation:
        scratch = torch.empty_like(buffer, device="cpu")
        yield [self._reactor.post(source, tag + 1, sequence, 0, _view(scratch))]
        work.finish(buffer, write=lambda: _write(buffer, scratch))


def _combine(op: ReduceOp, into: torch.Tensor, other: torch.Tensor) -> None:
    match op:
        case "sum":
            torch.add(into, other, out=into)
        case "min":
            torch.minimum(into, other, out=into)
        case "max":
            torch.maximum(into, other, out=into)


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _view(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory [bytes]; the view keeps it alive."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.view(torch.uint8).numpy().data


def _write(buffer: torch.Tensor, scratch: torch.Tensor) -> None:
    with torch.no_grad():
        buffer.copy_(scratch)
