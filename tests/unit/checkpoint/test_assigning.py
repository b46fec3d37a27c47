"""Who writes what: balanced, alike on all ranks, with the second copy where another host is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint.assigning import assign
from atoll.checkpoint.boxes import Box, chunk, whole
from atoll.checkpoint.logical import Held, Logical, RankLayout
from atoll.errors import CheckpointError


def replicated(sizes, nodes):
    logicals = tuple(Logical(f"t{i}", "float32", (size,)) for i, size in enumerate(sizes))
    ranks = tuple(range(len(nodes)))
    held = tuple(Held(one.name, whole(one.shape), ranks) for one in logicals)
    return [RankLayout(rank=r, node=node, logicals=logicals, held=held) for r, node in enumerate(nodes)]


def hybrid(shape, shards, replicas, node_of):
    """Rows over `shards`, each held by `replicas` ranks."""
    logical = Logical("w", "float32", shape)
    size = shards * replicas
    return [
        RankLayout(
            rank=rank,
            node=node_of(rank),
            logicals=(logical,),
            held=(Held("w", chunk(shape, 0, shards, rank % shards), tuple(range(rank % shards, size, shards))),),
        )
        for rank in range(size)
    ]


def load(pieces, layouts):
    sizes = {one.name: one.itemsize for one in layouts[0].logicals}
    return sum(box.count * sizes[name] for name, box in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 6))
def test_replicated_state_is_divided_within_four_thirds_of_the_best(sizes, ranks):
    layouts = replicated(sizes, [f"n{r}" for r in range(ranks)])
    found = assign(layouts)
    written = sorted(piece for own in found.own for piece in own)
    assert written == sorted((h.tensor, h.box) for h in layouts[0].held)
    # The best cannot be below the mean, the largest tensor, or two of the first ranks + 1 together.
    by_size = sorted((4 * max(size, 0) for size in sizes), reverse=True)
    pair = by_size[ranks - 1] + by_size[ranks] if len(by_size) > ranks else 0
    best = max(sum(by_size) / ranks, by_size[0], pair)
    assert max(load(own, layouts) for own in found.own) <= best * 4 / 3 + len(sizes)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(2, 5), st.randoms(use_true_random=False))
def test_assignment_does_not_depend_on_the_order_in_which_tensors_are_told(sizes, ranks, chance):
    layouts = replicated(sizes, ["a"] * ranks)
    mixed = []
    for layout in layouts:
        logicals, held = list(layout.logicals), list(layout.held)
        chance.shuffle(logicals)
        chance.shuffle(held)
        mixed.append(RankLayout(rank=layout.rank, node="a", logicals=tuple(logicals), held=tuple(held)))
    assert assign(mixed) == assign(layouts)


def test_replicated_shards_are_shared_between_their_holders_only():
    layouts = hybrid((64, 3), shards=4, replicas=2, node_of=lambda rank: f"n{rank // 4}")
    found = assign(layouts)
    for rank, layout in enumerate(layouts):
        allowed = {(h.tensor, h.box) for h in layout.held}
        assert allowed.issuperset(found.own[rank])
        assert allowed.issuperset(found.second[rank])
        assert not set(found.own[rank]) & set(found.second[rank])
    assert sum(len(own) for own in found.own) == 4 == sum(len(second) for second in found.second)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=7), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_second_copy_is_on_another_host_where_there_is_one(nodes, sizes):
    found = assign(replicated(sizes, nodes))
    owner = {piece: rank for rank, own in enumerate(found.own) for piece in own}
    standby = {piece: rank for rank, second in enumerate(found.second) for piece in second}
    assert owner.keys() == standby.keys()
    for piece, rank in owner.items():
        assert rank != standby[piece]
        assert nodes[rank] != nodes[standby[piece]] or len(set(nodes)) == 1


def test_box_with_one_holder_has_no_second_copy_and_counts_as_its_load():
    logicals = (Logical("mine", "float32", (100,)), Logical("ours", "float32", (10,)))
    layouts = [
        RankLayout(
            rank=rank,
            node="n",
            logicals=logicals,
            held=(*((Held("mine", whole((100,)), (0,)),) if rank == 0 else ()), Held("ours", whole((10,)), (0, 1))),
        )
        for rank in range(2)
    ]
    found = assign(layouts)
    assert found.own == ((("mine", Box((0,), (100,))),), (("ours", Box((0,), (10,))),))
    assert found.second == ((("ours", Box((0,), (10,))),), ())
    assert assign(layouts, redundancy=0).second == ((), ())


def test_layouts_that_contradict_each_other_are_refused_by_tensor_and_rank():
    good = replicated([4], ["a", "b"])
    other = RankLayout(rank=1, node="b", logicals=(Logical("t0", "int8", (4,)),), held=good[1].held)
    with pytest.raises(CheckpointError, match=r"t0 is float32\[4\] on rank 0 and int8\[4\] on rank 1"):
        assign([good[0], other])
    silent = RankLayout(rank=1, node="b", logicals=good[1].logicals, held=())
    with pytest.raises(CheckpointError, match=r"should be held by ranks \(0, 1\), and ranks \(0,\) say"):
        assign([good[0], silent])
    with pytest.raises(CheckpointError, match="all ranks, in order"):
        assign(good[1:])


def test_layout_told_as_json_is_the_same_layout():
    layout = hybrid((7, 3), 2, 2, lambda rank: "n")[1]
    assert RankLayout.from_plain(layout.as_plain()) == layout
    with pytest.raises(CheckpointError, match="no readable layout"):
        RankLayout.from_plain({"rank": 0, "node": "n", "logicals": [], "held": [[0, [], [], []]]})


def test_many_boxes_held_by_all_are_assigned_without_searching_all_ranks():
    chance = random.Random(0)
    layouts = replicated([chance.randrange(1, 100) for _ in range(300)], [f"n{r}" for r in range(64)])
    loads = [load(own, layouts) for own in assign(layouts).own]
    assert max(loads) <= 4 / 3 * (sum(loads) / 64) + 400
