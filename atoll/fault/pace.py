"""How long a run's own steps take: the measure that every threshold of its detector adapts to.

A step that a regroup interrupted, or the first of an epoch (which may compile), says nothing about the pace. Of the last
`WINDOW` others the 99th percentile counts, and the single longest never: one hiccup must not make the detector slow.
"""

from __future__ import annotations

from collections import deque

from atoll.schema.ids import Epoch, Step

WINDOW = 200
# Fewer do not show how much steps vary.
ENOUGH = 5


class Pace:
    """Step times of one run."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._last: tuple[Epoch, Step] | None = None
        self._p99: float | None = None

    def committed(self, epoch: Epoch, step: Step, step_s: float) -> None:
        """A step was committed; told once or more, by whichever member."""
        last, here = self._last, (epoch, step)
        if last is not None and here <= last:
            return
        self._last = here
        if last is None or last[0] != epoch:
            return
        self._times.append(step_s)
        ordered = sorted(self._times)
        self._p99 = ordered[int(0.99 * (len(ordered) - 1))] if len(ordered) >= ENOUGH else None

    @property
    def p99_s(self) -> float | None:
        """Seconds; None while too few steps were seen."""
        return self._p99
