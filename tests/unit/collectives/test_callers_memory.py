"""After the end of an epoch a caller's memory is its own: what it writes there reaches nobody, and nothing is written."""

from __future__ import annotations

import contextlib
import socket

import pytest
import torch

from atoll.collectives.tcp_reactor import Reactor
from atoll.collectives.telemetry import Trace
from atoll.collectives.torch_scratch import bytes_of
from atoll.collectives.wire import Kind

BYTES = 8 << 20  # more than the kernel takes


def sending(reactor, buffers):
    def operation():
        reactor.open(b"\0" * 16)
        yield [reactor.send(1, 1, 0, part, bytes_of(buffer)) for part, buffer in enumerate(buffers)]

    reactor.start(operation(), Trace())


def read_to_the_end(end):
    end.settimeout(10)
    found = bytearray()
    while data := end.recv(1 << 20):
        found += data
    return bytes(found)


@pytest.mark.parametrize("kind", [Kind.ABORT, Kind.BYE])
def test_half_sent_memory_changed_after_the_end_is_not_what_the_peer_reads(kind, monkeypatch):
    monkeypatch.setattr("atoll.collectives.tcp_reactor.FAREWELL_S", 10.0)
    here, there = socket.socketpair()
    buffers = [torch.full((BYTES,), 7, dtype=torch.uint8), torch.full((BYTES,), 7, dtype=torch.uint8)]
    reactor = Reactor(1, {1: here}, lambda *_: None)
    sending(reactor, buffers)
    there.settimeout(10)
    got = there.recv(1 << 16)  # the first frame is under way
    reactor.end(kind)
    for buffer in buffers:
        buffer.fill_(9)
    got += read_to_the_end(there)
    there.close()
    reactor.join(10)
    whole = {Kind.ABORT: 1, Kind.BYE: 2}[kind]  # frames that had not begun are dropped at an abort, sent at a good end
    assert got.count(7) >= whole * BYTES
    assert got.count(9) < 1000  # of headers


def test_received_memory_is_left_alone_after_the_end():
    here, there = socket.socketpair()
    memory = torch.zeros(BYTES, dtype=torch.uint8)
    reactor = Reactor(1, {1: here}, lambda *_: None)

    def operation():
        reactor.open(b"\0" * 16)
        yield [reactor.post_message(1, 1, bytes_of(memory))]

    reactor.start(operation(), Trace())
    reactor.end(Kind.ABORT)
    before = memory.clone()
    there.settimeout(1)
    with contextlib.suppress(OSError):  # the other end closes
        for _ in range(100):
            there.sendall(b"\1" * (1 << 16))
    reactor.join(10)
    there.close()
    assert torch.equal(memory, before)
