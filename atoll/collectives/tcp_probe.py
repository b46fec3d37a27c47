"""Measures one connected pair of sockets, both ends at once: latency, and what the link carries each way.

Both ends say hello; the first pings; then each sends bursts, twice as large each time, until one takes long enough to be
measured (`Effort.seconds`), and hears after each what arrived. The receiver times bytes as the kernel has them, not as this
process gets round to reading them, so that a busy host measures the link and not itself. What a token bucket lets pass at
once (32 KB on the shaped links of a lab) and a quarter of each burst, in which TCP opens its window, are left out; where a
round trip is long, bursts go on until they grow no faster.

Frames are fixed in size and carry a version; anything else on the wire is refused.
"""

from __future__ import annotations

import enum
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from atoll.collectives.tcp_handshake import Patience
from atoll.errors import HandshakeError, PeerLost

VERSION = 1
_MAGIC = b"ATLP"
_FRAME = struct.Struct("!4sBBxxQQ")
_PINGS = 12
_FIRST_BYTES = 64 * 1024
# A full bucket of the lab's shaped links, and the frames' headers that it counts.
_BUCKET_BYTES = 36 * 1024
# Nobody may have us read more than this in one burst.
_LARGEST_BYTES = 256 << 20
_LONGEST_S = 1.0
# So often a burst is looked at while it comes in: enough for a straight line through the looks.
_LOOKS = 64
# From fewer of them in the timed part no rate follows.
_ENOUGH_LOOKS = 2
# A burst that grew by less over the one before has found the link's rate.
_GROWTH = 1.1
# A burst this many round trips long is ruled by the link, not by TCP's opening window.
_ROUND_TRIPS = 8
_BLOCK = 256 * 1024
# Chunks of a stream: small enough for a starving pair on a slow link, grown where they take no time.
_CHUNK_BYTES = 16 * 1024
_CHUNKS_A_LOOK = 16
_RENDEZVOUS_S = 0.15
# On the way at once where the rate is not known yet, or low: less than the 64 KB that small queues hold.
_WINDOW_BYTES = 48 * 1024
_QUEUE_S = 0.01
# While there is less room than this the sender rests, so long.
_ROOM_BYTES = 8 * 1024
_PAUSE_S = 0.0003
# Steps that differ by less, as a share of what came between them, are of one size.
_EVEN = 0.02
_TCP_NOTSENT_LOWAT = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long a burst has to take, and what it may cost: on a link of 10 Gbit/s 16 MiB take 13 ms.

    `steady`: send for just so long instead, and measure the middle of that time; for pairs that are to be at it together,
    of which one may starve the other. Both ways what the first end asks for holds.
    """

    seconds: float = 0.03
    limit_bytes: int = 16 << 20
    steady: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasure:
    """What this end's link does: seconds one way, bytes/s outwards and inwards, and how long it took to find out."""

    latency_s: float
    outwards: float
    inwards: float
    seconds: float


class _Kind(enum.IntEnum):
    HELLO = 1
    PING = 2
    PONG = 3
    BURST = 4
    ARRIVED = 5
    DONE = 6
    CHUNK = 7
    ENDED = 8


def probe(
    sock: socket.socket,
    *,
    first: bool,
    deadline: float,
    cancelled: Callable[[], bool] = lambda: False,
    effort: Effort | None = None,
) -> LinkMeasure:
    """Measure the link that `sock` uses; the other end calls this, too, with the opposite `first`.

    Nothing else may be under way on `sock`; afterwards it is as before, with nothing left to read. Raises `PeerLost` at
    `deadline` (monotonic seconds) or where the other end goes away, `HandshakeError` where it speaks something else.
    """
    blocking = sock.gettimeout()
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    # Else the tail of a burst waits for the acknowledgement of what came before it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return _Probe(sock, Patience(deadline=deadline, cancelled=cancelled), effort or Effort()).run(first=first)
    except (ConnectionError, BrokenPipeError) as error:
        raise PeerLost(f"the other end went away during a probe: {error}") from None
    finally:
        with suppress(OSError):
            sock.settimeout(blocking)


