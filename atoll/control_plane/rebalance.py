"""Speeds of members at the core's desk: slow workers become lines of the story, shares change where that pays.

What pays is decided by `atoll.fault.balance` from what `atoll.fault.speeds` measured; here it becomes an epoch. Nothing
of this is journaled but the weights of the epoch: a new control plane measures again.
"""

from __future__ import annotations

from typing import assert_never

from atoll.control_plane import records as r
from atoll.control_plane.desk import Desk
from atoll.control_plane.leaving import AVOID_S, leaves
from atoll.control_plane.settle import end_trainer, regroup, settle
from atoll.control_plane.snapshots import measure
from atoll.control_plane.state import Run, Trainer
from atoll.fault import balance
from atoll.fault.speeds import ENOUGH, LONG, WINDOW, Restored, SlowWorker, Spent
from atoll.schema.ids import TrainerId
from atoll.schema.messages import StepCommitted
from atoll.schema.views import RunState


def committed(desk: Desk, run: Run, trainer: Trainer, fact: StepCommitted) -> None:
    """A member tells of a step: whoever is slow is named, and what follows is done."""
    speeds = run.speeds
    if speeds.epoch != run.epoch:
        speeds.regrouped(run.epoch, run.member_ids())
    if fact.epoch != run.epoch or run.state is not RunState.RUNNING:
        return
    before = speeds.step
    spent = Spent(grains=fact.grains, compute_s=fact.compute_s, wait_s=fact.wait_s, step_s=fact.step_s)
    for verdict in speeds.committed(trainer.trainer, fact.step, spent):
        match verdict:
            case SlowWorker():
                desk.note(run.run, verdict.trainer, "slow-worker", verdict.evidence)
            case Restored():
                desk.note(run.run, verdict.trainer, "keeps-up", verdict.evidence)
            case _:
                assert_never(verdict)
    if speeds.step > before:
        measure(desk, run)
        if not run.finished():
            _balance(desk, run)


def _balance(desk: Desk, run: Run) -> None:
    speeds = run.speeds
    gone = _eviction(desk, run)
    if gone is not None:
        _evict(desk, run, gone)
        return
    # Where somebody was named the last steps have spoken already; else many must.
    rows, enough = (speeds.rows[-WINDOW:], ENOUGH) if speeds.spoken else (speeds.rows, LONG)
    due = run.rhythm.allows(speeds.step, speeds.turned_at)
    split = balance.resplit(rows, speeds.paces, enough) if due else None
    if split is not None:
        run.rhythm.took(speeds.step)
        regroup(desk, run, str(split), split)


def _eviction(desk: Desk, run: Run) -> balance.Evict | None:
    speeds = run.speeds
    for slow in speeds.slow.values():
        found = balance.eviction(
            slow=slow, step=speeds.step, grains=speeds.grains, paces=speeds.paces, spare=_spare(desk, run, slow.trainer)
        )
        if found is not None:
            return found
    return None


def _spare(desk: Desk, run: Run, slow: TrainerId) -> tuple[TrainerId, float] | None:
    """Who would take the place of a slow member, at which pace: on its own node, likely at its own."""
    members, paces = run.member_ids(), run.speeds.paces
    ready = [t for t in run.active() if t.ready and t.trainer not in members and not leaves(desk, run, t)]
    if not ready:
        return None
    node = run.trainers[slow].node
    spare = min(ready, key=lambda t: t.node == node)
    others = balance.completed([t for t in members if t != slow] + [spare.trainer], paces)
    return spare.trainer, paces[slow] if spare.node == node else others[spare.trainer]


def _evict(desk: Desk, run: Run, gone: balance.Evict) -> None:
    trainer = run.trainers[gone.trainer]
    beside = [m for m in run.members if m.node == trainer.node and m.trainer not in run.speeds.slow]
    if not beside:
        # Nobody of this run is fast there: the host is slow, and so would be the next one.
        run.avoided[trainer.node] = desk.clock + AVOID_S
    end_trainer(desk, run, trainer, r.End.EVICTED, str(gone))
    desk.room_changed = True
    settle(desk, run)
