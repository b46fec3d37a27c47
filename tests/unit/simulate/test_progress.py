"""How fast a gang is: at the pace of its slowest worker and level, or by speed and level by level."""

from __future__ import annotations

import pytest

from atoll.schema.ids import NodeId, RunId
from atoll.simulate.cluster import Cluster, Node
from atoll.simulate.jobs import Job, Model
from atoll.simulate.progress import pace

# Of four workers: 4 s of compute each on a, 8 s on b.
JOB = Job(
    id=RunId("job"),
    submitted_s=0.0,
    model=Model(name="m", batch=40.0, speeds={"a": 10.0, "b": 5.0}, sync_bytes=1.0),
    samples=1.0,
    workers=4,
    sizes=(4,),
)


def cluster(*places: tuple[str, str, str], devices: int = 4) -> Cluster:
    """(host, device type, island) each."""
    nodes = tuple(Node(name=NodeId(n), device=d, devices=devices, island=i) for n, d, i in places)
    return Cluster(nodes=nodes, local=4.0, inside=2.0, across=1.0)


def seconds(where: Cluster, nodes: str, *, plain: bool) -> float:
    return JOB.batch / pace(JOB, [NodeId(n) for n in nodes], where, plain=plain).rate


HOST = cluster(("x", "a", "i"))
ISLAND = cluster(("x", "a", "i"), ("y", "a", "i"))
TWO = cluster(("x", "a", "i"), ("y", "a", "i"), ("z", "a", "j"), ("w", "a", "j"))
MIXED = cluster(("x", "a", "i"), ("y", "b", "i"))


@pytest.mark.parametrize(
    ("where", "nodes", "plain", "atoll"),
    [
        (HOST, "x", 16.0, 16.0),
        (HOST, "xxxx", 4 + 1.5 / 4, 4 + 1.18 * 1.5 / 4),
        (ISLAND, "xxyy", 4 + 1.5 / 2, 4 + 1.18 * 1.0 / 2),
        (TWO, "xyzw", 4 + 1.5 / 1, 4 + 1.18 * 1.0 / (1 * 2)),
        (TWO, "xxxz", 4 + 1.5 / 1, 4 + 1.18 * 1.0 / (1 * 1)),
        (MIXED, "xxyy", 8 + 1.5 / 2, 160 / 30 + 1.18 * 1.0 / 2),
    ],
)
def test_step_takes_compute_and_the_sums_of_its_levels(where, nodes, plain, atoll):
    assert seconds(where, nodes, plain=True) == pytest.approx(plain)
    assert seconds(where, nodes, plain=False) == pytest.approx(atoll)


def test_useful_shares_are_what_a_device_contributes_of_what_it_does_alone():
    plain = pace(JOB, [NodeId(n) for n in "xxyy"], MIXED)
    assert plain.useful["b"] == pytest.approx(2 * plain.useful["a"])
    for found in (plain, pace(JOB, [NodeId(n) for n in "xxyy"], MIXED, plain=False)):
        given = sum(found.useful[d] * JOB.model.speeds[d] * n for d, n in found.devices.items())
        assert given == pytest.approx(found.rate)
