"""One fault on a steady run, measured: `tried`. Whatever does not happen within its limit is a result, not a hang.

A run is used for one fault after another, and replaced where it does not come back to all its members.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Iterator
from typing import Any

from atoll.errors import AtollError
from atoll.fault.costs import Cost, calm_step, longest_gap
from benchmarks.recovery_account import Books, rate, recovery
from benchmarks.recovery_faults import Scene, on_fast_nics
from benchmarks.recovery_ground import BACK_S, Ground, NotSteady, Run, Worker
from benchmarks.recovery_kinds import Kind, Shape, verdicts

# What does not recover within this time has not recovered.
LIMIT_S = 30.0
# Of a control plane that is down, the rest of whose return (Ray's, then the journal's replay) belongs to the time.
_STEADY_STEPS = 6
_LOOK_S = 0.05
# A slow link shows only where much crosses it, and a third of a worker's share is a whole number of grains.
_SLOW_CONFIG = {"elements": 1 << 17, "grains": 24, "grain_s": 0.02}
NO_RUN = "no steady run to strike"
# The story reaches the web process within a tenth of a second.
_TOLD_S = 0.3
# A slow part is to be named within so many steps; then so many more show what is left.
SLOW_STEPS, _AFTER_STEPS = 10, 30
# The longest gap in so long a time without a fault is the usual one; in a longer time it would only be longer.
_USUAL_S = 20.0


class Theatre:
    """Runs on one ground, kept for the next fault as long as they come back."""

    def __init__(self, ground: Ground, *, hold_s: float) -> None:
        self.ground, self.hold_s = ground, hold_s
        self.runs = 0
        self._run: Run | None = None
        self._has: tuple[int, bool] | None = None

    def run_for(self, kind: Kind) -> Run:
        """A run that suits the kind, the one in hand where it does."""
        wants = (kind.checkpoint_every, kind.shape is Shape.SLOW)
        if self._run is None or self._has != wants or kind.anew:
            self.drop()
            self._has = wants
            config = _SLOW_CONFIG if kind.shape is Shape.SLOW else {}
            self._run = self.ground.submit("emulated", checkpoint_every=kind.checkpoint_every, config=config)
            self.runs += 1
            self.ground.steady(self._run)
        return self._run

    def drop(self) -> None:
        """End the run in hand; the next fault gets a new one."""
        if self._run is not None:
            self._run = None
            with contextlib.suppress(NotSteady, AtollError):
                self.ground.clear()

    def tried(self, kind: Kind, number: int) -> dict[str, Any]:
        """Strike once, measure, mend, and see the run come back."""
        chance = random.Random(f"{kind.name} {number}")
        try:
            run, members = self._steady_run(kind)
        except (NotSteady, AtollError) as error:
            with contextlib.suppress(NotSteady, AtollError):
                self.ground.clear()
            self._run = None
            return {"problem": f"{NO_RUN}: {error}"}
        scene = self._scene(run, members, chance, number)
        found: dict[str, Any] = {}
        try:
            with self._mended(scene):
                found = _SHAPES[kind.shape](scene, kind)
        except (AtollError, OSError, NotSteady) as error:
            found["problem"] = f"{type(error).__name__}: {error}"
        # What did not recover in its time need not be waited for much longer.
        return found | self._back(run, BACK_S if found.get("seconds") is not None else LIMIT_S)

    def _steady_run(self, kind: Kind) -> tuple[Run, list[Worker]]:
        until = time.monotonic() + BACK_S
        while True:
            run = self.run_for(kind)
            members = self.ground.steady(run, steps=_STEADY_STEPS)
            if not kind.anew or on_fast_nics(self.ground, members):
                return run, members
            # The link of the trial before is still left out; a run of its own would return to it within a minute.
            if time.monotonic() > until:
                raise NotSteady(f"members are not joined by their fast NICs after {BACK_S:g} s")

    def _scene(self, run: Run, members: list[Any], chance: random.Random, number: int) -> Scene:
        scene = Scene(
            ground=self.ground,
            run=run,
            members=members,
            epoch=self.ground.client.run(run.id).epoch,
            chance=chance,
            number=number,
            hold_s=self.hold_s,
        )
        time.sleep(chance.uniform(0, 0.2))  # at any moment of a step
        return scene

    @contextlib.contextmanager
    def _mended(self, scene: Scene) -> Iterator[None]:
        try:
            yield
        finally:
            scene.mend()

    def _back(self, run: Run, limit_s: float) -> dict[str, Any]:
        """Whether the run comes back to all its members, and what its account says."""
        begun = time.monotonic()
        back = None
        try:
            self.ground.steady(run, limit_s)
            back = time.monotonic() - begun
        except (NotSteady, AtollError) as error:
            account = run.ledger.account()
            self.drop()
            return {"back_s": None, "problem_after": str(error)[:300]} | _accounted(account)
        return {"back_s": back} | _accounted(run.ledger.account())


def _accounted(account: Any) -> dict[str, Any]:
    return {
        "samples_lost": account.lost,
        "samples_repeated": account.repeated,
        "steps_lost": len(account.gaps) + sum("committed in" in p for p in account.problems),
        "run_steps": account.steps,
    }


def _seq(scene: Scene) -> int:
    return max((e.seq for e in scene.ground.events(scene.run)), default=0)


def _loss(scene: Scene, kind: Kind) -> dict[str, Any]:
    before = _seq(scene)
    fault = scene.struck_by(kind.strike)
    found = _recovered(scene, fault)
    time.sleep(_TOLD_S)
    said = verdicts(kind, scene.victims, scene.ground.events(scene.run, before))
    plain = {"verdict": said.right, "wrong": list(said.wrong), "said": list(said.said)}
    if found is None:
        return plain | {"seconds": None, "problem": f"no step of new members within {LIMIT_S:g} s"}
    return plain | {"seconds": found.seconds} | dataclasses.asdict(found)


def _recovered(scene: Scene, fault: float | None) -> Cost | None:
    """Wait for the first step of new members, and for enough of their steps to know an undisturbed one."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        books = scene.run.books()
        moment = fault if fault is not None else next((f for f in books.faults if f > scene.begun), None)
        if moment is not None and (found := recovery(books, moment, epoch=scene.epoch)) is not None:
            return found
        time.sleep(_LOOK_S)
    return None


