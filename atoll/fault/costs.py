"""What a fault cost, from the moments of commits: seconds = (next commit - fault) - one undisturbed step after it. Pure.

The next commit is the first one by members of a newer epoch than the one that was struck: a step that was in hand, and
that the old members could still decide, is no recovery. The undisturbed step is the median gap between the commits of
the epoch that recovered, without the first, in which connections are still being made. Where a replacement comes so soon
that this epoch has hardly a step, it is that of the next epoch that has some: with more members a step is shorter, so
less is taken off.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Steps of the new epoch that are looked at; later ones may be another fault's.
_CALM = 8
# Fewer gaps than this say nothing of an undisturbed step.
_LEAST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A step that was decided, when (seconds on any one clock), and by which epoch of how many members."""

    step: int
    at: float
    epoch: int
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`raw_s` to the next commit; `step_s`: one undisturbed step of the new members."""

    raw_s: float
    step_s: float
    epoch: int
    members: int

    @property
    def seconds(self) -> float:
        """What the fault cost beyond the step itself."""
        return self.raw_s - self.step_s


def cost(commits: Sequence[Commit], fault: float, *, epoch: int) -> Cost | None:
    """Of a fault at `fault` that struck `epoch`; None while no newer members have shown an undisturbed step."""
    after = [c for c in commits if c.epoch > epoch and c.at > fault]
    if not after:
        return None
    first = min(after, key=lambda c: c.step)
    calm = _calm_since(commits, first.epoch)
    if calm is None:
        return None
    return Cost(raw_s=first.at - fault, step_s=calm, epoch=first.epoch, members=first.members)


def _calm_since(commits: Sequence[Commit], epoch: int) -> float | None:
    later = sorted({c.epoch for c in commits if c.epoch >= epoch})
    return next((found for e in later if (found := calm_step(commits, e)) is not None), None)


def calm_step(commits: Sequence[Commit], epoch: int) -> float | None:
    """Seconds of an undisturbed step of `epoch`; None where too few are known."""
    own = sorted(c.at for c in commits if c.epoch == epoch)[: _CALM + 2]
    gaps = [b - a for a, b in itertools.pairwise(own)]
    return statistics.median(gaps[1:]) if len(gaps) > _LEAST else None


def longest_gap(commits: Sequence[Commit], begin: float, end: float) -> float:
    """The longest time without a commit that overlaps [begin, end], in seconds."""
    moments = sorted(c.at for c in commits)
    edges = [m for m in moments if m < begin][-1:] + [m for m in moments if begin <= m <= end]
    edges += [m for m in moments if m > end][:1] or [end]
    return max((b - a for a, b in itertools.pairwise(edges)), default=end - begin)
