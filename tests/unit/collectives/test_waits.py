"""Who is missing and who is silent, on a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest

from atoll.collectives.waits import ASK_S, LOOK_S, TELL_S, Progress, Scene, Wait, Watch
from atoll.errors import HandshakeError

EVERYONE = frozenset({1, 2, 3})


def scene(sequence=5, **changes):
    fields = {"operation": "all_reduce", "sequence": sequence, "since_s": 100.0, "needed": EVERYONE}
    return Scene(**(fields | changes))


def judged(entered, *, at=101.0, **changes):
    return Watch(4).judged(scene(**changes), entered, at)


def test_ranks_that_did_not_enter_an_operation_are_missing():
    found = judged([5, 5, 4, 0])
    assert (found.operation, found.sequence, found.for_s) == ("all_reduce", 5, pytest.approx(1.0))
    assert (found.missing, found.silent) == ((2, 3), ())


def test_nobody_is_named_before_the_wait_is_long():
    assert judged([5, 5, 4, 0], at=100.0 + TELL_S - 0.01) is None
    assert judged([5, 5, 4, 0], at=100.0 + TELL_S + 0.01) is not None


def test_a_rank_that_entered_and_gives_no_sign_is_silent_for_as_long_as_that():
    found = judged([5, 6, 5, 5], awaited=frozenset({1, 2}), silence_s={1: 0.1, 2: 0.7})
    assert (found.missing, found.silent, found.for_s) == ((), (2,), 0.7)


def test_a_rank_that_entered_and_answers_is_not_named():
    assert judged([5, 5, 5, 5], awaited=frozenset({1}), silence_s={1: 0.05}) is None


def test_a_silent_rank_that_did_not_enter_is_missing_only():
    found = judged([5, 4, 5, 5], awaited=frozenset({1}), silence_s={1: 9.0})
    assert (found.missing, found.silent) == ((1,), ())


def test_a_rank_whose_bytes_nobody_awaits_may_be_late_for_a_broadcast():
    assert judged([5, 5, 4, 4], needed=frozenset({1}), awaited=frozenset({1})) is None


def test_who_owes_a_message_has_not_come_unless_it_is_silent():
    owed = {"sequence": 0, "operation": "recv", "needed": frozenset({1}), "awaited": frozenset({1})}
    assert judged([9, 9, 9, 9], **owed).missing == (1,)
    dead = judged([9, 9, 9, 9], **owed, silence_s={1: 0.6})
    assert (dead.missing, dead.silent, dead.for_s) == ((), (1,), 0.6)


def test_many_ranks_are_asked_less_often_and_called_silent_later():
    watch = Watch(500)
    quiet = scene(needed=frozenset(), awaited=frozenset({1}), silence_s={1: 1.0})
    assert watch.judged(quiet, [5] * 500, 110.0) is None
    assert Watch(4).judged(quiet, [5] * 4, 110.0).silent == (1,)


def test_a_loop_that_was_late_counts_its_waits_from_then():
    watch = Watch(4)
    watch.woke(100.9)
    assert watch.judged(scene(), [5, 4, 4, 4], 101.0) is None
    assert not watch.asks(100.0, 100.95)
    assert watch.judged(scene(), [5, 4, 4, 4], 101.2).for_s == pytest.approx(0.3)


def test_others_are_asked_again_while_a_wait_lasts_and_not_before_it_is_one():
    watch, asked = Watch(4), []
    for turn in range(20):
        now = 100.0 + turn * LOOK_S
        if watch.asks(100.0, now):
            asked.append(now)
    assert ASK_S - 1e-9 <= asked[0] - 100.0 <= ASK_S + LOOK_S + 1e-9
    assert all(ASK_S - 1e-9 <= b - a <= ASK_S + LOOK_S + 1e-9 for a, b in itertools.pairwise(asked))
    assert len(asked) > 5
    assert watch.asked_s == asked[0]
    assert not watch.asks(101.0, 101.0)  # the next operation has just begun
    assert watch.asked_s is None


def test_a_wait_is_told_at_once_when_it_changes_again_while_it_lasts_and_once_when_it_is_over():
    watch, told = Watch(4), []
    script = [(0.0, (2, 3)), (0.05, (2, 3)), (0.1, (2,)), (0.2, (2,)), (0.4, (2,)), (0.5, ()), (0.6, ())]
    for at, missing in script:
        found = Wait(operation="all_reduce", sequence=5, for_s=at, missing=missing) if missing else None
        word = watch.tells(found, at)
        told.append(None if word is None else (word.sequence, word.missing, word.over))
    assert told == [(5, (2, 3), False), None, (5, (2,), False), None, (5, (2,), False), (5, (), True), None]
    assert not watch.told


def test_nothing_is_told_of_waits_that_never_were():
    watch = Watch(4)
    assert watch.tells(None, 1.0) is None


def test_progress_is_learnt_from_bytes_and_from_what_others_know():
    mine, other = Progress(0, 3), Progress(1, 3)
    mine.enters(7)
    other.enters(5)
    other.heard(2, 6)
    mine.heard(2, 3)
    mine.learn(other.word())
    assert mine.entered == [7, 5, 6]
    mine.learn(Progress(1, 3).word())  # older news change nothing
    assert mine.entered == [7, 5, 6]


def test_progress_of_another_number_of_ranks_is_refused():
    with pytest.raises(HandshakeError, match="3 ranks"):
        Progress(0, 3).learn(Progress(0, 4).word())
