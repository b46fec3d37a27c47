"""Which steps are saved, where the run chooses: agreed with the votes, so that all members save the same ones.

Every member measures, since any may come to be rank 0; rank 0 proposes with its vote. What is heard with the vote of a
step holds for later steps of the same epoch: whoever tries one has heard the votes before it. So the first step of an
epoch is never saved, and one that a regroup decides is saved by all of its members or by none.
"""

from __future__ import annotations

from atoll.checkpoint.interval import Choice, Meter, choose
from atoll.schema.spec import AUTO


class Pacing:
    """The interval of one run, as one member knows it."""

    def __init__(self, every: int | str) -> None:
        self.chooses = every == AUTO
        self._fixed = 0 if isinstance(every, str) else every
        self._meter = Meter()
        self._current = 0
        # (epoch, step, interval) as heard; the step before the newest may be the last that all have heard of.
        self._heard: list[tuple[int, int, int]] = []
        self._boundary_at: float | None = None

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether `step`, tried in `epoch`, is to be saved."""
        every = self._fixed if not self.chooses else self._agreed(step, epoch)
        return every > 0 and step % every == 0

    def propose(self) -> Choice | None:
        """Rank 0 is about to vote: the interval to go over to, where it should change."""
        observed = self._meter.observed()
        found = choose(observed, self._current) if self.chooses and observed is not None else None
        if found is not None:
            self._current = found.every
        return found

    @property
    def current(self) -> int:
        """What rank 0 says with its vote; 0: nothing yet."""
        return self._current

    def heard(self, epoch: int, step: int, every: int) -> None:
        """Rank 0 voted for `step` in `epoch` and said `every`."""
        self._current = every
        self._heard = [*self._heard[-1:], (epoch, step, every)]

    def passed(self, now: float, *, saving: bool) -> None:
        """A step's boundary; `saving`: a save was under way since the one before."""
        if self._boundary_at is not None:
            self._meter.step(now - self._boundary_at, saving=saving)
        self._boundary_at = now

    def regrouped(self, lost: int) -> None:
        """The members changed, and `lost` of them are no more. The time that this took is no step's."""
        self._meter.lost(lost)
        self._boundary_at = None

    def saved(self, seconds: float) -> None:
        """A save ended after `seconds`."""
        self._meter.saved(seconds)

    def _agreed(self, step: int, epoch: int) -> int:
        known = [every for heard_epoch, heard, every in self._heard if heard_epoch == epoch and heard < step]
        return known[-1] if known else 0
