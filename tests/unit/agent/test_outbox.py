from __future__ import annotations

import pytest

from atoll.workers.outbox import Item, Outbox
from atoll.workers.silence import Backoff, Silence


@pytest.fixture
def outbox():
    return Outbox(may_drop=lambda fact: fact.startswith("step"), limit=3, recent_s=5.0)


def say(outbox, *facts, key=None, owner="t"):
    for fact in facts:
        outbox.put(Item(owner=owner, fact=fact, key=key))


def take_all(outbox, now=0.0):
    taken = []
    while (fact := outbox.take(now=now)) is not None:
        taken.append(fact)
    return taken


def test_facts_leave_in_the_order_they_came(outbox):
    say(outbox, "a", "b")
    assert take_all(outbox) == ["a", "b"]


def test_facts_said_just_before_a_break_are_said_again_in_order(outbox):
    say(outbox, "old")
    take_all(outbox, now=0.0)
    say(outbox, "a", "b")
    take_all(outbox, now=9.0)
    say(outbox, "c")
    outbox.rewind(now=10.0)
    assert take_all(outbox) == ["a", "b", "c"]


def test_a_standing_fact_is_said_again_however_old_and_only_its_newest(outbox):
    say(outbox, "epoch 1", "epoch 2", key="epoch")
    take_all(outbox, now=0.0)
    outbox.rewind(now=100.0)
    assert take_all(outbox, now=100.0) == ["epoch 2"]


def test_a_standing_fact_still_queued_is_not_said_twice(outbox):
    say(outbox, "ready", key="ready")
    outbox.rewind(now=0.0)
    assert take_all(outbox) == ["ready"]


def test_when_full_the_oldest_measurement_goes_and_nothing_else(outbox):
    say(outbox, "ready", "step 1", "step 2", "step 3", "failed")
    assert take_all(outbox) == ["ready", "step 3", "failed"]
    assert outbox.dropped == 2


def test_a_full_box_without_measurements_keeps_everything(outbox):
    say(outbox, "a", "b", "c", "d")
    assert take_all(outbox) == ["a", "b", "c", "d"]


def test_forgetting_an_owner_leaves_the_others(outbox):
    say(outbox, "mine")
    say(outbox, "yours", owner="u", key="k")
    outbox.forget("t")
    outbox.rewind(now=0.0)
    assert take_all(outbox) == ["yours"]


def test_silence_grows_by_at_most_one_tick_a_look():
    silence = Silence(tick_s=1.0)
    assert silence.look(now=100.0) == 0.0
    assert silence.look(now=100.5) == 0.5
    assert silence.look(now=190.0) == 1.5  # this side was stopped, not the other
    silence.heard()
    assert silence.look(now=190.25) == 0.25


def test_backoff_doubles_up_to_its_limit_and_starts_over():
    backoff = Backoff(first_s=1.0, last_s=3.0)
    assert [backoff.next() for _ in range(4)] == [1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.next() == 1.0
