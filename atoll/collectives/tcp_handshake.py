"""How two ranks meet on a fresh connection: names, proofs, a verdict.

The dialer says (run, protocol, trainer, rank, epoch, whom it wants); both prove the run's secret by HMAC over the
other's nonce with these words as context; the listener answers with one byte. Every wait is sliced, so that a cancelled
epoch lets go within `SLICE_S` also of a host that answers nothing.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from atoll.errors import HandshakeError, PeerLost
from atoll.schema.handshake import MAC_BYTES, NONCE_BYTES, check, proof
from atoll.schema.messages import PROTOCOL

# How late a cancelled wait may notice; part of every recovery.
SLICE_S = 0.02
# A peer that connects and then says nothing must not hold a thread for long.
HANDSHAKE_S = 5.0
_HELLO_LIMIT_BYTES = 4096


class Verdict(enum.IntEnum):
    """The listener's answer to a proven peer."""

    WELCOME = 1
    EPOCH_IS_OVER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """Who dials whom, and for which epoch; `line` numbers the connections of one pair."""

    run: str
    epoch: int
    rank: int
    trainer: str
    to: str
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Until when, in monotonic seconds, and for whom a wait goes on."""

    deadline: float
    cancelled: Callable[[], bool]

    def left(self) -> float:
        """Seconds left, at most a slice. Raises `PeerLost` when there are none or nobody waits any more."""
        if self.cancelled():
            raise PeerLost("the wait was given up: the epoch it was for is over")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise PeerLost("no answer in time")
        return min(left, SLICE_S)

    def at_most(self, seconds: float) -> Patience:
        """The same, ending within `seconds`."""
        return Patience(deadline=min(self.deadline, time.monotonic() + seconds), cancelled=self.cancelled)


def tune(sock: socket.socket) -> None:
    """Options of a connection that carries frames. Buffers stay with the kernel, which sizes them to the link."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # bbr, a common default, loses 20-35 % when several short flows share a link (measured).
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def reach(host: str, port: int, patience: Patience, source: str | None = None) -> socket.socket:
    """A TCP connection, from the own address `source` if that is given. Raises `OSError` or `PeerLost`."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(0.0)
        tune(sock)
        if source is not None:
            sock.bind((source, 0))
        _connect(sock, address, patience)
    except BaseException:
        sock.close()
        raise
    return sock


def introduce(sock: socket.socket, greeting: Greeting, secret: bytes, patience: Patience) -> Verdict:
    """The dialer's side. Raises `HandshakeError`, `PeerLost` or `OSError`."""
    own = os.urandom(NONCE_BYTES)
    words = _words(greeting, own)
    _send(sock, len(words).to_bytes(2, "big") + words, patience)
    nonce, mac = _receive(sock, NONCE_BYTES, patience), _receive(sock, MAC_BYTES, patience)
    if not check(secret, "listener", own, words, mac):
        raise HandshakeError(f"the listener does not hold the secret of run {greeting.run!r}")
    _send(sock, proof(secret, "dialer", nonce, words), patience)
    answer = _receive(sock, 1, patience)[0]
    if answer not in Verdict._value2member_map_:
        raise HandshakeError(f"an answer of {answer} to a greeting; another build of Atoll?")
    return Verdict(answer)


def receive_introduction(sock: socket.socket, run: str, secret: bytes, patience: Patience) -> Greeting:
    """The listener's side, up to the verdict. Raises `HandshakeError`, `PeerLost` or `OSError`."""
    sock.settimeout(0.0)
    length = int.from_bytes(_receive(sock, 2, patience), "big")
    if length > _HELLO_LIMIT_BYTES:
        raise HandshakeError(f"a greeting of {length} bytes; at most {_HELLO_LIMIT_BYTES}")
    words = _receive(sock, length, patience)
    greeting, theirs = _read(words, run)
    nonce = os.urandom(NONCE_BYTES)
    _send(sock, nonce + proof(secret, "listener", theirs, words), patience)
    if not check(secret, "dialer", nonce, words, _receive(sock, MAC_BYTES, patience)):
        raise HandshakeError(f"trainer {greeting.trainer!r} does not hold the secret of run {run!r}")
    tune(sock)
    return greeting


def _connect(sock: socket.socket, address: Any, patience: Patience) -> None:
    problem = sock.connect_ex(address)
    if problem == errno.EINPROGRESS:
        _wait(sock, select.POLLOUT, patience)
        problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if problem:
        raise OSError(problem, os.strerror(problem))


def _words(greeting: Greeting, nonce: bytes) -> bytes:
    who = {"run": greeting.run, "epoch": greeting.epoch, "rank": greeting.rank, "line": greeting.line}
    names = {"trainer": greeting.trainer, "to": greeting.to}
    return json.dumps(who | names | {"protocol": PROTOCOL, "nonce": nonce.hex()}).encode()


def _read(words: bytes, run: str) -> tuple[Greeting, bytes]:
    try:
        said = json.loads(words)
        greeting = Greeting(
            run=str(said["run"]),
            epoch=int(said["epoch"]),
            rank=int(said["rank"]),
            line=int(said["line"]),
            trainer=str(said["trainer"]),
            to=str(said["to"]),
        )
        protocol, nonce = said["protocol"], bytes.fromhex(said["nonce"])
    except (ValueError, KeyError, TypeError) as error:
        raise HandshakeError(f"a greeting that cannot be read: {type(error).__name__}") from None
    if protocol != PROTOCOL or greeting.run != run:
        raise HandshakeError(f"a peer of run {greeting.run!r}, protocol {protocol}; here is {run!r}, {PROTOCOL}")
    return greeting, nonce


def _receive(sock: socket.socket, count: int, patience: Patience) -> bytes:
    data = bytearray()
    while len(data) < count:
        _wait(sock, select.POLLIN, patience)
        with suppress(BlockingIOError):
            piece = sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection during the handshake")
            data += piece
    return bytes(data)


def _send(sock: socket.socket, data: bytes, patience: Patience) -> None:
    left = memoryview(data)
    while left:
        _wait(sock, select.POLLOUT, patience)
        with suppress(BlockingIOError):
            left = left[sock.send(left) :]


def _wait(sock: socket.socket, event: int, patience: Patience) -> None:
    poll = select.poll()
    poll.register(sock, event)
    while not poll.poll(patience.left() * 1000):
        pass
