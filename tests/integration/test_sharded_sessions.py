"""SIGKILL while a sharded model trains, in real processes over TCP: its shard comes back out of its buddy's memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("sharded_ranks.py")


def scenario(name, *kills, trainers="abcs", members="abc", shard=None, plain=False, spare_first=False, every=0, k=1):
    told = [{"trainer": who, "at": at, "skip": skip} for who, at, skip in kills]
    # A save each second step is there to be gone back to: before the step of the loss all wait until the first is durable.
    durable_by = kills[0][2] + 1 if every == 2 else None
    return {
        "name": name,
        "trainers": list(trainers),
        "members": list(members),
        "kills": told,
        "ddp": False,
        "spare_first": spare_first,
        "config": {"plain": plain, "shard": shard, "copy_every": k, "durable_by": durable_by},
        "checkpoint_every": every,
    }


PLAIN = scenario("plain", trainers="abc", plain=True)
CALM = scenario("calm", trainers="abc")
GROUPS = scenario("groups", trainers="abcd", members="abcd", shard=2)
LOSSES = [
    # A spare takes the place: the shard moves from the buddy's memory.
    scenario("in-backward-spare", ("b", "before-backward", 6)),
    scenario("before-vote-spare", ("a", "before-vote", 3), spare_first=True),
    scenario("in-update-spare", ("a", "in-update", 3)),
    scenario("first-step-after-vote-spare", ("b", "after-vote", 0)),
    # Before anybody had a copy: nothing was computed yet, and all begin as built.
    scenario("first-backward-spare", ("b", "before-backward", 0)),
    scenario("first-backward-alone", ("b", "before-backward", 0), trainers="abc"),
    scenario("two-steps-apart", ("a", "before-vote", 2), ("b", "after-backward", 11), trainers="abcst"),
    # Nobody takes it: everything is resharded onto fewer.
    scenario("after-vote-alone", ("b", "after-vote", 3), trainers="abc"),
    scenario("in-regroup-alone", ("b", "before-vote", 3), ("d", "in-regroup", 1), trainers="abcd", members="abcd"),
    # The copy is lost as well: all return to the last checkpoint, survivors too.
    scenario(
        "rank-and-buddy-to-checkpoint", ("b", "before-vote", 4), ("c", "before-vote", 4), trainers="abcst", every=2
    ),
    # With replica groups the other group's owner holds the shard.
    scenario("groups-spare", ("b", "after-backward", 5), trainers="abcds", members="abcd", shard=2),
    scenario(
        "groups-transfer", ("b", "before-vote", 3), ("a", "in-transfer", 0), trainers="abcd", members="abcd", shard=2
    ),
    scenario("groups-alone", ("c", "after-vote", 3), trainers="abcd", members="abcd", shard=2),
]
# Copies each three steps, after steps 0, 3 and 6: all go back to the last whole set, and do again what came after it.
BACK = [
    (scenario("k3-before-vote-spare", ("b", "before-vote", 5), k=3), [4, 5]),
    (scenario("k3-after-vote-spare", ("b", "after-vote", 4), spare_first=True, k=3), [4, 5]),
    (scenario("k3-in-update-spare", ("a", "in-update", 5), k=3), [4, 5, 6]),
    (scenario("k3-alone", ("b", "before-vote", 5), trainers="abc", k=3), [4, 5]),
    (scenario("k3-last-step", ("b", "before-ack", 7), k=3), [7, 8]),
    (
        scenario(
            "k3-again-in-regroup",
            ("b", "before-vote", 5),
            ("d", "in-regroup", 1),
            trainers="abcdst",
            members="abcd",
            k=3,
        ),
        [4, 5],
    ),
    # The second is lost when the shards of another shape are not copied yet: those of the shape before are there still.
    (
        scenario(
            "k3-two-shapes",
            ("b", "before-vote", 5),
            ("d", "step-entry", 6),
            trainers="abcd",
            members="abcd",
            k=3,
        ),
        [4, 5],
    ),
    (scenario("k3-checkpoints", ("c", "before-vote", 5), every=1, k=3), [4, 5]),
]
# The copy is lost as well: from the checkpoint of step 4, behind which only step 5 was committed.
K3_PAIR = scenario(
    "k3-rank-and-buddy", ("b", "before-vote", 5), ("c", "before-vote", 5), trainers="abcst", every=2, k=3
)
PAIR = scenario("rank-and-buddy", ("b", "before-vote", 3), ("c", "before-vote", 3), trainers="abcst")


@pytest.fixture(scope="module")
def results():
    """All scenarios, from two warm parents side by side."""
    everything = [PLAIN, CALM, GROUPS, *LOSSES, *(scene for scene, _ in BACK), K3_PAIR, PAIR]
    halves = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(everything[i::2])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    found = {}
    for half in halves:
        output, errors = half.communicate(timeout=170)
        assert half.returncode == 0, errors[-2000:]
        for line in output.splitlines():
            result = json.loads(line)
            found[result["name"]] = {**result, "errors": errors}
    return found


def assembled(finals):
    """The whole state of each replica group's shards, put together by index."""
    whole = {}
    for final in sorted(finals, key=lambda f: f["index"]):
        for name, part in final["shards"].items():
            whole.setdefault(name, {})[final["index"]] = np.array(part)
    parts = {n: [p for _, p in sorted(by_index.items()) if p.size] for n, by_index in whole.items()}
    return {n: np.concatenate(p) for n, p in parts.items()} | {n: np.array(v) for n, v in finals[0]["same"].items()}


