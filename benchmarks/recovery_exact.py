"""Whether failures change what is learnt: a small GPT on real text, computed for real, with and without them.

Sums over another number of ranks are added in another order, so losses agree to rounding and not to the bit.
"""

from __future__ import annotations

import random
from typing import Any

from atoll.errors import AtollError
from benchmarks.recovery_faults import Scene
from benchmarks.recovery_ground import Ground, NotSteady, Run, ground
from benchmarks.recovery_kinds import KINDS, Kind, Shape
from benchmarks.recovery_trials import LIMIT_S
from benchmarks.reporting import Figure, Report

_BAR = 1e-4
_STEPS, _QUICK_STEPS = 400, 240
# Faults that follow one another in one run; each waits until all members train again.
_NAMES = (
    "worker SIGKILL",
    "rank 0 SIGKILL",
    "worker SIGSTOP",
    "two failures at once",
    "rank and buddy at once",
    "failure during recovery",
    "failure during a join",
    "link cut",
    "control plane SIGKILL",
    "member lost while the control plane is down",
    "host killed",
)
_END_S = 300.0


def exact(*, quick: bool) -> Report:
    """One calm run and one with a fault of each kind, both to their end."""
    steps = _QUICK_STEPS if quick else _STEPS
    config = {"steps": steps}
    with ground() as here:
        calm = here.submit("text", config=config)
        _ended(here, calm)
        struck = here.submit("text", config=config)
        told = _struck(here, struck, steps)
        _ended(here, struck)
        return _report(here, calm, struck, told, steps)


def _ended(here: Ground, run: Run) -> None:
    here.until(lambda: here.client.run(run.id).state.ended, _END_S, f"{run.id} to end")


def _struck(here: Ground, run: Run, steps: int) -> list[str]:
    """The faults that struck, as far as there were steps left for them."""
    told: list[str] = []
    kinds = {k.name: k for k in KINDS}
    for number, name in enumerate(_NAMES):
        kind: Kind = kinds[name]
        try:
            members = here.steady(run, 90.0)
            view = here.client.run(run.id)
            if view.step > steps * 0.9:
                break
            chance = random.Random(name)
            scene = Scene(
                ground=here, run=run, members=members, epoch=view.epoch, chance=chance, number=number, hold_s=0.0
            )
            scene.struck_by(kind.strike)
            try:
                if kind.shape is Shape.LOSS:
                    here.until(lambda e=view.epoch: here.client.run(run.id).epoch > e, LIMIT_S, f"{name} to be noticed")
            finally:
                scene.mend()
            told.append(name)
        except (NotSteady, AtollError) as error:
            told.append(f"{name} ({str(error)[:120]})")
    return told


def _losses(here: Ground, run: Run) -> dict[int, float]:
    found: dict[int, float] = {}
    while page := here.client.metrics(run.id, max(found, default=-1)):
        found |= {p.step: p.metrics["loss"] for p in page}
    return found


def _report(here: Ground, calm: Run, struck: Run, told: list[str], steps: int) -> Report:
    expected, found = _losses(here, calm), _losses(here, struck)
    account = struck.ledger.account()
    shared = sorted(expected.keys() & found.keys())
    apart = {s: abs(expected[s] - found[s]) for s in shared}
    last = apart.get(steps)
    note = f"after {len(told)} faults in {steps} steps of real compute: {', '.join(told)}"
    figures = (
        Figure(name="final_loss_difference", value=last, bar=_BAR, floor=False, note=note),
        Figure(name="exact_samples_lost", value=account.lost, bar=0, floor=False, note=f"of {account.samples}"),
        Figure(name="exact_samples_repeated", value=account.repeated, bar=0, floor=False),
    )
    details: dict[str, Any] = {
        "final_loss": expected.get(steps),
        "largest_difference": max(apart.values(), default=None),
        "steps_compared": len(shared),
        "gaps": list(account.gaps),
        "problems": list(account.problems),
        "state": here.client.run(struck.id).state.value,
    }
    return Report(figures=figures, details=details)
