"""The one place that asks the time. Pure cores get `now` as an argument."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Unix seconds, for people and files."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for durations and deadlines."""
        ...


class SystemClock:
    """This machine's clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()  # noqa: TID251 - the one place that may ask

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()
