"""What a worker does that may keep the others waiting, announced to them, so that nobody takes it for a hang (law 10).

Announcements nest: an evaluation inside the first step of a process. The last one told counts, so an inner one is told
with what is left of the one around it where that is longer, and at its end the outer one is told again.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.clock import Clock, SystemClock
from atoll.schema.messages import Busy
from atoll.workers.host import Host

FIRST_STEP = "first step"
# A compiler and the first kernels, on a busy machine. One that takes longer says so itself, with `ctx.busy`.
FIRST_STEP_S = 60.0


@dataclass(frozen=True, slots=True)
class _Work:
    what: str
    until: float


class Announcements:
    """What is under way here, outermost first. Used on the main thread."""

    def __init__(self, host: Host, clock: Clock | None = None) -> None:
        self._host = host
        self._clock = clock or SystemClock()
        self._under_way: list[_Work] = []

    def begin(self, what: str, limit_s: float) -> None:
        """This may take `limit_s` seconds."""
        now = self._clock.monotonic()
        self._under_way.append(_Work(what, now + limit_s))
        self._tell(what, max(work.until for work in self._under_way) - now)

    def end(self, what: str) -> None:
        """The innermost of this name is over; nothing happens if there is none."""
        found = next((work for work in reversed(self._under_way) if work.what == what), None)
        if found is None:
            return
        self._under_way.remove(found)
        now = self._clock.monotonic()
        around = max(self._under_way, key=lambda work: work.until, default=None)
        if around is not None and around.until > now:
            self._tell(around.what, around.until - now)
        else:
            self._tell(what, 0.0)

    def _tell(self, what: str, limit_s: float) -> None:
        self._host.tell(Busy(trainer=self._host.identity.trainer, what=what, limit_s=limit_s))
