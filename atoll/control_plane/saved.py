"""What trainers say of their checkpoints: which are durable, how their copies stand, how often they are made.

A failed save never stops training unless the job says how many in a row may fail (`checkpoint_failures`). A save counts
once, however many trainers tell of it, and not at all where the step is durable: what failed then is what came behind it.
"""

from __future__ import annotations

import dataclasses
from typing import assert_never

from atoll.control_plane import effects as fx
from atoll.control_plane import records as r
from atoll.control_plane.copies import decision
from atoll.control_plane.desk import Desk
from atoll.control_plane.settle import begin_stop
from atoll.control_plane.state import Run, SaveFailures, Trainer
from atoll.errors import CheckpointError
from atoll.schema import messages as m
from atoll.schema.checkpoints import Tier, TierState, TierView
from atoll.schema.views import CheckpointView, RunState

# Copies of older steps than these say nothing any more: an upload takes a few intervals at most.
_REMEMBERED = 16
# What people need not read a line about: it shows on the checkpoint itself.
_QUIET = {TierState.COPYING, TierState.GONE}

Said = (
    m.CheckpointCommitted
    | m.CheckpointFailed
    | m.CheckpointCopied
    | m.CheckpointIntervalChosen
    | m.CopyProposed
    | m.CopyWithdrawn
)


def said(desk: Desk, run: Run, trainer: Trainer, fact: Said) -> None:
    """Take one fact."""
    match fact:
        case m.CheckpointFailed():
            desk.note(run.run, run.run, "checkpoint-failed", f"step {fact.step}: {fact.problem}")
            _failed(desk, run, fact)
        case m.CheckpointIntervalChosen():
            desk.note(run.run, run.run, "checkpoint-interval", f"from step {fact.step} on {fact.reason}")
        case m.CheckpointCommitted():
            _committed(desk, run, fact)
        case m.CheckpointCopied():
            _copied(desk, run, fact)
        case m.CopyProposed():
            _proposed(desk, run, trainer, fact)
        case m.CopyWithdrawn():
            if fact.record not in run.withdrawn.get(fact.step, ()):
                desk.record(r.CopyWithdrawn(run=run.run, step=fact.step, record=fact.record, at=desk.now))
        case _:
            assert_never(fact)


def _failed(desk: Desk, run: Run, fact: m.CheckpointFailed) -> None:
    known = run.failures
    if fact.step in known.last or fact.step in run.copies or any(kept.step == fact.step for kept in run.kept):
        return
    last = (*known.last, fact.step)[-_REMEMBERED:]
    run.failures = SaveFailures(ever=known.ever + 1, row=known.row + 1, last=last)
    reason = too_many(run.failures.row, run.spec.checkpoint_failures, fact)
    if reason:
        begin_stop(desk, run, RunState.FAILED, reason, CheckpointError.exit_code)


def too_many(row: int, most: int | None, last: m.CheckpointFailed) -> str:
    """Why a run stops of which `row` saves failed, the last one so; empty where it goes on."""
    if most is None or row <= most:
        return ""
    saves = "save" if row == 1 else "saves in a row"
    return f"{row} {saves} failed (checkpoint_failures={most}), the last at step {last.step}: {last.problem}"


def _committed(desk: Desk, run: Run, fact: m.CheckpointCommitted) -> None:
    last = run.checkpoint
    if last is not None and (last.epoch, last.step) >= (fact.epoch, fact.step):
        return
    if last is not None and last.step >= fact.step:
        # A later epoch went on from an older step, since those after it were damaged: they are set aside.
        run.saved = None
        run.copies = {step: view for step, view in run.copies.items() if step < fact.step}
    run.failures = SaveFailures(ever=run.failures.ever)
    desk.record(r.CheckpointKept(run=run.run, step=fact.step, path=fact.path, at=desk.now, epoch=fact.epoch))
    view = CheckpointView(
        run=run.run,
        step=fact.step,
        path=fact.path,
        bytes=fact.bytes,
        seconds=fact.seconds,
        at=desk.now,
        tiers=(TierView(tier=Tier.LOCAL, state=TierState.WHOLE, detail=fact.path),),
    )
    _show(desk, run, view)


def _copied(desk: Desk, run: Run, fact: m.CheckpointCopied) -> None:
    known = run.copies.get(fact.step)
    light = TierView(tier=fact.tier, state=fact.state, detail=fact.detail)
    if fact.state not in _QUIET and (known is None or light not in known.tiers):
        words = {TierState.DAMAGED: "checkpoint-damaged", TierState.FAILED: "checkpoint-copy-failed"}
        kind = words.get(fact.state, "checkpoint-copied")
        desk.note(run.run, run.run, kind, f"step {fact.step}, {fact.tier}: {fact.detail or fact.state}")
    if known is not None:
        others = [each for each in known.tiers if each.tier is not fact.tier]
        tiers = tuple(sorted([*others, light], key=lambda each: list(Tier).index(each.tier)))
        _show(desk, run, dataclasses.replace(known, tiers=tiers))


def _proposed(desk: Desk, run: Run, trainer: Trainer, fact: m.CopyProposed) -> None:
    """Object stores decide nothing exclusively, so it is done here: the first proposal counts, and whoever asks is told."""
    if fact.step not in run.copied and fact.record not in run.withdrawn.get(fact.step, ()):
        desk.record(r.CopyDecided(run=run.run, step=fact.step, record=fact.record, at=desk.now))
    # Durable before anyone is told (law 8): effects are carried out once the records are.
    desk.tell(trainer, decision(run, fact.step))


def _show(desk: Desk, run: Run, view: CheckpointView) -> None:
    run.copies[view.step] = view
    for old in sorted(run.copies)[:-_REMEMBERED]:
        del run.copies[old]
    if run.saved is None or view.step >= run.saved.step:
        run.saved = view
    desk.do(fx.ShowCheckpoint(view=view))
