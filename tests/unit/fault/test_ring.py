from hypothesis import given
from hypothesis import strategies as st

from atoll.fault.ring import REACH, ring

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=9)


def cluster(sizes):
    return [[f"i{i}n{n}" for n in range(size)] for i, size in enumerate(sizes)]


def reached(ties, without=()):
    left = [n for n in ties if n not in without]
    seen, edge = set(), left[:1]
    while edge:
        node = edge.pop()
        if node not in seen:
            seen.add(node)
            edge += [n for n in ties[node] if n not in without]
    return seen, set(left)


def test_two_nodes_hear_each_other():
    assert ring([["a", "b"]], {"a", "b"}) == {"a": ("b",), "b": ("a",)}


def test_two_islands_have_two_pairs_of_delegates():
    ties = ring([["a1", "a2", "a3"], ["b1", "b2", "b3"]], {"a1", "a2", "a3", "b1", "b2", "b3"})
    across = {(a, b) for a, others in ties.items() for b in others if a[0] < b[0]}
    assert across == {("a1", "b1"), ("a2", "b2")}
    assert ties["a3"] == ("a1", "a2")


def test_nodes_of_no_island_make_up_one_more():
    assert ring([["a"]], {"a", "x", "y"})["x"] == ("a", "y")


def test_islands_without_wanted_nodes_count_for_nothing():
    assert ring([["a", "b"], ["c"]], {"a", "b"}) == {"a": ("b",), "b": ("a",)}


@given(SIZES)
def test_everybody_is_tied_to_everybody_both_ways(sizes):
    islands = cluster(sizes)
    ties = ring(islands, {n for island in islands for n in island})
    assert all(a in ties[b] for a, others in ties.items() for b in others)
    assert all(n not in others for n, others in ties.items())
    seen, left = reached(ties)
    assert seen == left


@given(SIZES.filter(lambda sizes: min(sizes) > 1), st.data())
def test_one_lost_node_makes_no_partition(sizes, data):
    islands = cluster(sizes)
    ties = ring(islands, {n for island in islands for n in island})
    lost = data.draw(st.sampled_from(sorted(ties)))
    seen, left = reached(ties, {lost})
    assert seen == left


@given(SIZES)
def test_nobody_has_many_to_listen_for(sizes):
    islands = cluster(sizes)
    ties = ring(islands, {n for island in islands for n in island})
    assert all(len(others) <= 2 + 2 * 2 * REACH for others in ties.values())
