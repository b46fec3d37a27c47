"""The members of one epoch over TCP: collectives in submission order, point-to-point lanes beside them.

A communicator lives as long as its epoch. When a peer's connection ends, when a peer aborts, or when `abort` is called
here, all operations end as poisoned at once and nothing more is sent or summed: the next epoch has its own. A poisoned
operation leaves its buffer as it was, and what a caller writes into a buffer after that reaches no peer.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from atoll.collectives.tcp_operations import Operations, ReduceOp, check_reducible
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.tcp_transport import Listener
from atoll.collectives.wire import LANES, Kind
from atoll.collectives.work import Poison, Usage, Work
from atoll.errors import InternalError, PeerError
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member, Membership

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
    mine = next((m for m in membership.members if m.trainer == me), None)
    if mine is None:
        raise InternalError(
            f"trainer {me} is no member of epoch {membership.epoch}; it must wait for one that names it"
        )
    deadline = time.monotonic() + deadline_s
    listener.enter(membership.epoch)
    sockets: dict[int, socket.socket] = {}
    try:
        # Dialled ranks first: a listener answers by itself, so no two members wait for each other.
        for peer in sorted(membership.members, key=lambda m: (m.rank > mine.rank, m.rank)):
            if peer.rank != mine.rank:
                sockets[peer.rank] = _meet(peer, mine, membership.epoch, listener, deadline, cancelled)
    except BaseException:
        for sock in sockets.values():
            sock.close()
        raise
    return Communicator(membership, mine, sockets)


def _meet(
    peer: Member, mine: Member, epoch: int, listener: Listener, deadline: float, cancelled: Callable[[], bool]
) -> socket.socket:
    try:
        if peer.rank < mine.rank:
            return listener.dial(peer, me=mine, epoch=epoch, deadline=deadline, cancelled=cancelled)
        return listener.claim(peer, me=mine.trainer, epoch=epoch, deadline=deadline, cancelled=cancelled)
    except PeerError as error:
        error.culprit = peer.trainer
        raise


class Communicator:
    """One rank's view of its epoch."""

    def __init__(self, membership: Membership, me: Member, sockets: dict[int, socket.socket]) -> None:
        self.epoch: int = membership.epoch
        self.members: tuple[Member, ...] = tuple(sorted(membership.members, key=lambda m: m.rank))
        self.rank: int = me.rank
        self.size = len(membership.members)
        self.poisoned: Poison | None = None
        self.traffic = Usage()
        self._lock = threading.Lock()
        self._open: set[Work] = set()
        self._listeners: list[Callable[[Poison], None]] = []
        self._sequence = 0
        self._lanes: defaultdict[tuple[str, int, int], int] = defaultdict(int)
        self._reactor = Reactor(self.epoch, sockets, self._peer_ended)
        self._operations = Operations(self._reactor, self.rank, self.size)

    # -- operations --------------------------------------------------------------------------------------------------

    def all_reduce(self, buffer: torch.Tensor, *, op: ReduceOp = "sum") -> Work:
        """`buffer` becomes the elementwise `op` over all ranks; asynchronous, bit for bit the same on all ranks."""
        check_reducible(buffer, op)
        return self._start(work := Work(), self._operations.all_reduce(buffer, op, self._next(), work))

    def all_gather(self, payload: bytes) -> Work:
        """`result` is the list of every rank's payload, in rank order; lengths may differ."""
        return self._start(work := Work(), self._operations.all_gather(payload, self._next(), work))

    def broadcast(self, buffer: torch.Tensor, *, root: int) -> Work:
        """`buffer` becomes that of `root`."""
        if not 0 <= root < self.size:
            raise InternalError(f"broadcast from rank {root}: there are ranks 0 to {self.size - 1}")
        return self._start(work := Work(), self._operations.broadcast(buffer, root, self._next(), work))

    def barrier(self) -> Work:
        """Done once every rank has called it."""
        return self.all_gather(b"")

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0) -> Work:
        """Send `buffer` to one rank; matched in order by its `recv` of the same tag."""
        address = (to, *self._lane("send", to, tag))
        return self._start(work := Work(), self._operations.send(buffer, address, work))

    def recv(self, buffer: torch.Tensor, *, source: int, tag: int = 0) -> Work:
        """Receive into `buffer` what `source` sends with this tag."""
        address = (source, *self._lane("recv", source, tag))
        return self._start(work := Work(), self._operations.recv(buffer, address, work))

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_poison(self, call: Callable[[Poison], None]) -> None:
        """Have `call` run when the epoch ends here; at once if it has."""
        with self._lock:
            if self.poisoned is None:
                self._listeners.append(call)
                return
        call(self.poisoned)

    def abort(self, reason: str, culprit: TrainerId | None = None) -> None:
        """End the epoch here and tell the peers. From any thread; waiters return before this does."""
        self._end(Poison(reason=reason, culprit=culprit, epoch=self.epoch), Kind.ABORT)

    def close(self) -> None:
        """Leave: operations still open end as poisoned, the peers are told that nobody is to blame."""
        self._end(Poison(reason="closed", culprit=None, epoch=self.epoch), Kind.BYE)
        self._reactor.join(_CLOSE_S)

    def _peer_ended(self, reason: str, rank: int | None, name: str | None) -> None:
        culprit = next((m.trainer for m in self.members if m.rank == rank), TrainerId(name) if name else None)
        self._end(Poison(reason=reason, culprit=culprit, epoch=self.epoch), Kind.ABORT)

    def _end(self, poison: Poison, kind: Kind) -> None:
        with self._lock:
            if self.poisoned is not None:
                return
            self.poisoned = poison
            works, listeners = list(self._open), list(self._listeners)
            self._open.clear()
        unreachable = next((m.rank for m in self.members if m.trainer == poison.culprit), None)
        # Before any waiter returns: it may change its buffer, and nothing read from there may leave.
        self._reactor.end(kind, poison.reason, poison.culprit, unreachable=unreachable)
        for work in works:
            work.spoil(poison)
        for call in listeners:
            call(poison)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        with self._lock:
            self._sequence += 1
            return self._sequence

    def _lane(self, way: str, peer: int, tag: int) -> tuple[int, int]:
        """(lane, sequence) of the next message with `tag` from or to `peer`."""
        if not 0 <= peer < self.size or peer == self.rank:
            raise InternalError(f"{way} between rank {self.rank} and rank {peer} of {self.size}")
        if not 0 <= tag < LANES - 1:
            raise InternalError(f"tag {tag}: tags go from 0 to {LANES - 2}")
        with self._lock:
            self._lanes[way, peer, tag] += 1
            return tag + 1, self._lanes[way, peer, tag]

    def _start(self, work: Work, operation: Operation) -> Work:
        with self._lock:
            poison = self.poisoned
            if poison is None:
                self._open.add(work)
        if poison is not None:
            work.spoil(poison)
            return work
        work.add_done_callback(self._ended)
        self._reactor.start(operation, work.usage)
        return work

    def _ended(self, work: Work) -> None:
        with self._lock:
            self._open.discard(work)
            self.traffic.add(work.usage)
