"""The members of one epoch over TCP: collectives in submission order, point-to-point lanes beside them.

A communicator lives as long as its epoch. When a peer's connection ends, when a peer aborts, or when `abort` is called
here, all operations end as poisoned at once and nothing more is sent or summed: the next epoch has its own. A poisoned
operation leaves its buffer as it was, and what a caller writes into a buffer after that reaches no peer.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from atoll.collectives.call import Call
from atoll.collectives.network import Network, network_of, ways
from atoll.collectives.plan import Plan
from atoll.collectives.plan_shapes import Recipe
from atoll.collectives.planner import Choice
from atoll.collectives.tcp_exchanges import Exchanges, Move, Reduction
from atoll.collectives.tcp_links import Links
from atoll.collectives.tcp_meeting import Meeting, Terms, checked
from atoll.collectives.tcp_operations import Operations, ReduceOp, Request, carried, check_reducible
from atoll.collectives.tcp_peer import EpochEnded, Ticket, shorten_backlog
from atoll.collectives.tcp_reactor import Operation, Reactor
from atoll.collectives.tcp_transport import Listener
from atoll.collectives.tcp_waits import Told
from atoll.collectives.telemetry import Telemetry, Trace
from atoll.collectives.torch_codecs import CODECS, ratio
from atoll.collectives.torch_codecs import codec as codec_named
from atoll.collectives.torch_residuals import Residuals
from atoll.collectives.tuning import Told as Tuned
from atoll.collectives.tuning import Tuning
from atoll.collectives.waits import Wait
from atoll.collectives.wire import LANES, Abort, Kind
from atoll.collectives.work import Poison, Work
from atoll.errors import InternalError
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member, Membership
from atoll.schema.topology import Change, Detour, Observation

if TYPE_CHECKING:
    from atoll.collectives.nccl_island import NcclIsland

_CLOSE_S = 1.0

__all__ = ["Communicator", "Poison", "ReduceOp", "Work", "connect", "connect_devices"]


def connect(
    membership: Membership,
    me: TrainerId,
    listener: Listener,
    *,
    deadline_s: float,
    cancelled: Callable[[], bool],
    on_wait: Told | None = None,
) -> Communicator:
    """The communicator of `membership`, once every pair of members has met.

    `on_wait` hears, on this thread and then on the communicator's own, when others keep it waiting (`waits.Wait`).

    Raises `PeerLost` or `HandshakeError` naming the member that did not come within `deadline_s` seconds, at once when
    `cancelled()` turns true; `InternalError` for a membership that names a rank twice or not this trainer.
    """
    members = checked(membership)
    mine = next((m for m in members if m.trainer == me), None)
    if mine is None:
        raise InternalError(
            f"trainer {me} is no member of epoch {membership.epoch}; it must wait for one that names it"
        )
    network = network_of(members, membership.topology)
    listener.enter(membership.epoch)
    terms = Terms(deadline=time.monotonic() + deadline_s, cancelled=cancelled, on_wait=on_wait)
    sockets = Meeting(membership, mine, network, listener, terms).hold()
    return Communicator(membership, mine, sockets, network, on_wait=on_wait, on_close=listener.doubt)


def connect_devices(
    membership: Membership,
    me: TrainerId,
    listener: Listener,
    *,
    deadline_s: float,
    cancelled: Callable[[], bool],
    on_wait: Told | None = None,
) -> Communicator:
    """As `connect`, for a run whose members all ask for GPUs: NCCL reduces inside islands where every rank has it."""
    until = time.monotonic() + deadline_s
    comm = connect(membership, me, listener, deadline_s=deadline_s, cancelled=cancelled, on_wait=on_wait)
    try:
        comm.open_devices(deadline_s=until - time.monotonic(), cancelled=cancelled)
    except BaseException:
        comm.close()
        raise
    return comm


def suit_backlogs(network: Network, rank: int, sockets: Mapping[int, socket.socket | Sequence[socket.socket]]) -> None:
    """Keep the kernel's unsent backlog as short as each link allows."""
    for peer, met in sockets.items():
        lines = [met] if isinstance(met, socket.socket) else met
        for line in lines:
            shorten_backlog(line, network.fabric.routes[rank, peer].bandwidth / len(lines))


