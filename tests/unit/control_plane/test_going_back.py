"""A run that went back to a checkpoint: what trainers tell late, of steps that do not count any more, changes nothing."""

import pytest
from imagined_failures import RUN, Cluster

from atoll.schema import messages as m


@pytest.fixture
def cluster():
    """Two workers that differed were sent back from step 60 to 39, and nobody has taken their places yet."""
    found = Cluster(nodes=("h", "a1", "a2", "a3"), workers=2, rollback=1)
    found.go(5)
    found.save()
    found.go(2)
    found.flip("t1")
    while found.run.rewound is None:
        found.tick()
    return found


def tell(cluster, kind, trainer, step, **values):
    fact = kind(trainer=f"{RUN}-{trainer}", step=step, **values)
    cluster.hosts["a1"].queue.append(m.TrainerSaid(run=RUN, fact=fact))
    cluster.tick()


def digest(cluster, trainer, value):
    tell(cluster, m.ReplicaDigested, trainer, 70, epoch=1, of=2, numeric="cpu", weights=value)


def test_replicas_that_differed_before_it_went_back_are_no_news(cluster):
    back = cluster.run.rewound
    for trainer, value in (("t0", "x"), ("t1", "y")):
        digest(cluster, trainer, value)
    assert cluster.run.rewound == back
    assert cluster.run.comparisons.found is None


def test_agreement_from_before_it_went_back_counts_no_more(cluster):
    for trainer in ("t0", "t1"):
        digest(cluster, trainer, "x")
    assert cluster.run.comparisons.agreed == cluster.run.rewound.step


def test_checkpoint_of_undone_steps_that_is_told_late_is_not_kept(cluster):
    tell(cluster, m.CheckpointCommitted, "t0", 60, path="/late", bytes=1, seconds=0.0)
    assert cluster.run.checkpoint.step == cluster.run.rewound.step


def test_undone_steps_that_are_told_late_are_not_where_it_stands(cluster):
    tell(cluster, m.StepCommitted, "t0", 61, epoch=1, at=0.0, step_s=0.1, samples=1)
    assert cluster.run.step == cluster.run.rewound.step


def test_it_goes_on_from_there_like_any_other_run(cluster):
    digest(cluster, "t0", "x")
    cluster.go(8)
    assert cluster.run.step > 60
    assert cluster.run.comparisons.agreed > 60


def test_whose_host_died_before_it_could_be_ended_is_gone_with_its_lease(cluster):
    first = cluster.run.trainers[f"{RUN}-t0"]
    cluster.power_off(first.node)
    cluster.lose_stream(cluster.hosts[first.node])
    cluster.go(60)
    assert (first.gone, cluster.run.epoch) == (False, 1)
    cluster.go(20)
    assert (first.gone, cluster.run.epoch) == (True, 2)
    assert cluster.run.step > 60
