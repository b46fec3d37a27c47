"""`atoll plan` and `atoll why`: the arbiter asked again, on a snapshot of the cluster as it is, with nothing carried out.

A plan is the very decision that would be made if the job were submitted now; beside those who wait already, in their
order. Why a run waits is what stands against each of its alternatives at this moment, in the arbiter's own words.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from atoll.control_plane.arbiter.core import decide, shares
from atoll.control_plane.arbiter.decisions import Decisions, Shrink, Start, Suspend
from atoll.control_plane.arbiter.model import Ask, Snapshot
from atoll.control_plane.arbiter.reasons import Held, Rejected
from atoll.control_plane.desk import Desk
from atoll.control_plane.offers import OFFERED, offered_nodes
from atoll.control_plane.queue import refusal
from atoll.control_plane.snapshots import ask, snapshot
from atoll.control_plane.state import Run
from atoll.errors import SpecError
from atoll.schema.ids import RunId
from atoll.schema.sharing_views import PlanView, QueueView, RejectedView, WhyView, YieldView
from atoll.schema.spec import JobSpec, check_spec
from atoll.schema.views import RunState

# No run can be called so: a safe name has no such sign.
PLANNED = RunId("(this job)")


def plan(desk: Desk, spec: JobSpec) -> PlanView:
    """What would become of the job now. Raises `SpecError` for one that would not be taken at all."""
    check_spec(spec)
    queues = [queue.name for queue in desk.cluster.sharing.queue]
    if spec.queue not in queues:
        raise SpecError(f"queue={spec.queue!r}: there is no such queue; the cluster has {', '.join(queues)}")
    never = refusal(desk, spec)
    if never is not None:
        return PlanView(verdict="never", reason=never.words(), queue=spec.queue, wanted=spec.workers)
    seen = snapshot(desk)
    wish = dataclasses.replace(ask(spec, now=desk.now), run=PLANNED)
    decisions = decide(dataclasses.replace(seen, asks=(*seen.asks, wish)))
    start = next((s for s in decisions.starts if s.run == PLANNED), None)
    if start is not None:
        return _starts(desk, spec, start)
    return _with_machines(desk, seen, wish, _waits(spec, decisions))


def _with_machines(desk: Desk, seen: Snapshot, wish: Ask, view: PlanView) -> PlanView:
    """The view with the machines on offer that the job would be placed on if all of them stood, and what is foretold of it."""
    nodes = offered_nodes(desk)
    if not nodes:
        return view
    offered = {node.node: node.kind.name for node in nodes}
    larger = dataclasses.replace(seen, nodes=(*seen.nodes, *nodes), asks=(*seen.asks, wish))
    start = next((s for s in decide(larger).starts if s.run == PLANNED), None)
    if start is None:
        return view
    used = {*start.nodes, *start.spares}
    return dataclasses.replace(
        view,
        workers=len(start.nodes),
        option=start.reason.option,
        to_start=dict(Counter(offered[node].removeprefix(OFFERED) for node in sorted(used) if node in offered)),
        step_s=start.reason.step_s,
        samples_per_s=start.reason.samples_per_s,
        price_per_hour=start.reason.price_per_hour,
    )


def _starts(desk: Desk, spec: JobSpec, start: Start) -> PlanView:
    why = start.reason
    return PlanView(
        verdict="starts",
        reason=why.words(),
        queue=spec.queue,
        workers=len(start.nodes),
        wanted=spec.workers,
        option=why.option,
        nodes=start.nodes,
        spares=start.spares,
        rejected=_rejected(why.rejected),
        starts_at=desk.now,
        step_s=why.step_s,
        samples_per_s=why.samples_per_s,
        price_per_hour=why.price_per_hour,
    )


def _waits(spec: JobSpec, decisions: Decisions) -> PlanView:
    held = _held(decisions, PLANNED)
    if held is None:
        # Only nodes that may yet come can hold it.
        lacks = " ".join(refuse.reason.words() for refuse in decisions.refusals if refuse.run == PLANNED)
        return PlanView(verdict="waits", reason=lacks, queue=spec.queue, wanted=spec.workers)
    return PlanView(
        verdict="waits",
        reason=held.words(),
        queue=spec.queue,
        wanted=spec.workers,
        yields=_yields(decisions, PLANNED),
        rejected=_rejected(held.rejected),
        position=held.position,
        waiting=held.waiting,
        starts_at=held.earliest,
    )


def why(desk: Desk, run: Run) -> WhyView:
    """Why the run waits, or stands as it does."""
    decisions = decide(snapshot(desk)) if run.state is RunState.QUEUED and not run.held else None
    held = _held(decisions, run.run) if decisions is not None else None
    view = WhyView(
        run=run.run,
        state=run.state,
        queue=run.spec.queue,
        priority=run.spec.priority,
        reason=_standing(run),
        workers=len(run.members),
        wanted=run.size,
        held=run.held,
    )
    if held is None or decisions is None:
        return view
    return dataclasses.replace(
        view,
        reason=held.words(),
        position=held.position,
        waiting=held.waiting,
        share=held.share,
        fair_share=held.fair_share,
        starving=held.starving,
        starts_at=held.earliest,
        rejected=_rejected(held.rejected),
        yields=_yields(decisions, run.run),
    )


def _standing(run: Run) -> str:
    if run.held and run.state is RunState.QUEUED:
        return f"held until somebody resumes it: {run.reason}"
    told = [f"placed: {run.placed_reason}"] if run.placed_reason and run.state is not RunState.QUEUED else []
    size = [f"resized: {run.size_reason}"] if run.size_reason else []
    return "; ".join([*told, *size, run.reason])


def _held(decisions: Decisions, run: RunId) -> Held | None:
    return next((hold.reason for hold in decisions.holds if hold.run == run), None)


def _yields(decisions: Decisions, run: RunId) -> tuple[YieldView, ...]:
    wishes: tuple[Shrink | Suspend, ...] = (*decisions.shrinks, *decisions.suspends)
    return tuple(
        YieldView(run=w.run, before=w.reason.before, after=w.reason.after, reason=w.reason.words())
        for w in wishes
        if w.reason.run == run
    )


def _rejected(found: tuple[Rejected, ...]) -> tuple[RejectedView, ...]:
    return tuple(RejectedView(option=r.option, kind=r.obstacle.kind, reason=r.obstacle.words()) for r in found)


def queues(desk: Desk) -> tuple[QueueView, ...]:
    """All queues, as they stand."""
    sharing = desk.cluster.sharing
    told = {share.queue: share for share in shares(snapshot(desk))}
    runs = desk.cluster.open_runs()
    found = []
    for wish in sharing.queue:
        share = told.get(wish.name)
        here = [run for run in runs if run.spec.queue == wish.name]
        waiting = sum(1 for run in here if run.state is RunState.QUEUED)
        found.append(
            QueueView(
                name=wish.name,
                weight=wish.weight,
                cohort=wish.cohort,
                share=share.now if share is not None else 0.0,
                lately=share.lately if share is not None else 0.0,
                fair_share=share.fair if share is not None else 0.0,
                running=len(here) - waiting,
                waiting=waiting,
                quotas=tuple(f"{q.flavor}: {q.cpus:g} CPU, {q.gpus:g} GPU" for q in wish.quota),
            )
        )
    return tuple(found)
