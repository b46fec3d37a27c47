"""The real arbiter under simulated jobs: it shares, gives back, keeps gangs whole, and beats what plain Ray does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.control_plane.snapshots import ask
from atoll.schema.ids import RunId
from atoll.schema.spec import JobSpec
from atoll.simulate.arbitrated import Arbitrated, Told
from atoll.simulate.arena import simulate
from atoll.simulate.cluster import Cluster, islands
from atoll.simulate.engine import Costs, Engine, Outcome
from atoll.simulate.jobs import Job, Model
from atoll.simulate.laws import Traffic, generate
from atoll.simulate.measures import measured
from atoll.simulate.world import Run

PLAIN = Model(name="plain", batch=64.0, speeds={"v100": 64.0, "k80": 8.0}, sync_bytes=0.0)


def job(name: str, at: float, *sizes: int, seconds: float, asked: int = 1, priority: int = 50) -> Job:
    """It takes so many seconds on the workers it asks for, of V100."""
    samples = seconds * 64.0 * asked
    return Job(
        id=RunId(name), submitted_s=at, model=PLAIN, samples=samples, workers=asked, sizes=sizes, priority=priority
    )


def simulated(cluster: Cluster, *jobs: Job) -> tuple[Outcome, dict[str, list[tuple[float, int]]]]:
    """What came of it, and each run's sizes over time."""
    policy = Arbitrated(cluster, Costs(), pause_s=0.0)
    sizes: dict[str, list[tuple[float, int]]] = {}
    told = policy.changed

    def changed(run, world):
        sizes.setdefault(run.job.id, []).append((world.now, len(run.nodes)))
        told(run, world)

    policy.changed = changed
    return Engine(cluster, jobs, policy, warm=0.0).run(), sizes


def test_elastic_run_takes_what_nobody_wants_and_gives_it_back_to_who_comes():
    cluster = islands(1, types=("v100",), each=4, island_nodes=1)
    _, sizes = simulated(
        cluster,
        job("first", 0.0, 1, 2, 4, seconds=4000.0),
        job("second", 500.0, 2, seconds=300.0, asked=2),
    )
    assert sizes["first"][0] == (0.0, 4)
    assert [n for at, n in sizes["first"] if 500.0 <= at < 560.0] == [2]
    assert sizes["second"][0][1] == 2
    assert sizes["first"][-1][1] == 4


def test_run_of_higher_priority_suspends_a_rigid_one_which_goes_on_afterwards():
    cluster = islands(1, types=("v100",), each=4, island_nodes=1)
    outcome, _ = simulated(
        cluster,
        job("low", 0.0, 4, seconds=1000.0, asked=4, priority=10),
        job("high", 200.0, 4, seconds=300.0, asked=4, priority=90),
    )
    low, high = outcome.runs
    assert low.suspensions == 1
    assert high.finished_at < low.finished_at
    assert low.done == pytest.approx(low.job.samples)


def test_run_moves_to_the_faster_device_when_that_is_free():
    cluster = islands(2, types=("v100", "k80"), each=1, island_nodes=1)
    outcome, _ = simulated(cluster, job("first", 0.0, 1, seconds=600.0), job("second", 1.0, 1, seconds=2000.0))
    assert outcome.runs[1].resizes == 1
    assert outcome.runs[1].finished_at < 3000.0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]))
def test_every_job_ends_with_all_its_samples_whatever_comes(seed, load):
    cluster = islands(6, types=("v100", "p100", "k80"), each=4, island_nodes=2)
    outcome = simulate("atoll", cluster, generate(Traffic(jobs=25, load=load), cluster, seed))
    for run in outcome.runs:
        assert run.done == pytest.approx(run.job.samples)
    assert sum(outcome.ledger.values()) <= cluster.devices * outcome.ended_at * (1 + 1e-9)


def test_jobs_end_sooner_than_with_gangs_in_order():
    cluster = islands(9, types=("v100", "p100", "k80"), each=4, island_nodes=3)
    jobs = generate(Traffic(jobs=120, load=0.9), cluster, 1)
    ours, theirs = (measured(simulate(policy, cluster, jobs)) for policy in ("atoll", "fifo"))
    assert ours.mean_jct_s < theirs.mean_jct_s


def test_arbiter_as_asked_is_told_what_the_control_plane_tells():
    cluster = islands(2, types=("v100", "k80"), each=2, island_nodes=1)
    given = job("a", 0.0, 1, 2, seconds=60.0)
    spec = JobSpec(name="a", working_dir="/w", file="f.py", workers=2, min_workers=1, spares=0, speeds=PLAIN.speeds)
    for told, speeds in ((Told.AS_ASKED, PLAIN.speeds), (Told.NO_SPEEDS, {})):
        policy = Arbitrated(cluster, Costs(), told=told)
        mine = policy._ask(Run(job=given, waits_since=0.0))
        theirs = ask(replace(spec, speeds=speeds))
        for name in ("declared", "measured", "batch", "sync_bytes", "regroup_s", "start_s", "expected_s", "group"):
            assert getattr(mine, name) == getattr(theirs, name), name


def test_arbiter_as_asked_is_told_what_a_run_was_measured_to_do_once_it_ran():
    cluster = islands(2, types=("v100", "k80"), each=2, island_nodes=1)
    given = job("a", 0.0, 1, 2, seconds=60.0)
    policy = Arbitrated(cluster, Costs(), told=Told.NO_SPEEDS)
    on = next(node.name for node in cluster.nodes if node.device == "k80")
    told = policy._ask(Run(job=given, waits_since=0.0, nodes=(on,)))
    assert told.measured == {"k80": PLAIN.speeds["k80"]}
    assert (told.batch, told.sync_bytes) == (given.batch, PLAIN.sync_bytes)
    again = policy._ask(Run(job=given, waits_since=0.0))
    assert again.measured == told.measured


def test_arbiter_as_asked_ends_all_jobs():
    cluster = islands(2, types=("v100", "k80"), each=2, island_nodes=1)
    jobs = generate(Traffic(load=0.9, jobs=20), cluster, 0)
    for policy in ("atoll-as-asked", "atoll-as-asked-no-speeds"):
        assert measured(simulate(policy, cluster, jobs)).jobs > 0
