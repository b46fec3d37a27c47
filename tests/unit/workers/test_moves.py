"""Shards that move from ranks to ranks: each piece comes to its place, whatever its size, and other bytes are noticed."""

import threading

import pytest

pytest.importorskip("torch")

import torch
from local_peers import Exchange

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.reshard import Planner, Source, Target
from atoll.checkpoint.torch_state import Flat
from atoll.errors import InternalError
from atoll.workers.buddies import Place
from atoll.workers.torch_memory import memory_for
from atoll.workers.torch_moves import exchange
from atoll.workers.torch_shard_plans import boxed
from atoll.workers.torch_shards import Shards, Spec

WITHIN_S = 20.0
# Some move as single frames, some in several pieces, some share one; the columns do not lie together in memory.
SPECS = {
    "large": Spec("float32", (1200, 1000), 0),
    "columns": Spec("float64", (300, 400), 1),
    "small": Spec("bfloat16", (50, 3), 0),
    "few": Spec("int64", (2, 5), 0),
    "same": Spec("float32", (7,), None),
    "scalar": Spec("float32", (), None),
}
WHOLE = {n: torch.arange(torch.Size(s.shape).numel()).to(s.torch_dtype).view(s.shape) for n, s in SPECS.items()}


def shard(size, index):
    """Its own memory, as a rank has it."""
    parts = {n: t[SPECS[n].box(size, index).within(Box((0,) * t.dim(), tuple(t.shape)))] for n, t in WHOLE.items()}
    return {n: t.clone(memory_format=torch.preserve_format) for n, t in parts.items()}


def copies(before, after):
    planner, found = Planner(), []
    for name, spec in SPECS.items():
        sources = [Source(r, "live", spec.box(before, r)) for r in range(before)]
        targets = [Target(r, spec.box(after, r)) for r in range(after)]
        found += planner.plan(name, spec.torch_dtype.itemsize, sources, targets)
    return found


def moved(before, after, peers, into=lambda _rank: None):
    """What each rank has afterwards, or the error that it got."""
    found, plan = [None] * max(before, after), copies(before, after)

    def run(rank):
        sources = {"live": boxed(shard(before, rank), SPECS, before, rank)} if rank < before else {}
        target = {}
        if rank < after:
            target = memory_for(SPECS, Place(size=after, group=0, index=rank), into(rank))
            for tensor in target.values():
                tensor.fill_(0)
        try:
            done = exchange(peers[rank], plan, sources, boxed(target, SPECS, after, rank))
        except InternalError as error:
            found[rank] = error
        else:
            found[rank] = target if done else None

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    return found


@pytest.mark.parametrize(("before", "after"), [(4, 3), (3, 4), (1, 3), (3, 1)])
def test_each_rank_gets_its_new_shard(before, after):
    found = moved(before, after, Exchange(max(before, after)).peers)
    for rank in range(after):
        for name, tensor in shard(after, rank).items():
            assert torch.equal(found[rank][name], tensor), name


def test_what_fits_goes_straight_into_the_tensors_that_are_there():
    models = [{n: t for n, t in shard(3, r).items() if n != "large"} for r in range(3)]
    specs = {n: s for n, s in SPECS.items() if n != "large"} | {"few": Spec("int64", (9, 9), 0)}

    def into(rank):
        return Shards(Flat(tensors=models[rank], meta={}), specs)

    found = moved(4, 3, Exchange(4).peers, into)
    for rank in range(3):
        mine = {n: t.data_ptr() for n, t in models[rank].items()}
        taken = {n for n, t in found[rank].items() if t.numel() and t.data_ptr() == mine.get(n)}
        assert taken == {"columns", "small", "same", "scalar"}
        for name, tensor in shard(3, rank).items():
            assert torch.equal(found[rank][name], tensor), name


def test_bytes_that_change_on_their_way_end_the_run():
    peers = Exchange(4).peers
    plain = peers[3].send

    def send(buffer, **options):
        return plain(buffer.clone().add_(1) if buffer.numel() > 1000 else buffer, **options)

    peers[3].send = send
    found = moved(4, 3, peers)
    assert [r for r, one in enumerate(found) if isinstance(one, InternalError)] == [2]
    assert "from rank 3 changed on the way" in str(found[2])


def test_end_of_the_epoch_fills_nobody():
    peers = Exchange(4).peers
    peers[0].abort("epoch 2: lost")
    assert moved(4, 3, peers) == [None] * 4
