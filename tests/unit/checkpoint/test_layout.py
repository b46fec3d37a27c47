import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.checkpoint.layout import coverage_problem, shares, tensor_names

SIZES = st.dictionaries(st.text(max_size=8), st.integers(0, 1 << 40), max_size=40)


@given(sizes=SIZES, writers=st.integers(1, 9))
def test_every_tensor_is_written_by_exactly_one_rank(sizes, writers):
    found = shares(sizes, writers)
    assert len(found) == writers
    assert coverage_problem(set(sizes), found) == ""
    assert sorted(n for names in found for n in names) == sorted(sizes)


@given(sizes=SIZES, writers=st.integers(1, 9), seed=st.integers())
def test_shares_do_not_depend_on_the_order_of_the_names(sizes, writers, seed):
    shuffled = list(sizes.items())
    random.Random(seed).shuffle(shuffled)
    assert shares(dict(shuffled), writers) == shares(sizes, writers)


@given(sizes=SIZES.filter(bool), writers=st.integers(1, 9))
def test_no_share_exceeds_an_even_one_by_more_than_one_tensor(sizes, writers):
    loads = [sum(max(1, sizes[n]) for n in names) for names in shares(sizes, writers)]
    assert max(loads) <= sum(loads) / writers + max(max(1, s) for s in sizes.values())


def test_empty_tensors_are_shared_out_too():
    assert [len(names) for names in shares(dict.fromkeys("abcdefgh", 0), 4)] == [2, 2, 2, 2]


@given(sizes=SIZES.filter(bool), writers=st.integers(1, 9), data=st.data())
def test_a_tensor_that_no_pack_holds_is_named(sizes, writers, data):
    gone = data.draw(st.sampled_from(sorted(sizes)))
    packs = [[n for n in names if n != gone] for names in shares(sizes, writers)]
    assert coverage_problem(set(sizes), packs) == f"1 tensors are in no pack, {gone!r} first"


def test_a_tensor_in_two_packs_is_named():
    assert coverage_problem({"a", "b"}, [["a", "b"], ["b"]]) == "1 tensors are in two packs, 'b' first"


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({}, set()),
        ({"a": {"$tensor": "x"}, "b": [{"$tensor": "y"}, 1, None]}, {"x", "y"}),
        ({"$items": [[0, {"$tuple": [{"$tensor": "z"}]}]]}, {"z"}),
    ],
)
def test_names_are_found_wherever_they_stand_in_the_tree(tree, names):
    assert tensor_names(tree) == names
