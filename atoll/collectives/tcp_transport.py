"""Connections between the ranks of an epoch: a listener that outlives epochs, and the dialing side.

The higher rank dials the lower, by the NICs that the topology recommends and by others if those do not answer; a link that
one connection does not fill gets several (`line` 0, 1, ...). A dial for an epoch that the listener's owner has not heard of yet is kept until the
owner asks for it (`claim`); dials of epochs older than the one last asked for are told so and refused, and those kept
for them are closed. A listener answers by itself, so no two members wait for each other.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from atoll.collectives.network import Way
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
from atoll.errors import HandshakeError, InternalError, PeerLost
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Member
from atoll.schema.topology import Door

# Strangers that connect and say nothing hold this many threads at most; ranks retry what was turned away.
_GREETERS = 64
_RETRY_S = 0.05
# How long one of several ways may take: a link that is down answers nothing, and the next one may. A kernel answers a
# connection at once, however busy its machine; only proofs take the peer's own time. Each round gives twice as long.
_WAY_S = 1.0
_REACH_S = 0.25
# Of an address that answered nothing when the last epoch ended, and of so many of its usual round trips at least.
_DOUBTED_S, _DOUBTED_TRIPS = 0.05, 3
_JOIN_S = 2.0


class Listener:
    """One per trainer: binds `host`, and each of the other `nics` (name, host), on free ports of their own.

    Keeps accepted peers until `claim` asks for them. `doors` tells where it listens besides `host` and `port`.
    """

    def __init__(self, host: str, secret: bytes, run: str, nics: Sequence[tuple[str, str]] = ()) -> None:
        self._secret, self._run = secret, run
        self._sockets = [socket.create_server((address, 0), backlog=128) for address in (host, *(h for _, h in nics))]
        self.host: str = host
        self.port, *ports = (int(s.getsockname()[1]) for s in self._sockets)
        self.doors = tuple(Door(nic=n, host=h, port=p) for (n, h), p in zip(nics, ports, strict=True))
        self._changed = threading.Condition()
        self._parked: dict[tuple[int, int, int], tuple[Greeting, socket.socket]] = {}
        self._oldest = 0
        self._doubted: Mapping[tuple[TrainerId, str], float] = {}
        self._closed = False
        self._greeters: set[threading.Thread] = set()
        self._threads = [
            threading.Thread(target=self._accept, args=(s,), name="atoll-listener", daemon=True) for s in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    def enter(self, epoch: int) -> None:
        """From now on only `epoch` and newer ones are taken; what was kept for older ones is closed."""
        with self._changed:
            self._oldest = max(self._oldest, epoch)
            for key in [k for k in self._parked if k[0] < self._oldest]:
                self._parked.pop(key)[1].close()

    def doubt(self, silent: Mapping[tuple[TrainerId, str], float]) -> None:
        """These (trainer, address) answered nothing when the last epoch ended, with their round trip (s) before that.

        The next dials give such an address less time to answer before they try another.
        """
        self._doubted = silent

    def dial(
        self,
        peer: Member,
        *,
        me: Member,
        epoch: int,
        deadline: float,
        cancelled: Callable[[], bool],
        ways: Sequence[Way] = (),
        line: int = 0,
    ) -> socket.socket:
        """A proven connection to `peer`, by the first of `ways` that answers (none: by its first address).

        Raises `PeerLost` at `deadline` (monotonic seconds), or `HandshakeError`.
        """
        greeting = Greeting(run=self._run, epoch=epoch, rank=me.rank, trainer=me.trainer, to=peer.trainer, line=line)
        patience = Patience(deadline=deadline, cancelled=lambda: self._closed or cancelled())
        doubted = {host: rtt_s for (trainer, host), rtt_s in self._doubted.items() if trainer == peer.trainer}
        return dial(ways or (Way(peer.host, peer.port),), greeting, self._secret, patience, doubted=doubted)

    def claim(
        self,
        peer: Member,
        *,
        me: TrainerId,
        epoch: int,
        deadline: float,
        cancelled: Callable[[], bool],
        line: int = 0,
    ) -> socket.socket:
        """The connection that `peer` made to this listener for `epoch`. Raises `PeerLost` at `deadline`."""
        self.enter(epoch)
        with self._changed:
            while True:
                greeting, sock = self._parked.pop((epoch, peer.rank, line), (None, None))
                if greeting is not None and sock is not None:
                    if (greeting.trainer, greeting.to) == (peer.trainer, me):
                        return sock
                    sock.close()  # of a rank that this epoch does not know, or meant for who had this port before
                if self._closed or cancelled():
                    raise PeerLost(f"epoch {epoch} was given up while waiting for {peer.trainer}, rank {peer.rank}")
                if time.monotonic() >= deadline:
                    raise PeerLost(f"{peer.trainer}, rank {peer.rank}, did not connect in epoch {epoch}")
                self._changed.wait(SLICE_S)

    def parked(self, epoch: int) -> set[int]:
        """The ranks whose dials for `epoch` are kept here."""
        with self._changed:
            return {rank for number, rank, _ in self._parked if number == epoch}

    def close(self) -> None:
        """Stop listening and close what nobody claimed."""
        with self._changed:
            self._closed = True
            parked, self._parked = list(self._parked.values()), {}
            self._changed.notify_all()
        for listening in self._sockets:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes the accept; a close alone would not
            listening.close()
        for _, sock in parked:
            sock.close()
        for thread in self._threads:
            thread.join(_JOIN_S)
        for greeter in list(self._greeters):
            greeter.join(_JOIN_S)

    def _accept(self, listening: socket.socket) -> None:
        while not self._closed:
            try:
                sock, _ = listening.accept()
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
            key = (greeting.epoch, greeting.rank, greeting.line)
            _, stale = self._parked.pop(key, (None, None))
            if stale is not None:
                stale.close()
            self._parked[key] = (greeting, sock)
            self._changed.notify_all()


def dial(
    ways: Sequence[Way],
    greeting: Greeting,
    secret: bytes,
    patience: Patience,
    *,
    doubted: Mapping[str, float] | None = None,
) -> socket.socket:
    """A proven connection by one of `ways`, tried in turn while nothing answers. Raises `PeerLost` or `HandshakeError`.

    `doubted`: hosts that get less time to answer, with their usual round trip in seconds.
    """
    first_s = {host: min(_REACH_S, max(_DOUBTED_S, _DOUBTED_TRIPS * rtt_s)) for host, rtt_s in (doubted or {}).items()}
    problem: Exception | None = None
    for number, way in enumerate(itertools.cycle(ways)):
        where = f"{greeting.to} at {way.host}:{way.port}"
        try:
            patience.left()
        except PeerLost as over:
            raise PeerLost(f"{where} does not answer in epoch {greeting.epoch}: {problem or over}") from None
        try:
            rounds = number // len(ways)
            reach_s, way_s = min(_WAY_S, first_s.get(way.host, _REACH_S) * 2 ** min(rounds, 8)), _WAY_S
            if len(ways) == 1:
                reach_s = way_s = HANDSHAKE_S
            return _dial_once(way, greeting, secret, patience.at_most(way_s), patience.at_most(reach_s))
        except HandshakeError as error:
            raise HandshakeError(f"{where}: {error}") from None
        except OSError as error:
            problem = error
        except PeerLost as error:
            # The last try may have begun with no time left: what one before it met says more.
            problem = problem or error
        if number % len(ways) == len(ways) - 1:
            time.sleep(_RETRY_S)
    raise InternalError(f"no address of {greeting.to} is known")


def _dial_once(way: Way, greeting: Greeting, secret: bytes, patience: Patience, reaching: Patience) -> socket.socket:
    sock = reach(way.host, way.port, reaching, source=way.source)
    try:
        verdict = introduce(sock, greeting, secret, patience)
    except BaseException:
        sock.close()
        raise
    if verdict is Verdict.EPOCH_IS_OVER:
        sock.close()
        raise HandshakeError(f"it is past epoch {greeting.epoch}; this trainer missed a newer one")
    return sock
