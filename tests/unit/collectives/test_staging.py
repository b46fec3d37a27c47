"""Staging through islands: ranges, the order of steps, and the oracle that runs them in every order that waits allow."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives import staging
from atoll.collectives.staging import (
    ALIGNED_ELEMENTS,
    Layout,
    Mark,
    Stage,
    chunks,
    pieces,
    pieces_of,
    schedule,
    shard,
    width,
)
from atoll.collectives.staging_oracle import run
from atoll.errors import InternalError
from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Topology


def layout_of(*sizes):
    edges = [0, *itertools.accumulate(sizes)]
    return Layout(tuple(tuple(range(a, b)) for a, b in itertools.pairwise(edges)))


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(sizes, st.integers(1, 4000), st.integers(1, 64))
def test_chunks_cover_the_buffer_once_and_all_but_the_last_divide_evenly(sizes, count, shard_bytes):
    layout = layout_of(*sizes)
    found = chunks(count, 4, layout, shard_bytes)
    assert (found[0][0], found[-1][1]) == (0, count)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    whole = found[:-1]
    assert all((end - start) % (size * ALIGNED_ELEMENTS) == 0 for start, end in whole for size in sizes)


def test_chunks_are_few_for_small_buffers_and_bounded_for_large_ones():
    layout = layout_of(4, 4)
    assert len(chunks(64 * 1024, 4, layout)) == 1
    assert len(chunks(2 * 1024 * 1024, 4, layout)) == 4
    assert len(chunks(1 << 30, 4, layout)) == 64


@given(sizes, st.integers(1, 200))
def test_every_element_has_one_owner_in_each_island_and_a_shard_is_its_owners_pieces(sizes, length):
    layout = layout_of(*sizes)
    found = pieces(length, layout)
    assert [i for p in found for i in range(p.start, p.end)] == list(range(length))
    assert len(found) <= sum(size - 1 for size in sizes) + 1
    for island in layout.islands:
        for position, rank in enumerate(island):
            own = pieces_of(length, layout, rank)
            start, end = shard(length, len(island), position)
            assert [i for p in own for i in range(p.start, p.end)] == list(range(start, end))
            assert end - start <= width(length, len(island))


def test_ranks_in_two_islands_or_in_none_are_refused():
    for islands in [((0, 1), (1, 2)), ((0, 2),), ((0,), ())]:
        with pytest.raises(InternalError, match="exactly one"):
            Layout(islands)
    with pytest.raises(InternalError, match="rank 7 is in none"):
        layout_of(2).place(7)


def runs(layout, count, depth, seed, change=lambda steps: steps):
    """Chunks as short as can be divided evenly, so that there are many."""
    chance = random.Random(seed)
    values = [[chance.randrange(1000) for _ in range(count)] for _ in range(sum(layout.sizes))]
    length = count if layout.alone else 4 * math.lcm(*layout.sizes)
    ranges = [(start, min(start + length, count)) for start in range(0, count, length)]
    steps = change(schedule(len(ranges), depth, alone=layout.alone))
    return run(layout, values, ranges, steps, chance), [sum(column) for column in zip(*values, strict=True)]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 70), st.integers(1, 4), st.integers(0, 10_000))
def test_every_rank_ends_with_the_sum_in_any_order_that_the_waits_allow(sizes, count, depth, seed):
    results, expected = runs(layout_of(*sizes), count, depth, seed)
    assert all(result == expected for result in results)


WAITS = [
    (step, kind)
    for step in schedule(6, 2)
    for kind in ("host_waits", "queue_waits")
    if getattr(step, kind) and step.chunk in {0, 3}
]


@pytest.mark.parametrize(("step", "kind"), WAITS, ids=lambda v: v if isinstance(v, str) else f"{v.stage}-{v.chunk}")
def test_a_schedule_without_one_of_its_waits_is_caught(step, kind):
    """The oracle can fail: each wait is needed, and each that is taken away shows in a few runs."""
    shortened = dataclasses.replace(step, **{kind: ()})

    def wrong(seed):
        change = lambda steps: [shortened if s == step else s for s in steps]  # noqa: E731
        try:
            results, expected = runs(layout_of(2, 2), 48, 2, seed, change=change)
        except InternalError:
            return True
        return any(result != expected for result in results)

    assert any(wrong(seed) for seed in range(40))


def test_chunks_that_share_a_slot_are_caught():
    def crowded(steps):
        return [dataclasses.replace(s, slot=0) for s in steps]

    found = [runs(layout_of(2, 2), 48, 2, seed, change=crowded) for seed in range(20)]
    assert any(result != expected for results, expected in found for result in results)


def test_ranks_that_wait_for_what_never_comes_are_caught():
    first = dataclasses.replace(schedule(1)[0], host_waits=(Mark(Stage.PUT, 0),))
    with pytest.raises(InternalError, match="wait for one another"):
        run(layout_of(2, 1), [[1] * 4] * 3, [(0, 4)], [first], random.Random(0))


def test_a_schedule_of_nothing_is_refused():
    with pytest.raises(InternalError, match="one at least"):
        schedule(0)


def test_islands_follow_measured_links_and_without_any_each_node_is_one():
    nodes = [NodeId(n) for n in ("a", "a", "b", "c", "d")]
    assert staging.layout_of(nodes, Topology(hosts=())).islands == ((0, 1), (2,), (3,), (4,))
    near = {("a", "b"), ("c", "d")}
    links = tuple(
        Link(
            source=NodeId(x), source_nic="e", target=NodeId(y), target_nic="e", latency_s=1e-4,
            bandwidth=1e9 if (x, y) in near or (y, x) in near else 1e7,
        )
        for x, y in itertools.permutations("abcd", 2)
    )  # fmt: skip
    topology = Topology(hosts=tuple(Host(node=n, nics=()) for n in sorted(set(nodes))), links=links)
    assert staging.layout_of(nodes, topology).islands == ((0, 1, 2), (3, 4))
    assert staging.layout_of([*nodes, NodeId("new")], topology).islands == ((0, 1, 2), (3, 4), (5,))
