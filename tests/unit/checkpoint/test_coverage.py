"""Coverage: every hole and every overlap is found, by tensor and box, and a partition has neither."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint.boxes import Box, whole, without
from atoll.checkpoint.columns import columns
from atoll.checkpoint.coverage import coverage_faults, coverage_problem
from atoll.checkpoint.logical import Logical


@st.composite
def cut(draw, shape):
    """A partition into boxes that lie on no grid."""
    boxes = [whole(shape)]
    for _ in range(draw(st.integers(0, 9))):
        at = draw(st.integers(0, len(boxes) - 1))
        box = boxes.pop(at)
        start = tuple(draw(st.integers(a, max(a, b - 1))) for a, b in zip(box.start, box.stop, strict=True))
        stop = tuple(draw(st.integers(min(a + 1, b), b)) for a, b in zip(start, box.stop, strict=True))
        hole = Box(start, stop)
        boxes += [hole, *without(box, hole)] if hole.count else [box]
    return boxes


@st.composite
def states(draw):
    logicals, boxes = [], []
    for i in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
        logicals.append(Logical(f"t{i}", "float32", shape))
        boxes += [(f"t{i}", box) for box in draw(cut(shape))]
    return logicals, draw(st.permutations(boxes))


def elements(boxes):
    found = {}
    for name, box in boxes:
        for at in itertools.product(*map(range, box.start, box.stop)):
            found[name, at] = found.get((name, at), 0) + 1
    return found


@settings(deadline=None)
@given(states())
def test_partition_has_no_fault(state):
    assert coverage_problem(*state) == ""


@settings(deadline=None)
@given(states(), st.data())
def test_each_element_that_is_missing_or_held_twice_is_in_a_fault_of_its_kind(state, data):
    logicals, boxes = state
    lost = data.draw(st.sets(st.integers(0, len(boxes) - 1)))
    twice = data.draw(st.sets(st.integers(0, len(boxes) - 1)))
    held = [box for i, box in enumerate(boxes) if i not in lost] + [box for i, box in enumerate(boxes) if i in twice]
    there, needed = elements(held), elements([(one.name, whole(one.shape)) for one in logicals])
    faults = list(coverage_faults(logicals, columns(logicals, held)))
    holes = elements([(f.tensor, f.box) for f in faults if not f.rows])
    doubles = elements([(f.tensor, f.box) for f in faults if f.rows])
    assert holes == dict.fromkeys(needed.keys() - there.keys(), 1)
    assert doubles.keys() == {at for at, count in there.items() if count > 1}
    for fault in faults:
        assert all(held[row][0] == fault.tensor for row in fault.rows)
    assert bool(coverage_problem(logicals, held)) == bool(faults)


def test_fault_is_told_by_tensor_and_box():
    logicals = [Logical("a", "int8", (4, 4)), Logical("scalar", "int8", ())]
    held = [("a", Box((0, 0), (4, 2))), ("a", Box((0, 2), (3, 4))), ("scalar", whole(()))]
    assert coverage_problem(logicals, held) == "a[3:4,2:4] is in no pack"
    assert coverage_problem(logicals, [*held, ("a", Box((3, 1), (4, 4)))]) == "a[3:4,1:2] is in two packs"
    assert coverage_problem(logicals, held[:2]) == "a[3:4,2:4] is in no pack, and 1 other faults"
    assert coverage_problem(logicals, [*held, ("a", Box((3, 2), (5, 4)))]) == "a[3:5,2:4] reaches out of its tensor"
    assert coverage_problem(logicals, [*held, ("b", whole(()))]) == "tensor 'b' is in a pack and not in the state"


def test_state_without_any_box_tells_its_first_tensor_and_not_a_million_more():
    logicals = [Logical(f"t{i}", "int8", (2,)) for i in range(1000)]
    assert coverage_problem(logicals, []) == "t0[0:2] is in no pack, and more than 16 other faults"


def test_hole_among_very_many_boxes_of_one_tensor_is_found():
    count = 200_000
    rows = np.delete(np.arange(count), 123_456)
    logical = Logical("embedding", "float32", (count, 8))
    boxes = columns([logical], [])
    held = type(boxes)(
        np.zeros(len(rows), dtype=np.int64),
        np.stack([rows, np.zeros_like(rows)], 1),
        np.stack([rows + 1, np.full_like(rows, 8)], 1),
    )
    assert coverage_problem([logical], held) == "embedding[123456:123457,0:8] is in no pack"
    twice = held.take(np.append(np.arange(len(rows)), 5))
    told = [(fault.box, len(fault.rows)) for fault in coverage_faults([logical], twice)]
    assert told == [(Box((5, 0), (6, 8)), 2), (Box((123456, 0), (123457, 8)), 0)]