class Communicator:
    """One rank's view of its epoch."""

    def __init__(
        self,
        membership: Membership,
        me: Member,
        sockets: Mapping[int, socket.socket | Sequence[socket.socket]],
        network: Network | None = None,
        *,
        on_wait: Told | None = None,
        on_close: Callable[[dict[tuple[TrainerId, str], float]], None] | None = None,
    ) -> None:
        self.epoch: int = membership.epoch
        self.members: tuple[Member, ...] = tuple(sorted(membership.members, key=lambda m: m.rank))
        self.rank: int = me.rank
        self.size = len(membership.members)
        network = network or network_of(self.members, membership.topology)
        self._tuning = Tuning(network, {name: ratio(name) for name in CODECS})
        self._tuned: dict[int, Ticket] = {}
        self._links = Links(network.nodes, self.rank, network.topology)
        # The higher rank dials, so it alone knows which way came first.
        dialled = {r: _first(s) for r, s in sockets.items() if r < self.rank and _first(s) is not None}
        first = {r: ways(me, self.members[r], network.topology)[0] for r in dialled}
        self._detours = self._links.detours({r: (s, first[r]) for r, s in dialled.items() if s is not None})
        self._observed: list[Observation] = []
        self._island: NcclIsland | None = None
        self.poisoned: Poison | None = None
        self.telemetry = Telemetry()
        self._lock = threading.Lock()
        self._open: set[Work] = set()
        self._listeners: list[Callable[[Poison], None]] = []
        self._on_close = on_close
        self._sequence = 0
        with self._lock:  # a peer may end before this constructor does: `_end` waits
            self._reactor = Reactor(
                self.epoch,
                sockets,
                self._peer_ended,
                rank=self.rank,
                local=[m.rank for m in self.members if m.node == me.node and m.rank != me.rank],
                on_wait=on_wait,
            )
            suit_backlogs(network, self.rank, sockets)
            self._operations = Operations(self._reactor, self.rank, self.size)
            self._exchanges = Exchanges(self._reactor, self.rank, self.size)

    def open_devices(self, *, deadline_s: float, cancelled: Callable[[], bool]) -> str:
        """Have CUDA buffers reduced by NCCL inside islands, where all ranks can; returns why not, or "".

        Every rank of the epoch calls it right after `connect`, or none does.
        """
        from atoll.collectives.nccl_attach import attach  # noqa: PLC0415 - only runs with GPUs need it

        nodes, topology = self.network.nodes, self.network.topology
        self._island, why = attach(self, nodes, topology, deadline_s=deadline_s, cancelled=cancelled)
        return why

    # -- operations --------------------------------------------------------------------------------------------------

    def all_reduce(
        self,
        buffer: torch.Tensor,
        *,
        op: ReduceOp = "sum",
        codec: str | None = None,
        residuals: Residuals | None = None,
        key: str = "",
        recipe: Recipe | None = None,
        in_place: bool = False,
    ) -> Work:
        """`buffer` becomes the elementwise `op` over all ranks; asynchronous, bit for bit the same on all ranks.

        By the plan that is predicted to be fastest, or by `recipe`, which must be the same on all ranks. `codec` allows
        what crosses slow links to be written in fewer bytes; what that loses is kept in `residuals`, for bucket `key`.
        `in_place` saves a copy: `buffer` itself is what is added up in, and holds anything after an operation that failed.
        """
        check_reducible(buffer, op, codec)
        coder = None if codec is None else codec_named(codec)
        if self._island is not None and codec is None and recipe is None and self._island.takes(buffer, op):
            if self._enrolled(work := Work()):
                self._island.all_reduce(buffer, op, work)
            return work
        feedback = residuals.feedback(key, buffer.numel()) if residuals is not None and codec is not None else None
        work = Work()
        generation = self._tuning.count(buffer.numel() * carried(buffer.dtype).itemsize)
        request = Request(
            buffer=buffer,
            op=op,
            sequence=self._next(),
            planned=lambda count, itemsize: self._planned(count, itemsize, codec, recipe, generation, work.trace),
            after=(self._tuned[generation],) if generation else (),
            codec=coder,
            feedback=feedback,
            in_place=in_place,
            landed=None if residuals is None or feedback is None else partial(residuals.told, key, feedback),
        )
        self._start(work, self._operations.all_reduce(request, work))
        if self._tuning.window_ends():
            self._tune()
        return work

    def plans(self, count: int, dtype: torch.dtype = torch.float32, codec: str | None = None) -> list[Choice]:
        """All plans for `count` elements that are worth thinking of, with their predicted seconds, fastest first."""
        return self._tuning.newest.candidates(count, carried(dtype).itemsize, codec)

    @property
    def network(self) -> Network:
        """As known now: what the topology said, and what the traffic has shown since."""
        return self._tuning.network

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the traffic of this epoch has shown to be otherwise than the topology said, with reasons."""
        return tuple(self._tuning.changes)

    @property
    def waiting(self) -> Wait | None:
        """Whom the oldest operation in flight waits for, if that is for long, as of some hundredths of a second ago."""
        return self._reactor.waiting

    def detours(self) -> tuple[Detour, ...]:
        """Where this rank reached others by other NICs than the best known: those did not answer."""
        return self._detours

    def observations(self) -> tuple[Observation, ...]:
        """What this rank's links carried in windows that did not go as planned, each told once."""
        told, self._observed = tuple(self._observed), []
        return told

    def _planned(
        self, count: int, itemsize: int, codec: str | None, recipe: Recipe | None, generation: int, trace: Trace
    ) -> Plan:
        planner = self._tuning.planner(generation)
        if recipe is not None:
            return planner.built(recipe, count)
        with self._reactor.aside():
            choice = planner.choose(count, itemsize, codec)
            plan = planner.built(choice.recipe, count)
        trace.expected_s, trace.planned_s = choice.predicted_s, time.monotonic()
        trace.size_bytes = count * itemsize
        return plan

    def _tune(self) -> None:
        """The ranks tell each other what their links carried; plans of a later window follow it."""
        before = self._tuned.get(self._tuning.windows - 1)
        done = self._tuned[self._tuning.windows] = Ticket()
        # Operations begin by the window before the newest.
        self._tuned.pop(self._tuning.windows - 2, None)

        own = Tuned(pace=None, observations=())

        def say() -> bytes:
            nonlocal own
            own = self._tuning.said(self._links.observe(self._reactor.lines()))
            return json.dumps(to_plain(own)).encode()

        def hear(told: list[bytes]) -> None:
            if self._tuning.told([from_plain(Tuned, json.loads(said)) for said in told]):
                self._observed.extend(own.observations)
            self._reactor.complete(done)

        # All ranks must learn of the windows in their order, or they would plan differently.
        after = () if before is None else (before,)
        self._start(work := Work(), self._operations.exchange(say, hear, self._next(), work, after))

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

    def send(self, buffer: torch.Tensor, *, to: int, tag: int = 0, in_place: bool = False) -> Work:
        """Send `buffer` to one rank; matched in order by its `recv` of the same tag.

        `in_place` saves a copy: the bytes leave from `buffer` itself, which must not change before this ends.
        """
        self._check(f"send to rank {to}", to, tag)
        return self._start(work := Work(), self._operations.send(buffer, to, tag + 1, work, in_place=in_place))

    def recv(self, buffer: torch.Tensor, *, source: int | None, tag: int = 0, in_place: bool = False) -> Work:
        """Receive into `buffer` the next message with this tag of `source`, or of any rank: `result` is whose it was.

        `in_place` saves a copy: the bytes come straight into `buffer`, which holds anything where that fails.
        """
        self._check(f"recv from rank {source}", (self.rank + 1) % self.size if source is None else source, tag)
        return self._start(work := Work(), self._operations.recv(buffer, source, tag + 1, work, in_place=in_place))

    def move(self, task: Move) -> Work:
        """Tensors from rank to rank, as `task` says: all-gather, all-to-all, gather, scatter."""
        return self._start(work := Work(), self._exchanges.move(task, self._next(), work))

    def reduce(self, task: Reduction) -> Work:
        """Each piece goes straight to its owner, which adds up in rank order: reduce-scatter, reduce."""
        return self._start(work := Work(), self._exchanges.reduce(task, self._next(), work))

    def all_reduce_directly(self, buffers: Sequence[torch.Tensor], call: Call) -> Work:
        """The all-reduce of one type's tensors for operations and types that no plan adds up."""
        return self._start(work := Work(), self._exchanges.all_reduce(buffers, call, self._next(), work))

    def sockets(self) -> dict[int, list[socket.socket]]:
        """The connections to each peer."""
        return self._reactor.sockets()

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
        silent = self._reactor.silent
        if self._on_close is not None and silent is not None:
            self._on_close({(self.members[peer.rank].trainer, peer.host): rtt_s for peer, rtt_s in silent.items()})
        if self._island is not None:
            self._island.close()

    def _peer_ended(self, end: EpochEnded) -> None:
        named = TrainerId(end.name) if end.name else None
        culprit = next((m.trainer for m in self.members if m.rank == end.rank), named)
        self._end(Poison(reason=end.reason, culprit=culprit, epoch=self.epoch, differ=end.differ), Kind.ABORT)

    def _end(self, poison: Poison, kind: Kind) -> None:
        with self._lock:
            if self.poisoned is not None:
                return
            self.poisoned = poison
            works, listeners = list(self._open), list(self._listeners)
            self._open.clear()
        unreachable = next((m.rank for m in self.members if m.trainer == poison.culprit), None)
        # Before any waiter returns: it may change its buffer, and nothing read from there may leave.
        why = Abort(poison.reason, poison.culprit, poison.differ)
        self._reactor.end(kind, why, unreachable=unreachable)
        for work in works:
            work.spoil(poison)
        for call in listeners:
            call(poison)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        with self._lock:
            self._sequence += 1
            return self._sequence

    def _check(self, what: str, peer: int, tag: int) -> None:
        if not 0 <= peer < self.size or peer == self.rank:
            raise InternalError(f"{what} by rank {self.rank} of {self.size}: there is no such peer")
        if not 0 <= tag < LANES - 1:
            raise InternalError(f"tag {tag}: tags go from 0 to {LANES - 2}")

    def _start(self, work: Work, operation: Operation) -> Work:
        if self._enrolled(work):
            self._reactor.start(operation, work.trace)
        return work

    def _enrolled(self, work: Work) -> bool:
        """The end of the epoch will be this operation's end; False where that has come."""
        work.trace.on = self.telemetry.on
        with self._lock:
            poison = self.poisoned
            if poison is None:
                self._open.add(work)
        if poison is not None:
            work.spoil(poison)
            return False
        work.add_done_callback(self._ended)
        return True

    def _ended(self, work: Work) -> None:
        with self._lock:
            self._open.discard(work)
            work.trace.ended_s = time.monotonic()
            self._tuning.took(work.trace)
            self.telemetry.add(work.trace)


def _first(found: socket.socket | Sequence[socket.socket]) -> socket.socket | None:
    return found if isinstance(found, socket.socket) else next(iter(found), None)