def _held(scene: Scene, kind: Kind) -> dict[str, Any]:
    """The longest time without a commit while the fault lasts, against one in a shorter time before it."""
    window = scene.hold_s
    time.sleep(min(window / 2, _USUAL_S))
    before = _seq(scene)
    fault = scene.struck_by(kind.strike) or time.monotonic()
    time.sleep(window)
    end = time.monotonic()
    books = scene.run.books()
    plain = _pauses(books, fault, end, min(window / 2, _USUAL_S), scene.epoch)
    scene.mend()
    time.sleep(_TOLD_S)
    try:
        told = scene.ground.events(scene.run, before)
    except AtollError:
        told = []
    said = verdicts(kind, scene.victims, told)
    return plain | {"verdict": said.right, "wrong": list(said.wrong), "said": list(said.said), "held_s": end - fault}


def _pauses(books: Books, fault: float, end: float, window: float, epoch: int) -> dict[str, Any]:
    commits = books.commits()
    step = calm_step(commits, epoch) or 0.0
    longest, usual = longest_gap(commits, fault, end), longest_gap(commits, fault - window, fault)
    return {
        "seconds": max(0.0, longest - usual),
        "raw_s": longest,
        "step_s": step,
        "usual_s": usual,
        "steps_meanwhile": books.steps_since(fault),
    }


def _slow(scene: Scene, kind: Kind) -> dict[str, Any]:
    """In how many steps it is named, and the rate from then on against that before."""
    before = _seq(scene)
    begun = time.monotonic()
    calm = rate(scene.run.books(), begun - 3.0, begun)
    fault = scene.struck_by(kind.strike) or time.monotonic()
    named: float | None = None
    limit = time.monotonic() + LIMIT_S
    books = scene.run.books()
    while time.monotonic() < limit and books.steps_since(fault) < SLOW_STEPS + _AFTER_STEPS:
        if named is None and verdicts(kind, scene.victims, scene.ground.events(scene.run, before)).right:
            named = time.monotonic()
        time.sleep(_LOOK_S)
        books = scene.run.books()
    end = time.monotonic()
    steps = sorted(books.committed(s) for s in books.steps if books.committed(s) > fault)
    # From when it had to be named, or was; and the steps in hand then are still shared as before.
    first = SLOW_STEPS if named is None else max(SLOW_STEPS, sum(1 for s in steps if s <= named))
    settled = steps[first + 2] if len(steps) > first + 4 else fault
    said = verdicts(kind, scene.victims, scene.ground.events(scene.run, before))
    return {
        "seconds": None if named is None else named - fault,
        "named_after_steps": None if named is None else sum(1 for s in steps if s <= named),
        "rate_before": calm,
        "rate_after": rate(books, settled, end),
        "verdict": said.right,
        "wrong": list(said.wrong),
        "said": list(said.said),
    }


_SHAPES = {Shape.LOSS: _loss, Shape.HELD: _held, Shape.SLOW: _slow}
