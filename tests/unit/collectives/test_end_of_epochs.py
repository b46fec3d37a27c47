"""How an epoch ends: quickly, on all ranks, with the right name, and leaving buffers alone."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time

import pytest
import torch

from atoll.collectives.tcp_links import unanswered
from atoll.collectives.telemetry import Trace

LARGE = 5_000_000
_SO_ATTACH_FILTER = 26  # the socket module has no name for it
# Milliseconds on a quiet machine; all ranks are threads of one process here, and others may use its cores.
QUICKLY_S = 0.3


def ended(comms, seconds=2.0):
    """Each communicator's poison, once all have one."""
    until = time.monotonic() + seconds
    while any(c.poisoned is None for c in comms) and time.monotonic() < until:
        time.sleep(0.001)
    return [c.poisoned for c in comms]


def die(comm, *, reset=False):
    """End a rank's loop and its connections as its death would: without a last word."""
    reactor = comm._reactor
    reactor._on_end = lambda *_: None
    for peer in reactor._peers:
        if reset:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reactor.start(_dying(), Trace())


def _dying():
    raise SystemError("died")
    yield []


def test_abort_ends_every_waiter_of_every_rank_and_names_the_culprit(place):
    comms = place.epoch(4)
    works = [c.all_reduce(torch.ones(LARGE)) for c in comms[:3]]
    started = time.monotonic()
    comms[0].abort("rank 3 hangs", comms[3].members[3].trainer)
    assert not works[0].wait(0)
    assert time.monotonic() - started < 0.05
    assert [w.wait(1) for w in works] == [False] * 3
    assert time.monotonic() - started < QUICKLY_S
    assert [w.poison.culprit for w in works] == ["t3"] * 3
    assert ended(comms)[3].reason == "rank 3 hangs"


def test_a_poisoned_operation_leaves_its_buffer_as_it_was(place):
    comms = place.epoch(3)
    buffers = [torch.full((LARGE,), float(r)) for r in range(3)]
    works = [c.all_reduce(b) for c, b in zip(comms[:2], buffers[:2], strict=True)]
    comms[2].abort("enough")
    assert [w.wait(1) for w in works] == [False, False]
    assert all(torch.equal(b, torch.full((LARGE,), float(r))) for r, b in enumerate(buffers))


def test_operations_after_the_end_are_poisoned_at_once(place):
    comms = place.epoch(2)
    comms[0].abort("enough")
    ended(comms)
    for comm in comms:
        work = comm.all_reduce(torch.ones(3))
        assert not work.wait(0)
        assert work.poison == comm.poisoned


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_connection_names_its_rank_on_all_others(place, reset):
    comms = place.epoch(4)
    works = [c.all_reduce(torch.ones(LARGE)) for c in (comms[0], comms[2], comms[3])]
    started = time.monotonic()
    die(comms[1], reset=reset)
    assert [w.wait(1) for w in works] == [False] * 3
    assert time.monotonic() - started < QUICKLY_S
    assert [w.poison.culprit for w in works] == ["t1"] * 3


def test_an_idle_epoch_notices_a_broken_connection(place):
    comms = place.epoch(3)
    die(comms[2])
    assert [p.culprit for p in ended(comms[:2])] == ["t2", "t2"]


def test_who_aborts_is_not_blamed_for_closing_while_others_send_to_it(place, monkeypatch):
    monkeypatch.setattr("atoll.collectives.tcp_reactor.FAREWELL_S", 5.0)  # peers that get no processor take it late
    for _ in range(10):
        comms = place.epoch(3)
        works = [c.all_reduce(torch.ones(LARGE)) for c in comms]
        comms[0].abort("a newer epoch")
        comms[0].close()
        assert [p.reason for p in ended(comms)] == ["a newer epoch"] * 3
        assert [p.culprit for p in ended(comms)] == [None] * 3
        assert not all(w.wait(1) for w in works)


def test_a_rank_that_leaves_in_order_harms_nobody_who_does_not_need_it(place):
    comms = place.epoch(3)
    done = [c.all_reduce(torch.ones(LARGE)) for c in comms]
    assert all(w.wait(5) for w in done)
    comms[2].close()
    sent, got = comms[0].send(torch.ones(4), to=1), torch.zeros(4)
    assert comms[1].recv(got, source=0).wait(1)
    assert sent.wait(1)
    assert comms[0].poisoned is None
    work = comms[0].barrier()
    assert not work.wait(1)
    assert work.poison.culprit is None
    assert "rank 2 has left" in work.poison.reason


def test_what_was_queued_before_a_close_still_arrives(place):
    comms = place.epoch(2)
    comms[0].send(torch.arange(200_000), to=1)
    assert comms[0].barrier().wait(0) is False
    assert comms[1].barrier().wait(2)
    comms[0].close()
    got = torch.empty(200_000, dtype=torch.int64)
    assert comms[1].recv(got, source=0).wait(2)
    assert torch.equal(got, torch.arange(200_000))