class _Probe:
    """One end of one measurement."""

    def __init__(self, sock: socket.socket, patience: Patience, effort: Effort) -> None:
        self._sock, self._patience, self._effort = sock, patience, effort
        self._block = memoryview(bytearray(os.urandom(_BLOCK)))
        self._poll_in, self._poll_out = select.poll(), select.poll()
        self._poll_in.register(sock, select.POLLIN)
        self._poll_out.register(sock, select.POLLOUT)

    def run(self, *, first: bool) -> LinkMeasure:
        began = time.perf_counter()
        effort = self._effort
        self._say(_Kind.HELLO, round(effort.seconds * 1e6), 0 if effort.steady else effort.limit_bytes)
        micros, limit = self._hear(_Kind.HELLO)
        if first:
            latency = self._ping()
            if effort.steady:
                # Who was told at the same time has met its peer by now, too: once they send, a handshake would wait.
                self._rest(began + _RENDEZVOUS_S - time.perf_counter())
            outwards = self._send(latency)
            inwards, _ = self._receive_bursts()
        else:
            # Both ways with the same effort: that of who asked, within reason.
            seconds, limit_bytes = min(micros / 1e6, _LONGEST_S), min(limit, _LARGEST_BYTES)
            self._effort = Effort(seconds=seconds, limit_bytes=limit_bytes, steady=limit == 0)
            inwards, latency = self._receive_bursts()
            outwards = self._send(latency)
        return LinkMeasure(latency_s=latency, outwards=outwards, inwards=inwards, seconds=time.perf_counter() - began)

    def _rest(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, self._patience.left()))

    # -- latency -------------------------------------------------------------------------------------------------------

    def _ping(self) -> float:
        """Half of the fastest round trip."""
        best = float("inf")
        for _ in range(_PINGS):
            began = time.perf_counter()
            self._say(_Kind.PING)
            self._hear(_Kind.PONG)
            best = min(best, time.perf_counter() - began)
        return best / 2

    # -- bandwidth -----------------------------------------------------------------------------------------------------

    def _send(self, latency_s: float) -> float:
        """What this end can send, in bytes/s; the other end is told that, too."""
        rate = self._send_stream(latency_s) if self._effort.steady else self._send_bursts(latency_s)
        self._say(_Kind.DONE, rate, round(latency_s * 1e9))
        return float(rate)

    def _send_stream(self, latency_s: float) -> int:
        """Chunks for as long as asked; they grow while they take no time."""
        # Little may wait in the kernel: what waits there when the time is over would still have to arrive.
        self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _CHUNK_BYTES)
        size, sent, total, mark = _CHUNK_BYTES, 0, 0, time.perf_counter()
        began, end = mark, mark + self._effort.seconds
        while (now := time.perf_counter()) < end:
            if sent == _CHUNKS_A_LOOK:
                size = min(2 * size, _BLOCK) if now - mark < self._effort.seconds / _CHUNKS_A_LOOK else size
                sent, mark = 0, now
            self._say(_Kind.CHUNK, size)
            self._send_block(size, _window(total / max(now - began, 1e-6), latency_s))
            sent, total = sent + 1, total + size
        self._say(_Kind.ENDED)
        self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 0)
        return self._hear(_Kind.ARRIVED)[0]

    def _send_bursts(self, latency_s: float) -> int:
        """Bursts until one tells the rate; returns bytes/s."""
        size, before = _FIRST_BYTES, 0.0
        while True:
            self._say(_Kind.BURST, size)
            self._send_block(size, _window(before, latency_s))
            rate, took_ns = self._hear(_Kind.ARRIVED)
            took = took_ns / 1e9
            settled = took >= _ROUND_TRIPS * 2 * latency_s or rate <= before * _GROWTH
            if (took >= self._effort.seconds and settled) or 2 * size > self._effort.limit_bytes:
                return rate
            size, before = size * 2, float(rate)

    def _receive_bursts(self) -> tuple[float, float]:
        """Time the other end's bursts until it has had enough; returns bytes/s and the latency that it knows."""
        arrivals: list[tuple[float, int]] = []
        while True:
            kind, first, second = self._frame()
            match kind:
                case _Kind.PING:
                    self._say(_Kind.PONG)
                case _Kind.BURST if _BUCKET_BYTES < first <= _LARGEST_BYTES:
                    rate, took = self._receive_block(first)
                    self._say(_Kind.ARRIVED, round(rate), round(took * 1e9))
                case _Kind.CHUNK if 0 < first <= _BLOCK:
                    self._receive_chunk(first, arrivals)
                case _Kind.ENDED if arrivals:
                    self._say(_Kind.ARRIVED, round(_middle(arrivals, self._effort.seconds)))
                case _Kind.DONE:
                    return float(first), second / 1e9
                case _:
                    raise HandshakeError(f"a probe's {kind.name.lower()} of {first} bytes; another build of Atoll?")

    def _send_block(self, size: int, window: int) -> None:
        """Send, with at most `window` bytes on the way: what overflows a switch's queue is lost, and found late."""
        left, waiting = size, bytearray(4)
        while left:
            self._wait(self._poll_out)
            fcntl.ioctl(self._sock, termios.TIOCOUTQ, waiting)
            room = window - int.from_bytes(waiting, "little")
            if room < min(left, _ROOM_BYTES):
                time.sleep(_PAUSE_S)
                continue
            with suppress(BlockingIOError):
                left -= self._sock.send(self._block[: min(left, room, _BLOCK)])

    def _receive_chunk(self, size: int, arrivals: list[tuple[float, int]]) -> None:
        left = size
        while left:
            self._wait(self._poll_in)
            with suppress(BlockingIOError):
                piece = self._sock.recv_into(self._block[:left])
                if not piece:
                    raise PeerLost("the other end closed the connection during a probe")
                left -= piece
        arrivals.append((time.perf_counter(), (arrivals[-1][1] if arrivals else 0) + size))

    def _receive_block(self, size: int) -> tuple[float, float]:
        """Bytes/s and seconds of the timed part of a burst."""
        skip = max(_BUCKET_BYTES, size // 4)
        got, samples, began = 0, list[tuple[float, int]](), time.perf_counter()
        waiting = bytearray(4)
        step = self._wake_after(size // _LOOKS)
        while got < size:
            if size - got < step:
                step = self._wake_after(1)  # the last bytes are fewer
            self._wait(self._poll_in)
            fcntl.ioctl(self._sock, termios.FIONREAD, waiting)
            arrived = got + int.from_bytes(waiting, "little")
            samples.append((time.perf_counter(), arrived))
            with suppress(BlockingIOError):
                piece = self._sock.recv_into(self._block[: min(size - got, _BLOCK)])
                if not piece:
                    raise PeerLost("the other end closed the connection during a probe")
                got += piece
        looks = sum(count >= skip for _, count in samples)
        if samples[-1][1] < size:  # the last bytes came between a look and its read
            samples.append((time.perf_counter(), size))
        self._wake_after(1)
        timed = [s for s in samples if s[1] >= skip]
        if looks < _ENOUGH_LOOKS or timed[0][1] > (skip + size) // 2:
            # It came faster than this process looked: at least this fast.
            timed = [(began, 0), (samples[-1][0], size)]
            return _slope(timed), timed[-1][0] - began
        return _even_slope(samples, len(samples) - len(timed)), timed[-1][0] - timed[0][0]

    def _wake_after(self, count: int) -> int:
        """Be woken for so many bytes only: a wake for each segment would cost a busy host more than the link does."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        return count

    # -- frames --------------------------------------------------------------------------------------------------------

    def _say(self, kind: _Kind, first: int = 0, second: int = 0) -> None:
        left = memoryview(_FRAME.pack(_MAGIC, VERSION, kind, first, second))
        while left:
            self._wait(self._poll_out)
            with suppress(BlockingIOError):
                left = left[self._sock.send(left) :]

    def _hear(self, wanted: _Kind) -> tuple[int, int]:
        kind, first, second = self._frame()
        if kind is not wanted:
            raise HandshakeError(f"a probe's {kind.name.lower()} where {wanted.name.lower()} was due")
        return first, second

    def _frame(self) -> tuple[_Kind, int, int]:
        data = bytearray()
        while len(data) < _FRAME.size:
            self._wait(self._poll_in)
            with suppress(BlockingIOError):
                piece = self._sock.recv(_FRAME.size - len(data))
                if not piece:
                    raise PeerLost("the other end closed the connection during a probe")
                data += piece
        magic, version, kind, first, second = _FRAME.unpack(data)
        if (magic, version) != (_MAGIC, VERSION) or kind not in _Kind._value2member_map_:
            raise HandshakeError(
                f"no frame of a probe, version {VERSION}: {bytes(data[:8])!r}; another build of Atoll?"
            )
        return _Kind(kind), first, second

    def _wait(self, poll: select.poll) -> None:
        while not poll.poll(self._patience.left() * 1000):
            pass


def _window(rate: float, latency_s: float) -> int:
    """Bytes that fill a link of this rate for a round trip and ten milliseconds: half of what a switch's queue holds."""
    return max(_WINDOW_BYTES, round(rate * (2 * latency_s + _QUEUE_S)))


def _middle(arrivals: list[tuple[float, int]], seconds: float) -> float:
    """Bytes/s between a fifth and nine tenths of `seconds` from the first arrival on."""
    start = arrivals[0][0]
    before = [a for a in arrivals if a[0] <= start + 0.2 * seconds][-1]
    until = [a for a in arrivals if a[0] <= start + 0.9 * seconds][-1]
    return (until[1] - before[1]) / (0.7 * seconds)


def _even_slope(samples: list[tuple[float, int]], first: int) -> float:
    """Bytes/s from sample `first` on: the median over pairs of samples far apart that came in steps of about one size.

    A shaper that lets go of whole packets of 64 KB pays for each after it went: the time between two samples is that of
    the earlier one's step, the bytes are those of the later one's. Between steps of one size both are the same.
    """
    steps = [n - before for (_, n), (_, before) in zip(samples, [(0.0, 0), *samples], strict=False)]
    span = samples[-1][0] - samples[first][0]
    slopes = sorted(
        (late[1] - early[1]) / (late[0] - early[0])
        for i, early in enumerate(samples[first:], first)
        for j, late in enumerate(samples[i + 1 :], i + 1)
        if i > 0 and late[0] - early[0] > span / 2 and abs(steps[j] - steps[i]) <= _EVEN * (late[1] - early[1])
    )
    return slopes[len(slopes) // 2] if slopes else _slope(samples[first:])


def _slope(samples: list[tuple[float, int]]) -> float:
    """Bytes/s as the straight line through all samples (least squares): one late reading moves it little."""
    start, base = samples[0]
    times, counts = [t - start for t, _ in samples], [n - base for _, n in samples]
    if len(samples) < 3:  # noqa: PLR2004 - two points are a line
        return counts[-1] / max(times[-1], 1e-6)
    middle, mean = sum(times) / len(times), sum(counts) / len(counts)
    spread = sum((t - middle) ** 2 for t in times)
    together = sum((t - middle) * (n - mean) for t, n in zip(times, counts, strict=True))
    return max(together / max(spread, 1e-12), counts[-1] / max(times[-1], 1e-6) / 2)
