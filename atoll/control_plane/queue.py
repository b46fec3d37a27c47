"""The queue: who enters it, who is refused at once, and what the arbiter's decisions become.

Whenever room, runs or queues changed, each second while somebody waits or may grow, and each minute while somebody may
move, the arbiter is asked with a snapshot of the cluster (`snapshots`). Its decisions are carried out as records with
its reasons: runs start in seats of their nodes, grow into others, give up seats, or leave all of them at a checkpoint.
A run that the cluster can never hold is refused when it is submitted; one that it could hold before, and cannot any
more since nodes went, waits for nodes.

Runs that lost a worker with its node get a seat as room appears, before others grow; spares are given out only when nobody
waits. Both keep within the same laws (`rooms`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.answers import problem
from atoll.control_plane.arbiter.core import decide
from atoll.control_plane.arbiter.decisions import Decisions, Grow, Move, Shrink, Start, Suspend
from atoll.control_plane.arbiter.reasons import Leaves, Never
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import QueuesAsked, RunAsked
from atoll.control_plane.leaving import shunned
from atoll.control_plane.offers import offered_nodes
from atoll.control_plane.resizing import give_up, resize
from atoll.control_plane.rooms import seats_for
from atoll.control_plane.settle import settle
from atoll.control_plane.snapshots import ask, seats_by_part, snapshot
from atoll.control_plane.state import Run
from atoll.control_plane.suspending import suspend
from atoll.control_plane.usage import LOOK_S, account
from atoll.errors import AtollError, CapacityError, ClusterError, SpecError
from atoll.schema.ids import NodeId, SeatId
from atoll.schema.queues import check_sharing
from atoll.schema.spec import JobKind, JobSpec, check_spec
from atoll.schema.views import RunState

# Waits, budgets and hysteresis are of seconds; one decision of a large cluster takes half of one.
DECIDE_S = 1.0
# Beyond that, where nobody waits or may grow: for a better place the links and the others must have changed.
MOVES_S = 60.0


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
    never = refusal(desk, event.spec) if desk.offering() else None
    return CapacityError(f"{never.words()}; ask for fewer or smaller workers") if never is not None else None


def refusal(desk: Desk, spec: JobSpec) -> Never | None:
    """Why the cluster, or its queue, can never hold such a run; None where it can."""
    wish = ask(spec, now=desk.now)
    seen = snapshot(desk)
    # A node that is drained may be taken back: that it takes nobody now is no reason for ever.
    nodes = tuple(dataclasses.replace(node, drained=False) for node in seen.nodes)
    empty = dataclasses.replace(seen, asks=(wish,), grants=(), nodes=(*nodes, *offered_nodes(desk)))
    return next((refuse.reason for refuse in decide(empty).refusals if refuse.run == wish.run), None)


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


# -- decisions -------------------------------------------------------------------------------------------------------


def tick(desk: Desk) -> None:
    """Ask again where time alone may change the answer."""
    if (desk.clock >= desk.decide_at and _anything_to_decide(desk)) or (
        desk.clock >= desk.decide_at + MOVES_S and _may_move(desk)
    ):
        desk.room_changed = True
    elif desk.clock >= desk.accounted_at:
        desk.accounted_at = desk.clock + LOOK_S
        account(desk)


def schedule(desk: Desk) -> None:
    """Have the arbiter decide, and do what it says."""
    desk.room_changed, desk.decide_at = False, desk.clock + DECIDE_S
    if not desk.closing and desk.offering() and (_anything_to_decide(desk) or _may_move(desk)):
        account(desk)
        decisions = decide(snapshot(desk))
        carry_out(desk, decisions)
    waiting = any(run.state is RunState.QUEUED and not run.held for run in desk.cluster.open_runs())
    for run in desk.cluster.open_runs():
        _top_up(desk, run, spares=not waiting)


def _anything_to_decide(desk: Desk) -> bool:
    return any(
        (run.state is RunState.QUEUED and not run.held) or (run.state is not RunState.QUEUED and _may_grow(run))
        for run in desk.cluster.open_runs()
    )


def _may_grow(run: Run) -> bool:
    return run.spec.elastic and run.size < run.most and run.state is RunState.RUNNING


def _may_move(desk: Desk) -> bool:
    """Whether anybody could have a better place; who waits or may grow is asked about more often anyway."""
    return len(desk.nodes) > 1 and any(
        run.state is RunState.RUNNING and run.spec.kind is JobKind.TRAIN for run in desk.cluster.open_runs()
    )


def carry_out(desk: Desk, decisions: Decisions) -> None:
    """Make the decisions true, one after another, as records with their reasons."""
    for start in decisions.starts:
        _start(desk, start)
    for shrink in decisions.shrinks:
        _shrink(desk, shrink)
    for wish in decisions.suspends:
        _suspend(desk, wish)
    for grow in decisions.grows:
        _grow(desk, grow)
    for move in decisions.moves:
        _move(desk, move)
    for hold in decisions.holds:
        _tell(desk, desk.cluster.runs[hold.run], hold.reason.words())
    for refuse in decisions.refusals:
        _tell(desk, desk.cluster.runs[refuse.run], f"{refuse.reason.words()}; it waits for nodes to come")
    desk.decided = decisions


def _start(desk: Desk, start: Start) -> None:
    run = desk.cluster.runs[start.run]
    _take(desk, run, [*start.nodes, *start.spares])
    size = len(start.nodes)
    desk.record(r.RunPlaced(run=run.run, at=desk.now, reason=start.reason.words(), option=start.option, workers=size))
    settle(desk, run)


def _shrink(desk: Desk, shrink: Shrink) -> None:
    run = desk.cluster.runs[shrink.run]
    seats = _given_up(run, shrink)
    give_up(desk, run, shrink.to, seats, shrink.reason.words())


def _given_up(run: Run, shrink: Shrink) -> tuple[SeatId, ...]:
    """The seats behind the nodes that are given up: of workers from the highest rank down, of spares as they come."""
    workers, spares = seats_by_part(run)
    return _seats_on(run, workers[::-1], shrink.gives) + _seats_on(run, spares, shrink.spares)


def _seats_on(run: Run, seats: Iterable[SeatId], nodes: Iterable[NodeId]) -> tuple[SeatId, ...]:
    """The first of `seats` on these nodes, one for each time that a node is named."""
    wanted, found = Counter(nodes), []
    for seat in seats:
        node = run.seats[seat].node
        if wanted[node] > 0:
            wanted[node] -= 1
            found.append(seat)
    return tuple(found)


def _suspend(desk: Desk, wish: Suspend) -> None:
    suspend(desk, desk.cluster.runs[wish.run], wish.reason.words())


def _grow(desk: Desk, grow: Grow) -> None:
    run = desk.cluster.runs[grow.run]
    if run.state is not RunState.RUNNING or run.finished():
        return
    # The arbiter knows nothing of nodes where this run was slow or lost workers: it grows by the others.
    shuns, before = shunned(desk, run), grow.to - len(grow.adds)
    adds = [node for node in grow.adds if node not in shuns]
    to = max((size for size in run.spec.sizes() if size <= before + len(adds)), default=before)
    if to > before:
        _take(desk, run, adds[: to - before])
        resize(desk, run, to, grow.reason.words())


def _move(desk: Desk, move: Move) -> None:
    run = desk.cluster.runs[move.run]
    # Who leaves a drained node is replaced by `_top_up`, wherever there is room at once.
    if isinstance(move.reason, Leaves) or run.state is not RunState.RUNNING or run.finished():
        return
    if not shunned(desk, run).isdisjoint(move.takes):
        return
    workers, _ = seats_by_part(run)
    leaving = _seats_on(run, workers[::-1], move.gives)
    _take(desk, run, move.takes)
    desk.record(r.RunMoved(run=run.run, leaving=leaving, reason=move.reason.words(), at=desk.now))
    settle(desk, run)


def _tell(desk: Desk, run: Run, reason: str) -> None:
    if run.state is RunState.QUEUED and run.reason != reason:
        run.reason = reason
        desk.touch(run)


# -- seats -----------------------------------------------------------------------------------------------------------


def _take(desk: Desk, run: Run, nodes: Iterable[NodeId]) -> None:
    for node in nodes:
        seat = SeatId(f"{run.run}-s{run.seats_made}")
        desk.record(r.SeatTaken(run=run.run, seat=seat, node=node, at=desk.now))


def _top_up(desk: Desk, run: Run, *, spares: bool) -> None:
    lacking = run.lacking(desk.cluster.drains) - (0 if spares else run.spec.spares)
    if run.state not in {RunState.PLACED, RunState.RUNNING} or run.finished() or lacking <= 0:
        return
    nodes = seats_for(desk, run, lacking)
    if nodes:
        _take(desk, run, nodes)
        settle(desk, run)
