"""How the ranks of an epoch meet: every pair once, or as often as its link needs connections.

The higher rank dials the lower. All dials go out side by side, and those of higher ranks are collected meanwhile, so that
one that does not answer keeps nobody from meeting the others, and whoever is told of a wait is told exactly who has not
come (`waits`).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillDialling
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from atoll.collectives.network import Network, ways
from atoll.collectives.tcp_handshake import SLICE_S
from atoll.collectives.tcp_transport import Listener
from atoll.collectives.waits import LOOK_S, Scene, Wait, Watch
from atoll.errors import InternalError, PeerError
from atoll.schema.messages import Member, Membership
from atoll.schema.topology import Topology

# Dials mostly wait; more of them at once than this only crowd the listeners.
_DIALLERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Until when, in monotonic seconds, and for whom the meeting goes on; `on_wait` hears who keeps it waiting."""

    deadline: float
    cancelled: Callable[[], bool]
    on_wait: Callable[[Wait], None] | None = None


def checked(membership: Membership) -> tuple[Member, ...]:
    """The members in rank order. Raises `InternalError` where ranks are missing or named twice."""
    members = tuple(sorted(membership.members, key=lambda m: m.rank))
    for rank, member in enumerate(members):
        if member.rank != rank:
            named = ", ".join(f"{m.trainer}={m.rank}" for m in members)
            raise InternalError(
                f"epoch {membership.epoch} names {len(members)} members by ranks {named}; ranks go from 0 to "
                f"{len(members) - 1}, each once"
            )
    return members


class Meeting:
    """The connections of `mine` to all other members."""

    def __init__(
        self, membership: Membership, mine: Member, network: Network, listener: Listener, terms: Terms
    ) -> None:
        self._mine, self._listener, self._terms = mine, listener, terms
        self._epoch: int = membership.epoch
        self._topology: Topology | None = membership.topology
        self._others = [m for m in checked(membership) if m.rank != mine.rank]
        self._lines: dict[int, int] = {m.rank: network.lines(mine.rank, m.rank) for m in self._others}
        self._met: dict[int, list[socket.socket]] = {m.rank: [] for m in self._others}
        self._began = self._look_s = time.monotonic()
        self._watch = Watch(len(membership.members))
        self._over = threading.Event()

    def hold(self) -> dict[int, list[socket.socket]]:
        """By rank. Raises `PeerLost` or `HandshakeError` with the member that did not come as its culprit."""
        lower = [m for m in self._others if m.rank < self._mine.rank]
        try:
            if not lower:
                self._collect(self._others)
            else:
                with ThreadPoolExecutor(min(len(lower), _DIALLERS), thread_name_prefix="atoll-dial") as pool:
                    self._together([pool.submit(self._dial, peer) for peer in lower])
        except BaseException:
            for sock in (s for met in self._met.values() for s in met):
                sock.close()
            raise
        finally:
            self._tell(None)
        return self._met

    def _together(self, dials: list[Future[None]]) -> None:
        """Collect the others while the dials run. At the end no dial runs any more."""
        try:
            self._collect([m for m in self._others if m.rank > self._mine.rank], lambda: any(map(_failed, dials)))
            for dial in dials:
                self._finish(dial)
        except PeerError:
            for dial in filter(_failed, dials):  # it ended what else was waited for
                dial.result()
            raise
        finally:
            self._over.set()

    def _finish(self, dial: Future[None]) -> None:
        while True:
            with suppress(StillDialling):
                return dial.result(SLICE_S)
            self._look()

    def _dial(self, peer: Member) -> None:
        known = ways(self._mine, peer, self._topology) if self._topology is not None else ()
        for line in range(self._lines[peer.rank]):
            with _blaming(peer):
                sock = self._listener.dial(
                    peer,
                    me=self._mine,
                    epoch=self._epoch,
                    deadline=self._terms.deadline,
                    cancelled=lambda: self._over.is_set() or self._terms.cancelled(),
                    ways=known,
                    line=line,
                )
            self._met[peer.rank].append(sock)

    def _collect(self, peers: Iterable[Member], failed: Callable[[], bool] = lambda: False) -> None:
        def cancelled() -> bool:
            self._look()
            return failed() or self._terms.cancelled()

        for peer in peers:
            for line in range(self._lines[peer.rank]):
                with _blaming(peer):
                    sock = self._listener.claim(
                        peer,
                        me=self._mine.trainer,
                        epoch=self._epoch,
                        deadline=self._terms.deadline,
                        cancelled=cancelled,
                        line=line,
                    )
                self._met[peer.rank].append(sock)

    # -- who has not come --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        if self._terms.on_wait is None or now < self._look_s:
            return
        self._look_s = now + LOOK_S
        here = self._listener.parked(self._epoch)
        absent = [r for r, met in self._met.items() if len(met) < self._lines[r] and r not in here]
        scene = Scene(operation="connect", sequence=0, since_s=self._began, needed=frozenset(absent))
        self._tell(self._watch.judged(scene, [], now))

    def _tell(self, found: Wait | None) -> None:
        word = self._watch.tells(found, time.monotonic())
        if word is not None and self._terms.on_wait is not None:
            self._terms.on_wait(word)


def _failed(dial: Future[None]) -> bool:
    return dial.done() and dial.exception() is not None


@contextmanager
def _blaming(peer: Member) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        error.culprit = peer.trainer
        raise
