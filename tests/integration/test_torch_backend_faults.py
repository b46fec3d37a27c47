"""The backend `atoll` when ranks are lost, late or of another opinion: every error names the rank, the operation and why."""

from __future__ import annotations

import re
import socket

import pytest

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def ranks(warm, tmp_path):
    def run(function, size, **arguments):
        return warm.run(f"backend_faults.{function}", size, folder=str(tmp_path), limit_s=30, **arguments)

    return run


@pytest.mark.parametrize("ddp", [False, True])
def test_a_killed_rank_is_named_by_all_and_inputs_stay(ranks, ddp):
    answers = ranks("lost", 4, ddp=ddp)
    for rank in (0, 1, 3):
        kind, words, seconds = answers[rank]["first"]
        assert kind == ("RuntimeError" if ddp else "DistBackendError")  # torch's C++ wraps what a future holds
        assert "all_reduce of float32" in words
        assert f"operation {6 if ddp else 3} of group '0' failed on rank {rank}, lost rank-2" in words
        assert seconds < 2.0
        assert "lost rank-2" in answers[rank]["later"][1]
        assert answers[rank]["intact"]


@pytest.mark.parametrize("how", ["plain", "future"])
def test_a_rank_that_does_not_call_an_operation_is_named_at_the_limit(ranks, how):
    for answer in ranks("late", 3, how=how):
        kind, words, seconds = answer["first"]
        assert kind == "DistBackendError"
        assert "all_reduce of float32[3], operation 2 of group '0' is not done within 0.5 s" in words
        assert "rank 1 has not called it" in words
        assert seconds < 2.5


def test_a_wait_with_its_own_limit_names_the_missing_and_ends_nothing(ranks):
    answers = ranks("late", 3, how="handle")
    for rank in (0, 2):
        kind, words, seconds, *again = answers[rank]["first"]
        assert (kind, seconds < 0.45) == ("DistBackendError", True)
        assert words.endswith(f"is not done within 0.2 s on rank {rank}: rank 1 has not called it")
        assert "is not done within 0.5 s" in again[1]


def test_a_stopped_rank_is_named_for_not_answering(ranks):
    answers = ranks("late", 3, how="stopped")
    for rank in (0, 2):
        assert "rank 1 does not answer" in answers[rank]["first"][1]


def test_a_message_that_nobody_sends_is_told_at_the_limit(ranks):
    kind, words, _ = ranks("late", 3, how="message")[0]["first"]
    assert kind == "DistBackendError"
    assert (
        "recv of float32[3], message 1 of group '0' is not done within 0.5 s on rank 0: rank 1 has not sent it" in words
    )


def test_ranks_that_disagree_on_an_operation_all_hear_of_both_sides(ranks):
    answers = ranks("opinions", 3)
    both = {
        "size": ("float32[4]", "float32[5]"),
        "dtype": ("float32[4]", "float64[4]"),
        "op": ("sum of", "max of"),
        "kind": ("all_reduce sum of float32[4]", "all_gather"),
        "product": ("float32[4]", "float32[5]"),
        "gather": ("float32[12]", "float32[15]"),
        "scatter": ("float32[12]", "float32[15]"),
        "splits": ("4 bytes", "8"),
        "message": ("float32[3]", "float32[5]"),
    }
    for rank, answer in enumerate(answers):
        for name, (one, other) in both.items():
            if name == "splits" and rank != 1:
                continue  # their own exchanges were whole, and may be over
            kind, words, seconds = answer[name]
            assert kind == "DistBackendError", (name, rank)
            # Whichever is noticed first: what was called, or how much came.
            assert (one in words and other in words) or re.search(r"rank \d sent \d+ bytes for \d+", words), (
                name,
                words,
            )
            assert seconds < 2.0


def test_arguments_without_sense_are_refused_before_anything_is_sent(ranks):
    for rank, answer in enumerate(ranks("refused", 3)):
        assert [kind for kind, _ in answer["refused"]] == ["ValueError"] * 10
        assert answer["sum"] == [3.0] * 4
        mine = [words for _, words in answer["refused"] if f"on rank {rank} of group '0'" in words]
        assert len(mine) == 9  # torch itself refuses the largest complex number


def test_monitored_barrier_names_all_who_did_not_come(ranks):
    answers = ranks("monitored", 4)
    for rank in (0, 2):
        assert answers[rank][0] == "DistBackendError"
        assert "rank 1, 3 did not come within 0.5 s" in answers[rank][1]


def test_a_rank_taken_twice_is_refused_with_both_processes(ranks):
    answers = ranks("twice", 3)
    words = [answer[1] for answer in answers if "rank 1 is taken twice" in answer[1]]
    assert len(words) == 1
    assert words[0].count("by process") == 2
    assert sum("rank 2 did not come" in answer[1] for answer in answers) == 2


def test_a_rank_that_does_not_come_is_named(ranks):
    [answer] = ranks("absent", 1)
    assert answer[0] == "DistBackendError"
    assert "rank 1 did not come to its group of 2 within 1 s" in answer[1]


def test_an_address_where_nobody_listens_is_named(ranks):
    waiting, dialling = ranks("unreachable", 2)
    assert "rank-1, rank 1, did not connect" in waiting[1]
    assert "rank-0 at 127.0.0.1:" in dialling[1]
    assert "Connection refused" in dialling[1]


def test_a_destroyed_group_leaves_nothing_and_is_made_anew_on_the_same_store(ranks):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for answer in ranks("life", 3, port=port):
        assert answer["sums"] == [[3.0, 3.0]] * 3
        assert answer["left"][0] <= answer["before"][0]  # the store has sockets of its own
        assert answer["left"][1] == []
        assert answer["inside"][1] != []
        assert "was destroyed" in answer["after"][1]


def test_a_program_that_ends_without_destroying_leaves_in_good_order(ranks):
    assert ranks("without_destroying", 3) == [[0, []]] * 3


def test_a_forked_child_holds_no_socket_and_does_not_hide_its_parents_end(ranks):
    answers = ranks("child_of_rank", 3)
    for rank in (0, 2):
        sockets, words = answers[rank]["child"].split(" ", 1)
        assert sockets == "0"
        assert "a child process makes groups of its own" in words
        kind, words, seconds = answers[rank]["ended"]
        assert kind == "DistBackendError"
        assert "lost rank-1" in words
        assert seconds < 1.5  # rank 1's child lives for two


def test_what_gloo_does_not_do(ranks):
    answers = ranks("more", 3)
    for rank, answer in enumerate(answers):
        assert answer["uneven"]
        assert answer["column"] == [1.0, 5.0, 9.0]
        assert answer["old"] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        assert answer["part"] == [3.0 * rank]
        assert answer["digest"] == answers[0]["digest"]  # PowerSGD waits for collectives inside continuations


def test_a_group_lives_on_while_epochs_come_and_go_and_raises_nothing_in_torch(ranks):
    *answers, left = ranks("adopts", 3)
    assert left is None
    for answer in answers:
        assert answer["whole"] == [[1.0] * 3]  # the mean of 0, 1 and 2
        for name in ("poisoned", "after", "vacant"):
            assert answer[name][0] == "", answer[name]
        assert answer["tensor"] == [1.0] * 4
        assert answer["fewer"] == [2, 2]
        assert answer["again"] == [[0.5] * 3]
        assert answer["alone"] == [1.0, 1.0]
        assert answer["working"]
        assert answer["left"] == [0, []]
