"""Ranks that call different things: the epoch ends with both calls in the reason, and nobody gets a wrong sum."""

from __future__ import annotations

import pytest
import torch
from declared_network import two_nics

from atoll.collectives.plan_shapes import Recipe

ONES = 1.0


def flat(shape, size=2):
    return Recipe(shape=shape, groups=tuple(range(size)), weights=(1.0,) * size)


def full(count, dtype=torch.float32):
    return torch.full((count,), 1).to(dtype)


CASES = {
    "sizes": (
        lambda c: c.all_reduce(full(1000)),
        lambda c: c.all_reduce(full(1001)),
        ["all_reduce sum of float32[1000]", "float32[1001]"],
    ),
    "sizes of different classes": (
        lambda c: c.all_reduce(full(3)),
        lambda c: c.all_reduce(full(300_000)),
        ["float32[3]", "float32[300000]"],
    ),
    "types of one size": (
        lambda c: c.all_reduce(full(64)),
        lambda c: c.all_reduce(full(64, torch.int32)),
        ["float32[64]", "int32[64]"],
    ),
    "types carried alike": (
        lambda c: c.all_reduce(full(64, torch.float16)),
        lambda c: c.all_reduce(full(64, torch.bfloat16)),
        ["float16[64]", "bfloat16[64]"],
    ),
    "ops": (
        lambda c: c.all_reduce(full(64)),
        lambda c: c.all_reduce(full(64), op="max"),
        ["all_reduce sum of", "all_reduce max of"],
    ),
    "codecs": (
        lambda c: c.all_reduce(full(64), codec="int8"),
        lambda c: c.all_reduce(full(64), codec="bf16"),
        ["in int8", "in bf16"],
    ),
    "codec or none": (
        lambda c: c.all_reduce(full(64), codec="int8"),
        lambda c: c.all_reduce(full(64)),
        ["float32[64] in int8", "float32[64]"],
    ),
    "plans": (
        lambda c: c.all_reduce(full(64), recipe=flat("direct")),
        lambda c: c.all_reduce(full(64), recipe=flat("ring")),
        ["different plans for all_reduce sum of float32[64]", "on rank 0", "on rank 1"],
    ),
    "kinds": (
        lambda c: c.all_reduce(full(64)),
        lambda c: c.broadcast(full(64), root=0),
        ["all_reduce sum of float32[64]", "broadcast of float32[64]"],
    ),
    "a barrier": (
        lambda c: c.barrier(),
        lambda c: c.all_reduce(full(64)),
        ["all_gather", "all_reduce sum of float32[64]"],
    ),
}


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_ranks_that_call_different_operations_are_told_both(place, case, late):
    calls, comms = CASES[case][:2], place.epoch(2)
    order = [1 - late, late]
    works = {rank: calls[rank](comms[rank]) for rank in order}
    ended = {rank: works[rank].wait(5) for rank in order}
    assert not all(ended.values())
    reasons = [w.poison.reason for w in works.values() if w.poison is not None]
    reasons += [c.poisoned.reason for c in comms if c.poisoned is not None]
    assert reasons
    for words in (*CASES[case][2], "rank 0", "rank 1"):
        assert any(words in reason for reason in reasons)
    assert all(c.poisoned is None or c.poisoned.culprit is None for c in comms)  # which one is wrong nobody knows


@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize("shape", ["direct", "doubling", "ring", "islands"])
def test_one_of_three_with_another_size_ends_all_and_changes_no_buffer(place, shape, odd):
    comms = place.on(two_nics(2, 1))
    recipe = Recipe(shape=shape, groups=((0, 1), 2), weights=(1.0,) * 3)
    buffers = [full(501 if r == odd else 500) for r in range(3)]
    works = [c.all_reduce(b, recipe=recipe) for c, b in zip(comms, buffers, strict=True)]
    assert [w.wait(5) for w in works] == [False] * 3
    assert all("float32[501]" in w.poison.reason for w in works)
    assert all("float32[500]" in w.poison.reason for w in works)
    assert all(bool((b == ONES).all()) for b in buffers)


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_with_nothing_to_add_where_others_have_something_is_found_out(place, late):
    comms = place.epoch(2)
    buffers = [full(0), full(10)]
    works = {r: comms[r].all_reduce(buffers[r]) for r in (1 - late, late)}
    assert not works[1].wait(5)
    assert works[1].poison is not None
    reason = works[1].poison.reason
    assert "rank 1 calls all_reduce sum of float32[10]" in reason
    # Which of the two depends on whether rank 0 had begun when the first bytes came.
    assert "rank 0 all_reduce sum of float32[0]" in reason or "which is over on rank 0" in reason
    assert bool((buffers[1] == ONES).all())


