"""How late observers were lately. Late is not silent: every limit on silence outlasts it.

The control plane notes how late its own tick came, agents say how late they were to look. The worst of the last
`WINDOW_S` counts, up to `MOST_S`: a process that was stopped for a minute says nothing about the machine's load.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 3.0
MOST_S = 1.0
# A scheduler's ordinary delay.
NONE_S = 0.05


class Strain:
    """The lateness of the last seconds."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()

    def note(self, late_s: float, *, at: float) -> None:
        """Somebody was so late to do something."""
        if late_s <= NONE_S:
            return
        late_s = min(late_s, MOST_S)
        while self._late and self._late[-1][1] <= late_s:
            self._late.pop()
        self._late.append((at, late_s))

    def worst(self, *, now: float) -> float:
        """Seconds."""
        while self._late and now - self._late[0][0] > WINDOW_S:
            self._late.popleft()
        return self._late[0][1] if self._late else 0.0
