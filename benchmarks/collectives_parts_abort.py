"""How long an abort takes: from the call, or the first reset seen, until no waiter on any rank is left waiting."""

from __future__ import annotations

import functools
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from atoll.lab.lab_runtime import Lab, raised
from atoll.lab.spec import LabSpec
from benchmarks import contestants, contestants_abort, networks, timing
from benchmarks.races import Field
from benchmarks.ranks import Crew, RankFailed
from benchmarks.reporting import Figure, Report

_HOSTS = 2
_SIZE = networks.MIB
_BAR_MS = 50
# The fault strikes within this time of the first step, evenly; what watches over the ranks calls the abort so long after.
_STRIKE_S = (0.3, 0.7)
_NOTICED_S = 0.3
_ANSWER_S = 40.0

Strike = Callable[[Lab, Crew, int], None]


def abort(*, quick: bool) -> Report:
    """A rank killed, a rank stopped, a link cut: each many times, at a random moment of a step, compute emulated."""
    spec = networks.two_islands(_HOSTS)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in _STRIKES}
    with raised(spec) as lab:
        for kind in timing.rounds(tuple(_STRIKES), 2 if quick else 50, seed=1):
            chance = random.Random(f"{kind} {len(found[kind])}")
            found[kind].append(_trial(spec, lab, kind, chance))
    worst = {kind: timing.percentile([t["abort_ms"] for t in trials], 95) for kind, trials in found.items()}
    note = ", ".join(f"{kind} {value:.1f}" for kind, value in worst.items())
    figure = Figure(
        name="abort_ms",
        value=max(worst.values()),
        bar=_BAR_MS,
        floor=False,
        note=f"p95 of {len(found['SIGKILL'])} each: {note}; emulated compute",
    )
    details = {
        kind: {name: timing.spread([t[name] for t in trials]).plain() for name in trials[0]}
        for kind, trials in found.items()
    }
    return Report(figures=(figure,), details=details)


def _trial(spec: LabSpec, lab: Lab, kind: str, chance: random.Random) -> dict[str, float]:
    names = [h.name for h in spec.hosts]
    victim, aborter = chance.sample(range(len(names)), 2)
    crew = Crew(names, lab.enter)
    try:
        crew.call(contestants_abort.note_resets)
        Field(spec, lab, crew, names).meet(gloo=False)
        # A cut link leaves its rank alive and reachable by its other NIC: it too must hear of the end.
        survivors = [r for r in range(len(names)) if r != victim or kind == "cut link"]
        struck = functools.partial(_struck, lab, crew, victim, kind, chance.uniform(*_STRIKE_S))
        ask = {"aborter": aborter, "culprit": victim, "abort_after_s": _STRIKE_S[1] + _NOTICED_S, "count": _SIZE // 4}
        crew.begin(contestants_abort.work_until_aborted, range(len(names)), **ask)
        strikes: list[float] = []
        answers = crew.gather(
            survivors, limit_s=_ANSWER_S, lost=[victim], opened=lambda begin: strikes.append(struck(begin))
        )
    finally:
        crew.close()
        lab.heal()
    return times(kind, victim, list(answers.values()), strikes[0])


def _struck(lab: Lab, crew: Crew, victim: int, kind: str, after_s: float, begin: float) -> float:
    """Strike; returns the moment."""
    time.sleep(max(0.0, begin + after_s - time.monotonic()))
    moment = time.monotonic()
    _STRIKES[kind](lab, crew, victim)
    return moment


def times(kind: str, victim: int, answers: list[dict[str, Any]], struck: float) -> dict[str, float]:
    """Milliseconds of one abort; raises `RankFailed` if it changed an input or blames someone else."""
    for answer in answers:
        if not answer["intact"]:
            raise RankFailed(f"{kind}: an aborted operation changed its input")
        if answer["culprit"] != contestants.trainer(victim):
            raise RankFailed(f"{kind} of rank {victim}: a rank blames {answer['culprit']} ({answer['reason']})")
    begun = [t for answer in answers for t in (answer["called"], answer["reset"]) if t is not None]
    ended = max(t for answer in answers for t in (*answer["returned"], answer["poisoned"]))
    return {"abort_ms": 1e3 * (ended - min(begun)), "since_the_fault_ms": 1e3 * (ended - struck)}


def _kill(lab: Lab, crew: Crew, victim: int) -> None:
    del lab
    crew.kill(victim)


def _stop(lab: Lab, crew: Crew, victim: int) -> None:
    del lab
    crew.kill(victim, signal.SIGSTOP)


def _cut(lab: Lab, crew: Crew, victim: int) -> None:
    """The fast NIC; the slow one stays."""
    host = crew.hosts[victim]
    lab.cut(host, next(n.name for n in lab.nics(host) if n.name != networks.WIDE))


_STRIKES: dict[str, Strike] = {"SIGKILL": _kill, "SIGSTOP": _stop, "cut link": _cut}
