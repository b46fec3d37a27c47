"""Beats between agents: which are believed, and what is told of those that come or do not."""

from __future__ import annotations

import pytest

from atoll.workers.beating import MOST_BYTES, Listening, read_beat, write_beat

KEY = b"k" * 32


class Ear:
    """An agent that listens, ten times a second."""

    def __init__(self, *nodes):
        self.listening = Listening("me")
        self.now = 50.0
        self.number = 0
        self.listening.listen(nodes, KEY)

    def step(self, *from_nodes, after=0.1, behind_s=0.0):
        """What is told after beats of these came."""
        self.now = round(self.now + after, 6)
        self.number += 1
        for node in from_nodes:
            assert self.listening.came(write_beat(KEY, node, self.number))
        return self.listening.looked(now=self.now, behind_s=behind_s)

    def until_told(self, *from_nodes, limit=40):
        for n in range(1, limit):
            if (fact := self.step(*from_nodes)) is not None:
                return n * 0.1, fact
        raise AssertionError("nothing was told")


def names(fact):
    return fact.heard, tuple(peer.node for peer in fact.silent)


def test_beat_under_the_key_names_its_sender_and_number():
    assert read_beat(KEY, write_beat(KEY, "node-ä", 7)) == ("node-ä", 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"atb1",
        write_beat(b"x" * 32, "a", 7),
        write_beat(KEY, "a", 7)[:-1] + b"b",
        write_beat(KEY, "a", 7)[:4] + b"\xff" + write_beat(KEY, "a", 7)[5:],
        b"atb2" + write_beat(KEY, "a", 7)[4:],
        write_beat(KEY, "a" * MOST_BYTES, 7),
    ],
    ids=["nothing", "short", "other key", "other name", "other number", "other kind", "too long"],
)
def test_datagram_that_is_no_beat_under_the_key_is_refused(data):
    assert read_beat(KEY, data) is None


def test_beat_that_was_heard_before_or_is_older_is_refused():
    ear = Ear("a")
    beat = write_beat(KEY, "a", 7)
    assert ear.listening.came(beat)
    assert not ear.listening.came(beat)
    assert not ear.listening.came(write_beat(KEY, "a", 6))
    assert ear.listening.came(write_beat(KEY, "a", 8))


def test_beat_of_a_node_that_nobody_listens_for_is_refused():
    ear = Ear("a")
    assert not ear.listening.came(write_beat(KEY, "b", 7))
    ear.listening.listen((), KEY)
    assert not ear.listening.came(write_beat(KEY, "a", 7))


def test_recorded_beats_keep_nobody_alive():
    ear = Ear("a")
    ear.step("a")
    recorded = write_beat(KEY, "a", 1)
    for _ in range(6):
        ear.listening.came(recorded)
        ear.step()
    assert names(ear.until_told()[1]) == ((), ("a",))


def test_peer_that_beats_is_told_of_at_once_and_then_each_second():
    ear = Ear("a")
    assert names(ear.step("a")) == (("a",), ())
    after, fact = ear.until_told("a")
    assert after == pytest.approx(1.0)
    assert names(fact) == (("a",), ())


def test_silent_peer_is_told_of_after_half_a_second_and_when_it_is_back():
    ear = Ear("a", "b")
    ear.step("a", "b")
    after, fact = ear.until_told("b")
    assert 0.4 < after <= 0.6
    assert names(fact) == (("b",), ("a",))
    assert fact.silent[0].for_s == pytest.approx(after)
    ear.step("b")
    assert names(ear.step("a", "b")) == (("a", "b"), ())


def test_peer_that_was_never_heard_is_silent_since_its_name_was_told():
    ear = Ear("a")
    first = ear.step()
    assert names(first) == ((), ())
    after, fact = ear.until_told()
    assert 0.4 < after <= 0.6
    assert names(fact) == ((), ("a",))


def test_silence_is_told_again_each_second_and_grows():
    ear = Ear("a")
    ear.step("a")
    _, first = ear.until_told()
    after, second = ear.until_told()
    assert after == pytest.approx(1.0)
    assert second.silent[0].for_s == pytest.approx(first.silent[0].for_s + 1.0)


def test_listener_that_was_stopped_calls_nobody_silent_and_says_how_late_it_is():
    ear = Ear("a", "b")
    ear.step("a", "b")
    fact = ear.step("b", after=30.0, behind_s=29.9)
    assert names(fact) == (("a", "b"), ())
    assert fact.behind_s == 29.9
    assert ear.until_told("a", "b")[1].behind_s == 0.0


def test_new_order_replaces_the_old_and_keeps_what_is_known_of_who_stays():
    ear = Ear("a", "b")
    ear.step("a", "b")
    for _ in range(3):
        ear.step("b")
    ear.listening.listen(("a", "c"), KEY)
    ear.step()
    _, fact = ear.until_told()
    assert names(fact) == ((), ("a",))
    assert fact.silent[0].for_s > 0.4


def test_new_key_begins_new_numbers():
    ear = Ear("a")
    ear.step("a")
    ear.listening.listen(("a",), b"n" * 32)
    assert ear.listening.came(write_beat(b"n" * 32, "a", 1))


def test_whoever_listens_for_nobody_says_so_once():
    ear = Ear("a")
    ear.step("a")
    ear.listening.listen((), KEY)
    assert names(ear.step()) == ((), ())
    assert [ear.step(behind_s=1.0) for _ in range(30)] == [None] * 30


def test_agent_that_began_anew_is_believed_though_its_clock_was_set_back():
    ear = Ear("a")
    ear.number = 1000
    ear.step("a")
    assert not ear.listening.came(write_beat(KEY, "a", 7))
    ear.listening.listen(("a",), KEY, anew=["a"])
    assert ear.listening.came(write_beat(KEY, "a", 7))
    assert not ear.listening.came(write_beat(KEY, "a", 7))


def test_digest_goes_along_with_what_is_told_anyway_once_the_last_is_half_a_second_old():
    ear = Ear("a")
    ear.until_told("a")
    told = []
    for n in range(1, 9):
        ear.now = round(ear.now + 0.1, 6)
        assert ear.listening.came(write_beat(KEY, "a", 100 + n))
        if ear.listening.looked(now=ear.now, along=True) is not None:
            told.append(n)
    assert told == [5]
