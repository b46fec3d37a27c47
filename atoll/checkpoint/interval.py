"""How many steps lie between two checkpoints, where nobody said: from what a save costs and how often members are lost.

Too many saves cost time, too few cost the steps since the last one. With a cost of C seconds a save and a mean time M
between losses, the waste C/T + T/2M is least at T = sqrt(2CM) (Young, 1974); Daly (2006) adds the next terms of the
series, which matter where C is not small beside M. Every loss is taken for one that the checkpoint is needed for: most
are not, so this errs towards saving often.

C is what training is slower by: the time that it was held up, and by how much the steps beside a save took longer than
the others. M begins as a guess that is worth one loss, so that a young run without losses does not save never.

The waste is flat around its least value: an interval one and a half times too long or too short costs a twelfth more of
a small thing. So a choice stands until the best one is further away than that.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections import deque
from dataclasses import dataclass, field

# One loss in this time is assumed before any was seen: what a spot instance or a busy lab does to a run in half a day.
ASSUMED_MTBF_S = 6 * 3600.0
# Until the first save has shown what one costs.
FIRST_S = 60.0
# Nobody wants to lose more than an hour of work, however cheap that is on average.
MOST_S = 3600.0
# More than this share of the time is never spent on saves, however often members are lost.
MOST_SHARE = 0.1
# A choice this much off the best one stays.
_SLACK = 1.5
# Steps without a save beside them that tell what a step takes; the median of more would follow a change too late.
_QUIET = 31
_ENOUGH = 3


class Why(enum.StrEnum):
    """What bound the interval."""

    FIRST = "first"
    LEAST_WASTE = "least-waste"
    COST = "cost"
    STORAGE = "storage"
    LONGEST = "longest"


_WORDS = {
    Why.FIRST: "no save has shown yet what one costs",
    Why.LEAST_WASTE: "least time is lost so",
    Why.COST: f"more often, saves would take over {MOST_SHARE:.0%} of the time",
    Why.STORAGE: "more often than storage takes them",
    Why.LONGEST: f"never more than {MOST_S / 3600:g} h apart",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a run showed of itself. `cost_s` and `save_s` are None until a save has ended."""

    step_s: float
    cost_s: float | None
    save_s: float | None
    losses: int
    watched_s: float

    @property
    def mtbf_s(self) -> float:
        """Mean time between losses, with the guess that it began as."""
        return (self.watched_s + ASSUMED_MTBF_S) / (self.losses + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Save each `every` steps."""

    every: int
    why: Why
    observed: Observed

    def text(self) -> str:
        """For the story."""
        seen = self.observed
        cost = f"a save costs {seen.cost_s:.2g} s" if seen.cost_s is not None else "a save's cost is not known"
        return (
            f"every {self.every} steps, {_WORDS[self.why]}: a step takes {seen.step_s:.2g} s, {cost}, "
            f"one loss in {seen.mtbf_s / 3600:.2g} h"
        )


def choose(observed: Observed, current: int = 0) -> Choice | None:
    """The interval to go over to; None where `current` (0: none yet) is near enough to the best one."""
    seconds, why = best_s(observed)
    every = _round(seconds / max(observed.step_s, 1e-6))
    if current and current / _SLACK <= every <= current * _SLACK:
        return None
    return Choice(every=every, why=why, observed=observed)


def best_s(observed: Observed) -> tuple[float, Why]:
    """Seconds between two saves, and what bound them."""
    if observed.cost_s is None or observed.save_s is None:
        return FIRST_S, Why.FIRST
    found = daly(observed.cost_s, observed.mtbf_s), Why.LEAST_WASTE
    least = max((observed.cost_s / MOST_SHARE, Why.COST), (observed.save_s, Why.STORAGE))
    found = max(found, least)
    # What storage cannot take is not asked of it, even where that is more than an hour.
    return found if found[0] <= MOST_S else max((MOST_S, Why.LONGEST), least)


def daly(cost_s: float, mtbf_s: float) -> float:
    """The interval of least waste, from the end of one save to the begin of the next (Daly 2006, equation 37)."""
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def _round(steps: float) -> int:
    """A number that people can remember: two digits that count."""
    whole = max(1, round(steps))
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return max(1, round(whole / unit) * unit)


@dataclass(slots=True)
class Meter:
    """Folds what the training loop shows into `Observed`."""

    _quiet: deque[float] = field(default_factory=lambda: deque(maxlen=_QUIET))
    _cost_s: float | None = None
    _save_s: float | None = None
    _this_s: float = 0.0
    _losses: int = 0
    _watched_s: float = 0.0

    def step(self, seconds: float, *, saving: bool) -> None:
        """A step took so long, from one boundary to the next; `saving`: a save was under way beside it."""
        self._watched_s += seconds
        if not saving:
            self._quiet.append(seconds)
        elif self._quiet:
            self._this_s += max(0.0, seconds - statistics.median(self._quiet))

    def saved(self, seconds: float) -> None:
        """A save ended `seconds` after it began."""
        self._cost_s = _mixed(self._cost_s, self._this_s)
        self._save_s = _mixed(self._save_s, seconds)
        self._this_s = 0.0

    def lost(self, members: int) -> None:
        """So many members were lost."""
        self._losses += members

    def observed(self) -> Observed | None:
        """What is known; None before it is enough."""
        if len(self._quiet) < _ENOUGH:
            return None
        return Observed(
            step_s=statistics.median(self._quiet),
            cost_s=self._cost_s,
            save_s=self._save_s,
            losses=self._losses,
            watched_s=self._watched_s,
        )


def _mixed(known: float | None, new: float) -> float:
    # A third for the newest: one odd save does not decide, and four are enough to follow a change.
    return new if known is None else known + (new - known) / 3
