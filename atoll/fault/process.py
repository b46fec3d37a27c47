"""What a series of looks at a process says: since when it is stopped, silent, or without processor time.

An agent tells `/proc` state, processor seconds and the age of the GIL beat, at once on a change and each second. Here
those looks become "since when" by the core's clock, which is what the detector asks.
"""

from __future__ import annotations

from atoll.fault.facts import ProcessFacts

# `T`: stopped by a signal; `t`: by a debugger; `Z` and `X`: dead, and its exit not reported yet.
STOPPED = frozenset("TtZX")
# The pulse thread alone takes less than a thousandth of a core; a main thread that works takes far more than this.
IDLE_SHARE = 0.02
# Processor time comes in hundredths of a second: a share is read over no less than this.
SPAN_S = 0.5


class ProcessTrack:
    """The looks at one process, folded."""

    def __init__(self) -> None:
        self._state = ""
        self._stopped_at: float | None = None
        self._idle_at: float | None = None
        self._mark: tuple[float, float] | None = None

    def looked(self, *, state: str, cpu_s: float, beat_age_s: float, late_s: float, at: float) -> ProcessFacts:
        """Take in a look that came at `at`."""
        if state not in STOPPED:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = at
        self._state = state
        return ProcessFacts(
            at=at,
            state=state,
            beat_at=at - beat_age_s,
            idle_at=self._idle_since(cpu_s, at),
            stopped_at=self._stopped_at,
            traced=state == "t",
            late_s=late_s,
        )

    def _idle_since(self, cpu_s: float, at: float) -> float:
        if self._mark is None or self._idle_at is None:
            self._mark, self._idle_at = (at, cpu_s), at
            return at
        since, then = self._mark
        if at - since >= SPAN_S:
            if cpu_s - then > IDLE_SHARE * (at - since):
                self._idle_at = at
            self._mark = (at, cpu_s)
        return self._idle_at
