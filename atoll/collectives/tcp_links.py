"""What links carried while they had enough to carry, as observations.

A connection is *pressed* while the kernel has more unsent than it should (`tcp_peer.BACKLOG_BYTES`): only then does what
it carries tell of the link and not of the sender. Its bytes are those that Linux counts as acknowledged, its time that
which Linux counts as busy, less what it counts as waiting for the reader (`struct tcp_info`, linux/tcp.h): two readings for
each time of pressure. A sender that gets no processor in time lets its link go idle, which is not counted.

A host that is overloaded delays packets for some hundredths of a second now and then, which a window of a small model does
not even out. So the best of its stretches is told, too.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atoll.collectives.network import Way
from atoll.collectives.tcp_info import tcp_info
from atoll.schema.ids import NodeId
from atoll.schema.topology import Detour, Observation, Topology

# bytes_acked u64 at 120, min_rtt u32 at 148, busy_time u64 at 168, rwnd_limited u64 at 176; times in microseconds.
_COUNTS = struct.Struct("=120xQ20xI16xQQ")
# retransmits u8 at 2 (of what is unacknowledged now), unacked packets u32 at 24, rtt u32 (microseconds) at 68.
_UNANSWERED = struct.Struct("=2xB21xI40xI")
# A stretch: a few times what a shaper or a NIC may have let through at once.
STRETCH_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one connection since it was made."""

    acked_bytes: int
    busy_s: float
    unread_s: float
    rtt_s: float


def counts(sock: socket.socket) -> Counts | None:
    """What the kernel counts; None where it does not, or the connection is gone."""
    info = tcp_info(sock, _COUNTS)
    if info is None:
        return None
    acked, rtt, busy, unread = info
    return Counts(acked, busy / 1e6, unread / 1e6, rtt / 1e6)


def unanswered(sock: socket.socket) -> float | None:
    """The round trip, in seconds, of a connection whose other end acknowledges nothing, though it was sent again.

    None of any other. A kernel acknowledges also for a process that stands still, and however busy its machine is: that
    end is gone, or the way to it or back.
    """
    info = tcp_info(sock, _UNANSWERED)
    if info is None:
        return None
    again, unacked, rtt = info
    return rtt / 1e6 if again and unacked else None


class Pressure:
    """One connection: what it carried under pressure since it was last asked."""

    __slots__ = ("_at", "_sock", "_stretch", "_then", "best", "bytes", "seconds")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._then: Counts | None = None
        self._at = 0.0
        self.bytes, self.seconds, self.best = 0, 0.0, 0.0
        self._stretch = (0, 0.0)

    def begins(self, now: float) -> None:
        """The kernel takes no more."""
        self._then, self._at = counts(self._sock), now

    def ends(self, now: float) -> None:
        """The kernel has taken all there was."""
        here = counts(self._sock) if self._then is not None else None
        if here is not None and self._then is not None:
            carried = here.acked_bytes - self._then.acked_bytes
            busy = here.busy_s - self._then.busy_s - (here.unread_s - self._then.unread_s)
            self._count(carried, max(0.0, min(busy, now - self._at)))
        self._then = None

    def _count(self, carried: int, seconds: float) -> None:
        self.bytes, self.seconds = self.bytes + carried, self.seconds + seconds
        size, took = self._stretch[0] + carried, self._stretch[1] + seconds
        if size >= STRETCH_BYTES and took > 0:
            self.best = max(self.best, size / took)
            size, took = 0, 0.0
        self._stretch = size, took

    def taken(self, now: float) -> tuple[int, float, float]:
        """(bytes, seconds, bytes/s of the best stretch) since the last call; pressure that goes on counts up to here."""
        if self._then is not None:
            self.ends(now)
            self.begins(now)
        found = self.bytes, self.seconds, self.best
        self.bytes, self.seconds, self.best = 0, 0.0, 0.0
        self._stretch = (0, 0.0)
        return found


@dataclass(frozen=True, slots=True)
class Line:
    """One connection to a peer."""

    sock: socket.socket
    pressure: Pressure


class Links:
    """The connections of one rank to its peers, by the links that they use. Used on the loop's thread."""

    def __init__(self, nodes: Sequence[NodeId], rank: int, topology: Topology) -> None:
        self._nodes, self._rank = nodes, rank
        self._nics = {(h.node, nic.host): nic.name for h in topology.hosts for nic in h.nics}
        self._since = time.monotonic()

    def observe(self, lines: Mapping[int, Iterable[Line]]) -> tuple[Observation, ...]:
        """What links carried under pressure since the last call."""
        now = time.monotonic()
        window, self._since = now - self._since, now
        found = (self._of(rank, met, now, window) for rank, met in lines.items())
        return tuple(o for o in found if o is not None)

    def detours(self, met: Mapping[int, tuple[socket.socket, Way]]) -> tuple[Detour, ...]:
        """Where the connection to a rank is not by the way that was tried first."""
        found = []
        for rank, (sock, first) in met.items():
            ends = self._ends(rank, sock)
            if ends is not None and sock.getpeername()[0] != first.host:
                here, there = self._nodes[self._rank], self._nodes[rank]
                found.append(Detour(source=here, source_nic=ends[0], target=there, target_nic=ends[1]))
        return tuple(dict.fromkeys(found))

    def _of(self, rank: int, met: Iterable[Line], now: float, window_s: float) -> Observation | None:
        size, seconds, best, rtts, ends = 0, 0.0, 0.0, [0.0], None
        for line in met:
            carried, busy, fastest = line.pressure.taken(now)
            here = counts(line.sock)
            if here is None:
                continue
            size += carried
            seconds = max(seconds, busy)
            best += fastest
            rtts.append(here.rtt_s)
            ends = ends or self._ends(rank, line.sock)
        if ends is None or not size:
            return None
        return Observation(
            source=self._nodes[self._rank],
            source_nic=ends[0],
            target=self._nodes[rank],
            target_nic=ends[1],
            bytes=size,
            busy_s=seconds,
            rtt_s=max(rtts),
            window_s=window_s,
            best=best,
        )

    def _ends(self, rank: int, sock: socket.socket) -> tuple[str, str] | None:
        """The NICs of a connection, by its addresses."""
        try:
            here, there = sock.getsockname()[0], sock.getpeername()[0]
        except OSError:
            return None
        mine = self._nics.get((self._nodes[self._rank], here))
        theirs = self._nics.get((self._nodes[rank], there))
        return None if mine is None or theirs is None else (mine, theirs)
