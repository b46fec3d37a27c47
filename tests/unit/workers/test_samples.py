import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import BatchError, DataError
from atoll.workers.samples import Permutation, Plan, make_plan, mix, share


@given(size=st.integers(1, 600), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(size, key):
    permutation = Permutation(size, key)
    assert sorted(permutation(i) for i in range(size)) == list(range(size))


@given(grains=st.integers(0, 200), weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_share_gives_each_grain_to_one_rank_in_order(grains, weights):
    owned = share(grains, weights)
    assert [g for r in owned for g in r] == list(range(grains))
    assert len(owned) == len(weights)


def test_equal_weights_share_within_one_grain():
    assert [len(r) for r in share(10, [1, 1, 1, 1])] == [3, 3, 2, 2]


def test_double_weight_owns_double():
    assert [len(r) for r in share(9, [2, 1])] == [6, 3]


def test_fewer_grains_than_ranks_leaves_some_without():
    assert [len(r) for r in share(2, [1, 1, 1])] == [1, 1, 0]


def test_weights_without_a_positive_one_are_refused():
    with pytest.raises(BatchError):
        share(4, [0.0, 0.0])


@given(size=st.integers(1, 90), grains=st.integers(1, 6), micro=st.integers(1, 6), seed=st.integers(0, 99))
def test_each_pass_holds_each_row_once(size, grains, micro, seed):
    plan = Plan(seed=seed, size=size, global_batch=grains * micro, micro_batch=micro, steps=size)
    stream = [row for step in range(1, size + 1) for row in plan.samples(step)]
    for first in range(0, len(stream) - size + 1, size):
        assert sorted(stream[first : first + size]) == list(range(size))


def test_grains_of_a_step_are_its_samples():
    plan = Plan(seed=3, size=100, global_batch=12, micro_batch=4, steps=5)
    assert plan.grain(2, 0) + plan.grain(2, 1) + plan.grain(2, 2) == plan.samples(2)


def test_another_seed_gives_another_order():
    one, two = (Plan(seed=s, size=1000, global_batch=50, micro_batch=5, steps=1) for s in (1, 2))
    assert one.samples(1) != two.samples(1)


def test_mix_tells_places_apart():
    assert len({mix(1, 2), mix(2, 1), mix(1, 2, 0), mix(1), mix(-1)}) == 5


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ({"global_batch": 10, "micro_batch": 4}, BatchError, "use global_batch=8 or 12"),
        ({"global_batch": 3, "micro_batch": 4}, BatchError, "use global_batch=4"),
        ({"global_batch": 0}, BatchError, "at least 1"),
        ({"global_batch": 200}, BatchError, "at most 100"),
        ({"global_batch": 4, "steps": 0}, BatchError, "steps=0"),
        ({"global_batch": 4, "size": 0}, DataError, "no samples"),
    ],
)
def test_batch_that_cannot_be_shared_is_refused_with_what_to_change(numbers, error, words):
    given_numbers = {"seed": 0, "size": 100, "micro_batch": None, "steps": None, **numbers}
    with pytest.raises(error, match=words):
        make_plan(**given_numbers)


def test_one_pass_by_default():
    assert make_plan(seed=0, size=103, global_batch=10, micro_batch=5, steps=None).steps == 10
