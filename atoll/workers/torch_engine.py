"""One step on one member, as a transaction (laws 2 to 4).

    open        clear gradients, record what an abort restores
    grains      each from the same buffers and its own random numbers; the last one's backward reduces (torch_reducer)
    commit      write what was fed, vote, and - if every member voted - let the update happen (at the first
                `optimizer.step`, else at the end of the body)
    close       acknowledge in the background
    boundary    the program asks for the next step: begin a checkpoint if one is due

When the epoch ends, whatever waits returns; the body drains, and the next place where Atoll owns the stack raises
`Retry`. A member that voted and has not learnt the outcome keeps its gradients and asks `resolve` (the regroup): either
the update happens on the very spot, or the step is rolled back and tried again. User code sees nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from atoll.clock import SystemClock
from atoll.errors import AtollError, BatchError, NonFiniteError, UserError
from atoll.fault.inject import failpoint
from atoll.schema.spec import SKIP
from atoll.workers import reports
from atoll.workers.ballots import ballot
from atoll.workers.busy_runtime import FIRST_STEP
from atoll.workers.outcome_runtime import Outcome
from atoll.workers.peers import Comm, completed
from atoll.workers.torch_grains import BEFORE_LOOP, Buffers, seed_all
from atoll.workers.torch_parts import Lost, Parts, fed_of, refuse_spoilt
from atoll.workers.torch_reducer import Reducer, told_of_leavers
from atoll.workers.torch_step import Retry, Step
from atoll.workers.transaction import StepEvent, StepState, Transaction


class Engine:
    """Runs the steps of one trainer. `resolve(step)` regroups and settles a step in doubt."""

    def __init__(self, parts: Parts, device: torch.device, resolve: Callable[[Step], None]) -> None:
        self.device = device
        self.seed = parts.plan.seed
        self._parts = parts
        self._link = parts.link
        self._resolve = resolve
        self._trainable = parts.managed.trainable()
        self._reducer = self._reducing()
        self._end_watch = parts.managed.watch()
        self._buffers = Buffers(parts.managed.modules)
        self._clock = SystemClock()
        self._step: Step | None = None
        self._tried_by: Comm | None = None
        self._tries = (0, 0)
        self._updates = 0
        self._updating = self._moved = False

    def _reducing(self) -> Reducer:
        sharded = self._parts.sharded
        return Reducer(self._parts.managed.reduced_parameters()) if sharded is None else sharded.reducer()

    def renew(self) -> None:
        """The managed objects are others than before, and hold the run's state."""
        self.shut()
        self._reducer, self._trainable = self._reducing(), self._parts.managed.trainable()
        self._end_watch = self._parts.managed.watch()
        self._buffers = Buffers(self._parts.managed.modules)
        self._parts.managed.record()

    def update_now(self, step: Step, sums: reports.Sums) -> None:
        """A step in doubt is to be applied, and the model will be another when its optimizer's call would return."""
        self.commit_as(step, StepEvent.APPLY, sums)
        if self._updating and not step.skipped:
            self._parts.saving.before_update()
            self._parts.managed.update_all()
        self._moved = True

    def make(self, grains: range, padding: int = 0) -> Step:
        """The next step to try, with this member's grains. What the program changes from here on belongs to it."""
        self._parts.managed.record()
        number = self._parts.standing.committed + 1
        if self._parts.sharded is not None:
            self._parts.sharded.make_step(number - 1)
        last, tries = self._tries
        self._tries = (number, tries + 1 if last == number else 1)
        return Step(
            self,
            transaction=Transaction(step=number, epoch=self._link.comm.epoch),
            attempt=self._tries[1] - 1,
            grains=grains,
            padding=padding,
            again=number <= self._parts.standing.shown,
            began=self._clock.monotonic(),
        )

    def shut(self) -> None:
        """Take hooks off the user's parameters."""
        self._end_watch()
        self._reducer.close()

    # -- called by the step --------------------------------------------------------------------------------------------

    def open(self, step: Step) -> None:
        """Step entry."""
        self._step = step
        failpoint("step-entry")
        self._follow_freezing()
        self._tried_by = self._link.comm
        self._reducer.open(self._link.comm)
        self._buffers.record()
        self._moved = False
        if self._parts.sharded is not None:
            self._parts.sharded.begin_step(self._parts.standing.committed)
        seed_all(self.seed, step.index, BEFORE_LOOP)

    def _follow_freezing(self) -> None:
        """The program may freeze, thaw or add parameters between steps."""
        trainable = self._parts.managed.trainable()
        if trainable != self._trainable:
            self._reducer.clear()
            self._reducer.close()
            self._reducer = self._reducing()
            self._trainable = trainable

    def begin_grain(self, step: Step, grain: int) -> Any:
        """The batch, with the generators seeded for it."""
        if not self._link.joined:
            raise Retry
        real = grain if grain >= 0 else step.stand_in
        ids, batch = self._parts.loader.fetch(step.index, real)
        if grain >= 0:
            step.fed[grain] = ids
        seed_all(self.seed, step.index, real)
        return batch

    def end_grain(self, step: Step, grain: int) -> None:
        """Collect what the grain did to module buffers."""
        if grain < 0:
            self._buffers.drop_grain()
        elif not step.reduction_over:
            self._buffers.end_grain(step.weight_of(grain))

    def suffices(self, step: Step) -> bool:
        """Whether the others suffice, so that what this member has not finished is left out."""
        return not step.reduction_over and self._parts.backups.suffices(step.index)

    def leave_out(self, step: Step, grain: int) -> None:
        """The micro-batch in hand does not count, and none after it: give what there is."""
        self._buffers.drop_grain()
        del step.fed[grain]
        self.arm(step)
        self.reduce(step)

    def before_backward(self, step: Step) -> None:
        """Gradients are about to be added to, or to be final."""
        refuse_spoilt(step)
        if self._reducer.touched:
            raise UserError(
                f"step {step.index}: gradients were changed between two micro-batches; zero_grad is Atoll's, clipping "
                "belongs after `for batch in step:`"
            )

    def after_backward(self) -> None:
        """More gradients will be added."""
        self._reducer.note()

    def arm(self, step: Step) -> None:
        """What follows is this rank's last backward of the step."""
        if self._parts.managed.trainable() != self._trainable:
            raise UserError(
                f"step {step.index}: requires_grad or the optimizer's groups changed inside `with step:`; change them "
                "before it"
            )
        self._reducer.measures = self._parts.backups.measures
        left_out = len(step.grains) - len(step.fed)
        flags = self._buffers.flags()
        self._reducer.arm(weight=step.weight, bad_losses=step.bad_losses, flags=flags, left_out=left_out)

    def reduce(self, step: Step) -> None:
        """Complete the reductions; without a result when the epoch ended."""
        step.reduction_over = True
        self._parts.backups.arrived(step.index)
        reduced = self._reducer.finish()
        step.compute_s = self._reducer.entered_s - step.began
        if reduced is None:
            return
        changes = self._buffers.changes(reduced.flags)
        if changes:
            if not self._reducer.sum(changes):
                return
            self._buffers.merge(reduced.flags, changes, reduced.weight)
        step.reduced = reduced

    def close(self, step: Step, error: BaseException | None) -> bool:
        """The body has ended. True (swallow the error) when the step is to be tried again."""
        try:
            swallow = self._close(step, error)
        except BaseException as raised:
            step.problem = raised
            raise
        finally:
            self._step = None
        if error is not None and not swallow:
            step.problem = error
        return swallow

    def boundary(self, step: Step) -> None:
        """The program has come round to the next step, or left the loop: what it did after `with step:` counts, too."""
        if not step.entered:
            raise UserError(f"step {step.index} was not entered; write `with step:` in the loop over ctx.steps")
        refuse_spoilt(step)
        saving = self._parts.saving
        if not step.transaction.committed or step.index > self._parts.standing.committed:
            self._parts.managed.put_back()
            self._buffers.rollback()
            return
        self._parts.managed.passed()
        self._parts.replicas.boundary(step.index, learning=self._parts.classroom.studying)
        if saving.is_due(step.index, step.transaction.epoch):
            # By its step's own members, who all name it alike, even where a regroup decided the step.
            comm = self._tried_by or self._link.comm
            sharded = self._parts.sharded
            holding = sharded.holding if sharded is not None else None
            saving.save(self._parts.managed, self._parts.plan, comm, step=step.index, holding=holding)

    def leave(self) -> None:
        """No step follows here. Once all members said so nobody needs anybody, so a loss then changes nothing."""
        comm = self._link.comm
        self._reducer.open(comm)
        left = self._reducer.leave(len(self._buffers))
        if left is not None and left < comm.size:
            raise UserError(told_of_leavers(left, comm.size))

    def _close(self, step: Step, error: BaseException | None) -> bool:
        foreign = isinstance(error, Exception) and not isinstance(error, AtollError)
        if foreign and not step.transaction.committed and not self._link.joined:
            # Gradients of an epoch that ended are this rank's own: what the body makes of them is no verdict on it.
            error = Retry()
            if self._parts.sharded is not None:
                self._parts.sharded.tainted = (
                    True  # an exception inside fully_shard leaves it in the middle of something
                )
        spared = foreign and not isinstance(error, Retry) and self._parts.classroom.studying
        if spared:
            self._without_the_body(step)
            error = None
        if error is None:
            try:
                self.commit(step)
            except Retry as retry:
                error = retry
        if isinstance(error, Retry) and step.transaction.committed:
            if step.index <= self._parts.standing.committed:
                self._acknowledge(step)
            return True
        if isinstance(error, Retry):
            self.abandon(step)
            self._parts.saving.before_update()  # as in `update`, which this step did not come to
            self._parts.managed.set_aside()
            return True
        if error is None:
            self._acknowledge(step)
        return spared

    def _without_the_body(self, step: Step) -> None:
        """The program does not bear a step without micro-batches. The others need this member's zeros all the same."""
        self._parts.classroom.spoil()
        if not step.reduction_over:
            self.arm(step)
            self.reduce(step)

    # -- commit and abort ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def update(self, optimizer: Optimizer) -> Iterator[bool]:
        """Around an optimizer's own step: commit first; what fails inside cannot be undone. False: leave it out."""
        step = self._step
        if step is None:
            raise UserError("optimizer.step belongs inside `with step:`")
        if self._parts.sharded is not None:
            self._parts.sharded.check_update(optimizer, again=step.transaction.committed)
        self._updating = True
        try:
            self.commit(step)
        finally:
            self._updating = False
        # Averages of the weights follow in the program's own code, whether the optimizer's update is left out or not.
        self._parts.saving.before_update()
        if step.skipped or self._parts.classroom.withholds(optimizer, step.index):
            yield False
            return
        failpoint("in-update")
        try:
            yield True
        except Exception as error:
            # An optimizer that never worked is the program's fault, and the same on all ranks.
            if self._updates == 0:
                raise
            raise Lost(f"step {step.index} was committed, but its update failed: {error}") from error
        self._updates += 1
        failpoint("after-update")

    def commit(self, step: Step) -> None:
        """Vote. Returns when the step is committed, raises `Retry` when it is not."""
        if step.transaction.committed:
            return
        refuse_spoilt(step)
        if not step.reduction_over:
            raise UserError(f"step {step.index}: run `for batch in step:` to its end before optimizer.step()")
        if step.reduced is None:
            raise Retry
        self._refuse(step)
        self._parts.account.write(fed_of(step, self._parts.plan))
        updating = self._updating and not step.skipped
        if self._parts.sharded is not None and not self._parts.sharded.prepare(step.index, updating=updating):
            raise Retry
        failpoint("before-vote")
        step.after(StepEvent.CAST)
        work = self._link.comm.all_gather(self._ballot(step))
        passed = self._reducer.awaited(work)
        step.wait_s = self._reducer.waited_s
        failpoint("after-vote")
        if passed:
            ballots = [json.loads(b) for b in work.result]
            self._parts.classroom.heard(ballots)
            self._parts.saving.heard(step.transaction.epoch, step.index, ballots)
            learners = self._parts.classroom.learners
            self._parts.replicas.heard(step.index, step.transaction.epoch, ballots, learners)
            step.backup = self._parts.backups.told(step.reduced.left_out if step.reduced is not None else 0)
            self._parts.backups.heard(step.index, ballots, step.reduced.norm if step.reduced is not None else math.nan)
            standing = self._parts.standing
            standing.stopping = standing.stopping or any(b["stop"] for b in ballots)
            if any(b.get("suspend") for b in ballots):
                standing.suspending = True
                self._parts.saving.request()
            self.commit_as(step, StepEvent.PASSED, reports.merge(b["sums"] for b in ballots))
            return
        step.after(StepEvent.EPOCH_ENDED)
        self._resolve(step)
        if self._moved or not step.transaction.committed:
            raise Retry

    def _ballot(self, step: Step) -> bytes:
        stop = self._parts.host.mailbox.stop
        return ballot(
            step.take_reports(),
            skipped=step.skipped,
            stop=stop is not None,
            suspend=stop is not None and stop.suspend,
            learnt=self._parts.classroom.learnt,
            compare=self._parts.replicas.willing,
            given=self._parts.backups.given(len(step.fed), step.weight, self._reducer.square),
            every=self._parts.saving.proposal(self._link.comm, step.index),
        )

    def commit_as(self, step: Step, event: StepEvent, sums: reports.Sums) -> None:
        """The step is committed, by its vote or by the regroup."""
        step.after(event)
        step.ended = self._clock.monotonic()
        self._parts.announcements.end(FIRST_STEP)
        step.voted = sums
        standing = self._parts.standing
        standing.committed, standing.sums = step.index, sums
        self._buffers.commit()
        if self._parts.sharded is not None:
            self._parts.sharded.committed(step.index, step.transaction.epoch)

    def abandon(self, step: Step) -> None:
        """Put everything back as it was at the step's entry."""
        if step.transaction.state is StepState.COMPUTING:
            step.after(StepEvent.EPOCH_ENDED)
        elif step.transaction.state is StepState.IN_DOUBT:
            step.after(StepEvent.DISCARD)
        self._parts.managed.rollback()
        self._buffers.rollback()
        self._reducer.clear()

    def _refuse(self, step: Step) -> None:
        """Every rank reads the same sums, so all refuse alike, before any vote, and say so together."""
        problem = self._problem(step)
        if isinstance(problem, NonFiniteError) and self._parts.host.identity.spec.nonfinite == SKIP:
            step.skipped = True
            self._buffers.rollback()
        elif problem is not None:
            # Whoever left first would look lost to the others, who would then wait for members instead of failing.
            completed(self._link.comm.all_gather(b"refused"))
            raise problem

    def _problem(self, step: Step) -> AtollError | None:
        reduced = step.reduced
        if reduced is None:
            return None
        if not self._parts.managed.tolerates_nonfinite and (reduced.bad_losses or not reduced.finite):
            many = f"the loss of {reduced.bad_losses} of {self._parts.plan.grains} micro-batches"
            return NonFiniteError(
                f"step {step.index}: {many if reduced.bad_losses else 'a gradient'} is NaN or infinite; the step was not "
                "committed. Lower the learning rate, clip gradients, manage a GradScaler, or go on without it: nonfinite='skip'"
            )
        if reduced.weight == 0:
            return BatchError(f"step {step.index}: no micro-batch had a weight above 0; call step.backward for each")
        return None

    def _acknowledge(self, step: Step) -> None:
        failpoint("before-ack")
        left_out = step.reduced.left_out if step.reduced is not None else 0
        outcome = Outcome(
            step=step.index,
            epoch=step.transaction.epoch,
            attempt=step.attempt,
            seconds=step.ended - step.began,
            samples=self._parts.plan.global_batch - left_out * self._parts.plan.micro_batch,
            grains=len(step.fed),
            compute_s=step.compute_s,
            wait_s=step.wait_s,
            voted=step.voted,
            late=step.take_reports(),
            grad_norm=step.reduced.norm if step.reduced is not None else 0.0,
            calls=step.calls,
            again=step.again,
            backup=step.backup,
            sync_bytes=self._reducer.sync_bytes,
        )
        self._parts.outcomes.add(outcome, self._link.comm)
        failpoint("after-ack")
