"""Pieces between islands: one round or two, every type, the same bits on all owners."""

from __future__ import annotations

import pytest
import torch
from local_peers import Exchange

from atoll.collectives.nccl_crossing import CROSSING_TAGS, PeerCrossing


def crossed(rows, op="sum", members=None):
    exchange = Exchange(max(members or [len(rows) - 1]) + 1)
    members = members or tuple(range(len(rows)))
    buffers = [row.clone() for row in rows]
    works = [
        PeerCrossing(exchange.peers[m]).all_reduce(members, buffer, op)
        for m, buffer in zip(members, buffers, strict=True)
    ]
    assert all(work.wait(1) for work in works)
    return buffers


@pytest.mark.parametrize("count", [1, 7, 40_000, 100_001])
@pytest.mark.parametrize("owners", [1, 2, 3, 5])
def test_all_owners_end_with_the_same_sum(owners, count):
    rows = [torch.randn(count, generator=torch.Generator().manual_seed(r)) for r in range(owners)]
    found = crossed(rows)
    assert all(torch.equal(found[0], other) for other in found)
    assert torch.allclose(found[0], torch.stack(rows).sum(0), atol=1e-5)


@pytest.mark.parametrize(("op", "expected"), [("sum", 9), ("min", 1), ("max", 5)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_type_and_op(dtype, op, expected):
    found = crossed([torch.full((3,), v, dtype=dtype) for v in (3, 1, 5)], op)
    assert all(torch.equal(f, torch.full((3,), expected, dtype=dtype)) for f in found)


def test_half_precision_is_rounded_once():
    # 256 + 1 is 256 in bfloat16; 256 + 1 + 1 is 258, unless it was rounded on the way.
    found = crossed([torch.full((2,), v, dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0)])
    assert all(f[0].item() == 258.0 for f in found)


def test_owners_need_not_be_the_first_ranks():
    found = crossed([torch.ones(5), torch.ones(5) * 2], members=(4, 1))
    assert [f.tolist() for f in found] == [[3.0] * 5] * 2


def test_a_large_piece_between_three_leaves_each_owner_less_than_twice(monkeypatch):
    sent = []
    exchange = Exchange(3)
    for peers in exchange.peers:
        real = peers.send
        monkeypatch.setattr(
            peers, "send", lambda b, real=real, **k: (sent.append((k["tag"], b.numel())), real(b, **k))[1]
        )
    works = [PeerCrossing(p).all_reduce((0, 1, 2), torch.ones(30_000), "sum") for p in exchange.peers]
    assert all(w.wait(1) for w in works)
    assert sum(n for _, n in sent) == 3 * 2 * 2 * 10_000
    assert {tag for tag, _ in sent} == set(CROSSING_TAGS[:2])


def test_an_epoch_that_ends_poisons_the_crossing():
    exchange = Exchange(2)
    work = PeerCrossing(exchange.peers[0]).all_reduce((0, 1), torch.ones(4), "sum")
    assert not work.ended
    exchange.peers[1].abort("gone")
    assert work.poison is not None
    assert work.poison.reason == "gone"


def test_pieces_under_way_at_once_are_kept_apart_however_they_end():
    """The second piece's messages come first, on one side only: its sum must not get into the first."""
    exchange = Exchange(3)
    exchange.held.update(CROSSING_TAGS)
    crossings = [PeerCrossing(p) for p in exchange.peers]
    first = [torch.full((30_000,), float(r)) for r in range(3)]
    second = [torch.full((45_000,), 10.0 * r) for r in range(3)]
    works = [c.all_reduce((0, 1, 2), b, "sum") for bs in (first, second) for c, b in zip(crossings, bs, strict=True)]
    for tag in (CROSSING_TAGS[2], CROSSING_TAGS[3], CROSSING_TAGS[0], CROSSING_TAGS[1]):
        exchange.held.discard(tag)
        for address in list(exchange.sent):
            exchange.meet(address)
    assert all(work.wait(1) for work in works)
    assert all(b[-1].item() == 3.0 for b in first)
    assert all(b[-1].item() == 30.0 for b in second)
