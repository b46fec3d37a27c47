"""Digests of replicas: who is wrong by the majority's word, when nobody can tell, and when a comparison is complete."""

from atoll.fault.detector import fold
from atoll.fault.facts import Compared, Digest, Facts, RunFacts, TrainerFacts
from atoll.fault.replicas import Comparisons, judge, odd_ones, split
from atoll.fault.verdicts import Corrupt, Divided


def digests(*values, numeric="cpu", shard=""):
    return [Digest(trainer=f"t{i}", numeric=numeric, value=v, shard=shard) for i, v in enumerate(values)]


def run_of(told, *, members=None, agreed=5):
    names = [d.trainer for d in told] if members is None else members
    trainers = tuple(TrainerFacts(trainer=t, node="n", rank=i) for i, t in enumerate(names))
    compared = Compared(step=7, agreed=agreed, digests=tuple(told))
    return RunFacts(run="r", epoch=1, trainers=trainers, compared=compared)


def verdict(*values, **options):
    return judge(run_of(digests(*values), **options))


def test_replicas_that_agree_are_well():
    assert verdict("x", "x", "x") is None


def test_replica_that_differs_from_the_majority_is_corrupt():
    found = verdict("x", "y", "x")
    assert isinstance(found, Corrupt)
    assert (found.trainers, found.step, found.agreed) == (("t1",), 7, 5)
    assert "after step 7 2 of 3 replicas (cpu) have x, but t1 has y" in found.evidence
    assert "last agreed after step 5" in found.evidence


def test_corrupt_replica_that_has_left_since_is_not_named_again():
    assert verdict("x", "y", "x", members=["t0", "t2", "t3"]) is None


def test_unlike_arithmetic_is_no_corruption():
    unlike = [*digests("x", "x"), *digests("y", "y", numeric="cuda")]
    assert judge(run_of(unlike)) is None
    assert split(unlike) == ()


def test_other_shards_hold_other_values():
    told = [*digests("x", "x", shard="1 of 2"), *digests("y", "y", shard="2 of 2")]
    assert judge(run_of(told)) is None


def test_two_that_differ_name_nobody():
    found = verdict("x", "y", agreed=0)
    assert isinstance(found, Divided)
    assert "t0 has x, t1 has y; they were not compared before" in found.evidence


def test_majority_is_more_than_half():
    assert isinstance(verdict("x", "x", "y", "z"), Divided)
    assert verdict("x", "x", "x", "y", "z").trainers == ("t3", "t4")


def test_replica_that_differs_is_named_though_the_control_plane_was_stalled():
    facts = Facts(now=10.0, runs=(run_of(digests("x", "y", "x")),), steady=False)
    assert [v.trainers for v in fold(facts)] == [("t1",)]


def test_comparison_is_complete_once_all_have_told_of_the_same_step():
    seen = Comparisons()
    told = digests("x", "x")
    assert seen.take(1, 4, 2, told[0]) is None
    assert seen.take(1, 8, 2, told[0]) is None
    assert seen.take(2, 8, 2, told[1]) is None
    assert seen.take(1, 8, 2, told[1]).step == 8
    assert (seen.agreed, seen.found) == (8, None)


def test_digest_said_again_counts_once():
    seen = Comparisons()
    assert [seen.take(1, 4, 2, d) for d in digests("x") * 3] == [None] * 3


def test_comparisons_that_are_never_complete_are_forgotten():
    seen = Comparisons()
    for step in range(1000):
        seen.take(1, step, 2, digests("x")[0])
    assert len(seen.told) < 200


def test_member_whose_agent_tells_late_is_compared_all_the_same():
    seen, (one, other) = Comparisons(), digests("x", "y")
    for step in range(50):
        seen.take(1, step, 2, one)
    assert seen.take(1, 0, 2, other).step == 0


def test_agreement_about_steps_that_were_undone_does_not_count():
    seen = Comparisons(agreed=9)
    seen.stood(9)
    assert seen.agreed == 9
    seen.stood(4)
    for told in digests("x", "y", "x"):
        seen.take(2, 6, 3, told)
    assert seen.found.agreed == 4


def test_what_was_found_lasts_until_it_had_consequences():
    seen = Comparisons(agreed=3)
    for told in digests("x", "y", "x"):
        seen.take(1, 4, 3, told)
    assert (seen.found.agreed, seen.agreed) == (3, 3)
    seen.concluded()
    assert seen.found is None


def test_buffers_that_differ_condemn_nobody():
    told = [Digest(trainer=f"t{i}", numeric="cpu", value="x", rest=r) for i, r in enumerate("aab")]
    assert judge(run_of(told)) is None
    assert odd_ones(told) == ("t2",)
