"""Who computes how many grains, and whether changing that, or doing without somebody, pays.

The global batch stays; ranks own whole grains. The best split of `G` grains over members that need `p_i` seconds a grain
gives each next grain to whoever would finish it first: no other split of whole grains ends earlier. Its counts are the
members' weights. Each member keeps one grain where there are enough, so that its speed stays known.

A split is worth a new epoch if the steps of the window, played again with it, would have been `GAIN` faster: those of the
second half with the split that the first half advises, and the other way round. At most once in `EVERY` steps, and each
time twice as rarely until a split has held for a while or a worker was named slow or well: an epoch costs a step tried
again. A straggler goes when the run without it, or with the spare that takes its place, is predicted `GAIN` faster than
the best split with it, or at once when it is `HOPELESS` times slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from atoll.fault.speeds import Row, SlowWorker
from atoll.schema.ids import Step, TrainerId

# Less is within what steps differ by anyway, and is not worth an epoch.
GAIN = 0.10
# An epoch costs up to a second: twenty steps of the fastest runs earn about that.
EVERY = 20
# A split that held this many times its distance was right; the next may come as soon as the first.
HELD = 4
AT_MOST = 16 * EVERY
# This long slow and known to be so: chronic.
CHRONIC = 20
# A worker ten times slower gives less than its place in every collective costs.
HOPELESS = 10.0

Counts = dict[TrainerId, int]
Paces = Mapping[TrainerId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Share the grains so. Seconds of a step, predicted from the window, with the split as it is and with this one."""

    counts: Counts
    now_s: float
    then_s: float

    def __str__(self) -> str:
        shares = ", ".join(f"{trainer} {count}" for trainer, count in self.counts.items())
        return (
            f"grains by speed ({shares}): a step is predicted to take {_ms(self.then_s)} instead of {_ms(self.now_s)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Go on without `trainer`. Seconds of computing in a step, with the best split that has it and without it."""

    trainer: TrainerId
    times: float
    with_s: float
    without_s: float
    by: str = ""

    def __str__(self) -> str:
        instead = f"with {self.by} in its place" if self.by else "without it"
        return (
            f"{self.times:.1f} times slower than the others: a step computes for {_ms(self.with_s)} with the best split "
            f"that has it, {_ms(self.without_s)} {instead}"
        )


@dataclass(slots=True)
class Rhythm:
    """When the grains of one run were last split anew, and how soon that may happen again."""

    at: int = 0
    every: int = EVERY

    def allows(self, step: Step, turned_at: Step | None = None) -> bool:
        """Whether a new split may come now. A verdict since the last one is news, and no flapping between two splits."""
        news = turned_at is not None and turned_at > self.at
        return self.at == 0 or step - self.at >= (EVERY if news else self.every)

    def took(self, step: Step) -> None:
        """A new split was decided."""
        held = self.at == 0 or step - self.at >= HELD * self.every
        self.at, self.every = step, EVERY if held else min(2 * self.every, AT_MOST)


def best(grains: int, paces: Paces) -> Counts:
    """The split that ends first. Ties go to the one named first."""
    counts = dict.fromkeys(paces, 1 if grains >= len(paces) else 0)
    for _ in range(grains - sum(counts.values())):
        counts[min(paces, key=lambda t: (counts[t] + 1) * paces[t])] += 1
    return counts


def equal(grains: int, members: Sequence[TrainerId]) -> Counts:
    """The split of equal weights: what is over goes to the lower ranks, as `samples.share` does it."""
    least, over = divmod(grains, len(members))
    return {trainer: least + (rank < over) for rank, trainer in enumerate(members)}


def computing_s(counts: Counts, paces: Paces) -> float:
    """Seconds until the last member has computed its grains."""
    return max((count * paces[trainer] for trainer, count in counts.items()), default=0.0)


def completed(members: Sequence[TrainerId], paces: Paces) -> dict[TrainerId, float]:
    """The pace of each member; newcomers get the median of the known ones. Empty where nobody's is known."""
    known = [paces[t] for t in members if t in paces]
    return {t: paces.get(t, median(known)) for t in members} if known else {}


def weights(members: Sequence[TrainerId], grains: int, paces: Paces, before: Mapping[TrainerId, float]) -> list[float]:
    """What the members of a new epoch weigh: by speed where that pays, else alike; as `before` where no speed is known."""
    full = completed(members, paces)
    if not full or grains < 1:
        old = [before[t] for t in members if t in before]
        middle = median(old) if old else 1.0
        return [before.get(t, middle) for t in members]
    fast, even = best(grains, full), equal(grains, members)
    if computing_s(fast, full) > (1 - GAIN) * computing_s(even, full):
        return [1.0] * len(members)
    return [float(fast[t]) for t in members]


def resplit(rows: Sequence[Row], paces: Paces, enough: int) -> Split | None:
    """A better split than that of `rows`, if there is one worth an epoch. `enough`: rows that it takes to say so."""
    if len(rows) < enough or not paces or any(t not in paces for t in rows[-1]):
        return None
    last = {t: s.grains for t, s in rows[-1].items()}
    alike = [row for row in rows if {t: s.grains for t, s in row.items()} == last]
    if len(alike) < enough:
        return None
    early, late = alike[: len(alike) // 2], alike[len(alike) // 2 :]
    # What one half of the steps advises must pay in the other: noise advises, too, and never pays. So must the whole's.
    halves, whole = (_tried(early, late, paces), _tried(late, early, paces)), _tried(alike, alike, paces)
    if any(then > (1 - GAIN) * now for now, then in (*halves, whole)):
        return None
    now_s, then_s = whole
    return Split(counts=_advised(alike, paces), now_s=now_s, then_s=then_s)


def _advised(rows: Sequence[Row], paces: Paces) -> Counts:
    """The best split by the speeds that these steps show."""
    seen = {t: [pace for row in rows if (pace := row[t].pace) is not None] for t in rows[-1]}
    grains = sum(s.grains for s in rows[-1].values())
    return best(grains, {t: median(found) if found else paces[t] for t, found in seen.items()})


def _tried(advice: Sequence[Row], rows: Sequence[Row], paces: Paces) -> tuple[float, float]:
    """Seconds of a step, as `rows` were and as they would have been by the split that `advice` advises: medians."""
    counts = _advised(advice, paces)
    pairs = [_played(row, counts, paces) for row in rows]
    return median(now for now, _ in pairs), median(then for _, then in pairs)


def _played(row: Row, counts: Counts, paces: Paces) -> tuple[float, float]:
    """The step as it was, and as it would have been with `counts`: what is not computing stays as long."""
    computed = max(s.compute_s for s in row.values())
    now = max(computed, *(s.step_s for s in row.values()))
    then = max(counts[t] * (paces[t] if s.pace is None else s.pace) for t, s in row.items())
    return now, now - computed + then


def eviction(
    *, slow: SlowWorker, step: Step, grains: int, paces: Paces, spare: tuple[TrainerId, float] | None
) -> Evict | None:
    """Whether to go on without a slow member. `spare`: who would take its place, at which pace."""
    others = {t: pace for t, pace in paces.items() if t != slow.trainer}
    if not others or grains < 1 or slow.trainer not in paces:
        return None
    times = paces[slow.trainer] / median(others.values())
    hopeless = times >= HOPELESS
    if not hopeless and step - slow.step < CHRONIC:
        return None
    instead = others | ({spare[0]: spare[1]} if spare is not None else {})
    with_s = computing_s(best(grains, paces), paces)
    without_s = computing_s(best(grains, instead), instead)
    if not hopeless and without_s > (1 - GAIN) * with_s:
        return None
    return Evict(
        trainer=slow.trainer, times=times, with_s=with_s, without_s=without_s, by=spare[0] if spare is not None else ""
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
