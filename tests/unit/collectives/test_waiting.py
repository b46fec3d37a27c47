"""Waits of communicators in one process: each of them says for whom, and nothing when all is well."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
import torch

from atoll.collectives import waits
from atoll.collectives.plan_shapes import Recipe
from atoll.collectives.telemetry import Trace
from atoll.errors import PeerLost
from atoll.schema.ids import NodeId, Rank, TrainerId
from atoll.schema.messages import Member, Membership

RING = Recipe(shape="ring", groups=(0, 1, 2, 3), weights=(1.0,) * 4)


class Ears:
    """What each rank told of its waits."""

    def __init__(self):
        self.told = {}
        self.changed = threading.Condition()

    def __call__(self, rank, wait):
        with self.changed:
            self.told.setdefault(rank, []).append(wait)
            self.changed.notify_all()

    def last(self, rank):
        return self.told[rank][-1] if self.told.get(rank) else None

    def until(self, true, within_s=5.0):
        with self.changed:
            assert self.changed.wait_for(true, within_s), self.told


@pytest.fixture
def ears():
    return Ears()


@contextlib.contextmanager
def frozen(comm):
    """The loop stands still, as if the process were stopped, once it has begun what it was given before."""
    standing, go_on = threading.Event(), threading.Event()

    def stand():
        standing.set()
        go_on.wait(20)
        yield []

    comm._reactor.start(stand(), Trace())
    assert standing.wait(5)
    try:
        yield
    finally:
        go_on.set()


def entered(comm, *, of):
    """The last collective of a rank, as far as another knows."""
    return comm._reactor._waits.progress.entered[of]


def eventually(true, within_s=5.0):
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def ones(count=1000):
    return torch.ones(count)


def test_a_rank_that_does_not_enter_is_named_by_all_others_also_in_a_ring(place, ears):
    comms = place.epoch(4, on_wait=ears)
    works = [c.all_reduce(ones(), recipe=RING) for c in comms if c.rank != 2]
    ears.until(lambda: all(ears.last(r) is not None and ears.last(r).missing == (2,) for r in (0, 1, 3)))
    assert {(ears.last(r).operation, ears.last(r).sequence, ears.last(r).silent) for r in (0, 1, 3)} == {
        ("all_reduce", 1, ())
    }
    assert comms[0].waiting is not None
    assert 2 not in ears.told
    works.append(comms[2].all_reduce(ones(), recipe=RING))
    assert all(w.wait(5) for w in works)
    ears.until(lambda: all(ears.last(r).over for r in (0, 1, 3)))
    assert [w.over for r in (0, 1, 3) for w in ears.told[r]].count(True) == 3
    assert comms[0].waiting is None


def test_a_wait_is_told_again_while_it_lasts(place, ears):
    comms = place.epoch(2, on_wait=ears)
    work = comms[0].barrier()
    ears.until(lambda: len(ears.told.get(0, ())) >= 3)
    lasted = [w.for_s for w in ears.told[0]]
    assert lasted == sorted(lasted)
    assert lasted[0] < lasted[-1]
    comms[1].barrier()
    assert work.wait(5)
    ears.until(lambda: ears.last(0).over)


def test_a_rank_that_entered_and_stands_still_is_silent_to_whom_it_owes_bytes_and_missing_to_nobody(place, ears):
    comms = place.epoch(4, on_wait=ears)
    works = [comms[2].all_reduce(ones(), recipe=RING)]
    eventually(lambda: any(entered(c, of=2) == 1 for c in comms if c.rank != 2))
    with frozen(comms[2]):
        works += [c.all_reduce(ones(), recipe=RING) for c in comms if c.rank != 2]
        ears.until(lambda: any(told[-1].silent == (2,) and not told[-1].missing for told in ears.told.values()))
        assert all(entered(c, of=2) == 1 for c in comms)  # also those that got no byte of it
    assert all(w.wait(5) for w in works)
    ears.until(lambda: all(told[-1].over for told in ears.told.values()))


def test_a_message_that_does_not_come_names_its_source(place, ears):
    left, right = place.epoch(2, on_wait=ears)
    work = left.recv(torch.zeros(3), source=1)
    ears.until(lambda: ears.last(0) is not None)
    assert (ears.last(0).operation, ears.last(0).sequence, ears.last(0).missing) == ("recv", 0, (1,))
    right.send(torch.ones(3), to=0)
    assert work.wait(5)
    ears.until(lambda: ears.last(0).over)


def test_a_receiver_that_takes_nothing_is_silent_to_the_sender(place, ears):
    listeners = place.listen(2)
    whole = place.membership(listeners)
    apart = tuple(Member(**{**_fields(m), "node": NodeId(f"n{m.rank}")}) for m in whole.members)
    left, right = place.connect(Membership(run=whole.run, epoch=whole.epoch, members=apart), listeners, on_wait=ears)
    large, into = torch.ones(8 << 20), torch.zeros(8 << 20)
    with frozen(right):
        work = left.send(large, to=1)
        ears.until(lambda: ears.last(0) is not None)
        assert (ears.last(0).operation, ears.last(0).missing, ears.last(0).silent) == ("send", (), (1,))
    assert right.recv(into, source=0).wait(10)
    assert work.wait(5)


def test_a_receive_from_anyone_is_no_wait(place, ears):
    left, right = place.epoch(2, on_wait=ears)
    work = left.recv(torch.zeros(3), source=None)
    time.sleep(0.4)
    assert ears.told == {}
    right.send(torch.ones(3), to=0)
    assert work.wait(5)


def test_nobody_asks_and_nothing_is_told_while_operations_are_short(place, ears, monkeypatch):
    from atoll.collectives.tcp_peer import Peer

    asked = []
    monkeypatch.setattr(waits, "ASK_S", 2.0)  # also where this machine is slow
    monkeypatch.setattr(Peer, "say_progress", lambda *_: asked.append(1))
    comms = place.epoch(3, on_wait=ears)
    for _ in range(50):
        assert all(w.wait(5) for w in [c.all_reduce(ones()) for c in comms])
    assert (asked, ears.told) == ([], {})


def test_a_rank_that_left_in_order_disturbs_nobody_who_waits_for_another(place, ears):
    comms = place.epoch(3, on_wait=ears)
    work = comms[0].recv(torch.zeros(3), source=1)
    ears.until(lambda: ears.last(0) is not None)
    comms[2].close()
    count = len(ears.told[0])
    ears.until(lambda: len(ears.told[0]) > count + 1)
    comms[1].send(torch.ones(3), to=0)
    assert work.wait(5)
    assert comms[0].poisoned is None


def test_the_end_of_an_epoch_is_the_end_of_its_waits(place, ears):
    comms = place.epoch(2, on_wait=ears)
    comms[0].barrier()
    ears.until(lambda: ears.last(0) is not None)
    comms[0].abort("a newer epoch")
    ears.until(lambda: ears.last(0).over)


# -- links -----------------------------------------------------------------------------------------------------------


class Path:
    """A stretch of network before a listener: bytes pass while it is `up`, at most `rate` a second."""

    def __init__(self, port, rate=None):
        self._target, self._rate = port, rate
        self.up = threading.Event()
        self.up.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for source, target in ((near, far.dup()), (far, near.dup())):
                    source.settimeout(0.02)
                    target.settimeout(5)
                    thread = threading.Thread(target=self._carry, args=(source, target), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source, target):
        piece = 1 << 16 if self._rate is None else 1 << 12
        with source, target, contextlib.suppress(OSError):
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    data = source.recv(piece)
                    while not self.up.wait(0.02) and not self._over.is_set():
                        pass
                    if not data:
                        target.shutdown(socket.SHUT_WR)
                        return
                    target.sendall(data)
                    time.sleep(0 if self._rate is None else len(data) / self._rate)

    def close(self):
        self._over.set()
        self.up.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(5)


def _fields(member):
    return {
        "trainer": member.trainer,
        "rank": member.rank,
        "node": member.node,
        "host": member.host,
        "port": member.port,
    }


def through(place, ears, size, pair, **path):
    """An epoch whose rank `pair[1]` reaches rank `pair[0]` by a path, and the path."""
    listeners = place.listen(size)
    between = Path(listeners[pair[0]].port, **path)
    members = {
        rank: Membership(
            run=place.membership(listeners).run,
            epoch=place.membership(listeners).epoch,
            members=tuple(
                Member(**{**_fields(m), "node": NodeId(f"n{m.rank}")})
                if (m.rank, rank) != pair
                else Member(**{**_fields(m), "node": NodeId(f"n{m.rank}"), "port": between.port})
                for m in place.membership(listeners).members
            ),
        )
        for rank in range(size)
    }
    return place.meet(members, listeners, ears), between


def test_a_cut_link_makes_both_ends_silent_to_each_other_and_nobody_missing(place, ears):
    comms, path = through(place, ears, 3, (0, 2))
    flat = Recipe(shape="direct", groups=(0, 1, 2), weights=(1.0,) * 3)
    with contextlib.closing(path):
        assert all(w.wait(5) for w in [c.all_reduce(ones(), recipe=flat) for c in comms])
        path.up.clear()
        works = [c.all_reduce(ones(), recipe=flat) for c in comms]

        def both():
            ends = {r: ears.last(r) for r in (0, 2)}
            return all(w is not None for w in ends.values()) and (ends[0].silent, ends[2].silent) == ((2,), (0,))

        ears.until(both)
        # Rank 1 told each end that the other has entered: nobody is blamed for not coming.
        assert (ears.last(0).missing, ears.last(2).missing) == ((), ())
        path.up.set()
        assert all(w.wait(5) for w in works)


def test_a_slow_link_that_carries_bytes_all_the_time_is_never_silent(place, ears, monkeypatch):
    monkeypatch.setattr(waits, "TELL_S", 0.6)
    comms, path = through(place, ears, 2, (0, 1), rate=150_000)  # the kernel wakes a loop for each 128 KiB
    with contextlib.closing(path):
        works = [c.all_reduce(ones(50_000)) for c in comms]
        assert all(w.wait(20) for w in works)
    assert not any(w.silent or w.missing for told in ears.told.values() for w in told)


# -- ranks that do not come ------------------------------------------------------------------------------------------


def test_a_rank_that_does_not_come_to_the_meeting_is_named_by_those_that_dial_and_those_that_wait(place, ears):
    listeners = place.listen(3)
    whole = place.membership(listeners)
    listeners[1].close()
    with pytest.raises(PeerLost, match="t1") as caught:
        place.connect(whole, [listeners[0], None, listeners[2]], deadline_s=1.0, on_wait=ears)
    assert caught.value.culprit == "t1"
    for rank in (0, 2):
        first, *_, last = ears.told[rank]
        assert (first.operation, first.sequence, first.missing, first.silent) == ("connect", 0, (1,), ())
        assert first.for_s < 0.9
        assert last.over


def test_a_rank_that_does_not_answer_keeps_the_others_from_nothing(place, ears):
    listeners = place.listen(4)
    gone = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word
    members = list(place.membership(listeners).members)
    members[0] = Member(
        trainer=TrainerId("t0"), rank=Rank(0), node=NodeId("n"), host="127.0.0.1", port=gone.getsockname()[1]
    )
    whole = Membership(
        run=place.membership(listeners).run, epoch=place.membership(listeners).epoch, members=tuple(members)
    )
    with gone, pytest.raises(PeerLost):
        place.connect(whole, [None, *listeners[1:]], deadline_s=0.8, on_wait=ears)
    assert {w.missing for told in ears.told.values() for w in told if not w.over} == {(0,)}
