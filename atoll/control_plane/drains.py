"""Draining a node: everybody leaves it, nobody comes, and by the deadline whoever is still there is ended.

A person, a program or the node itself (a notice of its provider) asks; the wish is journaled with its deadline, so that a
new control plane carries it on. `settle` moves the runs: spares leave at once, members with the epoch that has their
replacements, at a step boundary as in every epoch. `drained` is told only when the end of each process is proven.

The deadline is the wall clock's, not the core's: a provider takes its machine whether or not this process was stalled.
Asking again never postpones it.
"""

from __future__ import annotations

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.answers import problem
from atoll.control_plane.desk import Desk
from atoll.control_plane.events import DrainAsked, UndrainAsked
from atoll.control_plane.leaving import remaining
from atoll.control_plane.queue import schedule
from atoll.control_plane.settle import end_trainer, fence, settle
from atoll.errors import AtollError, NotFoundError, SpecError
from atoll.schema.ids import NodeId
from atoll.schema.messages import NodeLeaving

# A longer one is a wish for later, which nobody should have to remember.
LONGEST_S = 7 * 86400.0


def asked(desk: Desk, event: DrainAsked) -> None:
    """Somebody wants the node empty."""
    error = _objection(desk, event)
    if error is not None:
        desk.do(fx.Reply(request=event.request, problem=problem(error)))
        return
    _begin(desk, event.node, event.within_s, event.reason)
    drain = desk.cluster.drains[event.node]
    desk.do(fx.Reply(request=event.request, value={"node": event.node, "until": drain.until}))


def noticed(desk: Desk, fact: NodeLeaving) -> None:
    """The node says that it will go. Said again each time its agent attaches; a notice that was undone stays undone."""
    if (fact.node, fact.notice) not in desk.cluster.notices:
        _begin(desk, fact.node, max(fact.left_s, 0.0), f"a notice on the node ({fact.notice})", fact.notice)


def undone(desk: Desk, event: UndrainAsked) -> None:
    """Trainers may come again."""
    if event.node not in desk.cluster.drains:
        error = NotFoundError(f"node {event.node!r} is not drained; `atoll status` shows which are")
        desk.do(fx.Reply(request=event.request, problem=problem(error)))
        return
    desk.record(r.NodeUndrained(node=event.node, at=desk.now))
    desk.room_changed = True
    desk.do(fx.Reply(request=event.request, value={"node": event.node}))


def tick(desk: Desk) -> None:
    """Hold deadlines, and tell where everybody has left."""
    for node, drain in list(desk.cluster.drains.items()):
        if drain.left:
            continue
        if desk.now >= drain.until:
            _enforce(desk, node)
        if remaining(desk, node) == 0 and not _held(desk, node):
            desk.record(r.NodeDrained(node=node, at=desk.now))
    for run in desk.cluster.open_runs():
        kept = {node: until for node, until in run.avoided.items() if desk.clock < until}
        if kept != run.avoided:
            run.avoided, desk.room_changed = kept, True


def _objection(desk: Desk, event: DrainAsked) -> AtollError | None:
    known = desk.nodes.get(event.node)
    if known is None or known.seen is None:
        names = ", ".join(n.node for n in desk.nodes.values() if n.usable)
        return NotFoundError(f"no node {event.node!r}; the cluster has {names}")
    if not 0 <= event.within_s <= LONGEST_S:
        return SpecError(f"within={event.within_s:g} s: 0 to {LONGEST_S:.0f} seconds from now")
    return None


def _begin(desk: Desk, node: NodeId, within_s: float, reason: str, notice: str = "") -> None:
    known = desk.cluster.drains.get(node)
    until = desk.now + within_s
    if known is not None and known.until <= until and (not notice or notice == known.notice):
        return
    until = until if known is None else min(until, known.until)
    desk.record(r.NodeDraining(node=node, until=until, reason=reason, at=desk.now, notice=notice))
    # Seats elsewhere first: whether to wait for replacements depends on whether any are on their way.
    schedule(desk)
    for run in desk.cluster.open_runs():
        settle(desk, run)


def _enforce(desk: Desk, node: NodeId) -> None:
    for run in desk.cluster.open_runs():
        here = [t for t in run.trainers.values() if t.node == node and not t.gone]
        for trainer in here:
            reason = f"it was still on {node} at the deadline of its drain"
            end_trainer(desk, run, trainer, r.End.LEFT, reason)
            fence(desk, run, trainer, reason)
        if here:
            settle(desk, run)


def _held(desk: Desk, node: NodeId) -> bool:
    return any(seat.node == node for run in desk.cluster.open_runs() for seat in run.seats.values())
