"""Who leaves: trainers on drained nodes, and those whose seats a smaller run gives up; and which nodes a run shuns.

Pure questions about the core's state; what follows from the answers is in `settle` (who goes) and `queue` (where to).
"""

from __future__ import annotations

from atoll.control_plane.desk import Desk
from atoll.control_plane.state import Run, Trainer
from atoll.schema.ids import NodeId
from atoll.schema.spec import JobKind
from atoll.schema.views import DrainView

# A new epoch, the kill and its proof take well under a second; three leave room for a busy host.
HURRY_S = 3.0
# A host that was throttled may have recovered by then; trying again costs one more eviction.
AVOID_S = 600.0


def shunned(desk: Desk, run: Run) -> set[NodeId]:
    """Nodes where the run gets no seat now."""
    return {*desk.cluster.drains, *(node for node, until in run.avoided.items() if desk.clock < until)}


def on_drained(desk: Desk, trainer: Trainer) -> bool:
    """Whether the trainer is to leave its node."""
    return trainer.node in desk.cluster.drains


def gives_up(run: Run, trainer: Trainer) -> bool:
    """Whether the trainer is to leave its seat now, since the run was made smaller."""
    seat = run.seats.get(trainer.seat)
    return seat is not None and seat.leaving and not seat.replaced


def moves(run: Run, trainer: Trainer) -> bool:
    """Whether the trainer is to leave its seat once somebody has taken its place elsewhere."""
    seat = run.seats.get(trainer.seat)
    return seat is not None and seat.leaving and seat.replaced


def leaves(desk: Desk, run: Run, trainer: Trainer) -> bool:
    """Whether the trainer is to go, for whichever reason."""
    return on_drained(desk, trainer) or gives_up(run, trainer) or moves(run, trainer)


def why_leaves(desk: Desk, run: Run, trainer: Trainer) -> str:
    """The reason in words, for one that leaves."""
    if on_drained(desk, trainer):
        return f"{trainer.node} is drained: {desk.cluster.drains[trainer.node].reason}"
    if moves(run, trainer):
        return "the run moved to other nodes"
    return f"the run goes on with {run.size} worker{'s' * (run.size != 1)}"


def hurried(desk: Desk, run: Run) -> bool:
    """Whether a member must leave its node now, replaced or not. By the wall's clock: that is when the node goes."""
    drains = desk.cluster.drains
    return any(desk.now >= drains[m.node].until - HURRY_S for m in run.members if m.node in drains)


def still_needed(desk: Desk, run: Run, trainer: Trainer) -> bool:
    """Whether a trainer that is to leave has work until somebody else can take it."""
    if run.spec.kind is JobKind.TRAIN:
        return trainer.trainer in run.member_ids()
    if not on_drained(desk, trainer):
        return False
    others = [t for t in run.active() if not on_drained(desk, t)]
    serving = sum(1 for t in others if t.server is not None)
    empty = any(s.node not in desk.cluster.drains and run.tenant(s.seat) is None for s in run.seats.values())
    soon = empty or any(t.server is None for t in others)
    late = desk.now >= desk.cluster.drains[trainer.node].until - HURRY_S
    return trainer.server is not None and serving < run.spec.workers and soon and not late


def drain_view(desk: Desk, node: NodeId) -> DrainView | None:
    """How far the drain of a node is; None where there is none."""
    drain = desk.cluster.drains.get(node)
    if drain is None:
        return None
    return DrainView(until=drain.until, reason=drain.reason, trainers=remaining(desk, node), left=drain.left)


def remaining(desk: Desk, node: NodeId) -> int:
    """Processes of runs that are, or may be, on the node."""
    return sum(1 for run in desk.cluster.open_runs() for t in run.trainers.values() if t.node == node and not t.gone)
