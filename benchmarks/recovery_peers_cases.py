"""Which peers are struck by what, how often, and the ratios and rows made of it. Pure.

A ratio is the peer's median over Atoll's. Where a peer has several settings that could be called its defaults, the
ratio uses the one that serves it best, and shows the others. Trials in which its members never settled in one membership
before the fault had nothing to come back to: they count only for a setting that has no others, and no ratio uses that
where there is a better one. What has not recovered within the limit enters with the limit: a lower
bound, which is said as well. A trial whose job did not come to train measured nothing and enters nowhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.recovery_peers_jobs import (
    RAY_TRAIN,
    RAY_TRAIN_FIXED,
    TORCHFT_API,
    TORCHFT_COMMAND,
    TORCHFT_README,
    TORCHFT_TUNED,
    TORCHRUN,
    Peer,
)
from benchmarks.reporting import Figure, Report
from benchmarks.timing import rounded

KILL, HANG, HOST = "worker SIGKILL", "worker SIGSTOP", "host killed"
# Three times torchft's default timeout of 60 s, and more than Ray takes to give up a host that says nothing.
LIMIT_S, _SURELY_NOT_S = 180.0, 60.0
# Faster than can be told from one undisturbed step would make any ratio.
_LEAST_S = 0.01
_PROBLEM = 300
UNSETTLED = "its membership changed all the time even before the fault"
Trials = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A peer and a fault. `times`: in a full run; `quick`: in a quick one; `note`: what its documents say of it.

    `limit_s`: how long it is waited for; little where the documents say that it will not come back in time.
    """

    peer: Peer
    fault: str
    times: int = 5
    quick: int = 1
    limit_s: float = LIMIT_S
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.peer.name}: {self.fault}"


_RAY_HANG = "its health check takes 10 minutes, Gloo's timeout 30"
_GLOO_HANG = "nothing notices before Gloo's timeout of 30 minutes"
CASES = (
    Case(peer=TORCHFT_API, fault=KILL),
    Case(peer=TORCHFT_README, fault=KILL),
    Case(peer=TORCHFT_COMMAND, fault=KILL, times=1, quick=0),
    Case(peer=TORCHFT_TUNED, fault=KILL, times=3),
    Case(peer=TORCHFT_README, fault=HANG, times=3),
    Case(peer=TORCHFT_TUNED, fault=HANG, times=3),
    Case(peer=TORCHFT_TUNED, fault=HOST, times=1, quick=0),
    Case(peer=TORCHFT_API, fault=HANG, times=1, quick=0),
    Case(peer=RAY_TRAIN, fault=KILL, times=3),
    Case(peer=RAY_TRAIN_FIXED, fault=KILL, times=1, quick=0),
    Case(peer=RAY_TRAIN, fault=HOST, times=3),
    Case(peer=RAY_TRAIN, fault=HANG, times=1, quick=0, limit_s=_SURELY_NOT_S, note=_RAY_HANG),
    Case(peer=TORCHRUN, fault=KILL, times=3),
    Case(peer=TORCHRUN, fault=HANG, times=1, quick=0, limit_s=_SURELY_NOT_S, note=_GLOO_HANG),
    Case(peer=TORCHRUN, fault=HOST, times=1, quick=0, limit_s=_SURELY_NOT_S, note=_GLOO_HANG),
)
# By figure: the fault, of Atoll's kind of the same name, and the peer's settings of which the best for it counts.
RATIOS = {
    "vs_torchft_kill": (KILL, (TORCHFT_API, TORCHFT_README, TORCHFT_COMMAND)),
    "vs_torchft_hang": (HANG, (TORCHFT_API, TORCHFT_README)),
    "vs_ray_train_kill": (KILL, (RAY_TRAIN, RAY_TRAIN_FIXED)),
    "vs_ray_train_host": (HOST, (RAY_TRAIN,)),
}


def own(fault: str) -> str:
    """The name of Atoll's own case."""
    return f"Atoll: {fault}"


def report(found: Trials, *, quick: bool) -> Report:
    """The ratios, and a row for each case."""
    figures = tuple(_ratio(name, found) for name in RATIOS)
    notes = {c.name: c.note for c in CASES}
    rows = {name: _row(trials, notes.get(name, "")) for name, trials in found.items() if trials}
    return Report(figures=figures, details={"rows": rows, "trials": found, "quick": quick})


def _ratio(name: str, found: Trials) -> Figure:
    fault, settings = RATIOS[name]
    mine = found.get(own(fault), [])
    known = [t["seconds"] for t in mine if t.get("seconds") is not None]
    if not known or len(known) < len(mine):
        return Figure(name=name, value=None, bar=1.0, note=f"Atoll recovered in time in {len(known)} of {len(mine)}")
    theirs = {p.name: found.get(f"{p.name}: {fault}", []) for p in settings}
    medians = {who: statistics.median(bounds) for who, trials in theirs.items() if (bounds := _bounds(trials))}
    if not medians:
        why = next((t["problem"] for trials in theirs.values() for t in trials if t.get("problem")), "not measured")
        return Figure(name=name, value=None, bar=1.0, note=why)
    settled = [who for who in medians if _settled(theirs[who])]
    best = min(settled or medians, key=lambda who: medians[who])
    atoll_s = statistics.median(known)
    note = f"{best}: {_said(theirs[best])}, over Atoll's {atoll_s:.3g} s, median of {len(known)}"
    note += "".join(
        f"; {who}: {_said(trials)}, {medians[who] / max(atoll_s, _LEAST_S):.3g} times"
        for who, trials in theirs.items()
        if who != best and who in medians
    )
    return Figure(name=name, value=medians[best] / max(atoll_s, _LEAST_S), bar=1.0, note=note)


def _settled(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [t for t in trials if t.get("settled", True) and ("at_least_s" in t or t.get("seconds") is not None)]


def _bounds(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """The seconds of those that trained together and were struck; of one that did not recover in time, the limit."""
    counted = _settled(trials) or trials
    bounds = [t["seconds"] if t.get("seconds") is not None else t.get("at_least_s") for t in counted]
    return [b for b in bounds if b is not None]


def _said(trials: Sequence[Mapping[str, Any]]) -> str:
    bounds = _bounds(trials)
    late = sum(t.get("seconds") is None and "at_least_s" in t for t in _settled(trials) or trials)
    loose = sum(not t.get("settled", True) for t in trials)
    words = f"{'at least ' if late else ''}{statistics.median(bounds):.3g} s, median of {len(bounds)}"
    words += f", {late} of which had not recovered by then" if late else ""
    return words + (f" (in {loose} of {len(trials)} trials {UNSETTLED})" if loose else "")


def _row(trials: Sequence[Mapping[str, Any]], note: str) -> dict[str, Any]:
    known = [t["seconds"] for t in trials if t.get("seconds") is not None]
    # Of Atoll the account of samples says it.
    redone = max((t.get("steps_redone", t.get("steps_lost", 0)) for t in trials), default=0)
    loose = UNSETTLED if not all(t.get("settled", True) for t in trials) else ""
    problem = next((str(t["problem"])[:_PROBLEM] for t in trials if t.get("problem")), "")
    return {
        "n": len(trials),
        "median_s": rounded(statistics.median(known)) if known else None,
        "worst_s": rounded(max(known)) if known else None,
        "not_in_time": len(trials) - len(known),
        "members": min((t["members"] for t in trials if t.get("members")), default=None),
        "steps_redone": redone if known else None,
        "note": "; ".join(filter(None, (problem, note, loose))),
    }
