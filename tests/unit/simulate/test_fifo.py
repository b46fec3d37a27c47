"""What plain Ray would do: strict order, and backfill that delays the oldest not."""

from __future__ import annotations

import pytest

from atoll.schema.ids import RunId
from atoll.simulate.cluster import Cluster, islands
from atoll.simulate.engine import Costs, Engine
from atoll.simulate.fifo import Backfill, Fifo
from atoll.simulate.jobs import Job, Model
from atoll.simulate.laws import Traffic, generate

PLAIN = Model(name="plain", batch=1.0, speeds={"a": 1.0}, sync_bytes=0.0)
FREE = Costs(start_s=0.0)


def cluster(nodes: int = 1, each: int = 4) -> Cluster:
    return islands(nodes, types=("a",), each=each, island_nodes=1)


def job(name: str, at: float, workers: int, seconds: float) -> Job:
    samples = seconds * workers
    return Job(id=RunId(name), submitted_s=at, model=PLAIN, samples=samples, workers=workers, sizes=(workers,))


def starts(policy, jobs: list[Job], where: Cluster | None = None) -> dict[str, float]:
    outcome = Engine(where or cluster(), jobs, policy, costs=FREE, warm=0.0).run()
    return {run.job.id: run.started_at for run in outcome.runs}


GANGS = [job("long", 0.0, 3, 100.0), job("gang", 1.0, 4, 10.0), job("small", 2.0, 1, 50.0)]


def test_strict_order_lets_devices_idle_behind_a_gang_that_does_not_fit():
    assert starts(Fifo(), GANGS) == {"long": 0.0, "gang": 100.0, "small": 110.0}


def test_backfill_starts_what_ends_before_the_gang_can_begin():
    assert starts(Backfill(0.0), GANGS) == {"long": 0.0, "gang": 100.0, "small": 2.0}


def test_backfill_does_not_start_what_would_delay_the_gang():
    longer = [*GANGS[:2], job("small", 2.0, 1, 500.0)]
    assert starts(Backfill(0.0), longer) == {"long": 0.0, "gang": 100.0, "small": 110.0}


def test_backfill_starts_a_long_one_on_what_the_gang_leaves_over():
    jobs = [job("long", 0.0, 3, 100.0), job("gang", 1.0, 3, 10.0), job("small", 2.0, 1, 500.0)]
    assert starts(Backfill(0.0), jobs) == {"long": 0.0, "gang": 100.0, "small": 2.0}


@pytest.mark.parametrize("seed", range(5))
def test_oldest_that_waits_is_never_later_with_backfill_where_placement_does_not_matter(seed):
    """On one host where all goes at one pace, the first that has to wait begins when it would without backfill."""
    where = islands(1, types=("v100",), each=16, island_nodes=1)
    jobs = generate(Traffic(jobs=60, load=1.5), where, seed)
    strict, filled = (starts(policy, list(jobs), where) for policy in (Fifo(), Backfill(0.0)))
    first = next(j for j in jobs if strict[j.id] > j.submitted_s)
    assert filled[first.id] <= strict[first.id] + 1e-6


def test_gang_is_packed_on_the_fullest_host_that_holds_it():
    where = cluster(nodes=2)
    outcome = Engine(where, [job(str(n), 0.0, 1, 10.0) for n in range(4)], Fifo(), costs=FREE, warm=0.0)
    held: list[set[str]] = []
    outcome._policy.changed = lambda run, world: held.append(set(run.nodes))
    outcome.run()
    assert len(set.union(*held)) == 1


def test_gang_that_no_host_holds_takes_as_few_as_possible():
    where = cluster(nodes=4)
    jobs = [job("one", 0.0, 1, 10.0), job("eight", 1.0, 8, 10.0)]
    engine = Engine(where, jobs, Fifo(), costs=FREE, warm=0.0)
    held: dict[str, int] = {}
    engine._policy.changed = lambda run, world: held.update({run.job.id: len(set(run.nodes))})
    engine.run()
    assert held == {"one": 1, "eight": 2}
