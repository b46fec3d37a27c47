from atoll.fault.replicas import Digest, corrupt, split


def digests(*values, numeric="cpu"):
    return [Digest(trainer=f"t{i}", numeric=numeric, value=v) for i, v in enumerate(values)]


def test_replicas_that_agree_are_well():
    assert corrupt("r", 7, digests("x", "x", "x")) is None


def test_replica_that_differs_from_the_majority_is_corrupt():
    verdict = corrupt("r", 7, digests("x", "y", "x"))
    assert verdict.trainers == ("t1",)
    assert "after step 7 2 of 3 replicas (cpu) have x, but t1 has y" in verdict.evidence


def test_unlike_arithmetic_is_no_corruption():
    unlike = [*digests("x", "x"), *digests("y", "y", numeric="cuda")]
    assert corrupt("r", 7, unlike) is None
    assert split(unlike) == ()


def test_two_that_differ_name_nobody():
    assert corrupt("r", 7, digests("x", "y")) is None
    assert split(digests("x", "y")) == ("t0", "t1")


def test_majority_is_more_than_half():
    assert corrupt("r", 7, digests("x", "x", "y", "z")) is None
    assert corrupt("r", 7, digests("x", "x", "x", "y", "z")).trainers == ("t3", "t4")
