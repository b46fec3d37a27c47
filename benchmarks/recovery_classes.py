"""The table: each kind of failure several times, on runs whose compute is emulated."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any, Self

from atoll.errors import LabError
from benchmarks.recovery_ground import NotSteady, ground
from benchmarks.recovery_kinds import KINDS, Kind, Shape
from benchmarks.recovery_trials import LIMIT_S, NO_RUN, SLOW_STEPS, Theatre
from benchmarks.reporting import Figure, Report
from benchmarks.timing import rounded

_TRIALS, _QUICK_TRIALS = 5, 2
_HOLD_S, _QUICK_HOLD_S = 120.0, 15.0
# A third of the speed in one of four leaves 3.33 of 4 workers' worth. Around a slow pair the islands' other two pairs
# carry as much as before.
_LEFT = {
    "worker": ((3 + 1 / 3) / 4, "three workers and a third allow"),
    "link": (1.0, "the other links allow, which is all"),
}
_SHARE = 0.8


def classes(*, quick: bool, only: tuple[str, ...] = (), notes: Path | None = None) -> Report:
    """Each kind in turn, on one ground as long as runs come back there; those that end their ground come last.

    `notes`: keeps the trials as they come, and those already there are not made again.
    """
    count, hold_s = (_QUICK_TRIALS, _QUICK_HOLD_S) if quick else (_TRIALS, _HOLD_S)
    wanted = [k for k in KINDS if not only or k.name in only]
    found = _noted(notes)
    with _Stage(hold_s) as stage:
        for kind in wanted:
            trials = found.setdefault(kind.name, [])
            for number in range(len(trials), _times(kind, count, quick=quick)):
                trials.append(_told(kind, stage.tried(kind, number)))
                if notes is not None:
                    notes.write_text(json.dumps(found))
    if notes is not None:
        notes.unlink(missing_ok=True)
    return report(wanted, {k.name: found[k.name] for k in wanted}, quick=quick)


def _noted(notes: Path | None) -> dict[str, list[dict[str, Any]]]:
    if notes is None or not notes.exists():
        return {}
    kept: dict[str, list[dict[str, Any]]] = json.loads(notes.read_text())
    return kept


class _Stage:
    """A ground, made when it is needed and made anew once a fault has left nothing of it."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._standing = contextlib.ExitStack()
        self._theatre: Theatre | None = None
        self._stood = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def tried(self, kind: Kind, number: int) -> dict[str, Any]:
        """One trial. A ground on which no run begins is left behind, and the trial made on another."""
        if kind.fresh:
            self._leave()
        trial = self._measured(kind, number)
        if trial.get("problem", "").startswith(NO_RUN):
            print(f"  {kind.name}: {trial['problem'][:200]}; on another ground", flush=True)
            self._leave()
            trial = self._measured(kind, number)
        if kind.fresh:
            self._leave()
        return trial

    def _measured(self, kind: Kind, number: int) -> dict[str, Any]:
        """What was measured before is kept where a later ground cannot be raised, as on a machine that is overloaded."""
        try:
            return self._here().tried(kind, number)
        except (LabError, NotSteady) as error:
            if not self._stood:
                raise
            return {"problem": f"{NO_RUN}: {str(error)[-300:]}"}

    def _here(self) -> Theatre:
        if self._theatre is None:
            self._theatre = Theatre(self._standing.enter_context(ground()), hold_s=self._hold_s)
            self._stood = True
        return self._theatre

    def _leave(self) -> None:
        self._theatre = None
        self._standing.close()


def _times(kind: Kind, count: int, *, quick: bool) -> int:
    """A held fault, or one that ends its ground, takes its time; once shows that it works."""
    return 1 if quick and (kind.shape is Shape.HELD or kind.fresh) else count


def _told(kind: Kind, trial: dict[str, Any]) -> dict[str, Any]:
    seconds = trial.get("seconds")
    shown = "-" if seconds is None else f"{seconds:.3f} s"
    print(f"  {time.strftime('%H:%M:%S')} {kind.name}: {shown} {_odd(trial)}", flush=True)
    return trial


def _odd(trial: dict[str, Any]) -> str:
    words = [str(trial[k])[:300] for k in ("problem", "problem_after") if trial.get(k)]
    words += [f"wrongly condemned: {w[:160]}" for w in trial.get("wrong", ())]
    if trial.get("verdict") is False:
        words.append(f"verdict not as expected: {[s[:120] for s in trial['said']]}")
    words += [f"{k}={trial[k]}" for k in ("steps_lost", "samples_lost", "samples_repeated") if trial.get(k)]
    if "rate_after" in trial:
        words.append(
            f"{trial['rate_before']:.2f} -> {trial['rate_after']:.2f} steps/s, named after {trial['named_after_steps']}"
        )
    return "; ".join(words)


