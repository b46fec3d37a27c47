"""What the kernel counts of a connection under pressure, and to which link that belongs."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest
from declared_network import two_nics

from atoll.collectives import tcp_links
from atoll.collectives.tcp_links import Counts, Line, Links, Pressure, counts, unanswered


@pytest.fixture
def pair():
    """Both ends of a connection between the slow NICs of a0 and b0."""
    with socket.create_server(("127.0.3.3", 0)) as server:
        left = socket.create_connection(server.getsockname(), source_address=("127.0.3.1", 0))
        right, _ = server.accept()
    with left, right:
        yield left, right


def carry(left, right, size):
    """`size` bytes go from one end to the other and are acknowledged."""
    before = counts(left).acked_bytes
    left.setblocking(False)
    right.setblocking(False)
    sent = 0
    until = time.monotonic() + 10
    while counts(left).acked_bytes - before < size:
        assert time.monotonic() < until
        if sent < size:
            with contextlib.suppress(BlockingIOError):
                sent += left.send(b"x" * min(65536, size - sent))
        with contextlib.suppress(BlockingIOError):
            right.recv(1 << 20)


def test_counts_are_those_of_the_kernel_and_none_of_a_connection_that_is_gone(pair):
    left, right = pair
    before = counts(left)
    carry(left, right, 1_000_000)
    after = counts(left)
    assert after.acked_bytes - before.acked_bytes == 1_000_000
    assert 0 <= after.rtt_s < 1.0
    left.close()
    assert counts(left) is None
    one, other = socket.socketpair()
    with one, other:
        assert counts(one) is None


class Kernel:
    """A connection of which the kernel says what linux/tcp.h puts at these places, and other numbers at all others."""

    def __init__(self, *, retransmits, unacked, rtt_us):
        info = bytearray(range(100, 172))
        info[2] = retransmits
        struct.pack_into("=I", info, 24, unacked)
        struct.pack_into("=I", info, 68, rtt_us)
        self.info = bytes(info)

    def getsockopt(self, _level, _option, size):
        return self.info[:size]


def test_what_was_sent_again_in_vain_is_unanswered_and_tells_the_usual_round_trip(pair):
    assert unanswered(Kernel(retransmits=1, unacked=2, rtt_us=250)) == 0.00025
    assert unanswered(Kernel(retransmits=0, unacked=2, rtt_us=250)) is None
    assert unanswered(Kernel(retransmits=1, unacked=0, rtt_us=250)) is None
    left, right = pair
    carry(left, right, 100_000)
    assert unanswered(left) is None
    left.close()
    assert unanswered(left) is None


def test_only_what_went_under_pressure_is_counted_and_only_once(pair):
    left, right = pair
    pressure = Pressure(left)
    carry(left, right, 100_000)
    pressure.begins(10.0)
    carry(left, right, 300_000)
    pressure.ends(10.5)
    carry(left, right, 100_000)
    carried, busy, _ = pressure.taken(11.0)
    assert carried == 300_000
    assert 0.0 <= busy <= 0.5
    assert pressure.taken(12.0) == (0, 0.0, 0.0)


def test_pressure_that_goes_on_is_counted_up_to_now(pair):
    left, right = pair
    pressure = Pressure(left)
    pressure.begins(1.0)
    carry(left, right, 50_000)
    assert pressure.taken(2.0)[0] == 50_000
    carry(left, right, 70_000)
    pressure.ends(3.0)
    assert pressure.taken(4.0)[0] == 70_000


def test_links_tell_the_nics_by_the_addresses_of_their_connections(pair):
    left, right = pair
    pressure, links = Pressure(left), Links(["a0", "b0"], 0, two_nics(2, 2))
    assert links.observe({1: [Line(left, pressure)]}) == ()  # no pressure yet
    pressure.begins(time.monotonic())
    carry(left, right, 200_000)
    [seen] = links.observe({1: [Line(left, pressure)]})
    assert (seen.source, seen.source_nic, seen.target, seen.target_nic) == ("a0", "slow", "b0", "slow")
    assert seen.bytes == 200_000
    assert 0.0 <= seen.busy_s <= seen.window_s  # the kernel counts in ticks of some milliseconds


def test_connections_between_addresses_of_no_known_nic_are_left_out(pair):
    left, right = pair
    pressure, links = Pressure(left), Links(["x", "y"], 0, two_nics(2, 2))
    pressure.begins(time.monotonic())
    carry(left, right, 1000)
    assert links.observe({1: [Line(left, pressure)]}) == ()


def test_the_best_stretch_is_told_beside_the_whole(pair, monkeypatch):
    left, _ = pair
    kernel = [(0, 0.0), (100_000, 1.0), (100_000, 1.0), (200_000, 1.1), (200_000, 1.1), (201_000, 1.1001)]
    monkeypatch.setattr(tcp_links, "counts", lambda _sock: Counts(*kernel.pop(0), 0.0, 0.0))
    pressure = Pressure(left)
    for begun in (10.0, 20.0, 30.0):
        pressure.begins(begun)
        pressure.ends(begun + 5.0)
    carried, busy, best = pressure.taken(40.0)
    assert (carried, busy) == (201_000, pytest.approx(1.1001))
    assert best == pytest.approx(1_000_000)  # a thousand bytes are no stretch
