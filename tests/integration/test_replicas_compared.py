"""A bit flips in the weights of one of three real processes: it is named, replaced, and the rest agree to the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("replica_ranks.py")
FLIP, EVERY, STEPS = 21, 5, 60


def scenario(name, flip=None, **options):
    return {
        "name": name,
        "trainers": list("abcs"),
        "members": list("abc"),
        "flip": flip,
        "every": EVERY,
        **options,
    }


SCENARIOS = [
    scenario("calm"),
    scenario("never", every=0),
    scenario("flipped", ["b", FLIP]),
    scenario("rank-0", ["a", FLIP]),
    scenario("replaced-by-a-learner", ["b", FLIP], learn=True),
    scenario("sharded", trainers=list("abcdef"), members=list("abcdef"), shard=2),
    scenario("shard-flipped", ["d", FLIP], trainers=list("abcdefs"), members=list("abcdef"), shard=2),
    scenario("one-replica-group", trainers=list("ab"), members=list("ab"), shard=2),
    scenario("two-of-two", ["b", FLIP], members=["a", "b"]),
]


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, str(SCRIPT), json.dumps(SCENARIOS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(160)
@pytest.mark.parametrize("name", [s["name"] for s in SCENARIOS])
def test_nothing_is_lost_whatever_flips(results, name):
    found = results[name]
    assert (found["hung"], found["failed"]) == ([], [])
    assert found["account"] == [STEPS, 0, 0, []]


def test_replicas_that_agree_are_compared_and_nobody_is_named(results):
    calm = results["calm"]
    assert calm["compared"] == [[step, 3] for step in range(EVERY, STEPS + 1, EVERY)]
    assert calm["named"] == []
    assert len(set(calm["finals"].values())) == 1


def test_zero_compares_never(results):
    assert results["never"]["compared"] == []


@pytest.mark.parametrize(("name", "victim"), [("flipped", "b"), ("rank-0", "a"), ("replaced-by-a-learner", "b")])
def test_flipped_bit_is_named_at_the_next_comparison_and_replaced(results, name, victim):
    found = results[name]
    assert found["named"] == [["Corrupt", FLIP + EVERY - 1, FLIP - 1, [victim]]]
    assert found["epochs"] == 2
    assert sorted(found["finals"]) == sorted({*"abcs"} - {victim})
    assert len(set(found["finals"].values())) == 1


@pytest.mark.parametrize("name", ["flipped", "replaced-by-a-learner"])
def test_replacement_is_compared_with_the_others(results, name):
    assert results[name]["compared"][-1] == [STEPS, 3]


def test_two_that_differ_name_nobody(results):
    found = results["two-of-two"]["named"]
    assert found[0] == ["Divided", FLIP + EVERY - 1, FLIP - 1, []]


def test_owners_of_the_same_shard_are_compared(results):
    calm = results["sharded"]
    assert (len(calm["compared"]), calm["named"]) == (STEPS // EVERY, [])
    finals = list(calm["finals"].values())
    assert len(finals) == 6
    assert len({tuple(f) for f in finals}) == 2


def test_flipped_shard_is_named_by_those_who_hold_the_same(results):
    found = results["shard-flipped"]
    assert found["named"] == [["Corrupt", FLIP + EVERY - 1, FLIP - 1, ["d"]]]
    assert len({tuple(f) for f in found["finals"].values()}) == 2


def test_shards_without_a_second_owner_are_not_compared(results):
    assert results["one-replica-group"]["compared"] == []
