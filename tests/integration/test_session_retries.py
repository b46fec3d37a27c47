"""SIGKILL at every place of a step, in real processes over TCP: nothing lost, nothing repeated, the same training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.fault.inject import FAILPOINTS

# All scenarios together take 75 s on two idle cores; each of them ends by itself what hangs, and says so.
HANG_S = 300
SCRIPT = Path(__file__).with_name("session_ranks.py")
# Passes of a place in the three steps before the one in which the trainer dies (2 grains a rank, some buckets a step).
PASSES = {"before-backward": 6, "after-backward": 6, "in-bucket": 10}
PLACES = [p for p in FAILPOINTS if p not in {"in-regroup", "in-transfer"}]


def scenario(name, *kills, ddp=False, spare_first=False, trainers="abcs", learn=False, slow_lesson=False):
    told = [{"trainer": who, "at": at, "skip": skip} for who, at, skip in kills]
    return {
        "name": name,
        "trainers": list(trainers),
        "members": list("abc"),
        "kills": told,
        "ddp": ddp,
        "spare_first": spare_first,
        "learn": learn,
        "slow_lesson": slow_lesson,
    }


def every_place(*, ddp):
    kind = "ddp" if ddp else "plain"
    for i, place in enumerate(PLACES):
        skip = PASSES.get(place, 3)
        for who in "ab":
            yield scenario(f"{kind}-{place}-{who}-spare", (who, place, skip), ddp=ddp, spare_first=i % 2 == 0)
            yield scenario(f"{kind}-{place}-{who}-alone", (who, place, skip), ddp=ddp, trainers="abc")


def worse():
    """Losses on top of losses."""
    yield scenario("two-steps-apart", ("a", "before-vote", 2), ("b", "after-backward", 11))
    yield scenario("two-at-once", ("a", "after-vote", 3), ("b", "after-vote", 3))
    yield scenario("two-at-once-before-the-vote", ("a", "before-vote", 3), ("c", "after-backward", 7))
    yield scenario("in-the-regroup-that-follows", ("b", "before-vote", 3), ("c", "in-regroup", 1))
    yield scenario("rank-0-in-the-regroup-that-follows", ("b", "after-vote", 3), ("a", "in-regroup", 1))
    yield scenario("in-doubt-and-again", ("b", "in-update", 3), ("a", "in-regroup", 1), spare_first=True)
    yield scenario("source-of-the-transfer", ("b", "before-vote", 3), ("a", "in-transfer", 1))
    yield scenario("joiner-in-the-transfer", ("b", "before-vote", 3), ("s", "in-transfer", 0), spare_first=True)
    yield scenario("joiner-in-its-first-regroup", ("b", "after-update", 3), ("s", "in-regroup", 0))
    yield scenario("joiner-in-its-first-vote", ("b", "before-ack", 3), ("s", "before-vote", 0), spare_first=True)
    yield scenario("first-transfer-of-the-run", ("a", "in-transfer", 0))
    yield scenario("last-step", ("a", "after-vote", 7))
    yield scenario("last-acknowledgement", ("b", "after-ack", 7))
    yield scenario("only-one-left", ("a", "before-vote", 3), ("b", "before-vote", 5), trainers="abc")


def lessons():
    """The spare learns the state while the others train on."""
    lost = ("b", "before-vote", 2)
    yield scenario("learner", lost, learn=True)
    yield scenario("learner-ddp", lost, learn=True, ddp=True)
    yield scenario("teacher-in-its-lesson", lost, ("c", "in-lesson", 0), learn=True)
    yield scenario("learner-in-its-replay", lost, ("s", "in-replay", 0), learn=True, slow_lesson=True)
    yield scenario("learner-in-its-vote", lost, ("s", "before-vote", 1), learn=True)
    yield scenario("learner-in-its-examination", lost, ("s", "in-examination", 0), learn=True)
    yield scenario("teacher-in-an-examination", lost, ("a", "in-examination", 0), learn=True)


LESSONS = [*lessons()]
SCENARIOS = [*every_place(ddp=False), *every_place(ddp=True), *worse(), *LESSONS]
CALM = {"plain": scenario("calm"), "ddp": scenario("calm-ddp", ddp=True)}


@pytest.fixture(scope="module")
def results():
    """All scenarios, from two warm parents side by side."""
    everything = [*CALM.values(), *SCENARIOS]
    command = [sys.executable, str(SCRIPT)]
    halves = [
        subprocess.Popen(
            [*command, json.dumps(everything[i::2])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    found = {}
    try:
        for half in halves:
            output, errors = half.communicate(timeout=HANG_S)
            assert half.returncode == 0, errors[-2000:]
            for line in output.splitlines():
                result = json.loads(line)
                found[result["name"]] = {**result, "errors": errors}
    finally:
        for half in halves:
            half.kill()
            half.communicate()
    return found


@pytest.mark.timeout(HANG_S + 20)
@pytest.mark.parametrize("kind", ["plain", "ddp"])
def test_undisturbed_run_is_exact(results, kind):
    calm = results[CALM[kind]["name"]]
    assert (calm["hung"], calm["failed"], calm["killed"], calm["epochs"]) == ([], [], 0, 1)
    assert calm["account"] == [8, 0, 0, []]
    assert len(calm["finals"]) == 3


@pytest.mark.timeout(HANG_S + 20)
@pytest.mark.parametrize("name", ["learner", "learner-ddp"])
def test_spare_learns_while_the_others_train_and_is_examined(results, name):
    assert results[name]["epochs"] == 2
    assert results[name]["examined"] == ["a", "c", "s"]


@pytest.mark.timeout(HANG_S + 20)
@pytest.mark.parametrize("scene", SCENARIOS, ids=lambda s: s["name"])
def test_killed_trainer_changes_nothing(results, scene):
    calm, result = results["calm"], results[scene["name"]]
    assert (result["hung"], result["failed"]) == ([], []), result["errors"][-2000:]
    assert result["killed"] == len(scene["kills"])
    assert result["account"] == [8, 0, 0, []]
    for told, (expected,) in zip(result["losses"], calm["losses"], strict=True):
        assert told
        assert told == pytest.approx([expected] * len(told), rel=1e-5)
    finals = list(result["finals"].values())
    assert len({f["digest"] for f in finals}) == 1
    assert finals[0]["lr"] == calm["finals"]["a"]["lr"]
