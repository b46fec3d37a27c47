"""What a loop knows of the operation that waits longest, and how it asks the other ranks (`waits`).

Nothing is done for it while bytes come: the connections, the receives that are posted and the kernel's counters are read
only when a look is due. A connection is silent since the last byte that the kernel received, not since the last one that
this process read. Where bytes of this rank are still on their way, the question is behind them: then the peer is heard as
long as its kernel acknowledges them, however slow the link is (`struct tcp_info`, linux/tcp.h).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from atoll.collectives.call import unpack
from atoll.collectives.tcp_info import tcp_info
from atoll.collectives.tcp_mail import Mail
from atoll.collectives.tcp_peer import EpochEnded, Peer
from atoll.collectives.waits import Progress, Scene, Wait, Watch
from atoll.collectives.wire import Frame
from atoll.errors import HandshakeError

# unacked packets u32 at 24, last_data_recv u32 (ms) at 52, bytes_acked u64 at 120, notsent_bytes u32 at 144.
_PROGRESS = struct.Struct("=24xI24xI64xQ16xI")
# `part` of a PROGRESS frame.
_ASKS, _ANSWERS = 0, 1

Told = Callable[[Wait], None]


class InFlight(Protocol):
    """An operation on the loop."""

    call: bytes
    sequence: int | None
    source: int | None
    relayed: bool
    since_s: float


@dataclass(slots=True)
class _Taken:
    """Until when the kernel of a peer acknowledged more."""

    acked: int
    at: float


class Waits:
    """The watch of one loop, used on its thread alone. `on_wait` gets what is told."""

    def __init__(self, rank: int, lines: Mapping[int, list[Peer]], mail: Mail, on_wait: Told | None) -> None:
        self._rank, self._lines, self._mail, self._on_wait = rank, lines, mail, on_wait
        size = 1 + max([rank, *lines])
        self.progress = Progress(rank, size)
        self.current: Wait | None = None
        self._watch = Watch(size)
        self._taken: dict[Peer, _Taken] = {}

    @property
    def told(self) -> bool:
        """Whether a wait was told that is not over."""
        return self._watch.told

    def woke(self, now: float) -> None:
        """The loop was late."""
        self._watch.woke(now)
        self._taken.clear()

    def look(self, operations: Iterable[InFlight], now: float) -> None:
        """Ask and tell what is due."""
        oldest = _oldest(operations)
        stuck = self._stuck()
        since = oldest.since_s if oldest is not None else min(stuck.values(), default=None)
        if self._watch.asks(since, now):
            self._ask()
        found = None
        if self._watch.asked_s is not None and since is not None:
            scene = self._scene(oldest, since, stuck, now)
            found = self._watch.judged(scene, self.progress.entered, now)
        self._tell(found, now)

    def ends(self) -> None:
        """The loop does."""
        self._tell(None, time.monotonic())

    def heard(self, peer: Peer, frame: Frame) -> None:
        """A PROGRESS frame of a peer: learn, and answer if it asks."""
        try:
            self.progress.learn(bytes(frame.body))
        except HandshakeError as error:
            raise EpochEnded(f"rank {peer.rank}: {error}", rank=peer.rank) from None
        if frame.header.part == _ASKS:
            peer.say_progress(_ANSWERS, self.progress.word())

    # -- inside ------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        word = self.progress.word()
        for lines in self._lines.values():
            for peer in lines:
                peer.say_progress(_ASKS, word)

    def _tell(self, found: Wait | None, now: float) -> None:
        self.current = found
        word = self._watch.tells(found, now)
        if word is not None and self._on_wait is not None:
            self._on_wait(word)

    def _stuck(self) -> dict[int, float]:
        """Ranks that do not take what waits for them, and since when."""
        return {
            peer.rank: peer.blocked_since
            for lines in self._lines.values()
            for peer in lines
            if peer.has_output and not peer.gone
        }

    def _scene(self, oldest: InFlight | None, since: float, stuck: Collection[int], now: float) -> Scene:
        if oldest is None:
            posted, needed, sequence, name = set[int](), set[int](), 0, "send"
        elif oldest.sequence is None:
            posted = {oldest.source} if oldest.source is not None else set()
            needed, sequence, name = posted, 0, "recv"
        else:
            sequence, name = oldest.sequence, unpack(oldest.call).kind
            posted = self._mail.awaited(sequence)
            needed = set(self._lines) if oldest.relayed else posted
        awaited = posted | set(stuck)
        return Scene(
            operation=name,
            sequence=sequence,
            since_s=since,
            needed=frozenset(needed),
            awaited=frozenset(awaited),
            silence_s={r: self._silence(r, now) for r in awaited},
        )

    def _silence(self, rank: int, now: float) -> float:
        """Of the most silent connection to `rank`: parts of an operation may come by any."""
        asked = self._watch.asked_s
        return 0.0 if asked is None else max((self._quiet(p, asked, now) for p in self._lines[rank]), default=0.0)

    def _quiet(self, peer: Peer, asked: float, now: float) -> float:
        if peer.gone:
            return 0.0
        quiet = now - max(asked, peer.read_s)
        info = tcp_info(peer.sock, _PROGRESS)
        if info is None:
            return quiet
        unacked, idle_ms, acked, unsent = info
        quiet = min(quiet, idle_ms / 1000)
        taken = self._taken.get(peer)
        if taken is None or taken.acked != acked:
            taken = self._taken[peer] = _Taken(acked, now)
        return min(quiet, now - taken.at) if unacked or unsent or peer.has_output else quiet


def _oldest(operations: Iterable[InFlight]) -> InFlight | None:
    """The first collective; without one the first receive of a message from a rank that is named."""
    collective: InFlight | None = None
    message: InFlight | None = None
    for each in operations:
        if each.sequence is not None:
            if collective is None or collective.sequence is None or each.sequence < collective.sequence:
                collective = each
        elif each.source is not None and (message is None or each.since_s < message.since_s):
            message = each
    return collective or message
