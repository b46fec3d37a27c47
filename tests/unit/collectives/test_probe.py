"""The two-sided measurement of one connection, over loopback."""

from __future__ import annotations

import fcntl
import socket
import termios
import threading
import time

import pytest

from atoll.collectives.tcp_probe import Effort, _even_slope, _middle, _slope, probe
from atoll.errors import AtollError, HandshakeError, PeerLost

QUICK = Effort(seconds=0.001, limit_bytes=1 << 20)


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=5)
        two, _ = listener.accept()
    with one, two:
        yield one, two


class Beside(threading.Thread):
    """Runs `call` in a thread; `result` waits for what it returned or raised."""

    def __init__(self, call):
        super().__init__(daemon=True, name="atoll-test-probe")
        self.call, self.outcome = call, None
        self.start()

    def run(self):
        try:
            self.outcome = self.call()
        except (OSError, AtollError) as error:
            self.outcome = error

    def result(self):
        self.join(10)
        assert not self.is_alive()
        return self.outcome


def soon(seconds=10.0):
    return time.monotonic() + seconds


def test_both_ends_hear_the_same_and_the_connection_stays_usable(pair):
    one, two = pair
    other = Beside(lambda: probe(two, first=False, deadline=soon(), effort=QUICK))
    mine, theirs = probe(one, first=True, deadline=soon(), effort=QUICK), other.result()
    assert mine.outwards == pytest.approx(theirs.inwards)
    assert mine.inwards == pytest.approx(theirs.outwards, rel=1e-3)
    assert 0 < mine.latency_s < 1.0
    assert theirs.latency_s == pytest.approx(mine.latency_s, abs=1e-8)
    assert min(mine.outwards, mine.inwards) > 1e6
    assert one.gettimeout() == 5
    one.sendall(b"after")
    assert two.recv(16) == b"after"


def test_bytes_that_come_between_a_look_and_a_read_count(pair, monkeypatch):
    """The kernel had said that nothing was there yet, and one read took the whole burst."""
    one, two = pair

    def ioctl(sock, request, waiting):
        if request != termios.FIONREAD:
            return true(sock, request, waiting)
        waiting[:] = bytes(4)
        time.sleep(0.01)
        return 0

    true = fcntl.ioctl
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    small = Effort(seconds=0.001, limit_bytes=64 * 1024)
    other = Beside(lambda: probe(two, first=False, deadline=soon(), effort=small))
    mine, theirs = probe(one, first=True, deadline=soon(), effort=small), other.result()
    for rate in (mine.outwards, mine.inwards, theirs.outwards, theirs.inwards):
        assert 64 * 1024 / 1.0 < rate < 64 * 1024 / 0.01


def test_a_steady_probe_takes_the_time_it_was_given_each_way(pair):
    one, two = pair
    other = Beside(lambda: probe(two, first=False, deadline=soon()))
    mine, theirs = probe(one, first=True, deadline=soon(), effort=Effort(seconds=0.05, steady=True)), other.result()
    assert mine.outwards == pytest.approx(theirs.inwards)
    assert min(mine.outwards, mine.inwards) > 1e6
    assert 0.25 <= mine.seconds < 5
    one.sendall(b"after")
    assert two.recv(16) == b"after"


def test_a_shaper_that_lets_go_of_large_packets_is_measured_by_steps_of_one_size():
    """As seen behind HTB at 20 Mbit/s: 2.39 MB/s of payload, paid for after each step."""
    seen = [(0.0, 23168), (9.7, 46336), (19.4, 49128), (20.5, 72296), (30.3, 95488), (40.0, 118656), (49.7, 121448)]
    samples = [(t / 1000, n) for t, n in [*seen, (50.8, 131072)]]
    assert _even_slope(samples, 1) == pytest.approx(2.39e6, rel=0.01)
    assert _slope(samples[1:]) < 0.92 * 2.39e6


def test_the_middle_of_a_stream_counts_and_not_its_ends():
    """Nothing, then 1 MB/s, then all at once what had starved."""
    arrivals = [(0.0, 0)] + [(t / 100, t * 10_000) for t in range(2, 96)] + [(0.97, 50_000_000)]
    assert _middle(arrivals, 1.0) == pytest.approx(1e6, rel=0.02)
    assert _middle([(0.0, 16384), (0.99, 10**9)], 1.0) == 0.0


def test_a_stranger_on_the_line_is_refused(pair):
    one, two = pair
    two.sendall(b"GET / HTTP/1.1\r\nHost: atoll\r\n\r\n")
    with pytest.raises(HandshakeError, match="no frame of a probe"):
        probe(one, first=True, deadline=soon())


def test_another_version_is_refused(pair):
    one, two = pair
    two.sendall(b"ATLP\x09\x01" + bytes(18))
    with pytest.raises(HandshakeError, match="another build"):
        probe(one, first=True, deadline=soon())


def test_a_burst_without_end_is_refused(pair):
    one, two = pair
    two.sendall(b"ATLP\x01\x01" + bytes(18) + b"ATLP\x01\x04\x00\x00" + (1 << 60).to_bytes(8, "big") + bytes(8))
    with pytest.raises(HandshakeError, match="burst of"):
        probe(one, first=False, deadline=soon())


def test_a_silent_end_is_lost_at_the_deadline(pair):
    one, _ = pair
    began = time.monotonic()
    with pytest.raises(PeerLost):
        probe(one, first=True, deadline=soon(0.1))
    assert time.monotonic() - began < 2


def test_a_cancelled_probe_ends_at_once(pair):
    one, _ = pair
    with pytest.raises(PeerLost):
        probe(one, first=True, deadline=soon(), cancelled=lambda: True)


@pytest.mark.parametrize("how", [socket.SHUT_RDWR, None])
def test_an_end_that_goes_away_is_lost(pair, how):
    one, two = pair
    two.shutdown(how) if how is not None else two.close()
    with pytest.raises(PeerLost):
        probe(one, first=True, deadline=soon())


def test_the_slope_survives_late_readings():
    rate = 1e6
    prompt = [(t / 1000, int(t * 1000)) for t in range(40)]
    assert _slope(prompt) == pytest.approx(rate, rel=0.01)
    late = [(t + (0.004 if i in {0, 17, 39} else 0.0), n) for i, (t, n) in enumerate(prompt)]
    assert _slope(late) == pytest.approx(rate, rel=0.1)
    assert _slope([(0.0, 0), (0.0, 1000)]) > 0
