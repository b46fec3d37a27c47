"""How ranks meet: parked dials, refused epochs, strangers."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch

from atoll.errors import HandshakeError, InternalError, PeerLost
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
from atoll.schema.messages import Member, Membership


def membership(listeners, epoch):
    members = tuple(
        Member(trainer=TrainerId(f"t{i}"), rank=Rank(i), node=NodeId("n"), host=x.host, port=x.port)
        for i, x in enumerate(listeners)
    )
    return Membership(run=RunId("run-1"), epoch=Epoch(epoch), members=members)


def dial(listeners, epoch, *, me=1, to=0, deadline_s=2.0, cancelled=lambda: False):
    members = membership(listeners, epoch).members
    return listeners[me].dial(
        members[to], me=members[me], epoch=epoch, deadline=time.monotonic() + deadline_s, cancelled=cancelled
    )


def claim(listeners, epoch, *, me=0, of=1, deadline_s=2.0):
    members = membership(listeners, epoch).members
    return listeners[me].claim(
        members[of],
        me=members[me].trainer,
        epoch=epoch,
        deadline=time.monotonic() + deadline_s,
        cancelled=lambda: False,
    )


def is_closed_by_peer(sock):
    sock.settimeout(1.0)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_dial_for_an_epoch_not_yet_known_waits_for_it(place):
    listeners = place.listen(2)
    with dial(listeners, 5) as dialled, claim(listeners, 5) as claimed:
        dialled.sendall(b"x")
        claimed.settimeout(1.0)
        assert claimed.recv(1) == b"x"


def test_a_dial_for_an_older_epoch_is_told_so_at_once(place):
    listeners = place.listen(2)
    listeners[0].enter(5)
    started = time.monotonic()
    with pytest.raises(HandshakeError, match="past epoch 4"):
        dial(listeners, 4, deadline_s=5.0)
    assert time.monotonic() - started < 1.0


def test_a_dial_kept_for_an_older_epoch_is_closed(place):
    listeners = place.listen(2)
    with dial(listeners, 4) as old, dial(listeners, 6) as newer:
        with dial(listeners, 5), claim(listeners, 5):
            assert is_closed_by_peer(old)
        with claim(listeners, 6) as claimed:
            claimed.sendall(b"y")
            newer.settimeout(1.0)
            assert newer.recv(1) == b"y"


def test_the_last_dial_of_a_rank_counts(place):
    listeners = place.listen(2)
    with dial(listeners, 5) as first, dial(listeners, 5) as second, claim(listeners, 5) as claimed:
        assert is_closed_by_peer(first)
        claimed.sendall(b"z")
        second.settimeout(1.0)
        assert second.recv(1) == b"z"


def test_a_dial_meant_for_who_had_the_port_before_is_not_taken(place):
    listeners = place.listen(3)
    with dial([listeners[2], listeners[1]], 5) as lost:
        with pytest.raises(PeerLost):
            listeners[2].claim(
                membership(listeners, 5).members[1],
                me=TrainerId("t2"),
                epoch=5,
                deadline=time.monotonic() + 0.1,
                cancelled=lambda: False,
            )
        assert is_closed_by_peer(lost)


@pytest.mark.parametrize(("secret", "run"), [(b"w" * 32, "run-1"), (b"s" * 32, "run-2")])
def test_a_peer_of_another_secret_or_run_is_refused(place, secret, run):
    (good,), (stranger,) = place.listen(1), place.listen(1, secret=secret, run=run)
    with pytest.raises((HandshakeError, PeerLost)):
        dial([good, stranger], 1, deadline_s=0.3)
    assert good._parked == {}


def test_a_stranger_that_talks_another_language_is_shown_the_door(place):
    (listener,) = place.listen(1)
    with socket.create_connection((listener.host, listener.port), timeout=2) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 300)
        assert is_closed_by_peer(sock)


def test_a_stranger_that_says_nothing_does_not_hold_up_close_nor_others(place):
    listeners = place.listen(2)
    with socket.create_connection((listeners[0].host, listeners[0].port), timeout=2):
        with dial(listeners, 1), claim(listeners, 1):
            pass
        started = time.monotonic()
        listeners[0].close()
        assert time.monotonic() - started < 0.5


def test_a_peer_that_does_not_come_is_named(place):
    listeners = place.listen(2)
    with pytest.raises(PeerLost, match="t1") as caught:
        place.connect(membership(listeners, 1), listeners[:1], deadline_s=0.1)
    assert caught.value.culprit == "t1"


def test_a_peer_that_listens_no_more_is_named(place):
    listeners = place.listen(2)
    whole = membership(listeners, 1)
    listeners[0].close()
    with pytest.raises(PeerLost, match="t0") as caught:
        place.connect(whole, [None, listeners[1]], deadline_s=0.2)
    assert caught.value.culprit == "t0"


def test_a_cancelled_wait_lets_go_at_once_of_a_peer_that_accepts_and_says_nothing(place):
    (mine,) = place.listen(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        members = membership([mine, mine], 1).members
        peer = Member(
            trainer=TrainerId("t0"), rank=Rank(0), node=NodeId("n"), host="127.0.0.1", port=silent.getsockname()[1]
        )
        given_up = threading.Event()
        timer = threading.Timer(0.1, given_up.set)
        timer.start()
        started = time.monotonic()
        with pytest.raises(PeerLost, match="t0"):
            mine.dial(peer, me=members[1], epoch=1, deadline=started + 5.0, cancelled=given_up.is_set)
        assert time.monotonic() - started < 0.4
        timer.join()


def test_a_trainer_that_is_no_member_is_told(place):
    (listener,) = place.listen(1)
    other = Membership(run=RunId("run-1"), epoch=Epoch(1), members=())
    with pytest.raises(InternalError, match="no member"):
        place.connect(other, [listener])


def test_a_listener_serves_one_epoch_after_another(place):
    listeners = place.listen(3)
    for epoch, size in [(1, 3), (2, 2), (5, 3)]:
        comms = place.connect(membership(listeners[:size], epoch), listeners[:size])
        works = [c.all_reduce(torch.ones(5)) for c in comms]
        assert all(w.wait(2) for w in works)
        comms[0].abort("next")
        for comm in comms:
            comm.close()


def test_closing_twice_is_closing_once(place):
    (listener,) = place.listen(1)
    listener.close()
    listener.close()
