"""Connections between the ranks of an epoch: a listener that outlives epochs, and how two ranks meet.

The higher rank dials the lower. The dialer says (run, trainer, epoch, rank), both prove the run's secret by HMAC over
the other's nonce, then the socket carries frames. A dial for an epoch that the listener's owner has not heard of yet is
kept until the owner asks for it; dials of epochs older than the one last asked for are refused.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from atoll.errors import HandshakeError, PeerLost
from atoll.schema.handshake import MAC_BYTES, NONCE_BYTES, check, proof
from atoll.schema.messages import PROTOCOL, Member

HELLO_LIMIT_BYTES = 4096
# A peer that connects and then says nothing must not hold a thread for long.
HANDSHAKE_S = 5.0
_BUFFER_BYTES = 4 << 20
_POLL_S = 0.05


def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise HandshakeError("the peer closed the connection during the handshake")
        data += piece
    return bytes(data)


def _send_blob(sock: socket.socket, data: bytes) -> None:
    sock.sendall(len(data).to_bytes(2, "big") + data)


def _receive_blob(sock: socket.socket) -> bytes:
    length = int.from_bytes(_receive(sock, 2), "big")
    if length > HELLO_LIMIT_BYTES:
        raise HandshakeError(f"a greeting of {length} bytes; at most {HELLO_LIMIT_BYTES}")
    return _receive(sock, length)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    # bbr, a common default, loses 20-35 % when several short flows share a link (measured).
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


class Listener:
    """One per trainer: binds `host` on a free port and keeps accepted peers until `claim` asks for them."""

    def __init__(self, host: str, secret: bytes, run: str) -> None:
        self._secret, self._run = secret, run
        self._socket = socket.create_server((host, 0), backlog=128)
        self._socket.settimeout(_POLL_S * 4)
        self.host: str = host
        self.port: int = self._socket.getsockname()[1]
        self._changed = threading.Condition()
        self._parked: dict[tuple[int, int], tuple[str, socket.socket]] = {}
        self._oldest = 0
        self._closed = False
        self._greeters: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept, name="atoll-listener", daemon=True)
        self._thread.start()

    def claim(
        self, epoch: int, rank: int, *, deadline: float, cancelled: Callable[[], bool]
    ) -> tuple[str, socket.socket]:
        """(trainer, socket) of the peer of `rank` in `epoch`. Raises `PeerLost` at `deadline` (monotonic seconds)."""
        with self._changed:
            self._forget_below(epoch)
            while (found := self._parked.pop((epoch, rank), None)) is None:
                if self._closed or cancelled():
                    raise PeerLost(f"epoch {epoch} was given up while waiting for rank {rank}")
                if time.monotonic() >= deadline:
                    raise PeerLost(f"rank {rank} did not connect in epoch {epoch}")
                self._changed.wait(_POLL_S)
            return found

    def dial(
        self, peer: Member, *, me: Member, epoch: int, deadline: float, cancelled: Callable[[], bool]
    ) -> socket.socket:
        """A proven connection to `peer`, tried again until `deadline`. Raises `PeerLost` or `HandshakeError`."""
        return dial(
            peer, me=me, run=self._run, epoch=epoch, secret=self._secret, deadline=deadline, cancelled=cancelled
        )

    def close(self) -> None:
        """Stop listening and close what nobody claimed."""
        with self._changed:
            self._closed = True
            parked, self._parked = list(self._parked.values()), {}
            self._changed.notify_all()
        self._socket.close()
        for _, sock in parked:
            sock.close()
        self._thread.join(2.0)
        for greeter in list(self._greeters):
            greeter.join(HANDSHAKE_S)

    def _forget_below(self, epoch: int) -> None:
        self._oldest = max(self._oldest, epoch)
        for key in [k for k in self._parked if k[0] < epoch]:
            self._parked.pop(key)[1].close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            greeter = threading.Thread(target=self._greet, args=(sock,), name="atoll-greeter", daemon=True)
            self._greeters.add(greeter)
            greeter.start()

    def _greet(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(HANDSHAKE_S)
            self._park(sock, *self._handshake(sock))
        except (OSError, HandshakeError, ValueError, KeyError, TypeError):
            # A stranger or a dial that its maker gave up: nothing to tell anyone, the dialer sees the close.
            sock.close()
        finally:
            self._greeters.discard(threading.current_thread())

    def _park(self, sock: socket.socket, trainer: str, epoch: int, rank: int) -> None:
        with self._changed:
            if self._closed or epoch < self._oldest:
                raise HandshakeError(f"epoch {epoch} is over")
            stale = self._parked.pop((epoch, rank), None)
            if stale is not None:
                stale[1].close()
            self._parked[epoch, rank] = (trainer, sock)
            self._changed.notify_all()

    def _handshake(self, sock: socket.socket) -> tuple[str, int, int]:
        hello_bytes = _receive_blob(sock)
        hello: dict[str, Any] = json.loads(hello_bytes)
        if hello["protocol"] != PROTOCOL or hello["run"] != self._run:
            raise HandshakeError(f"a peer of run {hello['run']!r}, protocol {hello['protocol']}")
        nonce = os.urandom(NONCE_BYTES)
        answer = proof(self._secret, "listener", bytes.fromhex(hello["nonce"]), hello_bytes)
        sock.sendall(nonce + answer)
        if not check(self._secret, "dialer", nonce, hello_bytes, _receive(sock, MAC_BYTES)):
            raise HandshakeError(f"trainer {hello['trainer']!r} does not hold the secret of run {self._run!r}")
        _tune(sock)
        sock.sendall(b"\x01")
        return str(hello["trainer"]), int(hello["epoch"]), int(hello["rank"])


def dial(
    peer: Member, *, me: Member, run: str, epoch: int, secret: bytes, deadline: float, cancelled: Callable[[], bool]
) -> socket.socket:
    """A proven connection to `peer`, tried again until `deadline`. Raises `PeerLost` or `HandshakeError`."""
    problem: Exception | None = None
    while not cancelled() and time.monotonic() < deadline:
        try:
            return _dial_once(peer, me=me, run=run, epoch=epoch, secret=secret)
        except (HandshakeError, OSError) as error:
            problem = error
        time.sleep(_POLL_S)
    if isinstance(problem, HandshakeError):
        raise HandshakeError(f"{peer.trainer} at {peer.host}:{peer.port}: {problem}") from None
    raise PeerLost(f"{peer.trainer} at {peer.host}:{peer.port} does not answer in epoch {epoch}: {problem}")


def _dial_once(peer: Member, *, me: Member, run: str, epoch: int, secret: bytes) -> socket.socket:
    sock = socket.create_connection((peer.host, peer.port), timeout=HANDSHAKE_S)
    try:
        _introduce(sock, me=me, run=run, epoch=epoch, secret=secret)
        _tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _introduce(sock: socket.socket, *, me: Member, run: str, epoch: int, secret: bytes) -> None:
    own = os.urandom(NONCE_BYTES)
    hello = {"protocol": PROTOCOL, "run": run, "trainer": me.trainer, "epoch": epoch, "rank": me.rank}
    hello_bytes = json.dumps(hello | {"nonce": own.hex()}).encode()
    _send_blob(sock, hello_bytes)
    answer = _receive(sock, NONCE_BYTES + MAC_BYTES)
    nonce, mac = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    if not check(secret, "listener", own, hello_bytes, mac):
        raise HandshakeError(f"the listener does not hold the secret of run {run!r}")
    sock.sendall(proof(secret, "dialer", nonce, hello_bytes))
    _receive(sock, 1)
