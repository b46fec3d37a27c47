"""Bringing one run nearer to what it should be: called after whatever happened, it decides what is still missing.

Level-triggered: it looks at the state, not at the event, so a fact said twice, or a restart half-way, leads to the same
place. In order: is the run over, which seats need a trainer, which trainers need starting, is the membership right. A
stopping run has one aim: every trainer gone, every seat free, `RunEnded`.
"""

from __future__ import annotations

import dataclasses

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.copies import decisions
from atoll.control_plane.desk import Desk
from atoll.control_plane.leaving import gives_up, hurried, leaves, moves, shunned, still_needed, why_leaves
from atoll.control_plane.network import awaits_links
from atoll.control_plane.paces import weighed
from atoll.control_plane.state import Run, Seat, Trainer
from atoll.control_plane.watching import able
from atoll.fault import balance, budgets, policy
from atoll.fault.budgets import Cause
from atoll.schema.ids import Epoch, SeatId, Step, TrainerId
from atoll.schema.messages import FenceTrainer, Rewound, StartTrainer, StopAtBoundary
from atoll.schema.spec import JobKind
from atoll.schema.views import RunState

# A step of a slow model fits; a program stuck between steps does not hold up its stop for ever.
# The step in hand, and a checkpoint after it. Who wants the seats waits no longer: what is not durable by then is lost.
SUSPEND_GRACE_S = 90.0
# A finished trainer may still be writing its last checkpoint.
FINISH_GRACE_S = 60.0
# A failed one only flushes its log, and its peers may be about to fail, too.
FAILED_GRACE_S = 3.0
FENCE_AGAIN_S = 5.0
# By then the lifeline has ended a trainer that no agent of ours can reach.
LIFELINE_S = 60.0
# A request that got no answer is sent again: within this it is the same one.
SAME_STOP_S = 1.0
SEAT_RETRY_S = 5.0
# How a member went that was not lost, in the reason of the epoch without it.
HOW = {r.End.EVICTED: "evicted", r.End.LEFT: "sent away", r.End.REWOUND: "sent back"}


def settle(desk: Desk, run: Run) -> None:
    """Decide all that can be decided for `run` now."""
    if run.state is RunState.QUEUED or run.state.ended:
        return
    if run.state is not RunState.STOPPING:
        _check_over(desk, run)
    if run.state is RunState.STOPPING:
        _leave(desk, run)
        return
    _step_aside(desk, run)
    _fence_lost(desk, run)
    _vacate(desk, run)
    _fill_seats(desk, run)
    _make_seats(desk, run)
    _start_trainers(desk, run)
    if run.spec.kind is JobKind.TRAIN:
        regroup(desk, run)


def begin_stop(desk: Desk, run: Run, goal: RunState, reason: str, exit_code: int, *, held: bool = False) -> None:
    """Set the run on its way to `goal`, once: the first reason stands. A suspension gives way to an end."""
    final = goal is not RunState.QUEUED
    if run.state.ended or (run.state is RunState.STOPPING and not (run.suspending and final)):
        return
    desk.record(
        r.RunStopping(run=run.run, goal=goal, reason=reason, exit_code=exit_code, at=desk.now, held=held),
    )
    run.stopping_at = desk.clock
    if goal in {RunState.STOPPED, RunState.QUEUED}:
        for trainer in run.active():
            tell_stop(desk, run, trainer)
    _leave(desk, run)


def stop_now(desk: Desk, run: Run) -> bool:
    """Fence what is left of a run that was asked to stop before; False where it was not, or only a moment ago."""
    stopping = run.state is RunState.STOPPING and run.stopping is not None and run.stopping.goal is RunState.STOPPED
    if not stopping or desk.clock - run.stopping_at < SAME_STOP_S:
        return False
    run.impatient = True
    _leave(desk, run)
    return True


def tell_stop(desk: Desk, run: Run, trainer: Trainer) -> None:
    """Ask a member to leave at the next step boundary."""
    if run.stopping is not None and trainer.trainer in run.member_ids():
        desk.tell(trainer, StopAtBoundary(reason=run.stopping.reason, suspend=run.suspending))


def end_trainer(desk: Desk, run: Run, trainer: Trainer, end: r.End, reason: str, cause: Cause = Cause.HARDWARE) -> None:
    """Record that the trainer has no part any more, and set when its seat may be filled again."""
    if trainer.ended is not None:
        return
    desk.record(
        r.TrainerEnded(
            run=run.run,
            trainer=trainer.trainer,
            end=end,
            was_ready=trainer.ready or trainer.trainer in run.member_ids(),
            reason=reason,
            at=desk.now,
            cause=cause,
            step=Step(run.step + 1),
        )
    )
    seat = run.seats.get(trainer.seat)
    if seat is not None and not trainer.ready:
        seat.refill_at = desk.clock + policy.backoff(run.start_failures - 1)


