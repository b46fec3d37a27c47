"""Events in virtual time: a heap of arrivals, ends and wakings; between two of them nothing changes.

After all events of one moment the policy is asked, not more often than its `pause_s`. What a change costs is in `Costs`: while
it lasts, the run's devices are held and do nothing for it. A `Suspend` gives its devices back when the checkpoint is
made. The engine ends when all jobs have ended; a policy that lets one wait for ever is an error, not a hang.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from atoll.errors import InternalError
from atoll.schema.ids import RunId
from atoll.simulate.cluster import Cluster
from atoll.simulate.jobs import Job
from atoll.simulate.laws import REFERENCE
from atoll.simulate.policy import Action, Policy, Resize, Start, Suspend
from atoll.simulate.progress import alone_s
from atoll.simulate.world import Ledger, Run, Spent, World

Kind = Literal["arrive", "end", "suspended", "ask", "mark"]
# Points of the curves in a report.
_SAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds in which a run's devices do nothing for it.

    A cold start of trainers takes about 30 s where torch has to be imported, with a checkpoint to read or without; a
    regroup of members that are up takes about a second, with new members to start and to teach about five, and a last
    checkpoint ten: rounded up from what the recovery and checkpoint benchmarks of this repository found.
    """

    start_s: float = 30.0
    shrink_s: float = 1.0
    grow_s: float = 5.0
    suspend_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A point of the curves: devices held, runs that run and wait."""

    at: float
    held: int
    running: int
    waiting: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it. `marks`: the ledger, and what was delivered, at the two ends of the window."""

    policy: str
    cluster: Cluster
    window: tuple[float, float]
    runs: list[Run] = field(default_factory=list)
    marks: list[tuple[Ledger, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: defaultdict(float))
    ended_at: float = 0.0
    decisions: int = 0


class Engine:
    """One simulation. `told` hears how many jobs have ended."""

    def __init__(
        self,
        cluster: Cluster,
        jobs: Sequence[Job],
        policy: Policy,
        *,
        costs: Costs | None = None,
        warm: float = 0.2,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self._policy, self._costs = policy, costs or Costs()
        self._told = told or (lambda _: None)
        self._world = World(cluster=cluster, plain_trainers=policy.plain_trainers)
        self._heap: list[tuple[float, int, Kind, RunId | None, int]] = []
        self._number = count()
        self._ended = 0
        self._asked_at, self._ask_due = float("-inf"), float("inf")
        self._jobs = {job.id: Run(job=job, waits_since=job.submitted_s, worth=_worth(job, cluster)) for job in jobs}
        first, last = jobs[int(len(jobs) * warm)].submitted_s, jobs[-1].submitted_s
        self.outcome = Outcome(policy=policy.name, cluster=cluster, window=(first, last))
        self._sample_every = max(last, 1.0) / _SAMPLES
        for job in jobs:
            self._push(job.submitted_s, "arrive", job.id)
        for at in self.outcome.window:
            self._push(at, "mark")

    def run(self) -> Outcome:
        """Until all jobs have ended."""
        world = self._world
        while self._ended < len(self._jobs):
            if not self._heap:
                raise InternalError(f"{self._policy.name} lets {len(world.waiting)} jobs wait for ever")
            world.now = self._heap[0][0]
            while self._heap and self._heap[0][0] <= world.now:
                self._happen(*heapq.heappop(self._heap)[2:])
            if self._ask_due <= world.now:
                self._ask()
            self._sample()
        self.outcome.runs = list(self._jobs.values())
        self.outcome.ledger = world.ledger
        self.outcome.ended_at = world.now
        return self.outcome

    def _push(self, at: float, kind: Kind, run: RunId | None = None, version: int = 0) -> None:
        heapq.heappush(self._heap, (at, next(self._number), kind, run, version))

    # -- what happens ----------------------------------------------------------------------------------------------

    def _happen(self, kind: Kind, who: RunId | None, version: int) -> None:
        if kind == "ask":
            return
        if kind == "mark":
            self._world.account_all(self._world.running.values())
            self.outcome.marks.append((self._world.ledger.copy(), self._world.delivered))
            return
        run = self._jobs[who or RunId("")]
        if kind == "arrive":
            self._world.waiting[run.job.id] = run
            self._policy.submitted(run, self._world)
        elif run.version != version:
            return  # it changed after this was foreseen
        elif kind == "end":
            self._end(run)
        else:
            self._suspended(run)
        self._due(self._world.now)

    def _end(self, run: Run) -> None:
        self._world.account(run)
        del self._world.running[run.job.id]
        self._world.hold(run, ())
        run.finished_at = self._world.now
        run.version += 1
        self._ended += 1
        self._policy.ended(run, self._world)
        self._told(self._ended)

    def _suspended(self, run: Run) -> None:
        world = self._world
        world.account(run)
        del world.running[run.job.id]
        world.hold(run, ())
        run.suspending = False
        run.waits_since = world.now
        world.waiting[run.job.id] = run
        # In order of submission, wherever it was before.
        world.waiting = dict(sorted(world.waiting.items(), key=lambda item: item[1].job.submitted_s))
        self._policy.suspended(run, world)

    # -- what is decided -------------------------------------------------------------------------------------------

    def _due(self, at: float) -> None:
        """Ask the policy then, or when it may be asked again."""
        at = max(at, self._asked_at + self._policy.pause_s)
        if at < self._ask_due:
            self._ask_due = at
            if at > self._world.now:
                self._push(at, "ask")

    def _ask(self) -> None:
        self._ask_due, self._asked_at = float("inf"), self._world.now
        self.outcome.decisions += 1
        for action in list(self._policy.decide(self._world)):
            self._carry_out(action)
        if (again := self._policy.again_at(self._world)) is not None:
            self._due(max(again, self._world.now + 1e-6))

    def _carry_out(self, action: Action) -> None:
        world = self._world
        match action:
            case Start():
                run = world.waiting.pop(action.run)
                self._check_size(run, len(action.nodes))
                run.queued_s += world.now - run.waits_since
                run.started_at = world.now if run.started_at is None else run.started_at
                run.granted_at = run.since = world.now
                world.running[run.job.id] = run
                self._hold(run, action, Spent.STARTING, self._costs.start_s)
            case Resize():
                run = world.running[action.run]
                self._check_size(run, len(action.nodes))
                world.account(run)
                cost = self._costs.grow_s if Counter(action.nodes) - Counter(run.nodes) else self._costs.shrink_s
                run.resizes += 1
                if action.disturbs:
                    run.disturbed = (*run.disturbed, world.now)
                self._hold(run, action, Spent.RESHARDING, cost)
            case Suspend():
                self._suspend(world.running[action.run])

    def _check_size(self, run: Run, workers: int) -> None:
        if workers not in run.job.sizes:
            raise InternalError(f"{self._policy.name} gives {run.job.id} {workers} workers, legal are {run.job.sizes}")

    def _hold(self, run: Run, action: Start | Resize, busy: Spent, cost_s: float) -> None:
        world = self._world
        world.hold(run, action.nodes)
        # A change while another lasts begins when that is over.
        run.busy = run.busy if run.busy_until > world.now else busy
        run.busy_until = max(run.busy_until, world.now) + cost_s
        run.changed_at = world.now
        run.version += 1
        self._push(run.ends_at, "end", run.job.id, run.version)
        self._policy.changed(run, world)

    def _suspend(self, run: Run) -> None:
        world = self._world
        world.account(run)
        run.suspending = True
        run.suspensions += 1
        run.disturbed = (*run.disturbed, world.now)
        run.busy, run.busy_until = Spent.CHECKPOINTING, world.now + self._costs.suspend_s
        run.checkpoint_at = run.busy_until
        run.version += 1
        self._push(run.busy_until, "suspended", run.job.id, run.version)

    def _sample(self) -> None:
        samples, world = self.outcome.samples, self._world
        if samples and world.now < samples[-1].at + self._sample_every:
            return
        held = world.cluster.devices - world.free_devices
        point = Sample(at=world.now, held=held, running=len(world.running), waiting=len(world.waiting))
        samples.append(point)


def _worth(job: Job, cluster: Cluster) -> float:
    return job.workers * alone_s(job, REFERENCE, cluster) / job.samples if REFERENCE in job.model.speeds else 0.0
