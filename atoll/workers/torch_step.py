"""One step as the training function sees it: `with step:`, `for batch in step:`, `step.backward`, `step.report`.

The object only keeps what belongs to one try of the step; what has to do with peers is the engine's.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

import torch

from atoll.errors import BatchError, DeviceError, UserError
from atoll.fault.backup import Told
from atoll.fault.inject import failpoint
from atoll.workers.reports import Sums, add
from atoll.workers.torch_grains import AFTER_LOOP, seed_all
from atoll.workers.torch_reducer import Reduced
from atoll.workers.transaction import StepEvent, Transaction

if TYPE_CHECKING:
    from atoll.workers.torch_engine import Engine


class Retry(BaseException):
    """The step is tried again. Raised only where Atoll owns the stack (law 3), swallowed by `with step`."""


class Step:
    """One try of one step. `index` counts from 1; the same index comes again if the members change meanwhile."""

    def __init__(
        self,
        engine: Engine,
        *,
        transaction: Transaction,
        attempt: int,
        grains: range,
        began: float,
        padding: int = 0,
        again: bool = False,
    ) -> None:
        self.index = transaction.step
        self.attempt = attempt
        # The step was committed before and may have been shown; all went back behind it since.
        self.again = again
        self.transaction = transaction
        self.grains = grains
        # Passes for company: where a model is sharded all ranks call it equally often. They have weight 0 and numbers
        # below 0, and see `stand_in`'s batch.
        self.passes = (*grains, *range(-1, -1 - padding, -1))
        self.stand_in = grains[-1] if grains else 0
        self.began = began
        self.ended = began
        self.compute_s, self.wait_s = 0.0, 0.0
        # The rows of each micro-batch that counts, so far.
        self.fed: dict[int, tuple[int, ...]] = {}
        self.bad_losses = 0
        self.calls: list[Callable[[], None]] = []
        self.reduced: Reduced | None = None
        self.reduction_over = False
        self.entered = False
        # Committed without an update, since a loss or gradient was not finite.
        self.skipped = False
        self.backup: Told | None = None
        self.voted: Sums = {}
        # What went wrong here, to be said again should the program go on as if it had not.
        self.problem: BaseException | None = None
        self._engine = engine
        self._weights: dict[int, float] = {}
        self._grain: int | None = None
        self._looped = False
        self._reports: list[tuple[str, Any, int | None]] = []

    def __repr__(self) -> str:
        return f"<step {self.index} of epoch {self.transaction.epoch}, {self.transaction.state}>"

    def __enter__(self) -> Self:
        """Begin: gradients are cleared, and what an abort restores is recorded."""
        self.entered = True
        self._engine.open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> bool:
        """End: commit, unless `optimizer.step` did. True (swallow) when the step is to be tried again."""
        return self._engine.close(self, error)

    def __iter__(self) -> Iterator[Any]:
        """This rank's micro-batches; none, if there are fewer than ranks."""
        if not self.entered or self._looped:
            raise UserError("iterate a step once, inside `with step:`")
        self._looped = True
        for grain in self.passes:
            # What a program uses after the loop is bound in its body, so that one micro-batch comes in any case.
            if self._grain is not None and self._engine.suffices(self):
                break
            batch = self._engine.begin_grain(self, grain)
            self._grain = grain
            yield batch
            self._engine.end_grain(self, grain)
            if self.reduction_over:
                break
        self._grain = None
        if not self.reduction_over:
            self._engine.before_backward(self)
            self._engine.arm(self)
            self._engine.reduce(self)
        seed_all(self._engine.seed, self.index, AFTER_LOOP)

    def backward(self, loss: torch.Tensor, weight: float | torch.Tensor = 1.0) -> None:
        """Add this micro-batch's gradients, counted `weight` times; once for each micro-batch.

        The step's gradient is sum(weight * gradient) / sum(weight) over all micro-batches of all ranks. With
        `weight=tokens` and a loss that is the mean over tokens, padded and unequal batches come out exact. When the last
        one returns, `.grad` is final.
        """
        grain = self._check(loss)
        amount = float(weight)
        if not math.isfinite(amount) or amount < 0:
            raise BatchError(f"step {self.index}: weight={amount}; use a finite number of 0 or more")
        self._engine.before_backward(self)
        amount = amount if grain >= 0 else 0.0
        self._weights[grain] = amount
        if self._engine.suffices(self):
            self._weights[grain] = 0.0
            self._engine.leave_out(self, grain)
            return
        if grain >= 0 and not bool(torch.isfinite(loss.detach())):
            self.bad_losses += 1
        last = grain == self.passes[-1]
        if last:
            self._engine.arm(self)
        failpoint("before-backward")
        try:
            (loss if amount == 1.0 else loss * amount).backward()  # type: ignore[no-untyped-call]
        except BaseException as error:
            self.problem = error
            raise
        failpoint("after-backward")
        if last:
            self._engine.end_grain(self, grain)
            self._engine.reduce(self)
        else:
            self._engine.after_backward()

    def report(self, **values: float | torch.Tensor) -> None:
        """Show these with the step, once it is committed everywhere, as means over all micro-batches of all ranks.

        Inside the batch loop a value counts with its micro-batch's weight, outside with those of all of this rank's.
        """
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise UserError(f"step.report wants numbers, {name} has shape {tuple(value.shape)}; report its mean")
            plain = value.detach() if isinstance(value, torch.Tensor) else value
            self._reports.append((name, plain, self._grain))

    def on_commit(self, call: Callable[[], None]) -> None:
        """Run `call` once the step is known to be committed on all members; never for a try that was given up.

        Where a loss led back to an earlier step (`copy_every`), the steps since are done again and their calls come
        again, with `step.again` true.
        """
        self.calls.append(call)

    @property
    def weight(self) -> float:
        """The summed weight of this rank's micro-batches so far."""
        return sum(self._weights.values())

    def weight_of(self, grain: int) -> float:
        """The weight that `backward` was given for this micro-batch; 0 if it was not called."""
        return self._weights.get(grain, 0.0)

    def after(self, event: StepEvent) -> None:
        """Move the transaction on."""
        self.transaction = self.transaction.after(event)

    def take_reports(self) -> Sums:
        """The weighted sums of what was reported since the last call."""
        sums: Sums = {}
        for name, value, grain in self._reports:
            add(sums, name, float(value), self.weight if grain is None else self.weight_of(grain))
        self._reports.clear()
        return sums

    def _check(self, loss: torch.Tensor) -> int:
        if self._grain is None:
            raise UserError("step.backward belongs inside `for batch in step:`")
        if self._grain in self._weights:
            raise UserError("step.backward was called twice for one micro-batch; add the losses and call it once")
        if loss.numel() != 1:
            raise UserError(f"step.backward wants one number, got a loss of shape {tuple(loss.shape)}; take its mean")
        device = self._engine.device
        if loss.device.type != device.type:
            raise DeviceError(
                f"the loss is on {loss.device}, but this worker computes on {device}; move model and batch with "
                ".to(ctx.device)"
            )
        return self._grain
