"""How fast each member computes, out of what all of them tell of each committed step; and who is slower than the others.

A step lasts as long on every member, since each waits for the slowest: durations alone accuse nobody. What tells is the
time that a member computed for each of its grains, beside what the others needed for theirs *in the same step*. A load
that all share moves all of them alike and moves no ratio; a hiccup of one step is one of `WINDOW`.

A member is slow (`SlowWorker`) when nearly all steps of the window show it `SLOW` times slower than the median of the
others, and the others waited for it: their waits are longer than its own by a good part of what it computed longer. It
is slow until the median of the window falls under `RESTORED`: between the two nothing changes, so that nobody flaps.
Once the grains are split by speed nobody waits for it any more, and the verdict stays, since its grains still take as long.

The first step of an epoch is left out (it may compile, or warm caches). Rows are complete when all members have told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from atoll.schema.ids import Epoch, Step, TrainerId

# Long enough that a hiccup is outvoted, short enough that a slowdown is named within ten steps.
WINDOW = 10
ENOUGH = 6
# What nobody was named for has time, and must show that it is no noise.
LONG = 30
# Equal workers on an overloaded machine differ twofold in one step of eight, not in eight of ten.
SLOW, RESTORED = 2.0, 1.5
# How much of what it computes longer the others must be seen to wait for: overlap and jitter hide some of it.
WAITED = 0.3
# Steps that some member has not told yet; one that never does (lost on the way) is forgotten behind these.
OPEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one member did in one step. Seconds; `step_s` is the whole step as this member saw it."""

    grains: int
    compute_s: float
    wait_s: float
    step_s: float = 0.0

    @property
    def pace(self) -> float | None:
        """Seconds for each grain; None where it computed none, or tells nothing."""
        return self.compute_s / self.grains if self.grains > 0 and self.compute_s > 0 else None


Row = Mapping[TrainerId, Spent]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowWorker:
    """`trainer` needs `times` as long for a grain as the median of the other members. `step`: where this was concluded."""

    trainer: TrainerId
    times: float
    step: Step
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A worker that was slow keeps up again."""

    trainer: TrainerId
    evidence: str


SpeedVerdict = SlowWorker | Restored


class Speeds:
    """What is known of the speeds of one run's members, at most a window old. Facts in, verdicts out."""

    def __init__(self) -> None:
        self.epoch = Epoch(0)
        self.step = Step(0)
        self._members: tuple[TrainerId, ...] = ()
        self._open: dict[Step, dict[TrainerId, Spent]] = {}
        self._rows: deque[Row] = deque(maxlen=LONG)
        self._begun = False
        self._paces: dict[TrainerId, float] = {}
        self._slow: dict[TrainerId, SlowWorker] = {}
        self._restored_at: Step | None = None
        self._turned_at: Step | None = None

    def regrouped(self, epoch: Epoch, members: Sequence[TrainerId]) -> None:
        """A new epoch begins. What was measured of those who stay is kept; rows are of one set of members."""
        self.epoch, self._members, self._begun = epoch, tuple(members), False
        self._open.clear()
        self._rows.clear()
        self._paces = {t: pace for t, pace in self._paces.items() if t in self._members}
        self._slow = {t: verdict for t, verdict in self._slow.items() if t in self._members}

    def committed(self, trainer: TrainerId, step: Step, spent: Spent) -> list[SpeedVerdict]:
        """One member's word on one step of this epoch. Verdicts that changed, once the last member has told."""
        if trainer not in self._members or (step <= self.step and step not in self._open):
            return []
        told = self._open.setdefault(step, {})
        told[trainer] = spent
        if len(told) < len(self._members):
            self._forget_old()
            return []
        del self._open[step]
        self.step = step
        if not self._begun:
            self._begun = True
            return []
        self._rows.append(told)
        return self._judge()

    def _forget_old(self) -> None:
        while len(self._open) > OPEN:
            del self._open[min(self._open)]

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> tuple[Row, ...]:
        """The last steps of this epoch that all members told of, up to `LONG`, oldest first."""
        return tuple(self._rows)

    @property
    def paces(self) -> dict[TrainerId, float]:
        """Seconds for each grain, by member: the median of the window, or what was last known."""
        return dict(self._paces)

    @property
    def grains(self) -> int:
        """Grains in a step, 0 while unknown."""
        return sum(s.grains for s in self._rows[-1].values()) if self._rows else 0

    @property
    def slow(self) -> dict[TrainerId, SlowWorker]:
        """Who is slow, and since when."""
        return dict(self._slow)

    @property
    def spoken(self) -> bool:
        """Whether somebody is slow, or was until a moment ago: then the last `WINDOW` steps show by themselves what is."""
        return bool(self._slow) or (self._restored_at is not None and self.step - self._restored_at <= 2 * WINDOW)

    @property
    def turned_at(self) -> Step | None:
        """The step that brought the last verdict."""
        return self._turned_at

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def _judge(self) -> list[SpeedVerdict]:
        rows = tuple(self._rows)[-WINDOW:]
        for trainer in self._members:
            seen = [pace for row in rows if (pace := row[trainer].pace) is not None]
            if seen:
                self._paces[trainer] = median(seen)
        if len(rows) < ENOUGH:
            return []
        verdicts = [v for trainer in self._members if (v := self._verdict(trainer, rows)) is not None]
        for verdict in verdicts:
            self._turned_at = self.step
            if isinstance(verdict, SlowWorker):
                self._slow[verdict.trainer] = verdict
            else:
                del self._slow[verdict.trainer]
                self._restored_at = self.step
        return verdicts

    def _verdict(self, trainer: TrainerId, rows: Sequence[Row]) -> SpeedVerdict | None:
        ratios = sorted(r for row in rows if (r := _ratio(row, trainer)) is not None)
        if len(ratios) < ENOUGH:
            return None
        times = median(ratios)
        if trainer in self._slow:
            if times >= RESTORED:
                return None
            return Restored(trainer=trainer, evidence=f"a grain takes it {times:.1f} times as long as the others")
        # All of six steps, eight of ten.
        nearly_least = ratios[(len(ratios) - ENOUGH) // 2]
        if nearly_least < SLOW or not _awaited(rows, trainer):
            return None
        return SlowWorker(trainer=trainer, times=times, step=self.step, evidence=self._evidence(trainer, times, rows))

    def _evidence(self, trainer: TrainerId, times: float, rows: Sequence[Row]) -> str:
        own = [row[trainer] for row in rows]
        others = [s for row in rows for t, s in row.items() if t != trainer]
        waits, theirs = median(s.wait_s for s in own), median(s.wait_s for s in others)
        return (
            f"{times:.1f} times slower than the others over the last {len(own)} steps: {_ms(self._paces[trainer])} a "
            f"grain; it comes late and waits {_ms(waits)} a step itself, the others {_ms(theirs)}"
        )


def _ratio(row: Row, trainer: TrainerId) -> float | None:
    own = row[trainer].pace
    others = [pace for t, s in row.items() if t != trainer and (pace := s.pace) is not None]
    return own / median(others) if own is not None and others else None


def _awaited(rows: Sequence[Row], trainer: TrainerId) -> bool:
    """Whether the others stood waiting while this one computed longer."""
    longer, waited = [], []
    for row in rows:
        own, others = row[trainer], [s for t, s in row.items() if t != trainer]
        longer.append(own.compute_s - median(s.compute_s for s in others))
        waited.append(median(s.wait_s for s in others) - own.wait_s)
    return median(longer) > 0 and median(waited) >= WAITED * median(longer)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