def report(kinds: list[Kind], found: dict[str, list[dict[str, Any]]], *, quick: bool) -> Report:
    """Figures of the kinds that have a bar, sums over all of them, and a row for each."""
    figures = [f for name in dict.fromkeys(k.figure for k in kinds if k.figure) for f in _seconds(name, kinds, found)]
    every = [t for trials in found.values() for t in trials]
    for name in ("steps_lost", "samples_lost", "samples_repeated"):
        worst = [t[name] for t in every if name in t]
        note = "after each fault, over the whole run so far"
        figures.append(Figure(name=name, value=max(worst, default=None), bar=0, floor=False, note=note))
    struck = [t for t in every if "verdict" in t]
    wrong = sum(1 for t in struck if t["verdict"] is False or t["wrong"])
    figures.append(
        Figure(name="wrong_verdicts", value=wrong, bar=0, floor=False, note=f"of {len(struck)} faults of all kinds")
    )
    figures += _slow_figures(kinds, found)
    rows = {k.name: _row(k, found[k.name]) for k in kinds}
    return Report(figures=tuple(figures), details={"rows": rows, "trials": found, "quick": quick})


def _seconds(name: str, kinds: list[Kind], found: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    own = [k for k in kinds if k.figure == name]
    trials = [t for k in own for t in found[k.name]]
    struck = [t for t in trials if not t.get("problem", "").startswith(NO_RUN)]
    # What did not recover in its time counts with all of it: a median may not leave it out.
    measured = [LIMIT_S if t.get("seconds") is None else t["seconds"] for t in struck]
    note = f"median of {len(measured)}, emulated compute"
    if measured:
        note += f", worst {max(measured):.3f}"
    if short := sum(t.get("seconds") is None for t in struck):
        note += f"; {short} of {len(struck)} did not recover and count as {LIMIT_S:g} s"
    if len(struck) < len(trials):
        note += f"; {len(trials) - len(struck)} had no run to strike"
    value = statistics.median(measured) if measured else None
    return [Figure(name=name, value=value, bar=own[0].bar, floor=False, note=note)]


def _slow_figures(kinds: list[Kind], found: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    figures = []
    for kind in [k for k in kinds if k.shape is Shape.SLOW]:
        trials = [t for t in found[kind.name] if "rate_after" in t]
        named = [t["named_after_steps"] for t in trials if t["named_after_steps"] is not None]
        short = len(trials) - len(named)
        word = kind.name.split()[1]
        note = f"worst of {len(trials)}" + (f"; {short} not named at all" if short else "")
        value = max(named, default=None) if not short else None
        figures.append(Figure(name=f"slow_{word}_named_steps", value=value, bar=SLOW_STEPS, floor=False, note=note))
        leaves, what = _LEFT[word]
        shares = [t["rate_after"] / (t["rate_before"] * leaves) for t in trials if t["rate_before"]]
        note = f"throughput, as a share of what {what}; worst of {len(shares)}"
        figures.append(Figure(name=f"slow_{word}_share", value=min(shares, default=None), bar=_SHARE, note=note))
    return figures


def _row(kind: Kind, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table."""
    measured = [t["seconds"] for t in trials if t.get("seconds") is not None]
    raw = [t["raw_s"] for t in trials if t.get("raw_s") is not None]
    return {
        "shape": kind.shape.value,
        "n": len(trials),
        "not_in_time": len(trials) - len(measured),
        "median_s": rounded(statistics.median(measured)) if measured else None,
        "worst_s": rounded(max(measured)) if measured else None,
        "raw_median_s": rounded(statistics.median(raw)) if raw else None,
        "right_verdicts": sum(1 for t in trials if t.get("verdict")),
        "wrongly_condemned": sum(len(t.get("wrong", ())) for t in trials),
        "steps_lost": max((t.get("steps_lost", 0) for t in trials), default=0),
        "samples_lost": max((t.get("samples_lost", 0) for t in trials), default=0),
        "samples_repeated": max((t.get("samples_repeated", 0) for t in trials), default=0),
        "came_back": sum(1 for t in trials if t.get("back_s") is not None),
    }
