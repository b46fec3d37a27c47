"""An agent's beats on the wire: UDP sockets on each NIC of the node, and one to send by.

The system's routes choose by which NIC a beat leaves; it goes to each door of a peer, since one lost link shall not make a
living node silent. Nothing here waits: what a full or absent network does not take at once is lost, like any datagram.
Called from one thread only, that of `watch_runtime`.
"""

from __future__ import annotations

import contextlib
import socket

from atoll.schema.ids import NodeId
from atoll.schema.messages import PeersWatched, WatchPeers
from atoll.schema.topology import Door, Nic
from atoll.workers.beating import MOST_BYTES, Listening, write_beat

# Beyond this many datagrams in one look somebody floods the socket; the agent does not spend its time on that.
MOST_AT_ONCE = 1_000
# Beats shall not queue behind a job's traffic where queues know classes: CS6 of RFC 4594, as BFD uses it.
NETWORK_CONTROL = 0xC0
_TRAFFIC_CLASS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}


class Beats:
    """Listens from the moment it is made. `first` is the number of its first beat: Unix microseconds now."""

    def __init__(self, node: NodeId, nics: tuple[Nic, ...], first: int) -> None:
        self._node = node
        self._number = first
        self._listening = Listening(node)
        self._key = b""
        self._targets: tuple[tuple[socket.socket, str, int], ...] = ()
        self._doors: dict[NodeId, tuple[Door, ...]] = {}
        self._senders: dict[socket.AddressFamily, socket.socket] = {}
        self._sockets: list[socket.socket] = []
        doors = []
        for nic in nics:
            with contextlib.suppress(OSError):  # a NIC that went down, or an address that is not ours: no door there
                sock = _bound(nic.host)
                self._sockets.append(sock)
                host, port = sock.getsockname()[:2]
                doors.append(Door(nic=nic.name, host=host, port=port))
        self.doors = tuple(doors)

    def obey(self, command: WatchPeers) -> None:
        """Beat to and listen for these from now on, and no others."""
        self._key = bytes.fromhex(command.key)
        targets = ((self._sender(_family(d.host)), d) for peer in command.beat for d in peer.doors)
        self._targets = tuple((sock, d.host, d.port) for sock, d in targets if sock is not None)
        doors = {peer.node: peer.doors for peer in command.beat}
        self._listening.listen(command.listen, self._key, anew=[n for n in doors if doors[n] != self._doors.get(n)])
        self._doors = doors

    def tick(self, *, now: float, behind_s: float, along: bool = False) -> PeersWatched | None:
        """Beat once, take in what came, and say what is to be told. `now` is monotonic; the tick was `behind_s` late."""
        self._send()
        for sock in self._sockets:
            self._drain(sock)
        return self._listening.looked(now=now, behind_s=behind_s, along=along)

    def close(self) -> None:
        """Give the sockets back."""
        for sock in (*self._sockets, *self._senders.values()):
            sock.close()

    def _send(self) -> None:
        if not self._targets:
            return
        self._number += 1
        data = write_beat(self._key, self._node, self._number)
        for sock, host, port in self._targets:
            with contextlib.suppress(OSError):  # no route just now, or a full queue
                sock.sendto(data, (host, port))

    def _drain(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # BlockingIOError: that was all
            for _ in range(MOST_AT_ONCE):
                self._listening.came(sock.recv(MOST_BYTES + 1))

    def _sender(self, family: socket.AddressFamily) -> socket.socket | None:
        if family not in self._senders:
            with contextlib.suppress(OSError):  # a host without IPv6: what it cannot send is like a lost datagram
                self._senders[family] = _first_class(family)
        return self._senders.get(family)


def _first_class(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    level, option = _TRAFFIC_CLASS[family]
    with contextlib.suppress(OSError):  # then it queues like any other
        sock.setsockopt(level, option, NETWORK_CONTROL)
    return sock


def _bound(host: str) -> socket.socket:
    sock = socket.socket(_family(host), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((host, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
