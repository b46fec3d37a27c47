"""The agent's probes: it answers on a port of each NIC, and measures the links that the control plane names.

Each connection begins with the mutual HMAC handshake of `tcp_handshake`, here between nodes, under a key made from the
cluster's secret. The dialer names the node it wants: an address that exists on several hosts (a container bridge, a wrong
route) leads to a refusal, never to the measurement of another link. A node takes part in one probe at a time; a second one
waits for its turn, within its own deadline.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from atoll.collectives.tcp_handshake import (
    HANDSHAKE_S,
    Greeting,
    Patience,
    Verdict,
    introduce,
    reach,
    receive_introduction,
)
from atoll.collectives.tcp_probe import Effort, LinkMeasure, probe
from atoll.errors import AtollError, HandshakeError
from atoll.schema.handshake import proof
from atoll.schema.ids import NodeId
from atoll.schema.messages import PeerProbed, ProbePeer
from atoll.schema.topology import Door, Link, Nic

# The name that stands in the handshake where trainers say their run.
_PURPOSE = "probe"
# What an answering node spends on one dialer at most; who asks has a deadline of its own.
_ANSWER_S = 10.0
# Strangers that connect and say nothing hold this many threads at most.
_GUESTS = 8
_SLICE_S = 0.05


class ProbeService:
    """Listens from the moment it is made; `serve` answers until cancelled, `measure` probes a peer."""

    def __init__(self, node: NodeId, nics: tuple[Nic, ...], secret: bytes, now: Callable[[], float]) -> None:
        self._node, self._now = node, now
        self._secret = proof(secret, _PURPOSE, b"", b"")
        self._one = threading.Lock()
        self._guests = threading.BoundedSemaphore(_GUESTS)
        self._closed = False
        self._sockets: list[socket.socket] = []
        doors = []
        for nic in nics:
            with suppress(OSError):  # a NIC that went down, or an address that is not ours: no door there
                listening = socket.create_server((nic.host, 0), family=_family(nic.host), backlog=16)
                listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
                self._sockets.append(listening)
                doors.append(Door(nic=nic.name, host=nic.host, port=listening.getsockname()[1]))
        self.doors = tuple(doors)

    async def serve(self) -> None:
        """Answer probes on all doors."""
        async with asyncio.TaskGroup() as group:
            for listening in self._sockets:
                group.create_task(self._accept(listening))

    def close(self) -> None:
        """Stop listening; probes under way end within a moment."""
        self._closed = True
        for listening in self._sockets:
            listening.close()

    async def measure(self, order: ProbePeer) -> PeerProbed:
        """Carry out `order`. What goes wrong is said in the answer."""
        began = time.perf_counter()
        try:
            found = await asyncio.to_thread(self._measure, order)
        except (OSError, AtollError) as error:
            return self._answer(order, began, problem=str(error) or type(error).__name__)
        return self._answer(order, began, links=_links(self._node, order, found))

    def _answer(self, order: ProbePeer, began: float, links: tuple[Link, ...] = (), problem: str = "") -> PeerProbed:
        return PeerProbed(
            request=order.request,
            peer=order.peer,
            at=self._now(),
            seconds=time.perf_counter() - began,
            beside=order.beside,
            links=links,
            problem=problem,
        )

    def _measure(self, order: ProbePeer) -> LinkMeasure:
        patience = Patience(deadline=time.monotonic() + order.limit_s, cancelled=lambda: self._closed)
        with self._turn(patience):
            sock = reach(order.door.host, order.door.port, patience, source=order.host)
            with sock:
                greeting = Greeting(run=_PURPOSE, epoch=0, rank=0, trainer=self._node, to=order.peer)
                try:
                    introduce(sock, greeting, self._secret, patience)
                except ConnectionError:
                    where = f"{order.door.host}:{order.door.port}"
                    raise HandshakeError(f"{where} is not {order.peer}, or of another cluster: it hung up") from None
                effort = Effort(seconds=order.burst_s, steady=order.steady)
                return probe(sock, first=True, deadline=patience.deadline, cancelled=patience.cancelled, effort=effort)

    # -- answering -----------------------------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(_SLICE_S)
                continue
            if self._guests.acquire(blocking=False):
                loop.run_in_executor(None, self._host, sock)
            else:
                sock.close()

    def _host(self, sock: socket.socket) -> None:
        patience = Patience(deadline=time.monotonic() + _ANSWER_S, cancelled=lambda: self._closed)
        try:
            with sock, suppress(OSError, AtollError):  # the dialer sees the close, and says what it means
                greeting = receive_introduction(sock, _PURPOSE, self._secret, patience.at_most(HANDSHAKE_S))
                if greeting.to != self._node:
                    return  # it reached an address that this host has, too
                sock.send(bytes([Verdict.WELCOME]))
                with self._turn(patience):
                    probe(sock, first=False, deadline=patience.deadline, cancelled=patience.cancelled)
        finally:
            self._guests.release()

    def _turn(self, patience: Patience) -> _Turn:
        return _Turn(self._one, patience)


class _Turn:
    """This node's one probe at a time, waited for with patience."""

    def __init__(self, lock: threading.Lock, patience: Patience) -> None:
        self._lock, self._patience = lock, patience

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=self._patience.left()):
            pass

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _links(me: NodeId, order: ProbePeer, found: LinkMeasure) -> tuple[Link, Link]:
    ends = {"source": me, "source_nic": order.nic, "target": order.peer, "target_nic": order.door.nic}
    back = {"source": order.peer, "source_nic": order.door.nic, "target": me, "target_nic": order.nic}
    return (
        Link(**ends, latency_s=found.latency_s, bandwidth=found.outwards),  # type: ignore[arg-type]
        Link(**back, latency_s=found.latency_s, bandwidth=found.inwards),  # type: ignore[arg-type]
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
