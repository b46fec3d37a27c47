"""Ranks forked from this process, without a lab."""

import contextlib
import os
import signal
import time

import pytest

from benchmarks.ranks import Crew, RankFailed


def where(rank, *, add):
    return [rank.number + add, rank.size, rank.host]


def through_gates(rank, *, times):
    moments = []
    for _ in range(times):
        time.sleep(0.01 * rank.number)
        begin = rank.gate()
        moments.append((begin, time.monotonic()))
    return moments


def fail(rank):
    if rank.number == 1:
        raise ValueError("rank 1's own words")
    return "well"


def sleep(rank, *, seconds):
    time.sleep(seconds)


def hold(rank):
    rank.things["kept"] = rank.things.get("kept", 0) + 1
    return rank.things["kept"]


@contextlib.contextmanager
def crew_of(*hosts):
    crew = Crew(hosts, lambda _: None)
    try:
        yield crew
    finally:
        crew.close()


def test_answers_come_in_rank_order():
    with crew_of("a", "b", "c") as crew:
        assert crew.call(where, add=10) == [[10, 3, "a"], [11, 3, "b"], [12, 3, "c"]]


def test_things_live_from_one_command_to_the_next():
    with crew_of("a", "b") as crew:
        assert [crew.call(hold), crew.call(hold)] == [[1, 1], [2, 2]]


def test_all_ranks_begin_at_a_gate_together_and_not_before_it_opens():
    with crew_of("a", "b", "c") as crew:
        opened = []
        crew.begin(through_gates, range(3), times=3)
        answers = crew.gather(range(3), limit_s=10, opened=opened.append)
    assert [[begin for begin, _ in rank] for rank in answers.values()] == [opened] * 3
    assert all(moment >= begin for rank in answers.values() for begin, moment in rank)


def test_words_of_a_rank_that_fails_are_raised():
    with crew_of("a", "b") as crew, pytest.raises(RankFailed, match=r"(?s)rank 1 on b.*rank 1's own words"):
        crew.call(fail)


def test_rank_that_is_late_is_named():
    with crew_of("a", "b") as crew:
        crew.kill(1, signal.SIGSTOP)
        with pytest.raises(RankFailed, match=r"no answer within 0.2 s from ranks 1 on b"):
            crew.call(where, limit_s=0.2, add=0)


def test_rank_that_dies_is_an_error_unless_it_was_meant_to():
    with crew_of("a", "b") as crew:
        crew.begin(sleep, [1], seconds=30)
        crew.kill(1)
        with pytest.raises(RankFailed, match="rank 1 on b ended"):
            crew.gather([1], limit_s=5)
    with crew_of("a", "b") as crew:
        crew.begin(through_gates, range(2), times=2)
        answers = crew.gather([0], limit_s=5, lost=[1], opened=lambda _: crew.kill(1))
        assert list(answers) == [0]


def test_close_leaves_no_process_not_even_a_stopped_or_busy_one():
    with crew_of("a", "b", "c") as crew:
        crew.kill(0, signal.SIGSTOP)
        crew.begin(sleep, [1], seconds=0.1)
    for pid in crew.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
