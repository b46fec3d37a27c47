"""The plans on integers: right for every recipe, and for every order in which ranks get to run."""

from __future__ import annotations

import functools
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives import plan_oracle
from atoll.collectives.plan import Give, Meet, Plan, Program, Reduce, Spread, cut, even, part_of
from atoll.collectives.plan_shapes import Recipe, build, ranks_of
from atoll.errors import InternalError

GROUPS = st.recursive(
    st.just(0), lambda inner: st.lists(inner, min_size=1, max_size=4).map(tuple), max_leaves=9
).filter(lambda g: isinstance(g, tuple))


def numbered(group, order):
    """The same tree with the ranks 0.. in `order` for leaves."""
    return next(order) if isinstance(group, int) else tuple(numbered(g, order) for g in group)


@st.composite
def recipes(draw):
    shape = draw(GROUPS)
    size = len(ranks_of(shape))
    groups = numbered(shape, iter(draw(st.permutations(range(size)))))
    weights = tuple(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size)))
    return Recipe(
        shape=draw(st.sampled_from(["direct", "doubling", "ring", "islands"])),
        groups=groups,
        weights=weights,
        slices=draw(st.integers(1, 4)),
        meet=draw(st.booleans()),
    )


@st.composite
def tasks(draw):
    recipe = draw(recipes())
    count = draw(st.integers(0, 40))
    values = st.lists(st.integers(-(10**6), 10**6), min_size=count, max_size=count)
    return build(recipe, count), [draw(values) for _ in recipe.weights]


def picking(data):
    return lambda number: data.draw(st.integers(0, number - 1))


@settings(max_examples=150, deadline=None)
@given(task=tasks(), op=st.sampled_from([operator.add, min, max]), data=st.data())
def test_any_recipe_gives_every_rank_the_result_in_any_order_of_ranks(task, op, data):
    plan, inputs = task
    expected = [functools.reduce(op, column) for column in zip(*inputs, strict=True)]
    assert plan_oracle.run(plan, inputs, op, pick=picking(data)) == [expected] * plan.size


def _story(one, other):
    """An addition that is neither associative nor exact: it shows the order in which things were added."""
    return hash((min(one, other), max(one, other)))


@settings(max_examples=150, deadline=None)
@given(task=tasks())
def test_every_rank_gets_the_same_bits_though_additions_do_not_associate(task):
    plan, inputs = task
    first, *others = plan_oracle.run(plan, inputs, _story)
    assert all(other == first for other in others)


@given(size=st.integers(2, 9), slices=st.integers(1, 4))
def test_a_ring_sends_no_more_than_the_bound(size, slices):
    plan = build(Recipe(shape="ring", groups=tuple(range(size)), weights=(1.0,) * size, slices=slices), size * 8)
    for rank in range(size):
        sent = sum(
            part.end - part.start for part in part_of(plan, rank) for i in part.instructions if isinstance(i, Give)
        )
        assert sent == 2 * (size - 1) * 8


def crossing(plan, island):
    """Elements that leave `island` in a plan."""
    sent = 0
    for p in plan.programs:
        for move in p.moves:
            match move:
                case Reduce(a, b) | Spread(a, b):
                    pairs = [(a, b)]
                case Meet(members):
                    pairs = [(a, b) for a in members for b in members if a != b]
            sent += sum(p.end - p.start for a, b in pairs if a in island and b not in island)
    return sent


@pytest.mark.parametrize("meet", [True, False])
@pytest.mark.parametrize("groups", [((0, 1), (2, 3)), ((0, 1, 2), (3, 4)), (((0, 1), (2, 3)), ((4, 5), 6))])
def test_islands_send_each_element_once_over_the_slow_links(groups, meet):
    size = len(ranks_of(groups))
    plan = build(Recipe(shape="islands", groups=groups, weights=(1.0,) * size, meet=meet, slices=3), 1000)
    assert crossing(plan, set(ranks_of(groups[0]))) == 1000


def test_members_without_a_share_send_and_receive_each_element_once():
    recipe = Recipe(shape="islands", groups=((0, 1, 2), (3, 4)), weights=(1.0, 0.0, 1.0, 1.0, 1.0))
    plan = build(recipe, 600)
    assert crossing(plan, {1}) == 600


def test_shares_follow_the_weights():
    recipe = Recipe(shape="islands", groups=((0, 1), (2, 3)), weights=(1.0, 3.0, 1.0, 1.0), meet=True)
    plan = build(recipe, 400)
    met = {0: 0, 1: 0}
    for program in plan.programs:
        for move in program.moves:
            if isinstance(move, Meet):
                met[move.members[0]] += program.end - program.start
    assert met == {0: 100, 1: 300}


def test_a_plan_whose_ranks_wait_for_each_other_is_an_error():
    lost = Plan("lost", 1, 1, (Program(0, 1, (Reduce(1, 0),)),))
    with pytest.raises(InternalError, match="cannot go on"):
        plan_oracle.run(lost, [[1]], operator.add)
    unread = Plan("unread", 1, 1, (Program(0, 1, (Reduce(0, 1),)),))
    with pytest.raises(InternalError, match="nobody takes"):
        plan_oracle.run(unread, [[1]], operator.add)


@given(start=st.integers(0, 9), length=st.integers(0, 100), number=st.integers(1, 9))
def test_ranges_cover_everything_once(start, length, number):
    for ranges in (even(start, start + length, number), cut(start, start + length, (1.0,) * number)):
        assert [e for r in ranges for e in range(*r)] == list(range(start, start + length))
        assert len(ranges) == number


def test_plans_that_differ_have_other_digests():
    one = build(Recipe(shape="ring", groups=(0, 1, 2), weights=(1.0,) * 3), 10)
    other = build(Recipe(shape="ring", groups=(0, 2, 1), weights=(1.0,) * 3), 10)
    assert one.digest != other.digest
    assert one.digest == build(Recipe(shape="ring", groups=(0, 1, 2), weights=(1.0,) * 3), 10).digest
