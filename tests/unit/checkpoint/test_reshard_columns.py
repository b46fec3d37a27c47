"""Layouts A -> B by the planner in columns, run on real tensors: bit for bit what gather-then-scatter gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint.boxes import Box, chunk, whole
from atoll.checkpoint.columns import columns
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.reshard_columns import Holdings, plan_columns
from atoll.checkpoint.torch_digests import digest_box
from atoll.checkpoint.torch_layout import fused, interleaved, lay_out, sliced
from atoll.checkpoint.torch_placements import local_boxes
from atoll.errors import CheckpointError

KINDS = ["replicated", "row", "column", "grid", "strided", "uneven", "stages", "overlapping"]


def rows_of(kind, shape, ranks, cuts):
    """(rank, box) of all that hold, in a layout of this kind."""
    everybody = range(ranks)
    if kind == "replicated" or not shape:
        return [(r, whole(shape)) for r in everybody]
    if kind in ("row", "column"):
        return [(r, chunk(shape, 0 if kind == "row" else len(shape) - 1, ranks, r)) for r in everybody]
    if kind == "uneven":
        edges = [0, *sorted(min(c, shape[0]) for c in cuts[: ranks - 1]), *[shape[0]] * max(1, ranks - len(cuts))]
        return [
            (r, Box((a, *(0,) * (len(shape) - 1)), (b, *shape[1:])))
            for r, (a, b) in enumerate(itertools.pairwise(edges))
        ]
    if kind == "stages":
        return [(cuts[0] % ranks, whole(shape))]
    if kind == "overlapping":
        halves = [chunk(shape, 0, 2, i) for i in range(2)]
        return [(r, whole(shape) if r == 0 else halves[r % 2]) for r in everybody]
    return mesh_rows(kind, shape, ranks)


class Cut:
    def __init__(self, dim, split_factor=1):
        self.dim, self.split_factor = dim, split_factor


def mesh_rows(kind, shape, ranks):
    left, right = (2, max(1, ranks // 2))
    last = len(shape) - 1
    placements = [Cut(0, right), Cut(0)] if kind == "strided" else [Cut(0), Cut(last)]
    return [
        (a * right + b, box)
        for a in range(left)
        for b in range(right)
        for box, _ in local_boxes(shape, (left, right), (a, b), placements)
    ]


@st.composite
def moves(draw):
    tensors = []
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
        dtype = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
        tensors.append(Logical(f"t{i}", dtype, shape))
    sides = []
    for _ in range(2):
        ranks = draw(st.integers(1, 5))
        cuts = draw(st.lists(st.integers(0, 7), min_size=4, max_size=4))
        kind = draw(st.sampled_from(KINDS))
        sides.append([(r, one.name, box) for one in tensors for r, box in rows_of(kind, one.shape, ranks, cuts)])
    return tensors, *sides


def holdings(logicals, rows):
    boxes = columns(logicals, ((name, box) for _, name, box in rows))
    return Holdings(boxes, np.array([rank for rank, _, _ in rows], dtype=np.int64))


def values(logical):
    torch.manual_seed(len(logical.name) + logical.count)
    return torch.randint(-100, 100, logical.shape).to(getattr(torch, logical.dtype))


def run(logicals, copies, sources, targets, parts):
    """Fill the targets from `parts`, tensors of the sources; counts how often each element is written."""
    made = [torch.full(box.shape, -1, dtype=torch.float64) for _, _, box in targets]
    times = [torch.zeros(box.shape, dtype=torch.int64) for _, _, box in targets]
    for i in range(len(copies)):
        source, target = int(copies.source[i]), int(copies.target[i])
        box = copies.boxes.box(i, logicals)
        assert sources[source][1] == targets[target][1]
        here = box.within(targets[target][2])
        made[target][here] = parts[source][box.within(sources[source][2])].double()
        times[target][here] += 1
    assert all(bool((t == 1).all()) for t in times)
    return made


@settings(deadline=None)
@given(moves())
def test_any_layout_to_any_other_equals_gather_then_scatter(move):
    logicals, sources, targets = move
    full = {one.name: values(one) for one in logicals}
    parts = [full[name][box.within(whole(full[name].shape))] for _, name, box in sources]
    copies = plan_columns(logicals, holdings(logicals, sources), holdings(logicals, targets))
    made = run(logicals, copies, sources, targets, parts)
    for (_, name, box), tensor in zip(targets, made, strict=True):
        assert torch.equal(tensor.to(full[name].dtype), full[name][box.within(whole(full[name].shape))])
    by_name = {one.name: one for one in logicals}
    for name, tensor in full.items():
        distinct = dict.fromkeys(box for _, other, box in targets if other == name)
        if sum(box.count for box in distinct) == by_name[name].count:
            digests = [
                digest_box(made[i].to(tensor.dtype), by_name[name], box)
                for i, box in ((targets.index(next(t for t in targets if t[1:] == (name, b))), b) for b in distinct)
            ]
            assert sum(digests) % 2**64 == digest_box(tensor, by_name[name], whole(tensor.shape))


def test_fused_interleaved_and_expert_parts_arrive_where_their_tensors_say():
    def state(layout, base):
        q, k, experts = base
        weight = (
            torch.cat([q, k])
            if layout == "fused"
            else torch.cat([t for p in zip(q.chunk(2), k.chunk(2), strict=True) for t in p])
        )
        affine = fused(0, {"q": 4, "k": 2}) if layout == "fused" else interleaved(0, {"q": 4, "k": 2}, 2)
        sizes = [(0, 2), (2, 4)] if layout == "fused" else [(0, 1), (1, 4)]
        return [
            lay_out(
                {"qk": weight.clone(), "w": experts[a:b].clone()},
                rank=r,
                size=2,
                affine={"qk": affine, "w": sliced("w", 0, a, b - a, 4, (r,))},
            )
            for r, (a, b) in enumerate(sizes)
        ]

    base = [torch.randn(4, 3), torch.randn(2, 3), torch.randn(4, 2, 2)]
    before, after = state("fused", base), state("interleaved", [torch.zeros_like(t) for t in base])
    logicals = before[0].layout.logicals
    sources, targets = ([(r, *key) for r, one in enumerate(side) for key in one.views] for side in (before, after))
    parts = [view for one in before for view in one.views.values()]
    copies = plan_columns(logicals, holdings(logicals, sources), holdings(logicals, targets))
    made = run(logicals, copies, sources, targets, parts)
    views = [view for one in after for view in one.views.values()]
    for view, tensor in zip(views, made, strict=True):
        view.copy_(tensor)
    wanted = state("interleaved", base)
    for one, other in zip(after, wanted, strict=True):
        assert all(torch.equal(one.views[key], other.views[key]) for key in one.views)


def test_own_memory_is_taken_before_that_of_others():
    logicals = [Logical("w", "float32", (8,))]
    everybody = [(r, "w", whole((8,))) for r in range(4)]
    copies = plan_columns(logicals, holdings(logicals, everybody), holdings(logicals, everybody))
    assert copies.source.tolist() == copies.target.tolist() == [0, 1, 2, 3]


def test_cheapest_source_sends_and_equal_ones_take_turns():
    logicals = [Logical(f"t{i}", "float32", (10 + i,)) for i in range(100)]
    sources = [(r, one.name, whole(one.shape)) for one in logicals for r in range(4)]
    targets = [(9, one.name, whole(one.shape)) for one in logicals]
    far_from_zero = plan_columns(
        logicals,
        holdings(logicals, sources),
        holdings(logicals, targets),
        cost=lambda source, _: np.where(source == 0, 2.0, 1.0),
    )
    ranks = np.array([r for r, _, _ in sources])[far_from_zero.source]
    sent = np.bincount(ranks, weights=far_from_zero.boxes.volumes(), minlength=4)
    assert sent[0] == 0
    assert sent[1:].max() - sent[1:].min() <= 110


def test_what_nobody_holds_is_named_by_tensor_and_box():
    logicals = [Logical("a", "int8", (4,)), Logical("w", "int8", (4, 4))]
    sources = [(0, "a", whole((4,))), (0, "w", Box((0, 0), (4, 2))), (1, "w", Box((0, 2), (3, 4)))]
    targets = [(5, "a", whole((4,))), (7, "w", whole((4, 4)))]
    with pytest.raises(CheckpointError, match=r"no one holds w\[3:4,2:4\], which rank 7 needs"):
        plan_columns(logicals, holdings(logicals, sources), holdings(logicals, targets))


def test_nothing_wanted_is_no_copy():
    logicals = [Logical("w", "int8", (4,))]
    held = holdings(logicals, [(0, "w", whole((4,)))])
    assert len(plan_columns(logicals, held, holdings(logicals, []))) == 0
    assert len(plan_columns(logicals, holdings(logicals, []), holdings(logicals, []))) == 0
