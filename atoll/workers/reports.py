"""Values that user code reports in a step, as weighted sums, so that means over grains and ranks add up exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# By name: (sum of weight * value, sum of weight).
Sums = dict[str, tuple[float, float]]


def add(sums: Sums, name: str, value: float, weight: float) -> None:
    """One value; without weight it leaves no trace."""
    if weight == 0:
        return
    total, weights = sums.get(name, (0.0, 0.0))
    sums[name] = (total + value * weight, weights + weight)


def merge(parts: Iterable[Mapping[str, Iterable[float]]]) -> Sums:
    """The sums of several ranks, in rank order."""
    merged: Sums = {}
    for part in parts:
        for name, (total, weight) in part.items():
            before = merged.get(name, (0.0, 0.0))
            merged[name] = (before[0] + total, before[1] + weight)
    return merged


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The weighted mean of each name."""
    return {name: total / weight for name, (total, weight) in sums.items()}
