"""First come, first placed: who enters the queue, who is refused at once, and who leaves it for seats.

Strictly in order of submission: a small run does not overtake a large one, which would starve. A run that the cluster
can never hold is refused when it is submitted. Once nobody waits, runs that were placed with fewer spares than they
asked for, or lost a node, get seats as room appears.
"""

from __future__ import annotations

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import QueuesAsked, RunAsked
from atoll.control_plane.leaving import shunned
from atoll.control_plane.placement import place, refusal, wanted
from atoll.control_plane.settle import settle
from atoll.control_plane.state import Run
from atoll.errors import AtollError, CapacityError, ClusterError, SpecError
from atoll.schema.ids import NodeId, SeatId
from atoll.schema.queues import check_sharing
from atoll.schema.spec import check_spec
from atoll.schema.views import ProblemView, RunState


def problem(error: AtollError, remedy: str = "") -> ProblemView:
    """An error as an answer."""
    return ProblemView(code=error.code, problem=str(error), remedy=remedy)


def asked(desk: Desk, event: RunAsked) -> None:
    """Take a job into the queue, or refuse it with the reason."""
    known = desk.cluster.runs.get(event.run)
    if known is not None and known.spec == event.spec:
        desk.do(fx.Reply(request=event.request, value={"run": event.run}))
        return
    error = _objection(desk, event, known)
    if error is not None:
        desk.do(fx.Reply(request=event.request, problem=problem(error)))
        return
    desk.record(r.RunSubmitted(run=event.run, spec=event.spec, run_dir=event.run_dir, secret=event.secret, at=desk.now))
    desk.cluster.runs[event.run].beat_at = desk.clock
    desk.room_changed = True
    desk.do(fx.Reply(request=event.request, value={"run": event.run}))


def _objection(desk: Desk, event: RunAsked, known: Run | None) -> AtollError | None:
    if desk.closing:
        return ClusterError("the cluster is going down; start it again with `atoll up`")
    if known is not None:
        return SpecError(f"run_id={event.run!r} is taken by another job; choose another or leave it out")
    try:
        check_spec(event.spec)
    except SpecError as error:
        return error
    queues = [queue.name for queue in desk.cluster.sharing.queue]
    if event.spec.queue not in queues:
        return SpecError(f"queue={event.spec.queue!r}: there is no such queue; the cluster has {', '.join(queues)}")
    # While Ray starts anew there is no node at all for a moment: that is no reason to refuse.
    rooms = desk.rooms()
    reason = refusal(event.spec, rooms) if rooms else None
    return CapacityError(reason) if reason is not None else None


def queues_set(desk: Desk, event: QueuesAsked) -> None:
    """Share the cluster otherwise from now on; runs in a queue that is gone wait until it is back."""
    try:
        check_sharing(event.sharing)
    except SpecError as error:
        desk.do(fx.Reply(request=event.request, problem=problem(error)))
        return
    if event.sharing != desk.cluster.sharing:
        desk.record(r.QueuesSet(sharing=event.sharing, by=event.by, at=desk.now))
        desk.room_changed = True
    desk.do(fx.Reply(request=event.request, value={"queues": [queue.name for queue in event.sharing.queue]}))


def schedule(desk: Desk) -> None:
    """Give seats to those who wait, in order, as far as there is room."""
    desk.room_changed = False
    waiting = [run for run in desk.cluster.open_runs() if run.state is RunState.QUEUED and not run.held]
    for run in waiting:
        nodes = place(run.spec, desk.rooms(), least=run.spec.workers, most=run.spec.seats())
        if nodes is None:
            _wait(desk, waiting)
            return
        _take(desk, run, nodes)
        desk.record(r.RunPlaced(run=run.run, at=desk.now))
        settle(desk, run)
    for run in desk.cluster.open_runs():
        _top_up(desk, run)


def _take(desk: Desk, run: Run, nodes: list[NodeId]) -> None:
    for node in nodes:
        seat = SeatId(f"{run.run}-s{run.seats_made}")
        desk.record(r.SeatTaken(run=run.run, seat=seat, node=node, at=desk.now))


def _wait(desk: Desk, waiting: list[Run]) -> None:
    for place_in_line, run in enumerate(waiting):
        ahead = f"behind {place_in_line} other run{'s' * (place_in_line > 1)}" if place_in_line else "next in line"
        reason = f"waiting for room for {wanted(run.spec)}, {ahead}"
        if run.state is RunState.QUEUED and run.reason != reason:
            run.reason = reason
            desk.touch(run)


def _top_up(desk: Desk, run: Run) -> None:
    lacking = run.lacking(desk.cluster.drains)
    if run.state not in {RunState.PLACED, RunState.RUNNING} or run.finished() or lacking <= 0:
        return
    shuns = shunned(desk, run)
    nodes = place(run.spec, [room for room in desk.rooms() if room.node not in shuns], least=1, most=lacking)
    if nodes:
        _take(desk, run, nodes)
        settle(desk, run)
