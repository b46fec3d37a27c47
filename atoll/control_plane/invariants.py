"""What must hold after every event, as code; tests and scenarios check it after each.

A broken one is a bug of the core, never of its input.
"""

from __future__ import annotations

from collections.abc import Iterator

from atoll.control_plane import effects as fx
from atoll.control_plane.desk import Desk
from atoll.control_plane.records import EpochRaised, SeatTaken
from atoll.control_plane.rooms import Quotas, selected
from atoll.control_plane.state import Cluster, Run
from atoll.schema.messages import Membership, TellTrainer
from atoll.schema.spec import JobKind
from atoll.schema.views import RunState


def broken(cluster: Cluster) -> list[str]:
    """What does not hold, in words; empty where all is well."""
    problems = [problem for run in cluster.runs.values() for problem in _run(run)]
    if cluster.open_runs() != [run for run in cluster.runs.values() if not run.state.ended]:
        problems.append(f"open runs are said to be {[run.run for run in cluster.open_runs()]}")
    return problems


def _run(run: Run) -> Iterator[str]:
    ranks = [m.rank for m in run.members]
    if ranks != list(range(len(ranks))):
        yield f"{run.run}: ranks {ranks} are not 0..n-1"
    if len(set(run.member_ids())) != len(run.members):
        yield f"{run.run}: a trainer is a member twice"
    if unknown := [t for t in run.member_ids() if t not in run.trainers]:
        yield f"{run.run}: members {unknown} were never assigned"
    # One more while the only holder of the state, on a drained node, hands it over.
    if len(run.members) > max(run.spec.workers, 2):
        yield f"{run.run}: {len(run.members)} members, more than the {run.spec.workers} workers asked for"
    if run.state.ended and run.seats:
        yield f"{run.run}: ended, and still holds {sorted(run.seats)}"
    if run.state is RunState.RUNNING and run.spec.kind is JobKind.TRAIN and run.epoch < 1:
        yield f"{run.run}: running without an epoch"
    yield from _seats(run)


def _seats(run: Run) -> Iterator[str]:
    for seat in run.seats:
        tenants = [t.trainer for t in run.trainers.values() if t.seat == seat and not (t.ended and t.gone)]
        if len(tenants) > 1:
            yield f"{run.run}: {seat} holds {tenants}"


def taken_beyond(effects: list[fx.Effect], desk: Desk) -> list[str]:
    """Seats that were taken now against the quota of their queue, or on nodes that the run's placement does not select."""
    taken = [x for e in effects if isinstance(e, fx.Persist) for x in e.records if isinstance(x, SeatTaken)]
    problems, quotas = [], Quotas(desk) if taken else None
    for seat in taken:
        run = desk.cluster.runs[seat.run]
        if not selected(desk, run, seat.node):
            problems.append(f"{seat.seat} is on {seat.node}, which the run's placement does not select")
        if quotas is not None and quotas.exceeded(run, quotas.flavor(seat.node) or ""):
            problems.append(f"{seat.seat} on {seat.node} is more than queue {run.spec.queue} may hold")
    return problems


def told_before_durable(effects: list[fx.Effect], cluster: Cluster) -> list[str]:
    """Effects that tell of what the same list does not persist first."""
    problems = []
    if any(isinstance(e, fx.Persist) for e in effects[1:]):
        problems.append("Persist is not the first effect")
    first = effects[0] if effects else None
    fresh = first.records if isinstance(first, fx.Persist) else ()
    raised = {(e.run, e.epoch) for e in fresh if isinstance(e, EpochRaised)}
    for effect in effects:
        if isinstance(effect, fx.Send) and isinstance(effect.command, TellTrainer):
            told = effect.command.command
            known = isinstance(told, Membership) and (
                (told.run, told.epoch) in raised or told.epoch <= cluster.runs[told.run].epoch
            )
            if isinstance(told, Membership) and not known:
                problems.append(f"epoch {told.epoch} of {told.run} is told and not journaled")
    return problems