def free_seat(desk: Desk, run: Run, seat: SeatId) -> None:
    """Give a seat's resources back."""
    desk.record(r.SeatFreed(run=run.run, seat=seat, at=desk.now))
    desk.do(fx.KillSeat(seat=seat))
    desk.room_changed = True


# -- a run on its way ------------------------------------------------------------------------------------------------


def _check_over(desk: Desk, run: Run) -> None:
    # Whoever was named and never joined has nothing to finish: alone it would begin the run anew.
    needed = [t for t in map(run.trainers.__getitem__, run.member_ids()) if t.holds] if run.members else run.active()
    if run.finished() and not any(t.active for t in needed):
        begin_stop(desk, run, RunState.SUCCEEDED, f"finished after step {run.step}", 0)
    elif run.start_failures >= policy.START_BUDGET:
        reason = f"{run.start_failures} trainers in a row died before they were ready; {_last_words(run)}"
        begin_stop(desk, run, RunState.FAILED, reason, 2)
    elif reason := budgets.verdict(run.losses, workers=run.size):
        begin_stop(desk, run, RunState.FAILED, reason, 2)


def _last_words(run: Run) -> str:
    ends = [t.ended for t in run.trainers.values() if t.ended is not None and t.ended.end is r.End.LOST]
    last = max(ends, key=lambda e: e.at)
    return f"last {last.trainer}: {last.reason}"


def _step_aside(desk: Desk, run: Run) -> None:
    """Whoever is to leave and not needed any more goes."""
    for trainer in run.active():
        if leaves(desk, run, trainer) and not still_needed(desk, run, trainer):
            end_trainer(desk, run, trainer, r.End.LEFT, why_leaves(desk, run, trainer))


def _vacate(desk: Desk, run: Run) -> None:
    """Seats where nobody is to come give their resources back once whoever had them is proven gone."""
    nodes = shunned(desk, run)
    left = [s for s in run.seats.values() if s.leaving or s.node in nodes]
    for seat in [s.seat for s in left if run.tenant(s.seat) is None]:
        free_seat(desk, run, seat)


def _fence_lost(desk: Desk, run: Run) -> None:
    for trainer in run.trainers.values():
        if trainer.ended is not None and trainer.ended.end is not r.End.FINISHED and not trainer.gone:
            fence(desk, run, trainer, trainer.ended.reason)


def fence(desk: Desk, run: Run, trainer: Trainer, reason: str) -> None:
    """Have the process killed by its agent; said again while its end is not proven."""
    if trainer.fenced_at is not None and desk.clock - trainer.fenced_at < FENCE_AGAIN_S:
        return
    if trainer.fenced_at is None and trainer.began is None and not trainer.asked:
        _gone(desk, run, trainer, "it was never started")
        return
    trainer.fenced_at = desk.clock
    desk.send(trainer.node, FenceTrainer(run=run.run, trainer=trainer.trainer, reason=reason))


def _gone(desk: Desk, run: Run, trainer: Trainer, evidence: str) -> None:
    desk.record(r.TrainerGone(run=run.run, trainer=trainer.trainer, evidence=evidence, at=desk.now))


def _fill_seats(desk: Desk, run: Run) -> None:
    if run.finished():
        return
    for seat in list(run.seats.values()):
        if run.tenant(seat.seat) is None and desk.clock >= seat.refill_at:
            trainer = TrainerId(f"{run.run}-t{run.trainers_made}")
            desk.record(r.TrainerAssigned(run=run.run, trainer=trainer, seat=seat.seat, at=desk.now))


def _make_seats(desk: Desk, run: Run) -> None:
    for seat in run.seats.values():
        if not seat.alive and not seat.creating and desk.clock >= seat.retry_at:
            ask_seat(desk, run, seat)


def ask_seat(desk: Desk, run: Run, seat: Seat) -> None:
    """Have the seat's actor made, or found."""
    seat.creating = True
    spec = run.spec
    desk.do(
        fx.CreateSeat(
            seat=seat.seat,
            node=seat.node,
            cpus=spec.cpus_per_worker,
            gpus=spec.gpus_per_worker,
            working_dir_uri=spec.working_dir_uri,
        )
    )


def _start_trainers(desk: Desk, run: Run) -> None:
    for trainer in run.active():
        seat = run.seats.get(trainer.seat)
        node = desk.nodes.get(trainer.node)
        if seat is None or node is None or not (seat.alive and node.attached):
            continue
        if trainer.began is None and not trainer.asked:
            trainer.asked = True
            desk.send(trainer.node, _start(run, trainer, seat))


def _start(run: Run, trainer: Trainer, seat: Seat) -> StartTrainer:
    # Where survivors hold the state they hand it over; where nobody does, the last durable checkpoint is the start.
    spec = run.spec
    if run.checkpoint is not None:
        spec = dataclasses.replace(spec, resume=run.checkpoint.path)
    if seat.working_dir:
        spec = dataclasses.replace(spec, working_dir=seat.working_dir)
    return StartTrainer(
        run=run.run,
        trainer=trainer.trainer,
        seat=seat.seat,
        spec=spec,
        run_dir=run.run_dir,
        secret=run.secret,
        device_ids=seat.devices,
        rewound=Rewound(step=run.rewound.step, epoch=run.rewound.epoch) if run.rewound is not None else None,
        copies=decisions(run),
    )


