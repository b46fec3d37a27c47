"""The reshard planner against an oracle: numbers that know where they belong, copied box by box."""

import itertools
import random

import numpy as np
import pytest

from atoll.checkpoint.boxes import Box, chunk, overlap, whole, without
from atoll.checkpoint.reshard import Planner, Source, Target, frames, messages
from atoll.errors import CheckpointError


def numbered(shape):
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def part(tensor, box):
    return tensor[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]


def carried_out(tensor, copies, sources, targets):
    """What each target holds after the copies; every element must be written exactly once."""
    held = {(s.rank, s.key): (part(tensor, s.box).copy(), s.box) for s in sources}
    filled = {t.rank: (np.full(t.box.shape, -1, dtype=np.int64), t.box) for t in targets}
    written = {t.rank: np.zeros(t.box.shape, dtype=np.int64) for t in targets}
    for copy in copies:
        values, box = held[copy.source, copy.key]
        into, around = filled[copy.target]
        into[copy.box.within(around)] = values[copy.box.within(box)]
        written[copy.target][copy.box.within(around)] += 1
    assert all((w == 1).all() for w in written.values())
    return {rank: values for rank, (values, _) in filled.items()}


def random_box(draw, shape):
    cuts = [sorted((draw.randint(0, n), draw.randint(0, n))) for n in shape]
    return Box(tuple(a for a, _ in cuts), tuple(b for _, b in cuts))


@pytest.mark.parametrize("seed", range(40))
def test_any_layout_onto_any_other_moves_every_element_once(seed):
    draw = random.Random(seed)
    shape = tuple(draw.randint(1, 9) for _ in range(draw.randint(1, 3)))
    dims = [draw.randrange(len(shape)) for _ in range(2)]
    before, after = draw.randint(1, 6), draw.randint(1, 6)
    tensor = numbered(shape)
    sources = [Source(r, "live", chunk(shape, dims[0], before, r)) for r in range(before)]
    targets = [Target(r, chunk(shape, dims[1], after, r)) for r in range(after)]
    filled = carried_out(tensor, Planner().plan("w", 4, sources, targets), sources, targets)
    for target in targets:
        assert np.array_equal(filled[target.rank], part(tensor, target.box))


@pytest.mark.parametrize("seed", range(40))
def test_overlapping_boxes_of_any_shape_fill_targets_or_name_the_hole(seed):
    draw = random.Random(seed)
    shape = (draw.randint(1, 7), draw.randint(1, 7))
    tensor = numbered(shape)
    sources = [Source(r, "x", random_box(draw, shape)) for r in range(6)]
    target = Target(9, random_box(draw, shape))
    covered = np.zeros(shape, dtype=bool)
    for source in sources:
        part(covered, source.box)[...] = True
    if part(covered, target.box).all():
        filled = carried_out(tensor, Planner().plan("w", 4, sources, [target]), sources, [target])
        assert np.array_equal(filled[9], part(tensor, target.box))
    else:
        with pytest.raises(CheckpointError, match="no one holds w"):
            Planner().plan("w", 4, sources, [target])


@pytest.mark.parametrize(("extent", "parts"), list(itertools.product(range(10), range(1, 8))))
def test_chunks_are_those_of_torch_and_cover_the_extent(extent, parts):
    boxes = [chunk((extent, 3), 0, parts, i) for i in range(parts)]
    assert sum(box.shape[0] for box in boxes) == extent
    assert [b.stop[0] for b in boxes[:-1]] == [b.start[0] for b in boxes[1:]]
    step = -(-extent // parts)
    assert all(b.shape[0] in {0, step} or b.stop[0] == extent for b in boxes)


def test_box_less_a_hole_is_the_rest_without_overlap():
    box, hole = Box((0, 0, 0), (4, 5, 6)), Box((1, 0, 2), (3, 5, 4))
    rest = without(box, hole)
    assert sum(b.count for b in rest) == box.count - hole.count
    assert all(overlap(a, b) is None for a, b in itertools.combinations([*rest, hole], 2))


def test_scalar_comes_from_its_one_box():
    copies = Planner().plan("step", 4, [Source(2, "live", whole(()))], [Target(0, whole(()))])
    assert [(c.source, c.target, c.box.count) for c in copies] == [(2, 0, 1)]


def test_own_memory_comes_before_a_peer_and_a_near_peer_before_a_far_one():
    box = whole((8,))
    sources = [Source(r, "live", box) for r in range(3)]
    planner = Planner(lambda source, target: abs(source - target))
    assert [c.source for c in planner.plan("w", 4, sources, [Target(1, box), Target(5, box)])] == [1, 2]


def test_equal_sources_share_the_sending():
    box = whole((8,))
    sources = [Source(r, "live", box) for r in range(3)]
    copies = Planner().plan("w", 4, sources, [Target(r, box) for r in range(10, 16)])
    assert sorted(c.source for c in copies) == [0, 0, 1, 1, 2, 2]


def test_empty_targets_need_nobody():
    assert Planner().plan("w", 4, [], [Target(0, chunk((2, 4), 0, 4, 3))]) == []


def test_messages_leave_out_what_stays_and_small_copies_share_a_frame():
    box = whole((8,))
    planner = Planner()
    copies = [c for n in "abc" for c in planner.plan(n, 4, [Source(0, "live", box)], [Target(0, box), Target(1, box)])]
    (ends, message), *more = messages(copies).items()
    assert (ends, more, [c.name for c in message]) == ((0, 1), [], ["a", "b", "c"])
    assert [[c.name for c in run] for run in frames(message, dict.fromkeys("abc", 4), 64)] == [["a", "b"], ["c"]]
    assert [[c.name for c in run] for run in frames(message, {"a": 4, "b": 8, "c": 4}, 64)] == [["a", "c"], ["b"]]
