"""What an agent tells of its trainers, on a virtual clock."""

from __future__ import annotations

import pytest

from atoll.workers.watching import Beat, Look, Process, TrainersWatch


class Node:
    """One trainer under watch. Its pulse beats each 0.05 s unless it is `dead`."""

    def __init__(self):
        self.watch = TrainersWatch()
        self.now = 100.0
        self.beat = Beat(1, 100.0)
        self.state = "S"
        self.dead = False
        self.asked = 0
        self.step()

    def step(self, after=0.1, behind_s=0.0):
        """The facts of the next look."""
        self.now = round(self.now + after, 6)
        if not self.dead:
            self.beat = Beat(self.beat.count + 2, self.now - 0.01)
        return self.look(behind_s)

    def look(self, behind_s=0.0):
        process = None
        if self.watch.wants_process("t", self.beat, now=self.now, behind_s=behind_s):
            self.asked += 1
            process = Process(self.state, 1.5)
        looks = {"t": Look(run="r", beat=self.beat, process=process)}
        return self.watch.looked(looks, now=self.now, behind_s=behind_s)

    def until_told(self, limit=40):
        for n in range(1, limit):
            facts = self.step()
            if facts:
                return n * 0.1, facts[0]
        raise AssertionError("nothing was told")


@pytest.fixture
def node():
    return Node()


def test_trainer_is_told_of_at_the_first_look():
    watch = TrainersWatch()
    (fact,) = watch.looked({"t": Look(run="r", beat=Beat(), process=Process("R", 0.5))}, now=9.0)
    assert (fact.trainer, fact.run, fact.state, fact.cpu_s, fact.beat_age_s) == ("t", "r", "R", 0.5, 0.0)


def test_trainer_in_good_health_is_told_of_each_second_and_proc_is_asked_no_oftener(node):
    node.asked = 0
    told = [fact for _ in range(50) for fact in node.step()]
    assert len(told) == 5
    assert node.asked == 5


def test_stopped_process_is_told_of_at_once(node):
    node.step()
    node.dead, node.state = True, "T"
    after, fact = node.until_told()
    assert after <= 0.2
    assert fact.state == "T"


def test_process_that_goes_on_is_told_of_at_once(node):
    node.dead, node.state = True, "T"
    node.until_told()
    node.step()
    node.dead, node.state = False, "R"
    after, fact = node.until_told()
    assert (after, fact.state) == (0.1, "R")


def test_sleeping_and_running_are_no_change(node):
    node.step()
    node.dead = True  # so that /proc is asked each time
    node.step()
    node.state = "R"
    assert node.step() == ()


def test_stalled_beat_is_told_when_it_passes_half_a_second_and_again_when_it_recovers(node):
    node.until_told()
    node.dead = True
    after, fact = node.until_told()
    assert 0.5 <= after <= 0.7
    assert 0.5 < fact.beat_age_s <= after + 0.02
    node.dead = False
    after, fact = node.until_told()
    assert after == 0.1
    assert fact.beat_age_s < 0.1


def test_stalled_beat_is_told_again_each_second_with_its_age(node):
    node.dead = True
    _, first = node.until_told()
    _, second = node.until_told()
    after, third = node.until_told()
    assert after == pytest.approx(1.0)
    assert third.beat_age_s == pytest.approx(second.beat_age_s + 1.0, abs=0.11)
    assert first.beat_age_s < second.beat_age_s


def test_agent_that_was_stopped_with_its_trainer_counts_no_more_than_one_look(node):
    node.dead = True
    (fact,) = node.step(after=30.0, behind_s=29.9)
    assert fact.beat_age_s <= 0.2
    assert fact.behind_s == 29.9


def test_lateness_that_was_no_reason_to_tell_is_told_with_the_digest(node):
    node.until_told()
    assert node.step(behind_s=0.2) == ()
    _, fact = node.until_told()
    assert fact.behind_s == 0.2
    _, fact = node.until_told()
    assert fact.behind_s == 0.0


def test_trainer_without_a_pulse_has_no_old_beat():
    watch = TrainersWatch()
    facts = []
    for n in range(30):
        assert watch.wants_process("t", Beat(), now=n / 10)
        facts += watch.looked({"t": Look(run="r", beat=Beat(), process=Process("S", 0.5))}, now=n / 10)
    assert len(facts) == 3
    assert {fact.beat_age_s for fact in facts} == {0.0}


def test_pulse_that_is_gone_ages_on(node):
    node.until_told()
    node.dead, node.beat = True, Beat()
    after, fact = node.until_told()
    assert 0.5 <= after <= 0.7
    assert fact.beat_age_s > 0.5


def test_trainer_that_left_and_came_back_is_told_of_anew(node):
    assert node.watch.looked({}, now=node.now + 0.1) == ()
    assert len(node.step()) == 1
