"""Whom a step waits for: the fastest n - b of n members, b chosen before each step (backup workers).

A member that is told that the others suffice gives what it has finished, with its true weight, and leaves the rest of its
micro-batches out. So the choice needs no agreement beyond the sum itself, and only says when to tell.

`choose` plays the steps of a window again for each b: when the n - b fastest would have come, where the others would have
stopped then (before a micro-batch, or before its backward), and how many micro-batches would have counted. It takes the b
with the largest expected decrease of the loss per second, where a step with m micro-batches counts m / (m + noise): the
decrease by the best step along a gradient whose noise is that of `noise` micro-batches over its length (McCandlish et
al., 2018; Xu, Neglia and Sebastianelli, 2020, choose by the same quotient). `Noise` measures it from the gradients of
single members and of all. While it is not known, micro-batches count alike: that never favours dropping any.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from atoll.errors import UserError

Backup = int | Literal["auto"]

# What is long past says little of who is slow now; fewer than ENOUGH do not show how arrivals vary.
WINDOW = 40
ENOUGH = 6
# Less is within what the steps of a window differ by, and not worth samples.
GAIN = 0.05
# Another b must be this much better than the one in use, or the choice would flutter with every step.
HOLD = 0.03
# How much of a micro-batch is its forward pass: a backward pass computes twice as much.
_FORWARD = 1 / 3
# The share of what was measured before in the moving averages of `Noise`: some twenty steps are remembered.
_KEPT = 0.95


class Why(enum.StrEnum):
    """The kind of a choice's reason."""

    ASKED = "asked"
    UNKNOWN = "unknown"
    ALL = "all"
    FASTER = "faster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One member in one step: `at_s` after the step before it had given all it had, `done` of `owned` micro-batches."""

    owned: int
    done: int
    at_s: float

    @property
    def grain_s(self) -> float:
        """Seconds for each micro-batch. Who stopped early was in the middle of one."""
        return self.at_s / (self.done if self.done >= self.owned else self.done + 0.5)

    @property
    def full_s(self) -> float:
        """When it had, or would have, computed all."""
        return self.owned * self.grain_s

    def stopped(self, told_s: float) -> tuple[float, int]:
        """When it ends, and with how many micro-batches, if it is told to stop at `told_s`."""
        if self.full_s <= told_s:
            return self.full_s, self.owned
        whole, part = divmod(told_s / self.grain_s, 1.0)
        if part <= _FORWARD:
            return (whole + (_FORWARD if part else 0.0)) * self.grain_s, int(whole)
        return min((whole + 1) * self.grain_s, self.full_s), int(whole) + 1


@dataclass(frozen=True, slots=True)
class Play:
    """Seconds from commit to commit, and micro-batches that count, had a step waited for all but `backup`."""

    backup: int
    step_s: float
    grains: int