def test_ranks_that_call_different_operations_end_with_words_and_no_culprit(place):
    comms = place.epoch(2)
    works = [comms[0].all_reduce(torch.ones(3)), comms[1].all_reduce(torch.ones(4))]
    assert [w.wait(2) for w in works] == [False, False]
    assert "different operations" in works[0].poison.reason
    assert works[0].poison.culprit is None


def test_a_stream_that_is_damaged_names_its_rank(place):
    comms = place.epoch(2)
    comms[1]._reactor._peers[0].sock.sendall(b"GET / HTTP/1.1\r\nHost: reef\r\nAccept: text/html\r\n\r\n")
    poison = ended(comms)[0]
    assert poison.culprit == "t1"
    assert "not a frame" in poison.reason


def test_poison_is_told_once_to_each_who_asked_also_afterwards(place):
    comms, told = place.epoch(2), []
    comms[0].on_poison(told.append)
    comms[1].abort("first")
    ended(comms)
    comms[0].abort("second")
    comms[0].close()
    comms[0].on_poison(told.append)
    assert [p.reason for p in told] == ["first", "first"]


def test_abort_from_many_threads_ends_once(place):
    comms, told = place.epoch(2), []
    comms[0].on_poison(told.append)
    threads = [
        threading.Thread(target=comms[0].abort, args=(f"thread {i}",), daemon=True, name="aborter") for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2)
    assert len(told) == 1


def test_a_peer_that_reads_nothing_does_not_keep_the_others_waiting(place):
    comms = place.epoch(3)
    stuck = threading.Event()
    hold = stuck.wait
    comms[2]._reactor.start(_blocking(hold), Trace())
    works = [c.all_reduce(torch.ones(LARGE)) for c in comms[:2]]
    assert not works[0].wait(0.1)
    started = time.monotonic()
    comms[0].abort("rank 2 reads nothing", comms[0].members[2].trainer)
    assert not works[1].wait(1)
    assert time.monotonic() - started < QUICKLY_S
    comms[0].close()
    comms[1].close()
    assert time.monotonic() - started < 0.5
    stuck.set()


def cut_off(comm):
    """Drop what comes to a rank and what it sends, as a cut of its link: no kernel acknowledges anything."""
    nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # BPF_RET, 0 bytes of each packet
    program = struct.pack("@HP", 1, ctypes.addressof(nothing))
    for peer in comm._reactor._peers:
        peer.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def in_vain(comm, rank):
    """Whether the kernel has sent something to a rank again."""
    return all(unanswered(sock) is not None for sock in comm.sockets()[rank])


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_abort_does_not_wait_for_a_peer_whose_kernel_answers_nothing(place, monkeypatch):
    monkeypatch.setattr("atoll.collectives.tcp_reactor.FAREWELL_S", 20.0)
    monkeypatch.setattr("atoll.collectives.tcp_communicator._CLOSE_S", 20.0)
    comms = place.epoch(4)
    cut_off(comms[2])
    others = [c for c in comms if c.rank != 2]
    for comm in others:
        comm.all_reduce(torch.ones(1000))
    until(lambda: all(in_vain(c, 2) for c in others))
    started = time.monotonic()
    for comm in others:
        comm.abort("a newer epoch")
    for comm in others:
        comm.close()
    assert time.monotonic() - started < 10.0
    doubts = [place.listeners[c.rank]._doubted for c in others]
    assert [set(d) for d in doubts] == [{("t2", "127.0.0.1")}] * 3
    assert all(rtt_s > 0 for d in doubts for rtt_s in d.values())
    monkeypatch.setattr("atoll.collectives.tcp_reactor.FAREWELL_S", 0.01)


def test_a_close_in_order_waits_for_it_all_the_same(place, monkeypatch):
    monkeypatch.setattr("atoll.collectives.tcp_reactor.FAREWELL_S", 0.5)
    comms = place.epoch(2)
    cut_off(comms[1])
    comms[0].send(torch.ones(1000), to=1)
    until(lambda: in_vain(comms[0], 1))
    started = time.monotonic()
    comms[0].close()
    assert time.monotonic() - started >= 0.4
    assert not place.listeners[0]._doubted


def test_a_loop_that_stands_still_is_answered_for_by_its_kernel(place):
    comms = place.epoch(3)
    stuck = threading.Event()
    comms[2]._reactor.start(_blocking(stuck.wait), Trace())
    works = [c.all_reduce(torch.ones(LARGE)) for c in comms[:2]]
    assert not works[0].wait(1.0)
    lines = [sock for comm in comms[:2] for met in comm.sockets().values() for sock in met]
    assert [unanswered(sock) for sock in lines] == [None] * 4
    stuck.set()


def _blocking(hold):
    hold(5)
    yield from ()
