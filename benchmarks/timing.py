"""From times to figures: durations over ranks, medians with their spread, bootstrap intervals, orders of measuring.

An operation lasts from the moment the last rank entered it to the moment the last rank left it: what earlier ranks spend
waiting for the last is nobody's cost. Contestants are measured in rounds, each round in an order of its own, so that what
the machine does meanwhile falls on all of them alike.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_BOOTSTRAPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of one contestant: median, quartiles, extremes, how many."""

    median: float
    low: float
    high: float
    least: float
    most: float
    count: int

    def plain(self, digits: int = 4) -> dict[str, float | int]:
        """For JSON: `digits` significant digits."""
        values = {"median": self.median, "p25": self.low, "p75": self.high, "min": self.least, "max": self.most}
        return {name: rounded(value, digits) for name, value in values.items()} | {"n": self.count}


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(
        median=statistics.median(values),
        low=percentile(values, 25),
        high=percentile(values, 75),
        least=min(values),
        most=max(values),
        count=len(values),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the nearest two values by their distance."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def durations(starts: Sequence[Sequence[float]], ends: Sequence[Sequence[float]]) -> list[float]:
    """Of each operation, from `starts[rank][operation]` and `ends[rank][operation]`."""
    return [
        max(end) - max(start) for start, end in zip(zip(*starts, strict=True), zip(*ends, strict=True), strict=True)
    ]


def rounds(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` rounds; each has every name once, in an order of its own."""
    chance = random.Random(seed)
    order: list[str] = []
    for _ in range(count):
        order += chance.sample(list(names), len(names))
    return order


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Of the medians."""
    return statistics.median(above) / statistics.median(below)


def paired(names: Sequence[str], values: Sequence[T]) -> dict[str, list[T]]:
    """The values of each name, in the order of measuring."""
    found: dict[str, list[T]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(value)
    return found


def interval(
    statistic: Callable[[Sequence[tuple[float, float]]], float],
    pairs: Sequence[tuple[float, float]],
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """The bootstrap interval of `statistic` over pairs drawn anew, pair by pair (Efron, 1979)."""
    chance = random.Random(seed)
    drawn = [statistic(chance.choices(pairs, k=len(pairs))) for _ in range(_BOOTSTRAPS)]
    outside = (1 - level) / 2 * 100
    return percentile(drawn, outside), percentile(drawn, 100 - outside)


def excess(pairs: Sequence[tuple[float, float]]) -> float:
    """How much more the second of each pair cost than the first: of trimmed sums, as a share.

    The fifth at either end of the pairs by their difference is left out: a page fault or a neighbour's burst is no cost of
    ours.
    """
    differences = sorted(pairs, key=lambda pair: pair[1] - pair[0])
    cut = len(pairs) // 5
    kept = differences[cut : len(differences) - cut]
    return sum(b for _, b in kept) / sum(a for a, _ in kept) - 1


def rounded(value: float, digits: int = 4) -> float:
    """To significant digits."""
    return float(f"{value:.{digits}g}")
