"""Operations of an epoch whose ranks are threads of this process."""

from __future__ import annotations

import threading

import pytest
import torch

from atoll.errors import InternalError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


def wait_all(works):
    assert [work.wait(10) for work in works] == [True] * len(works)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 7, 300_001])
def test_all_reduce_sums_over_all_ranks(place, size, count):
    comms = place.epoch(size)
    buffers = [torch.arange(count, dtype=torch.int64) * (rank + 1) for rank in range(size)]
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    expected = torch.arange(count, dtype=torch.int64) * sum(range(1, size + 1))
    assert all(torch.equal(b, expected) for b in buffers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [5, 100_000])
def test_every_type_is_summed(place, dtype, count):
    comms = place.epoch(3)
    buffers = [torch.full((count,), rank + 1).to(dtype) for rank in range(3)]
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b, torch.full((count,), 6).to(dtype)) for b in buffers)


def test_half_precision_is_not_rounded_on_its_way(place):
    comms = place.epoch(4)
    values = [
        1.0,
        2**-9,
        2**-9,
        2**-9,
    ]  # bfloat16 holds none of 1 + k/512 for k < 2: added one by one they would vanish
    buffers = [torch.full((9,), v, dtype=torch.bfloat16) for v in values]
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b, torch.full((9,), sum(values), dtype=torch.bfloat16)) for b in buffers)


@pytest.mark.parametrize("count", [100, 200_000])
def test_all_ranks_get_the_same_bits(place, count):
    comms = place.epoch(4)
    buffers = [torch.randn(count, generator=torch.Generator().manual_seed(r)) * 10.0**r for r in range(4)]
    exact = torch.stack(buffers).double().sum(0)
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b.view(torch.int32), buffers[0].view(torch.int32)) for b in buffers)
    assert torch.allclose(buffers[0].double(), exact, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(("op", "expected"), [("sum", 6.0), ("min", 0.0), ("max", 3.0)])
def test_all_reduce_takes_sum_min_and_max(place, op, expected):
    comms = place.epoch(4)
    buffers = [torch.tensor([float(rank)]) for rank in range(4)]
    wait_all([c.all_reduce(b, op=op) for c, b in zip(comms, buffers, strict=True)])
    assert [b.item() for b in buffers] == [expected] * 4


def test_infinite_and_missing_numbers_pass_without_a_word(place):
    comms = place.epoch(2)
    buffers = [torch.tensor([3e38, float("nan"), float("inf")]) for _ in range(2)]
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    assert buffers[0].isinf().tolist() == [True, False, True]
    assert buffers[0].isnan().tolist() == [False, True, False]


def test_a_buffer_of_any_shape_is_reduced(place):
    comms = place.epoch(2)
    buffers = [torch.ones(4, 6).t(), torch.ones(6, 4)]
    wait_all([c.all_reduce(b) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b, torch.full((6, 4), 2.0)) for b in buffers)


def test_many_operations_in_flight_end_right(place):
    comms = place.epoch(3)
    buffers = [[torch.full((50_000 * (i % 3) + 1,), float(i + r)) for i in range(30)] for r in range(3)]
    wait_all([comms[r].all_reduce(b) for r in range(3) for b in buffers[r]])
    assert all(b[-1].item() == 3 * i + 3 for r in range(3) for i, b in enumerate(buffers[r]))


def test_all_gather_returns_payloads_of_unequal_length_in_rank_order(place):
    comms = place.epoch(4)
    works = [c.all_gather(b"x" * c.rank * 1000) for c in comms]
    wait_all(works)
    assert all(w.result == [b"", b"x" * 1000, b"x" * 2000, b"x" * 3000] for w in works)


@pytest.mark.parametrize("length", [503, 504, 505])
def test_all_gather_around_the_size_of_one_frame_loses_and_adds_nothing(place, length):
    comms = place.epoch(3)
    payloads = [bytes([1 + c.rank]) * (length + c.rank - 1) for c in comms]
    works = [c.all_gather(p) for c, p in zip(comms, payloads, strict=True)]
    wait_all(works)
    assert all(w.result == payloads for w in works)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_broadcast_copies_the_roots_buffer(place, dtype):
    comms = place.epoch(3)
    buffers = [torch.full((70_000,), rank).to(dtype) for rank in range(3)]
    wait_all([c.broadcast(b, root=2) for c, b in zip(comms, buffers, strict=True)])
    assert all(torch.equal(b, torch.full((70_000,), 2).to(dtype)) for b in buffers)


def test_messages_both_ways_do_not_wait_for_each_other_nor_for_collectives(place):
    left, right = place.epoch(2)
    count = 3_000_000  # far more than any socket holds
    big = [torch.full((count,), float(r)) for r in range(2)]
    got = [torch.empty(count) for _ in range(2)]
    works = [left.send(big[0], to=1), right.send(big[1], to=0)]
    works += [left.recv(got[0], source=1), right.recv(got[1], source=0)]
    works += [left.barrier(), right.barrier()]
    wait_all(works)
    assert (got[0][-1].item(), got[1][-1].item()) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint8], ids=str)
