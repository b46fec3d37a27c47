"""Sending a run back into the queue, and letting it out again.

Its members are told to save at the next step boundary and leave; once all are proven gone and the seats are free it waits,
and goes on from that checkpoint in new seats. Who has not left by the deadline is ended, and the run goes on from its last
durable checkpoint. Whoever was suspended by a person is held until a person resumes it; whoever had to yield waits in line.
"""

from __future__ import annotations

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.answers import problem
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import ResumeAsked, SuspendAsked
from atoll.control_plane.settle import begin_stop, settle
from atoll.control_plane.state import Run
from atoll.errors import AtollError, NotFoundError, SpecError
from atoll.schema.spec import JobKind
from atoll.schema.views import RunState

GOES_ON = frozenset({RunState.PLACED, RunState.RUNNING})


def suspend(desk: Desk, run: Run, reason: str, *, held: bool = False) -> None:
    """Have `run` save and leave its seats. `held`: it waits until somebody resumes it."""
    begin_stop(desk, run, RunState.QUEUED, reason, 0, held=held)
    settle(desk, run)


def asked(desk: Desk, event: SuspendAsked) -> None:
    """Somebody wants a run to leave its seats for now."""
    run = desk.cluster.runs.get(event.run)
    error = _unknown(event.run) if run is None else _objection(run)
    if run is None or error is not None:
        desk.do(fx.Reply(request=event.request, problem=problem(error or _unknown(event.run))))
        return
    if run.state is RunState.QUEUED:
        desk.record(r.RunHeld(run=run.run, held=True, reason=event.reason, at=desk.now))
    else:
        suspend(desk, run, event.reason, held=True)
    desk.do(fx.Reply(request=event.request, value={"run": run.run, "state": run.state.value}))


def resumed(desk: Desk, event: ResumeAsked) -> None:
    """Somebody wants a run that was suspended to wait for seats again."""
    run = desk.cluster.runs.get(event.run)
    error = _unknown(event.run) if run is None else None
    if run is not None and not run.held:
        error = SpecError(f"run {run.run} is {run.state}, and nobody suspended it")
    if run is None or error is not None:
        desk.do(fx.Reply(request=event.request, problem=problem(error or _unknown(event.run))))
        return
    desk.record(r.RunHeld(run=run.run, held=False, reason=event.reason, at=desk.now))
    desk.room_changed = True
    desk.do(fx.Reply(request=event.request, value={"run": run.run, "state": run.state.value}))


def _unknown(run: str) -> AtollError:
    return NotFoundError(f"no run {run!r}; `atoll ls` lists all")


def _objection(run: Run) -> AtollError | None:
    if run.spec.kind is not JobKind.TRAIN:
        return SpecError(f"run {run.run} serves a model: it has no checkpoint of its own to go on from")
    if run.state is RunState.QUEUED and not run.held:
        return None
    if run.state not in GOES_ON or run.finished():
        return SpecError(f"run {run.run} is {'held already' if run.held else run.state}: there is nothing to suspend")
    return None
