"""The engine: device-seconds are conserved, devices have one owner, the same seed gives the same result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InternalError
from atoll.schema.ids import NodeId, RunId
from atoll.simulate.cluster import Cluster, islands
from atoll.simulate.engine import Costs, Engine, Outcome
from atoll.simulate.fifo import Fifo
from atoll.simulate.jobs import Job, Model
from atoll.simulate.laws import Traffic, generate
from atoll.simulate.policy import Action, Resize, Start, Suspend, Untold
from atoll.simulate.world import Run, Spent, World

PLAIN = Model(name="plain", batch=10.0, speeds={"a": 10.0, "b": 5.0}, sync_bytes=0.0)
FREE = Costs(start_s=0.0, shrink_s=0.0, grow_s=0.0, suspend_s=0.0)


def job(number: int, at: float, *, workers: int = 1, seconds: float = 100.0, sizes: tuple[int, ...] = ()) -> Job:
    """One that takes so many seconds on `workers` devices of type a."""
    return Job(
        id=RunId(f"job-{number}"),
        submitted_s=at,
        model=PLAIN,
        samples=seconds * 10.0 * workers,
        workers=workers,
        sizes=sizes or (workers,),
    )


def two_hosts() -> Cluster:
    return islands(2, types=("a",), each=2, island_nodes=2)


class Scripted(Untold):
    """Does at its turns what it is told to."""

    name = "scripted"

    def __init__(self, *turns: list[Action], wake: float | None = None) -> None:
        self._turns, self._wake = list(turns), wake

    def decide(self, world: World) -> list[Action]:
        return self._turns.pop(0) if self._turns else []

    def again_at(self, world: World) -> float | None:
        return world.now + self._wake if self._wake and self._turns else None


class AtRandom(Untold):
    """Starts, resizes and suspends whatever is possible: a policy without sense, for the engine's own laws."""

    name = "at-random"
    pause_s = 7.0

    def __init__(self, chance) -> None:
        self._chance = chance

    def decide(self, world: World) -> Iterator[Action]:
        free = Counter(world.free)
        for run in list(world.waiting.values()):
            if len(nodes := list(free.elements())) >= (size := self._chance.choice(run.job.sizes)):
                chosen = tuple(self._chance.sample(sorted(nodes), size))
                free -= Counter(chosen)
                yield Start(run=run.job.id, nodes=chosen)
        for run in list(world.running.values()):
            if run.suspending or self._chance.random() < 0.7 or run.granted_at == world.now:
                continue
            if self._chance.random() < 0.3 and run.suspensions < 3:
                yield Suspend(run=run.job.id)
                continue
            pool = sorted((Counter(run.nodes) + free).elements())
            sizes = [s for s in run.job.sizes if s <= len(pool)]
            chosen = tuple(self._chance.sample(pool, self._chance.choice(sizes)))
            free = free + Counter(run.nodes) - Counter(chosen)
            yield Resize(run=run.job.id, nodes=chosen, disturbs=True)

    def again_at(self, world: World) -> float | None:
        return world.now + 50.0 if world.waiting else None


def simulated(cluster: Cluster, policy, jobs: list[Job], costs: Costs = FREE) -> Outcome:
    return Engine(cluster, jobs, policy, costs=costs, warm=0.0).run()


def test_job_alone_takes_its_time_and_its_start():
    outcome = simulated(two_hosts(), Fifo(), [job(0, 5.0)], Costs(start_s=30.0))
    assert outcome.runs[0].finished_at == pytest.approx(5.0 + 30.0 + 100.0)
    assert outcome.ledger["default", "a", Spent.STARTING] == pytest.approx(30.0)
    assert outcome.ledger["default", "a", Spent.USEFUL] == pytest.approx(100.0)


def test_gang_goes_at_the_pace_of_its_slowest_worker_and_the_rest_is_waiting():
    cluster = islands(2, types=("a", "b"), each=1, island_nodes=1)
    outcome = simulated(cluster, Fifo(), [job(0, 0.0, workers=2)])
    assert outcome.ended_at == pytest.approx(200.0)
    assert outcome.ledger["default", "a", Spent.USEFUL] == pytest.approx(100.0)
    assert outcome.ledger["default", "a", Spent.WAITING] == pytest.approx(100.0)
    assert outcome.ledger["default", "b", Spent.USEFUL] == pytest.approx(200.0)


