"""What ranks check of results, and what their parent makes of their answers."""

import json

import numpy as np
import pytest
import torch

from atoll.collectives.plan_shapes import Recipe
from atoll.collectives.torch_codecs import codec
from atoll.schema.codec import to_plain
from benchmarks import contestants
from benchmarks.collectives_parts_abort import times
from benchmarks.collectives_parts_plans import best_of_each_shape
from benchmarks.ranks import Rank, RankFailed

COUNT = 5000
CODED = {"codec": "int8", "groups": [[0, 1], [2, 3]]}


@pytest.fixture
def rank():
    return Rank(0, ("a", "b", "c", "d"), None, None)


def test_right_sum_is_wrong_by_nothing_and_one_value_off_shows(rank):
    result = contestants.total(rank, range(4), COUNT, whole=True).clone()
    assert contestants.wrong_by(rank, result, {}) == 0
    result[17] += 1
    assert contestants.wrong_by(rank, result, {}) == 1


def test_inputs_are_the_same_on_every_rank_and_differ_between_them(rank):
    other = Rank(1, rank.hosts, None, None)
    assert torch.equal(*(contestants.inputs(r, 3, COUNT, whole=False) for r in (rank, other)))
    assert not torch.equal(*(contestants.inputs(rank, n, COUNT, whole=True) for n in (0, 1)))


@pytest.mark.parametrize("offset", [0, 500, 1000])
def test_coded_sums_are_within_what_the_codec_states_wherever_its_blocks_begin(rank, offset):
    result = coded_sum(rank, offset)
    assert 0.3 < contestants.coded_error(rank, result, CODED) <= 1
    result[2500] += 0.2
    assert contestants.coded_error(rank, result, CODED) > 1


def coded_sum(rank, offset):
    result = np.zeros(COUNT, np.float32)
    int8 = codec("int8")
    for group in CODED["groups"]:
        part = contestants.total(rank, group, COUNT, whole=False).numpy()
        for here in (slice(0, offset), slice(offset, COUNT)):
            piece = part[here].copy()
            decoded = np.empty_like(piece)
            int8.encode(piece, np.empty(int8.encoded_bytes(piece.size), np.uint8), decoded)
            result[here] += decoded
    return torch.from_numpy(result)


def test_recipe_survives_the_way_to_other_ranks():
    recipe = Recipe(shape="islands", groups=((0, (1, 2)), 3), weights=(1.0, 0.5, 0.0, 1.0), slices=4, star=True)
    assert contestants.recipe_of(json.loads(json.dumps(to_plain(recipe)))) == recipe


def test_fastest_plan_of_each_shape_is_tried_and_hopeless_ones_are_not():
    shapes = [("ring", 1.0), ("islands", 1.1), ("ring", 1.2), ("direct", 9.0)]
    plans = [{"name": f"{s}{p}", "shape": s, "meet": True, "star": False, "predicted_s": p} for s, p in shapes]
    assert [p["name"] for p in best_of_each_shape(plans)] == ["ring1.0", "islands1.1"]


def answer(**changes):
    return {
        "called": None,
        "reset": None,
        "poisoned": 10.02,
        "returned": [10.01],
        "intact": True,
        "culprit": "trainer-2",
        "reason": "silent",
    } | changes


def test_abort_lasts_from_the_first_word_of_it_to_the_last_waiter_on_any_rank():
    found = times("SIGKILL", 2, [answer(called=10.0), answer(reset=10.005, returned=[10.01, 10.03])], struck=9.9)
    assert found == pytest.approx({"abort_ms": 30, "since_the_fault_ms": 130})


@pytest.mark.parametrize(
    ("changes", "words"), [({"intact": False}, "changed its input"), ({"culprit": "trainer-0"}, "blames trainer-0")]
)
def test_abort_that_changes_an_input_or_blames_another_is_a_failure(changes, words):
    with pytest.raises(RankFailed, match=words):
        times("SIGSTOP", 2, [answer(called=10.0), answer(**changes)], struck=9.9)