def test_message_in_place_comes_without_a_copy_and_whole(place, dtype):
    left, right = place.epoch(2)
    sent, cut = torch.arange(2_000_000).to(dtype), torch.arange(80).view(8, 10).to(dtype)[:, :5]
    got, some = torch.zeros_like(sent), torch.zeros(8, 10).to(dtype)[:, 5:]
    works = [left.send(sent, to=1, in_place=True), left.send(cut, to=1, in_place=True)]
    works += [right.recv(got, source=0, in_place=True), right.recv(some, source=0, in_place=True)]
    wait_all(works)
    assert torch.equal(got, sent)
    assert torch.equal(some, cut)  # not one after the other in memory: by way of a copy


def test_tags_keep_messages_apart_and_each_in_order(place):
    left, right = place.epoch(2)
    sent = [left.send(torch.tensor([v]), to=1, tag=tag) for v, tag in [(1, 5), (2, 9), (3, 5)]]
    got = [torch.empty(1, dtype=torch.int64) for _ in range(3)]
    works = [right.recv(g, source=0, tag=tag) for g, tag in zip(got, [9, 5, 5], strict=True)]
    wait_all([*sent, *works])
    assert [g.item() for g in got] == [2, 1, 3]


def test_ranks_that_come_late_find_what_was_sent_before(place):
    comms = place.epoch(2)
    early = comms[0].all_reduce(torch.ones(1_000_000))
    assert not early.wait(0.05)
    late = torch.ones(1_000_000)
    wait_all([early, comms[1].all_reduce(late)])
    assert late[0].item() == 2.0
    assert early.trace.starved_s > 0.03
    assert early.trace.sent_bytes == early.trace.received_bytes == 4_000_000


def test_operations_alone_are_done_at_once(place):
    (alone,) = place.epoch(1)
    buffer = torch.ones(3)
    wait_all([alone.all_reduce(buffer), alone.barrier(), alone.broadcast(buffer, root=0)])
    assert alone.all_gather(b"me").wait(1)
    assert buffer.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.all_reduce(torch.zeros(2, dtype=torch.complex64)),
        lambda c: c.all_reduce(torch.zeros(2), op="product"),
        lambda c: c.broadcast(torch.zeros(2), root=2),
        lambda c: c.send(torch.zeros(2), to=0),
        lambda c: c.recv(torch.zeros(2), source=5),
        lambda c: c.send(torch.zeros(2), to=1, tag=70_000),
    ],
    ids=["type", "op", "root", "to itself", "from nobody", "tag"],
)
def test_what_cannot_be_done_is_refused_to_its_caller_and_harms_no_one(place, call):
    comms = place.epoch(2)
    with pytest.raises(InternalError):
        call(comms[0])
    wait_all([c.barrier() for c in comms])


def test_done_callbacks_and_traffic_are_told(place):
    comms, told = place.epoch(2), threading.Event()
    works = [c.all_reduce(torch.ones(10)) for c in comms]
    works[0].add_done_callback(lambda _: told.set())
    wait_all(works)
    assert told.wait(1)
    assert comms[0].telemetry.sent_bytes == 40