def test_resize_keeps_what_was_done_and_ends_the_job_sooner():
    a, b = NodeId("a-0000-00"), NodeId("a-0000-01")
    grown = Scripted([Start(run=RunId("job-0"), nodes=(a,))], [Resize(run=RunId("job-0"), nodes=(a, b))], wake=40.0)
    outcome = simulated(two_hosts(), grown, [job(0, 0.0, sizes=(1, 2))])
    assert outcome.ended_at == pytest.approx(40.0 + 60.0 / 2)
    assert outcome.runs[0].resizes == 1


def test_suspended_run_keeps_its_devices_until_its_checkpoint_is_made_and_loses_no_sample():
    a, who = NodeId("a-0000-00"), RunId("job-0")
    policy = Scripted([Start(run=who, nodes=(a,))], [Suspend(run=who)], [Start(run=who, nodes=(a,))], wake=40.0)
    outcome = simulated(two_hosts(), policy, [job(0, 0.0)], Costs(start_s=0.0, suspend_s=10.0))
    assert outcome.ended_at == pytest.approx(40.0 + 10.0 + 60.0)
    assert outcome.ledger["default", "a", Spent.CHECKPOINTING] == pytest.approx(10.0)
    assert outcome.ledger["default", "a", Spent.USEFUL] == pytest.approx(100.0)


def test_device_that_is_held_is_given_to_nobody_else():
    a = NodeId("a-0000-00")
    greedy = Scripted([Start(run=RunId(f"job-{n}"), nodes=(a, a)) for n in range(2)])
    with pytest.raises(InternalError, match="of which 0 are free"):
        simulated(two_hosts(), greedy, [job(0, 0.0, workers=2), job(1, 0.0, workers=2)])


def test_gang_is_never_split_nor_of_another_size():
    with pytest.raises(InternalError, match="legal are"):
        simulated(
            two_hosts(), Scripted([Start(run=RunId("job-0"), nodes=(NodeId("a-0000-00"),))]), [job(0, 0.0, workers=2)]
        )


def test_job_that_nobody_starts_is_an_error_not_a_hang():
    with pytest.raises(InternalError, match="wait for ever"):
        simulated(two_hosts(), Scripted(), [job(0, 0.0)])


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 1000))
def test_device_seconds_are_conserved_whatever_the_policy_does(chance, seed):
    cluster = islands(6, types=("v100", "k80"), each=4, island_nodes=2)
    jobs = generate(Traffic(jobs=20, load=1.0), cluster, seed)
    costs = Costs()
    engine = Engine(cluster, jobs, AtRandom(chance), costs=costs, warm=0.0)
    outcome = engine.run()
    held = sum(outcome.ledger.values())
    assert held == pytest.approx(sum(run.device_s for run in outcome.runs))
    assert held <= cluster.devices * outcome.ended_at * (1 + 1e-9)
    assert engine._world.free == {node.name: node.devices for node in cluster.nodes}
    for run in outcome.runs:
        assert run.done == pytest.approx(run.job.samples)


def test_same_seed_gives_the_same_result():
    cluster = islands(6, types=("v100", "p100"), each=4, island_nodes=3)
    results = [
        [run.finished_at for run in Engine(cluster, generate(Traffic(jobs=60), cluster, seed), Fifo()).run().runs]
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


def test_progress_is_told_once_for_each_job():
    heard: list[int] = []
    cluster = two_hosts()
    Engine(cluster, [job(n, float(n)) for n in range(5)], Fifo(), told=heard.append).run()
    assert heard == [1, 2, 3, 4, 5]


def test_window_leaves_out_the_warm_up_and_what_comes_after_the_last_arrival():
    outcome = Engine(two_hosts(), [job(n, 10.0 * n) for n in range(11)], Fifo(), costs=FREE, warm=0.2).run()
    assert outcome.window == (20.0, 100.0)
    (begun, _), (ended, _) = outcome.marks
    assert sum(ended.values()) - sum(begun.values()) == pytest.approx(4 * 80.0 - 0.0, rel=0.2)


def test_waiting_runs_are_in_order_of_submission_after_a_suspension():
    seen: list[list[str]] = []

    class Watching(Scripted):
        def suspended(self, run: Run, world: World) -> None:
            seen.append(list(world.waiting))

    one, a = RunId("job-0"), NodeId("a-0000-00")
    policy = Watching(
        [Start(run=one, nodes=(a,))],
        [Suspend(run=one)],
        [],
        [Start(run=one, nodes=(a,)), Start(run=RunId("job-1"), nodes=(a,))],
        wake=30.0,
    )
    simulated(two_hosts(), policy, [job(0, 0.0), job(1, 1.0)], Costs(start_s=0.0, suspend_s=1.0))
    assert seen == [["job-0", "job-1"]]
