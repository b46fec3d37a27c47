"""The plans on integers: right for every size, and for every order in which ranks get to run."""

from __future__ import annotations

import functools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.collectives import plan

INPUTS = st.integers(2, 7).flatmap(
    lambda size: st.integers(0, 40).flatmap(
        lambda count: st.lists(
            st.lists(st.integers(-(10**6), 10**6), min_size=count, max_size=count), min_size=size, max_size=size
        )
    )
)


@given(inputs=INPUTS, slices=st.integers(1, 5), data=st.data())
def test_ring_sums_are_right_in_any_order_of_ranks(inputs, slices, data):
    expected = [sum(column) for column in zip(*inputs, strict=True)]
    found = plan.run(inputs, operator.add, slices=slices, pick=lambda ready: data.draw(st.sampled_from(ready)))
    assert found == [expected] * len(inputs)


@given(inputs=INPUTS, op=st.sampled_from([operator.add, min, max]))
def test_direct_results_are_right_on_every_rank(inputs, op):
    expected = [functools.reduce(op, column) for column in zip(*inputs, strict=True)]
    assert plan.run_direct(inputs, op) == [expected] * len(inputs)


def _story(one, other):
    """An addition that is neither associative nor exact: it shows the order in which things were added."""
    return hash((min(one, other), max(one, other)))


@given(inputs=INPUTS, slices=st.integers(1, 3))
def test_every_rank_gets_the_same_bits_though_additions_do_not_associate(inputs, slices):
    first, *others = plan.run(inputs, _story, slices=slices)
    assert all(other == first for other in others)


@given(size=st.integers(2, 9), slices=st.integers(1, 4))
def test_a_ring_sends_no_more_than_the_bound(size, slices):
    for rank in range(size):
        ring = plan.ring(size, rank, slices)
        sent = len(ring.first) + sum(take.forward is not None for take in ring.takes)
        assert sent == 2 * (size - 1) * slices
        assert len(ring.takes) == 2 * (size - 1) * slices


@given(size=st.integers(2, 9), slices=st.integers(1, 4))
def test_what_a_rank_sends_is_what_its_neighbour_takes(size, slices):
    for rank in range(size):
        ring, after = plan.ring(size, rank, slices), plan.ring(size, (rank + 1) % size, slices)
        sent = [(s.part, s.piece, s.slice) for s in ring.first]
        sent += [(t.forward, t.piece, t.slice) for t in ring.takes if t.forward is not None]
        assert sent == [(t.part, t.piece, t.slice) for t in after.takes]


@given(count=st.integers(0, 1000), size=st.integers(1, 9), slices=st.integers(1, 5))
def test_slices_cover_every_element_once_and_are_nearly_equal(count, size, slices):
    ranges = [place for piece in plan.cut(count, size, slices) for place in piece]
    assert [i for start, end in ranges for i in range(start, end)] == list(range(count))
    assert max(end - start for start, end in plan.pieces(count, size)) <= -(-count // size)


@pytest.mark.parametrize(
    ("size_bytes", "size", "shape"),
    [(4, 4, "direct"), (16 * 1024, 4, "direct"), (1 << 20, 4, "ring"), (64 * 1024, 2, "direct"), (1 << 20, 2, "ring")],
)
def test_small_messages_go_direct_and_large_ones_round(size_bytes, size, shape):
    assert plan.choose(size_bytes, size) == shape


def test_slices_have_a_size_that_hides_their_cost():
    assert plan.slices_for(1000, 4) == 1
    assert plan.slices_for(20_000_000, 4) == 10


@given(size=st.integers(2, 9))
def test_nobody_adds_into_memory_that_may_still_be_leaving(size):
    assert all(plan.fold_order(size, rank)[1] != rank for rank in range(size))