def test_sizes_that_differ_by_turns_never_give_a_wrong_sum(place):
    comms = place.epoch(2)
    buffers = [[full(n) for n in sizes] for sizes in ((100, 200, 300), (100, 300, 200))]
    works = [[c.all_reduce(b) for b in bs] for c, bs in zip(comms, buffers, strict=True)]
    for mine, given in zip(works, buffers, strict=True):
        ended = [w.wait(5) for w in mine]
        assert not ended[1]
        assert not ended[2]
        assert all(bool((b == (2.0 if done else 1.0)).all()) for b, done in zip(given, ended, strict=True))


# -- messages from rank to rank --------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["send", "recv"])
@pytest.mark.parametrize(
    ("sent", "expected", "words"),
    [
        (full(3), full(4), ["float32[3]", "float32[4]"]),
        (full(4), full(4, torch.int32), ["float32[4]", "int32[4]"]),
    ],
    ids=["sizes", "types"],
)
def test_a_message_of_another_form_than_its_receive_ends_the_epoch_with_both(place, sent, expected, words, late):
    left, right = place.epoch(2)
    if late == "recv":
        left.send(sent, to=1, tag=7)
        work = right.recv(expected, source=0, tag=7)
    else:
        work = right.recv(expected, source=0, tag=7)
        left.send(sent, to=1, tag=7)
    assert not work.wait(5)
    assert all(w in work.poison.reason for w in ("tag 7", "rank 0", "rank 1", *words))
    assert bool((expected == 1).all())


@pytest.mark.parametrize("posted_first", [True, False])
def test_receives_from_anyone_take_messages_as_they_come_and_tell_whose(place, posted_first):
    comms = place.epoch(3)
    buffers = [torch.zeros(2, dtype=torch.int64) for _ in range(4)]

    def post():
        return [comms[0].recv(b, source=None, tag=1) for b in buffers]

    works = post() if posted_first else []
    for value in (10, 11):
        for rank in (1, 2):
            assert comms[rank].send(torch.tensor([rank, value]), to=0, tag=1).wait(5)
    works = works or post()
    assert all(w.wait(5) for w in works)
    assert [w.result for w in works] == [b[0].item() for b in buffers]
    for rank in (1, 2):  # of each sender in the order of sending
        assert [b[1].item() for b in buffers if b[0] == rank] == [10, 11]


def test_the_oldest_receive_gets_a_message_that_several_would_take(place):
    comms = place.epoch(3)
    buffers = [torch.zeros(1, dtype=torch.int64) for _ in range(3)]
    works = [
        comms[0].recv(buffers[0], source=2),
        comms[0].recv(buffers[1], source=None),
        comms[0].recv(buffers[2], source=1),
    ]
    assert comms[1].send(torch.tensor([100]), to=0).wait(5)
    assert works[1].wait(5)
    assert comms[1].send(torch.tensor([101]), to=0).wait(5)
    assert comms[2].send(torch.tensor([200]), to=0).wait(5)
    assert all(w.wait(5) for w in works)
    assert [(w.result, b.item()) for w, b in zip(works, buffers, strict=True)] == [(2, 200), (1, 100), (1, 101)]


def test_tags_keep_receives_from_anyone_apart(place):
    left, right = place.epoch(2)
    buffers = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    works = [left.recv(b, source=None, tag=tag) for b, tag in zip(buffers, (4, 5), strict=True)]
    for tag in (5, 4):
        assert right.send(torch.tensor([tag]), to=0, tag=tag).wait(5)
    assert all(w.wait(5) for w in works)
    assert [b.item() for b in buffers] == [4, 5]
