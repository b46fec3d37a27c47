"""Moves and reductions between ranks of this process."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from atoll.collectives.call import Call  # noqa: E402
from atoll.collectives.tcp_exchanges import Move, Reduction  # noqa: E402


def done(works):
    """True for each, or what poisoned it."""
    return [work.wait(5.0) or work.poison for work in works]


def gathering(tensor, takes, size):
    call = Call("all_gather_into", "float32", sum(t.numel() for ts in takes.values() for t in ts))
    return Move(call=call, gives=dict.fromkeys(range(size), (tensor,)), takes=takes)


def test_move_carries_unequal_pieces_of_several_types_to_all(place):
    comms = place.epoch(3)
    mine = [[torch.full((r + 1,), r, dtype=torch.bool), torch.full((r,), r + 0.5)] for r in range(3)]
    outs = [[[torch.empty_like(t) for t in ts] for ts in mine] for _ in range(3)]
    works = [
        c.move(
            Move(call=Call("all_gather_into"), gives=dict.fromkeys(range(3), mine[c.rank]), takes=dict(enumerate(out)))
        )
        for c, out in zip(comms, outs, strict=True)
    ]
    assert done(works) == [True] * 3
    for out in outs:
        assert all(
            torch.equal(a, b) for have, want in zip(out, mine, strict=True) for a, b in zip(have, want, strict=True)
        )


def test_reduction_adds_in_rank_order_and_keeps_contributions(place):
    comms = place.epoch(3)
    # In float32 the order shows: (1 + 2**-24) + -1 is 0, any other order gives 2**-24.
    values = [torch.tensor([1.0]), torch.tensor([2.0**-24]), torch.tensor([-1.0])]
    outs = [torch.full((1,), 9.0) for _ in comms]
    works = [
        c.reduce(
            Reduction(
                call=Call("reduce_scatter", "float32", 3, "sum"),
                pieces={r: [values[c.rank]] for r in range(3)},
                into=[outs[c.rank]],
            )
        )
        for c in comms
    ]
    assert done(works) == [True] * 3
    assert [o.item() for o in outs] == [0.0] * 3
    assert [v.item() for v in values] == [1.0, 2.0**-24, -1.0]


def test_halves_are_added_wide_and_rounded_once(place):
    comms = place.epoch(3)
    # 2048 + 1 is 2048 in float16; the three together are 2050.
    tensors = [torch.tensor([v], dtype=torch.float16) for v in (2048.0, 1.0, 1.0)]
    call = Call("all_reduce", "float16", 1, "product")
    sums = [torch.empty(1, dtype=torch.float16) for _ in comms]
    works = [
        c.reduce(
            Reduction(
                call=Call("reduce_scatter", "float16", 3, "sum"),
                pieces={r: [tensors[c.rank]] for r in range(3)},
                into=[sums[c.rank]],
            )
        )
        for c in comms
    ]
    assert done(works) == [True] * 3
    assert [s.item() for s in sums] == [2050.0] * 3
    assert done([c.all_reduce_directly([tensors[c.rank]], call) for c in comms]) == [True] * 3
    assert [t.item() for t in tensors] == [2048.0] * 3


@pytest.mark.parametrize("count", [0, 1, 2, 7, 10_001])
def test_all_reduce_directly_covers_every_element_whatever_the_shares(place, count):
    comms = place.epoch(3)
    tensors = [(torch.arange(count) % 7 + 1) * (r + 1) for r in range(3)]
    call = Call("all_reduce", "int64", count, "bxor")
    want = tensors[0] ^ tensors[1] ^ tensors[2]
    assert done([c.all_reduce_directly([tensors[c.rank]], call) for c in comms]) == [True] * 3
    assert all(torch.equal(t, want) for t in tensors)


def test_abort_leaves_every_buffer_as_it_was(place):
    comms = place.epoch(3)
    tensors = [torch.full((4,), float(r)) for r in range(2)]
    outs = [{r: [torch.full((4,), -1.0)] for r in range(3)} for _ in range(2)]
    works = [comms[r].move(gathering(tensors[r], outs[r], 3)) for r in range(2)]  # rank 2 does not come
    comms[0].abort("given up", comms[2].members[2].trainer)
    assert [outcome.reason for outcome in done(works)] == ["given up"] * 2
    assert all(bool((t == -1.0).all()) for out in outs for ts in out.values() for t in ts)
    assert [t[0].item() for t in tensors] == [0.0, 1.0]


def test_a_message_of_another_size_ends_the_epoch_with_both_sizes(place):
    comms = place.epoch(2)
    takes = [{0: [torch.empty(1)], 1: [torch.empty(2)]}, {0: [torch.empty(1)], 1: [torch.empty(2)]}]
    call = Call("all_to_all", "float32")
    works = [
        comms[0].move(Move(call=call, gives={0: [torch.ones(1)], 1: [torch.ones(3)]}, takes=takes[0])),
        comms[1].move(Move(call=call, gives={0: [torch.ones(2)], 1: [torch.ones(2)]}, takes=takes[1])),
    ]
    done(works)
    assert works[1].poison is not None
    assert "12 bytes" in works[1].poison.reason
    assert "4" in works[1].poison.reason