def candidates(members: int) -> list[int]:
    """What `backup` may be chosen from: up to half of the members, in steps of a third where there are many."""
    steps = [0, 1]
    while steps[-1] < members:
        steps.append(max(steps[-1] + 1, steps[-1] * 4 // 3))
    # Fewer than half are no step of this run any more, whatever they promise.
    return [b for b in steps if b <= members // 2]


def play(arrivals: Sequence[Arrival], step_s: float) -> tuple[Play, ...]:
    """One step, which took `step_s` from commit to commit, played again for each candidate."""
    rest = max(0.0, step_s - max(a.at_s for a in arrivals))
    order = sorted(a.full_s for a in arrivals)
    plays = []
    for backup in candidates(len(arrivals)):
        ends = [a.stopped(order[-1 - backup]) for a in arrivals]
        plays.append(Play(backup, max(at for at, _ in ends) + rest, sum(done for _, done in ends)))
    return tuple(plays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Wait for all but `backup` of `members`. Seconds and micro-batches of a step, as it is with all and as predicted."""

    backup: int
    members: int
    why: Why
    all_s: float = 0.0
    then_s: float = 0.0
    grains: float = 0.0
    of_grains: float = 0.0
    seen: int = 0

    def __str__(self) -> str:
        whom = f"wait for the fastest {self.members - self.backup} of {self.members}" if self.backup else "wait for all"
        match self.why:
            case Why.ASKED:
                return f"{whom}: the program asks for it"
            case Why.UNKNOWN:
                return f"{whom}: of {ENOUGH} steps that show how members arrive {self.seen} were seen"
            case Why.ALL:
                return f"{whom}: leaving out the slowest would not make the run {GAIN:.0%} faster"
            case Why.FASTER:
                return (
                    f"{whom}: a step is predicted to take {self.then_s * 1000:.0f} ms instead of "
                    f"{self.all_s * 1000:.0f} ms, with {self.grains:.1f} of {self.of_grains:.0f} micro-batches"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a committed step tells of it: so many micro-batches were left out. `words`: of a choice that is new."""

    backup: int
    left_out: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one member gave: the square of its mean gradient, over so many micro-batches."""

    grains: int
    square: float


@dataclass(slots=True)
class Noise:
    """How many micro-batches have as much noise in their mean gradient as it is long (the gradient noise scale).

    Of a mean over n micro-batches the expected square is signal + scatter / n. One member's and all members' give both.
    """

    seen: int = 0
    _scatter: float = 0.0
    _signal: float = 0.0

    def took(self, parts: Sequence[Part], whole: float) -> None:
        """A step's gradients: of each member, and the square of the mean over all."""
        some = [p for p in parts if p.grains > 0 and math.isfinite(p.square)]
        if len(some) <= 1 or not math.isfinite(whole):
            return
        alone, together = fmean(1 / p.grains for p in some), 1 / sum(p.grains for p in some)
        scatter = (fmean(p.square for p in some) - whole) / (alone - together)
        kept = _KEPT if self.seen else 0.0
        self._scatter = kept * self._scatter + (1 - kept) * scatter
        self._signal = kept * self._signal + (1 - kept) * (whole - scatter * together)
        self.seen += 1

    @property
    def grains(self) -> float:
        """Micro-batches; infinite where it is not known, or no signal is seen through it."""
        if self.seen < ENOUGH or self._signal <= 0:
            return math.inf
        return max(0.0, self._scatter / self._signal)


def checked(setting: Backup, workers: int) -> Backup:
    """The setting, or a `UserError` that says what is allowed."""
    if setting == "auto":
        return setting
    if isinstance(setting, bool) or not isinstance(setting, int) or not 0 <= setting < max(workers, 1):
        raise UserError(f"backup={setting!r}: 'auto', or from 0 to {max(workers, 1) - 1} of {workers} workers")
    return setting


def choose(
    setting: Backup, rows: Sequence[tuple[Play, ...]], *, members: int, noise: float = math.inf, before: int = 0
) -> Choice:
    """How many of `members` the next step does not wait for. `rows`: the last steps. `before`: how many it was until now."""
    if setting != "auto":
        return Choice(backup=max(0, min(setting, members - 1)), members=members, why=Why.ASKED)
    if len(rows) < ENOUGH or members <= 1:
        return Choice(backup=0, members=members, why=Why.UNKNOWN, seen=len(rows))
    rates = {plays[0].backup: _rate(plays, noise) for plays in zip(*rows, strict=True)}
    best = max(rates, key=lambda b: rates[b])
    if before and rates.get(before, 0.0) >= max((1 - HOLD) * rates[best], (1 + GAIN / 2) * rates[0]):
        best = before
    elif rates[best] < (1 + GAIN) * rates[0]:
        return Choice(backup=0, members=members, why=Why.ALL, seen=len(rows))
    chosen = [p for row in rows for p in row if p.backup == best]
    return Choice(
        backup=best,
        members=members,
        why=Why.FASTER,
        all_s=fmean(row[0].step_s for row in rows),
        then_s=fmean(p.step_s for p in chosen),
        grains=fmean(p.grains for p in chosen),
        of_grains=fmean(row[0].grains for row in rows),
        seen=len(rows),
    )


def _rate(plays: Sequence[Play], noise: float) -> float:
    """What the steps would have decreased the loss by in a second."""
    return sum(progress(p.grains, noise) for p in plays) / sum(p.step_s for p in plays)


def progress(grains: float, noise: float) -> float:
    """What a step with so many micro-batches decreases the loss by, up to a factor that is the same for all."""
    return float(grains) if math.isinf(noise) else grains / (grains + noise) if grains else 0.0
