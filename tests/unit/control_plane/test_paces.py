"""The weights of a new epoch are the split for whose sake it is raised."""

import pytest
from imagined_failures import Cluster

from atoll.control_plane.paces import weighed
from atoll.fault import balance


@pytest.fixture
def cluster():
    found = Cluster(nodes=("h", "a1", "a2", "a3"), workers=3)
    found.go(3)
    return found


@pytest.fixture
def run(cluster):
    return cluster.run


def test_members_weigh_what_the_split_says_that_was_told(run):
    told = dict(zip(run.member_ids(), (5, 1, 4), strict=True))
    assert [m.weight for m in weighed(run, run.members, told)] == [5.0, 1.0, 4.0]


def test_split_that_was_found_for_others_counts_for_nobody(run):
    told = dict(zip(run.member_ids()[:2], (5, 1), strict=True))
    assert [m.weight for m in weighed(run, run.members, told)] == [1.0] * 3


def test_epoch_that_is_raised_for_a_split_has_its_weights(cluster, monkeypatch):
    counts = dict(zip(cluster.run.member_ids(), (5, 1, 4), strict=True))
    split = balance.Split(counts=counts, now_s=2.0, then_s=1.0)
    monkeypatch.setattr(balance, "resplit", lambda *_: split)
    cluster.go(5)
    assert cluster.run.epoch > 1
    assert {m.trainer: m.weight for m in cluster.run.members} == counts
