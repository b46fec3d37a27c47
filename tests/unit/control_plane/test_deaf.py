"""A control plane that hears nobody, not even its own host's agent, has no ears: silence condemns nobody then."""

import pytest
from imagined_failures import Cluster

from atoll.control_plane.watching import HEARD_AGAIN_S

OTHERS = ("a1", "a2", "b1", "b2", "c1")


@pytest.fixture
def cluster():
    found = Cluster(nodes=("h", *OTHERS), workers=4)
    found.go(5)
    return found


def freeze(cluster, *names, frozen=True):
    for name in names:
        cluster.hosts[name].frozen = frozen


def lost(cluster):
    return [text for _, text in cluster.notes if "lost" in text]


@pytest.mark.parametrize("first", ["h", "a1", "b2"])
def test_nobody_is_lost_while_nobody_is_heard_nor_by_who_speaks_first(cluster, first):
    freeze(cluster, "h", *OTHERS)
    cluster.go(20)
    freeze(cluster, first, frozen=False)
    cluster.go(HEARD_AGAIN_S - 0.3)
    freeze(cluster, "h", *OTHERS, frozen=False)
    cluster.go(5)
    assert lost(cluster) == []
    assert cluster.run.epoch == 1


def test_who_stays_silent_when_others_are_heard_again_is_lost(cluster):
    freeze(cluster, "h", *OTHERS)
    cluster.go(3)
    cluster.power_off("a1")
    freeze(cluster, "h", *OTHERS[1:], frozen=False)
    cluster.go(6)
    assert any("a1" in text for text in lost(cluster))
    assert cluster.run.epoch > 1


def test_agent_of_its_own_host_that_is_frozen_alone_holds_nothing_up(cluster):
    freeze(cluster, "h")
    cluster.go(3)
    cluster.power_off("a1")
    cluster.go(2)
    assert any("a1" in text for text in lost(cluster))
