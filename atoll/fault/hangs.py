"""Who keeps the others waiting, and whether its process shows that it will not come.

Members that wait name whom they wait for; some of those wait themselves. Followed to its end, every chain of waits
leads to a member that waits for nobody (a suspect), or round in a circle (`links`). A suspect is hung only if its own
process bears it out:

- stopped in `/proc` for `STOPPED_S`, and anybody waits for it (after `UNAWAITED_S` if nobody does, unless every member
  is stopped: then somebody suspended the run, and losing it all would not help);
- its interpreter has given no thread a turn for longer than the run's pace allows: a held GIL;
- its processor time stands still for ten times as long: a deadlock, or a sleep that it should have announced;
- it works, and has not come for ten minutes.

A spare whose interpreter stands still for a minute would be of no use.

What it announced with `ctx.busy` excuses all but the first, and so does the first step of its process, for long; but that
a first step keeps the interpreter to itself is excused for seconds only, since a compiler gives it back now and then.
The word of a member that is stopped, whose interpreter stands still, or whose node is not heard does not count: it is
from before.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.fault.facts import FRESH_S, Facts, ProcessFacts, RunFacts, TrainerFacts, Wait
from atoll.fault.hearing import audible
from atoll.fault.limits import FIRST_GIL_S, FIRST_STEP_S, SPARE_GIL_S, STOPPED_S, UNAWAITED_S, Limits
from atoll.fault.verdicts import Hung, Why
from atoll.schema.ids import TrainerId

# A process that moved within this time can still say what it waits for.
_DUMB_S = 0.5
_STATES = {"T": "stopped by a signal", "t": "held by a debugger", "Z": "dead, its exit not reported", "X": "dead"}


@dataclass(frozen=True, slots=True)
class Waits:
    """Who waits for whom in one run, as far as the words are fresh and from processes that still could change them."""

    by: dict[TrainerId, Wait]
    blamed: dict[TrainerId, tuple[TrainerId, ...]]

    def naming(self, trainer: TrainerId) -> tuple[TrainerId, ...]:
        """Whoever waits for `trainer` directly, or has lost its connection to it."""
        waiting = [t for t, wait in self.by.items() if trainer in wait.named]
        return (*waiting, *(t for t in self.blamed.get(trainer, ()) if t not in waiting))

    def suspects(self, members: tuple[TrainerFacts, ...]) -> list[TrainerFacts]:
        """Members that others wait for, and that wait for nobody themselves."""
        return [m for m in members if m.trainer not in self.by and self.naming(m.trainer)]

    def longest(self, trainer: TrainerId, now: float) -> float:
        """How long anybody has waited for `trainer`."""
        return max((w.lasts(now) for w in self.by.values() if trainer in w.named), default=0.0)

    def operation(self, trainer: TrainerId) -> str:
        """In what it is waited for."""
        return next((w.what for w in self.by.values() if trainer in w.named), "")


def waits_of(run: RunFacts, facts: Facts) -> Waits:
    """The words that count now."""
    by = {w.trainer: w for w in run.waits if w.named and _counts(run, w, facts)}
    blamed: dict[TrainerId, tuple[TrainerId, ...]] = {}
    for blame in run.blames:
        if blame.epoch == run.epoch and blame.by:
            blamed[blame.peer] = (*blamed.get(blame.peer, ()), blame.by)
    return Waits(by, blamed)


def _counts(run: RunFacts, wait: Wait, facts: Facts) -> bool:
    speaker = run.of(wait.trainer)
    if wait.epoch != run.epoch or speaker is None or speaker.rank is None or facts.now - wait.at > FRESH_S:
        return False
    if not audible(facts.nodes.get(speaker.node), facts):
        return False
    process = speaker.process
    dumb = process is not None and (process.stopped_at is not None or beat_age(process, facts.now) > _DUMB_S)
    return not dumb


def beat_age(process: ProcessFacts, now: float) -> float:
    """How old the beat is. The agent says at once when a beat stalls and when it goes on, so a stall lasts until then."""
    told = process.at - process.beat_at
    return told + (now - process.at if told > _DUMB_S and now - process.at <= FRESH_S else 0.0)


def hung(run: RunFacts, facts: Facts) -> list[Hung]:
    """The trainers of `run` whose processes do nothing that others wait for."""
    waits, limits = waits_of(run, facts), Limits(run.step_s, facts.strain_s)
    verdicts = [_stopped(run, t, waits, facts) for t in run.trainers]
    verdicts += [_stuck(run, t, waits, limits, facts) for t in waits.suspects(run.members)]
    verdicts += [_dull(run, t, waits, facts) for t in run.trainers if t.rank is None]
    found = {v.trainer: v for v in reversed(verdicts) if v is not None}
    if all(m.trainer in found for m in run.members):
        return []
    return list(reversed(found.values()))


def awaited(run: RunFacts, trainer: TrainerFacts, waits: Waits) -> bool:
    """Whether anybody needs this trainer now: waits for it, lost it, or both are on their way into a new epoch."""
    regrouping = trainer.rank is not None and not trainer.joined and len(run.members) > 1
    return regrouping or bool(waits.naming(trainer.trainer))


def _stopped(run: RunFacts, trainer: TrainerFacts, waits: Waits, facts: Facts) -> Hung | None:
    process = _seen(trainer, facts)
    if process is None or process.stopped_at is None or (process.traced and facts.now < trainer.busy_until):
        return None
    lasts = facts.now - process.stopped_at
    if lasts < (STOPPED_S if awaited(run, trainer, waits) else UNAWAITED_S):
        return None
    words = f"{_STATES.get(process.state, 'stopped')} (state {process.state}) for {lasts:.1f} s"
    return _verdict(run, trainer, Why.STOPPED, waits, words)


def _stuck(run: RunFacts, trainer: TrainerFacts, waits: Waits, limits: Limits, facts: Facts) -> Hung | None:
    process = _seen(trainer, facts)
    excused = facts.now < trainer.busy_until
    if process is None or (excused and trainer.steps):
        return None
    still, idle = beat_age(process, facts.now), process.at - process.idle_at
    waited = waits.longest(trainer.trainer, facts.now)
    first = 0.0 if trainer.steps else FIRST_STEP_S
    if still >= (limits.gil if trainer.steps else max(FIRST_GIL_S, limits.gil)):
        words = f"no thread of its interpreter had a turn for {still:.1f} s; {limits.words}"
        return _verdict(run, trainer, Why.GIL, waits, words)
    if excused:
        return None
    if min(waited, idle) >= max(first, limits.idle):
        words = f"its processor time has stood still for {idle:.0f} s and it announced nothing (`ctx.busy`)"
        return _verdict(run, trainer, Why.IDLE, waits, words)
    if waited >= max(first, limits.absent):
        words = f"it works and has not come for {waited:.0f} s, and announced nothing (`ctx.busy`)"
        return _verdict(run, trainer, Why.ABSENT, waits, words)
    return None


def _dull(run: RunFacts, trainer: TrainerFacts, waits: Waits, facts: Facts) -> Hung | None:
    """A spare that would be of no use."""
    process = _seen(trainer, facts)
    if process is None or facts.now < trainer.busy_until or beat_age(process, facts.now) < SPARE_GIL_S:
        return None
    words = f"no thread of its interpreter had a turn for {beat_age(process, facts.now):.0f} s, as a spare"
    return _verdict(run, trainer, Why.GIL, waits, words)


def _seen(trainer: TrainerFacts, facts: Facts) -> ProcessFacts | None:
    """The process as it is now: not where its agent has fallen silent, nor where the agent itself was late to look."""
    process, node = trainer.process, facts.nodes.get(trainer.node)
    # A stop that is over is told at once: where nothing at all is told, it may be over.
    if process is None or not audible(node, facts) or facts.now - process.at > FRESH_S:
        return None
    return None if process.late_s > max(_DUMB_S, 2 * facts.strain_s) else process


def _verdict(run: RunFacts, trainer: TrainerFacts, why: Why, waits: Waits, words: str) -> Hung:
    naming, operation = waits.naming(trainer.trainer), waits.operation(trainer.trainer)
    if naming:
        verb = "waits" if len(naming) == 1 else "wait"
        words += f", while {', '.join(naming)} {verb} for it" + (f" in {operation}" if operation else "")
    elif trainer.rank is not None and not trainer.joined:
        words += f", while epoch {run.epoch} regroups"
    return Hung(run=run.run, trainer=trainer.trainer, why=why, named_by=naming, operation=operation, evidence=words)
