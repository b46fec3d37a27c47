"""What came of a simulation, in figures.

Job completion times (JCT, from submission to end) and delays are of the jobs that came after the warm-up. Three measures
are of the loaded window, from the end of the warm-up to the last arrival:

- *utilisation*: useful device-seconds over all there are, in the unit of load: what was asked for (workers x seconds on the
  reference device), as far as it was delivered, over all devices, each by its mean speed against the reference. Who
  delivers all that comes reaches the load; devices that are given out and gain little add little.
- *busy*: the time that devices spend on their own samples, neither waiting for slower mates nor for sums.
- *held*: the time that somebody held them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.simulate.engine import Outcome
from atoll.simulate.laws import REFERENCE, capacity
from atoll.simulate.progress import alone_s
from atoll.simulate.world import Run, Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMeasures:
    """Of one queue. `slowdown`: mean of JCT over what the job would take on the reference device as asked, unqueued."""

    jobs: int
    mean_jct_s: float
    slowdown: float
    device_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Of one policy. `fairness`: Jain's index over the queues' slowdowns, 1 where all are served alike."""

    policy: str
    jobs: int
    mean_jct_s: float
    median_jct_s: float
    p95_jct_s: float
    mean_delay_s: float
    p95_delay_s: float
    makespan_s: float
    utilisation: float
    busy: float
    held: float
    preemptions: int
    resizes: int
    fairness: float
    queues: dict[str, QueueMeasures]
    ledger: dict[str, dict[str, float]]
    decisions: int


def measured(outcome: Outcome) -> Measures:
    """The figures of one simulation."""
    late = [run for run in outcome.runs if run.job.submitted_s >= outcome.window[0]]
    jcts = [_jct(run) for run in late]
    delays = [run.queued_s for run in late]
    queues = {name: _queue(outcome, name, late) for name in sorted({run.job.queue for run in late})}
    return Measures(
        policy=outcome.policy,
        jobs=len(late),
        mean_jct_s=statistics.fmean(jcts),
        median_jct_s=statistics.median(jcts),
        p95_jct_s=quantile(jcts, 0.95),
        mean_delay_s=statistics.fmean(delays),
        p95_delay_s=quantile(delays, 0.95),
        makespan_s=outcome.ended_at - outcome.runs[0].job.submitted_s,
        utilisation=_delivered(outcome),
        busy=_share(outcome, [Spent.USEFUL]),
        held=_share(outcome, [kind for kind in Spent if kind is not Spent.IDLE]),
        preemptions=sum(run.suspensions for run in outcome.runs),
        resizes=sum(run.resizes for run in outcome.runs),
        fairness=jain([q.slowdown for q in queues.values()]),
        queues=queues,
        ledger=ledger(outcome),
        decisions=outcome.decisions,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so many of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def jain(values: Iterable[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    found = list(values)
    return sum(found) ** 2 / (len(found) * sum(v * v for v in found))


def ledger(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Where the device-seconds of the window went: shares of each device type's own, by what."""
    (begun, _), (ended, _) = outcome.marks
    span = outcome.window[1] - outcome.window[0]
    found = {device: dict.fromkeys(Spent, 0.0) for device in outcome.cluster.of_type()}
    for (_, device, kind), seconds in ended.items():
        found[device][kind] += seconds
    for (_, device, kind), seconds in begun.items():
        found[device][kind] -= seconds
    for device, count in outcome.cluster.of_type().items():
        row = found[device]
        for kind in Spent:
            row[kind] /= span * count
        row[Spent.IDLE] = 1 - sum(share for kind, share in row.items() if kind is not Spent.IDLE)
    return {device: {str(kind): share for kind, share in row.items()} for device, row in found.items()}


def _share(outcome: Outcome, kinds: Iterable[Spent]) -> float:
    (begun, _), (ended, _) = outcome.marks
    span = outcome.window[1] - outcome.window[0]
    wanted = set(kinds)
    seconds = sum(s for (_, _, kind), s in ended.items() if kind in wanted)
    seconds -= sum(s for (_, _, kind), s in begun.items() if kind in wanted)
    return seconds / (span * outcome.cluster.devices)


def _delivered(outcome: Outcome) -> float:
    (_, begun), (_, ended) = outcome.marks
    models = sorted({run.job.model.name: run.job.model for run in outcome.runs}.items())
    span = outcome.window[1] - outcome.window[0]
    return (ended - begun) / (span * capacity([model for _, model in models], outcome.cluster))


def _queue(outcome: Outcome, name: str, runs: Sequence[Run]) -> QueueMeasures:
    own = [run for run in runs if run.job.queue == name]
    return QueueMeasures(
        jobs=len(own),
        mean_jct_s=statistics.fmean(_jct(run) for run in own),
        slowdown=statistics.fmean(_jct(run) / alone_s(run.job, REFERENCE, outcome.cluster) for run in own),
        device_hours=sum(run.device_s for run in own) / 3600,
    )


def _jct(run: Run) -> float:
    if run.finished_at is None:
        raise ValueError(f"{run.job.id} did not end")
    return run.finished_at - run.job.submitted_s
