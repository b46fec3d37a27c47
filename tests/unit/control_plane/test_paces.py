"""The weights of a new epoch are the split for whose sake it is raised."""

import pytest
from imagined_failures import Cluster

from atoll.control_plane.paces import weighed


@pytest.fixture
def run():
    found = Cluster(nodes=("h", "a1", "a2", "a3"), workers=3)
    found.go(3)
    return found.run


def test_members_weigh_what_the_split_says_that_was_told(run):
    told = dict(zip(run.member_ids(), (5, 1, 4), strict=True))
    assert [m.weight for m in weighed(run, run.members, told)] == [5.0, 1.0, 4.0]


def test_split_that_was_found_for_others_counts_for_nobody(run):
    told = dict(zip(run.member_ids()[:2], (5, 1), strict=True))
    assert [m.weight for m in weighed(run, run.members, told)] == [1.0] * 3
