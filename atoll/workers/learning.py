"""How a joiner learns a large state while the others train (law 6): who learns, and what a learner does next.

A learner is a member without grains. At the regroup that brings it in (step s) it gets the small part of the state at
once: buffers, schedulers, hyperparameters. The holders copy the large part, each a share of it, and send it in the
background. Meanwhile the learner takes part in each step's sums with zeros, so that it hears the reduced gradients of
s+1, s+2, ..; where its program calls `optimizer.step` they are withheld: kept, as the program clipped them, with the
hyperparameters of that moment. Once the large part has arrived the withheld updates are replayed, a few between two
steps, in the time in which the others compute. With none left the learner says so with its vote, and after that step
all compare digests: equal, it is a holder like the others and gets grains; else it is given the whole state while all
wait. So it is where a program does not bear a step without micro-batches and raises: then nothing can be replayed.

The lessons end with their epoch. A learner holds no state until the digests were compared, so a regroup in between
finds it as it would find any joiner.

Not all can learn. Rank 0 is asked by programs for what the run shows, and must not do so with an unfinished model. What
changes the weights besides optimizers (averages of weights) is not replayed, so programs that manage such things stop and
copy, as do small states, where that is faster than anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# A state below this is copied over a slow link in the time of a few steps.
LEARN_ABOVE_BYTES = 64 << 20
# Withheld gradients may take this many times the memory of the state (with Adam 24 steps: a state is three times its
# parameters); then the others wait for the learner, which is no worse than to have stopped for the copy at once.
BACKLOG_TIMES = 8.0


def may_learn(*, receive: Sequence[int], teachers: Sequence[int], state_bytes: int, replayable: bool) -> bool:
    """Whether the receivers of a regroup learn beside the others' training, instead of all stopping for a copy."""
    return bool(receive) and bool(teachers) and 0 not in receive and replayable and state_bytes > LEARN_ABOVE_BYTES


def weights(given: Sequence[float], learners: frozenset[int]) -> list[float]:
    """The weights by which grains are shared out: learners own none."""
    return [0.0 if rank in learners else weight for rank, weight in enumerate(given)]


# -- what happened to a learner --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateWithheld:
    """The program asked for an update of committed `step`; its gradients of `bytes` were kept instead."""

    step: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotArrived:
    """The large part of the state of the first step is here, whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReplayed:
    """The oldest withheld update was carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyFailed:
    """The program failed in a step where it had no micro-batches: what it would have done is not known."""


Event = UpdateWithheld | SnapshotArrived | UpdateReplayed | BodyFailed


# -- what it does next ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSnapshot:
    """Fill parameters and optimizers from what arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayUpdate:
    """Carry out the oldest withheld update."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitSnapshot:
    """Wait for the rest of the snapshot, and let the others wait: there is no more room, or no further step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeStep:
    """Nothing is to be done before the next step; `learnt` where the state is the others'."""

    learnt: bool


Effect = LoadSnapshot | ReplayUpdate | AwaitSnapshot | TakeStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a learner of the state after `step` has so far. `withheld` are (step, bytes), oldest first."""

    step: int
    state_bytes: int
    arrived: bool = False
    loaded: bool = False
    withheld: tuple[tuple[int, int], ...] = ()
    replayed: int = 0
    spoilt: bool = False

    @property
    def learnt(self) -> bool:
        """Nothing is missing any more: updates need not be withheld from here on."""
        return self.spoilt or (self.loaded and not self.withheld)

    @property
    def crowded(self) -> bool:
        """No room for another step's gradients."""
        return sum(size for _, size in self.withheld) > BACKLOG_TIMES * self.state_bytes

    def after(self, event: Event) -> Lesson:
        """The lesson after `event`. Raises `ValueError` where it cannot have happened."""
        match event:
            case UpdateWithheld(step=step, bytes=size):
                last = self.withheld[-1][0] if self.withheld else max(self.step, self.replayed)
                # Several optimizers withhold for one step.
                if self.learnt or step < last or step <= self.step:
                    raise ValueError(f"an update of step {step} cannot be withheld after that of step {last}")
                return replace(self, withheld=(*self.withheld, (step, size)))
            case SnapshotArrived():
                return replace(self, arrived=True)
            case UpdateReplayed():
                if not self.loaded or not self.withheld:
                    raise ValueError("nothing to replay: the snapshot is not loaded, or no update was withheld")
                return replace(self, withheld=self.withheld[1:], replayed=self.withheld[0][0])
            case BodyFailed():
                return replace(self, spoilt=True, withheld=())

    def load(self) -> Lesson:
        """The snapshot was filled in."""
        if not self.arrived or self.loaded:
            raise ValueError("the snapshot is loaded once, after it arrived")
        return replace(self, loaded=True)

    def next(self, *, has_time: bool, last: bool) -> Effect:
        """What to do between two steps; `has_time` while the others compute, `last` where no step follows."""
        urgent = last or self.crowded
        if self.learnt:
            return TakeStep(learnt=True)
        if not self.arrived:
            return AwaitSnapshot() if urgent else TakeStep(learnt=False)
        if not self.loaded:
            return LoadSnapshot()
        if has_time or urgent:
            return ReplayUpdate(step=self.withheld[0][0])
        return TakeStep(learnt=False)
