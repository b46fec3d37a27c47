"""What an agent tells of the trainers of its node, decided from looks at their processes.

A look (ten a second) holds what the trainer's pulse shows, and where that is not fresh, or a digest is due, what `/proc`
shows: a process that beat just now is not stopped, and a look into `/proc` is the dearer one. It is told at once when the
process stops, goes on or ends, when its beat stalls for `STALL_S` or comes back, and when the agent itself was late; else
each second.

The age of a beat grows only while this agent looks: whoever was stopped together with its trainers (a frozen container, a
host without memory) finds old beats when it wakes, before any trainer had a turn. How late the agent was is told along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import TrainerWatched

# A pulse beats ten times in this; with four times more threads than cores it was at most 0.26 s late.
STALL_S = 0.5
# A pulse beats each 0.05 s: an older beat means that one is missing.
FRESH_S = 0.06
DIGEST_S = 1.0
# One look counts for no more than this: what passed beyond it, the agent did not watch.
LOOK_S = 0.2
# An agent that is later than this says so at once: its last word is older than those who heard it think.
LATE_S = 0.25
_RUNS = "R"
# A digest is due when the next look would come too late.
_DUE_S = DIGEST_S - 0.05


@dataclass(frozen=True, slots=True)
class Beat:
    """A pulse as it was read: its count and its time. `count` is None where there is no pulse."""

    count: int | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """What `/proc` showed."""

    state: str
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One trainer at one moment. Without `process`, `/proc` was not asked."""

    run: RunId
    beat: Beat
    process: Process | None = None


@dataclass(slots=True)
class _Seen:
    """One trainer as of the last look. `still_s`: watched seconds without a new beat."""

    beat: Beat = Beat()
    still_s: float = 0.0
    told: tuple[str, bool] | None = None
    told_at: float = 0.0
    late_s: float = 0.0

    def age(self, now: float) -> float:
        return 0.0 if self.beat.count is None else max(0.0, min(now - self.beat.at, self.still_s))


class TrainersWatch:
    """Looks in, facts out. All times are seconds of the host's monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[TrainerId, _Seen] = {}
        self._last: float | None = None

    def wants_process(self, trainer: TrainerId, beat: Beat, *, now: float, behind_s: float = 0.0) -> bool:
        """Whether this look shall ask `/proc`, too."""
        seen = self._seen.get(trainer)
        if seen is None or seen.told is None or beat.count is None:
            return True
        # While it was told to be stopped or stalled, each look may be the one that shows it going on.
        odd = seen.told != (_RUNS, False)
        return odd or behind_s > LATE_S or now - beat.at > FRESH_S or now - seen.told_at >= _DUE_S

    def looked(
        self, looks: Mapping[TrainerId, Look], *, now: float, behind_s: float = 0.0
    ) -> tuple[TrainerWatched, ...]:
        """What to tell after a look at all trainers, which came `behind_s` after it was due."""
        passed = 0.0 if self._last is None else min(max(now - self._last, 0.0), LOOK_S)
        self._last = now
        self._seen = {trainer: self._seen.get(trainer) or _Seen() for trainer in looks}
        facts = (
            _folded(trainer, self._seen[trainer], look, now=now, passed=passed, behind_s=behind_s)
            for trainer, look in looks.items()
        )
        return tuple(fact for fact in facts if fact is not None)


def _folded(
    trainer: TrainerId, seen: _Seen, look: Look, *, now: float, passed: float, behind_s: float
) -> TrainerWatched | None:
    if look.beat.count is None or look.beat.count == seen.beat.count:
        seen.still_s += passed
    else:
        # It beat at some time since the last look; when, the pulse itself says.
        seen.beat, seen.still_s = look.beat, passed
    seen.late_s = max(seen.late_s, behind_s)
    if look.process is None:
        return None
    age = seen.age(now)
    shown = (_kind(look.process.state), age > STALL_S)
    if shown == seen.told and seen.late_s <= LATE_S and now - seen.told_at < _DUE_S:
        return None
    fact = TrainerWatched(
        trainer=trainer,
        run=look.run,
        state=look.process.state,
        cpu_s=look.process.cpu_s,
        beat_age_s=age,
        behind_s=seen.late_s,
    )
    seen.told, seen.told_at, seen.late_s = shown, now, 0.0
    return fact


def _kind(state: str) -> str:
    """Letters of `/proc` that mean the same: a process that runs, sleeps or waits for a disk is under way."""
    return state if state in "TtZX" else _RUNS
