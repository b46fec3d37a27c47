"""Odd values in what a run reports, told as notes: nothing is concluded from them, and nothing follows.

A gradient norm (before clipping; each step's sums give it away) ten times the median of the last steps is rarely chance: a
spoilt batch, a learning rate at its edge, or bits that flipped. So is one that is no number, where the run goes on in
spite of it. One note for each excursion, not one a step.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

WINDOW = 32
ENOUGH = 8
TIMES = 10.0


class Jumps:
    """The gradient norms of one run."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._out = False

    def take(self, norm: float) -> str:
        """What is odd about this step, in words; empty where nothing is, or it was told of the step before.

        A norm of 0 was not measured.
        """
        if norm == 0:
            return ""
        usual = median(self._norms) if len(self._norms) >= ENOUGH else None
        odd = not math.isfinite(norm) or (usual is not None and norm > TIMES * usual)
        told, self._out = odd and not self._out, odd
        if not odd:
            self._norms.append(norm)
        if not told:
            return ""
        before = f", {norm / usual:.0f} times the median of the last steps" if usual and math.isfinite(norm) else ""
        return f"its gradient norm is {norm:.4g}{before}"