def same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["calm", "groups"])
def test_sharded_run_computes_what_the_unsharded_one_does(results, kind):
    calm = results[kind]
    assert (calm["hung"], calm["failed"], calm["account"]) == ([], [], [8, 0, 0, []]), calm["errors"][-2000:]
    for told, expected in zip(calm["losses"], results["plain"]["losses"], strict=True):
        assert told == pytest.approx(expected, rel=1e-5)
    same_state(assembled(list(calm["finals"].values())), assembled(list(results["calm"]["finals"].values())))


@pytest.mark.timeout(180)
def test_replica_groups_hold_the_same_bits(results):
    by_index = {}
    for final in results["groups"]["finals"].values():
        by_index.setdefault(final["index"], []).append(final["shards"])
    assert {index: len(held) for index, held in by_index.items()} == {0: 2, 1: 2}
    assert all(one == other for one, other in by_index.values())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scene", LOSSES, ids=lambda s: s["name"])
def test_lost_shard_changes_nothing(results, scene):
    result = results[scene["name"]]
    assert (result["hung"], result["failed"]) == ([], []), result["errors"][-2000:]
    assert result["killed"] == len(scene["kills"])
    assert result["account"] == [8, 0, 0, []]
    for told, (expected, *_) in zip(result["losses"], results["calm"]["losses"], strict=True):
        assert told
        assert told == pytest.approx([expected] * len(told), rel=1e-4)
    finals = list(result["finals"].values())
    size = finals[0]["size"]
    assert {f["index"] for f in finals} == set(range(size))
    assert all(f["lr"] == results["calm"]["finals"]["a"]["lr"] for f in finals)
    same_state(assembled(finals), assembled(list(results["calm"]["finals"].values())))


def reaches_the_undisturbed_end(result, calm):
    assert (result["hung"], result["failed"]) == ([], []), result["errors"][-2000:]
    assert result["account"] == [8, 0, 0, []]
    for told, (expected, *_) in zip(result["losses"], calm["losses"], strict=True):
        assert told
        assert told == pytest.approx([expected] * len(told), rel=1e-4)
    finals = list(result["finals"].values())
    assert {f["index"] for f in finals} == set(range(finals[0]["size"]))
    assert all(f["lr"] == calm["finals"]["a"]["lr"] for f in finals)
    same_state(assembled(finals), assembled(list(calm["finals"].values())))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("scene", "undone"), BACK, ids=lambda s: s["name"] if isinstance(s, dict) else "")
def test_lost_shard_that_is_copied_each_three_steps_leads_all_back_to_the_last_copies(results, scene, undone):
    result = results[scene["name"]]
    reaches_the_undisturbed_end(result, results["calm"])
    assert result["killed"] == len(scene["kills"])
    # A step that nobody saw settled before the loss was not undone, but never done.
    assert result["again"] in (undone, undone[:-1])
    assert set(result["again"]) <= set(result["told_again"]) <= set(undone)


@pytest.mark.timeout(180)
def test_lost_shard_and_its_old_copy_lead_all_back_to_the_checkpoint(results):
    result = results[K3_PAIR["name"]]
    reaches_the_undisturbed_end(result, results["calm"])
    assert result["killed"] == 2
    assert set(result["again"]) <= {3, 4, 5}


@pytest.mark.timeout(180)
def test_rank_lost_with_its_buddy_ends_the_run_with_the_shard_named(results):
    result = results[PAIR["name"]]
    assert result["account"][:3] == [3, 0, 0]
    assert result["failed"]
    assert "shards [1] of 3" in result["failed"][0]