# -- membership ------------------------------------------------------------------------------------------------------


def regroup(desk: Desk, run: Run, broken: str = "", split: balance.Split | None = None) -> None:
    """Raise the epoch if the members should be others, or, with `broken`, should connect anew or share as `split` says."""
    decision = policy.decide(
        epoch=run.epoch,
        members=run.members,
        standings=tuple(_standing(desk, run, t) for t in run.trainers.values()),
        wanted=run.size,
        broken=broken,
        hurry=hurried(desk, run),
    )
    if isinstance(decision, policy.Raise) and not run.members:
        awaited = awaits_links(desk, run, (m.node for m in decision.members))
        decision = policy.Hold(reason=awaited) if awaited else decision
    if isinstance(decision, policy.Raise):
        desk.record(
            r.EpochRaised(
                run=run.run,
                epoch=Epoch(run.epoch + 1),
                members=weighed(run, decision.members, split.counts if split is not None else None),
                reason=decision.reason,
                at=desk.now,
                topology=desk.probes.part({m.node for m in decision.members}),
            )
        )
        for member in run.members:
            desk.tell_membership(run, run.trainers[member.trainer])
    elif isinstance(decision, policy.Hold) and decision.reason != run.reason:
        run.reason = decision.reason
        desk.touch(run)


def _standing(desk: Desk, run: Run, trainer: Trainer) -> policy.Standing:
    # After a restart of the control plane a member's address is known from its epoch before its agent says it again.
    member = next((m for m in run.members if m.trainer == trainer.trainer), None)
    known = trainer if trainer.host or member is None else member
    return policy.Standing(
        trainer=trainer.trainer,
        node=trainer.node,
        host=known.host,
        port=known.port,
        doors=known.doors,
        active=trainer.active,
        ready=trainer.ready and able(desk, run, trainer),
        proven_gone=trainer.gone,
        finished=trainer.ended is not None and trainer.ended.end is r.End.FINISHED,
        holds=trainer.holds,
        leaving=leaves(desk, run, trainer),
        yields=gives_up(run, trainer),
        moves=moves(run, trainer),
        how=HOW.get(trainer.ended.end, "lost") if trainer.ended is not None else "lost",
    )


# -- a run on its way out --------------------------------------------------------------------------------------------


def _leave(desk: Desk, run: Run) -> None:
    if run.stopping is None:
        return
    since = desk.clock - run.stopping_at
    for trainer in list(run.trainers.values()):
        if not trainer.gone:
            _dismiss(desk, run, trainer, since)
    if all(t.gone for t in run.trainers.values()):
        for seat in list(run.seats):
            free_seat(desk, run, seat)
        _end(desk, run)
        desk.room_changed = True


def _end(desk: Desk, run: Run) -> None:
    if run.suspending and not run.finished():
        desk.record(r.RunSuspended(run=run.run, at=desk.now))
        return
    if run.suspending:
        # It came to its end before it could be suspended.
        reason, goal = f"finished after step {run.step}", RunState.SUCCEEDED
        desk.record(r.RunStopping(run=run.run, goal=goal, reason=reason, exit_code=0, at=desk.now))
    desk.record(r.RunEnded(run=run.run, at=desk.now))


def _dismiss(desk: Desk, run: Run, trainer: Trainer, since: float) -> None:
    if since < _grace(run, trainer):
        return
    reason = run.stopping.reason if run.stopping else "the run ended"
    end_trainer(desk, run, trainer, r.End.DISMISSED, reason)
    fence(desk, run, trainer, reason)
    fenced = trainer.fenced_at
    if not trainer.gone and fenced is not None and since - _grace(run, trainer) > LIFELINE_S:
        _gone(desk, run, trainer, f"no agent answered for {LIFELINE_S:.0f} s, after which its own lifeline ended it")


def _grace(run: Run, trainer: Trainer) -> float:
    if trainer.ended is not None and trainer.ended.end is not r.End.DISMISSED:
        waits = {
            r.End.FINISHED: FINISH_GRACE_S,
            r.End.SUSPENDED: FINISH_GRACE_S,
            r.End.FAILED: FAILED_GRACE_S,
        }
        return waits.get(trainer.ended.end, 0.0)
    if trainer.trainer not in run.member_ids() or run.impatient:
        return 0.0
    # Where one member meets a fault all may, and the first to say so must not cut off the last words of the others.
    waits_for = {
        RunState.STOPPED: run.spec.stop_grace_s,
        RunState.FAILED: FAILED_GRACE_S,
        RunState.QUEUED: SUSPEND_GRACE_S,
    }

    return waits_for.get(run.stopping.goal if run.stopping else RunState.STOPPED, 0.0)
