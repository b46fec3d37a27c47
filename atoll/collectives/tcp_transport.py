"""Connections between the ranks of an epoch: a listener that outlives epochs, and the dialing side.

The higher rank dials the lower. A dial for an epoch that the listener's owner has not heard of yet is kept until the
owner asks for it (`claim`); dials of epochs older than the one last asked for are told so and refused, and those kept
for them are closed. A listener answers by itself, so no two members wait for each other.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from atoll.collectives.tcp_handshake import (
    HANDSHAKE_S,
    SLICE_S,
    Greeting,
    Patience,
    Verdict,
    introduce,
    reach,
    receive_introduction,
)
from atoll.errors import HandshakeError, PeerLost
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member

# Strangers that connect and say nothing hold this many threads at most; ranks retry what was turned away.
_GREETERS = 64
_RETRY_S = 0.05
_JOIN_S = 2.0


class Listener:
    """One per trainer: binds `host` on a free port and keeps accepted peers until `claim` asks for them."""

    def __init__(self, host: str, secret: bytes, run: str) -> None:
        self._secret, self._run = secret, run
        self._socket = socket.create_server((host, 0), backlog=128)
        self.host: str = host
        self.port: int = self._socket.getsockname()[1]
        self._changed = threading.Condition()
        self._parked: dict[tuple[int, int], tuple[Greeting, socket.socket]] = {}
        self._oldest = 0
        self._closed = False
        self._greeters: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept, name="atoll-listener", daemon=True)
        self._thread.start()

    def enter(self, epoch: int) -> None:
        """From now on only `epoch` and newer ones are taken; what was kept for older ones is closed."""
        with self._changed:
            self._oldest = max(self._oldest, epoch)
            for key in [k for k in self._parked if k[0] < self._oldest]:
                self._parked.pop(key)[1].close()

    def dial(
        self, peer: Member, *, me: Member, epoch: int, deadline: float, cancelled: Callable[[], bool]
    ) -> socket.socket:
        """A proven connection to `peer`. Raises `PeerLost` at `deadline` (monotonic seconds), or `HandshakeError`."""
        greeting = Greeting(run=self._run, epoch=epoch, rank=me.rank, trainer=me.trainer, to=peer.trainer)
        patience = Patience(deadline=deadline, cancelled=lambda: self._closed or cancelled())
        return dial(peer, greeting, self._secret, patience)

    def claim(
        self, peer: Member, *, me: TrainerId, epoch: int, deadline: float, cancelled: Callable[[], bool]
    ) -> socket.socket:
        """The connection that `peer` made to this listener for `epoch`. Raises `PeerLost` at `deadline`."""
        self.enter(epoch)
        with self._changed:
            while True:
                greeting, sock = self._parked.pop((epoch, peer.rank), (None, None))
                if greeting is not None and sock is not None:
                    if (greeting.trainer, greeting.to) == (peer.trainer, me):
                        return sock
                    sock.close()  # of a rank that this epoch does not know, or meant for who had this port before
                if self._closed or cancelled():
                    raise PeerLost(f"epoch {epoch} was given up while waiting for {peer.trainer}, rank {peer.rank}")
                if time.monotonic() >= deadline:
                    raise PeerLost(f"{peer.trainer}, rank {peer.rank}, did not connect in epoch {epoch}")
                self._changed.wait(SLICE_S)

    def close(self) -> None:
        """Stop listening and close what nobody claimed."""
        with self._changed:
            self._closed = True
            parked, self._parked = list(self._parked.values()), {}
            self._changed.notify_all()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept; a close alone would not
        self._socket.close()
        for _, sock in parked:
            sock.close()
        self._thread.join(_JOIN_S)
        for greeter in list(self._greeters):
            greeter.join(_JOIN_S)

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                # Closed; or no file descriptor is left, which passes when someone else closes one.
                time.sleep(0.0 if self._closed else _RETRY_S)
                continue
            if len(self._greeters) >= _GREETERS:
                sock.close()
                continue
            greeter = threading.Thread(target=self._greet, args=(sock,), name="atoll-greeter", daemon=True)
            self._greeters.add(greeter)
            greeter.start()

    def _greet(self, sock: socket.socket) -> None:
        patience = Patience(deadline=time.monotonic() + HANDSHAKE_S, cancelled=lambda: self._closed)
        try:
            greeting = receive_introduction(sock, self._run, self._secret, patience)
            self._park(greeting, sock)
        except (OSError, HandshakeError, PeerLost):
            # A stranger, or a dial that its maker gave up: nothing to tell anyone, the dialer sees the close.
            sock.close()
        finally:
            self._greeters.discard(threading.current_thread())

    def _park(self, greeting: Greeting, sock: socket.socket) -> None:
        with self._changed:
            if self._closed or greeting.epoch < self._oldest:
                sock.send(bytes([Verdict.EPOCH_IS_OVER]))
                raise HandshakeError(f"epoch {greeting.epoch} is over")
            sock.send(bytes([Verdict.WELCOME]))
            _, stale = self._parked.pop((greeting.epoch, greeting.rank), (None, None))
            if stale is not None:
                stale.close()
            self._parked[greeting.epoch, greeting.rank] = (greeting, sock)
            self._changed.notify_all()


def dial(peer: Member, greeting: Greeting, secret: bytes, patience: Patience) -> socket.socket:
    """A proven connection to `peer`, tried again while nothing answers. Raises `PeerLost` or `HandshakeError`."""
    where = f"{peer.trainer} at {peer.host}:{peer.port}"
    problem: Exception | None = None
    while True:
        try:
            patience.left()
        except PeerLost as over:
            raise PeerLost(f"{where} does not answer in epoch {greeting.epoch}: {problem or over}") from None
        try:
            return _dial_once(peer, greeting, secret, patience.at_most(HANDSHAKE_S))
        except HandshakeError as error:
            raise HandshakeError(f"{where}: {error}") from None
        except (OSError, PeerLost) as error:
            problem = error
        time.sleep(_RETRY_S)


def _dial_once(peer: Member, greeting: Greeting, secret: bytes, patience: Patience) -> socket.socket:
    sock = reach(peer.host, peer.port, patience)
    try:
        verdict = introduce(sock, greeting, secret, patience)
    except BaseException:
        sock.close()
        raise
    if verdict is Verdict.EPOCH_IS_OVER:
        sock.close()
        raise HandshakeError(f"it is past epoch {greeting.epoch}; this trainer missed a newer one")
    return sock
