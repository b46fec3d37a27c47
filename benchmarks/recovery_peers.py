"""What the same faults cost torchft, Ray Train and torchrun, on the same hosts, links and model, in the same run.

Peers are started anew for each fault. torchft is measured with the lighthouse command of its README (which waits 10 s for
stragglers; the command's own default is 60 s) and all else at its defaults, which the ratios use, and with every timeout
brought down; nothing restarts its lost worker, which would only hold its survivors up. Ray Train and torchrun
restart all workers from a checkpoint. What has not recovered within the limit enters a ratio with the limit, which is
then a lower bound and says so.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.lab.lab_runtime import Lab, raised
from atoll.workers.proc_runtime import send_signal
from benchmarks import networks
from benchmarks.recovery_ground import ground
from benchmarks.recovery_kinds import KINDS
from benchmarks.recovery_peers_account import Member
from benchmarks.recovery_peers_jobs import RAY_TRAIN, TORCHFT, TORCHFT_TUNED, TORCHRUN, NoJob, Peer, running
from benchmarks.recovery_trials import Theatre
from benchmarks.reporting import Figure, Report
from benchmarks.timing import rounded

_TRIALS, _QUICK_TRIALS = 5, 1
# Half as long again as torchft's default timeout of 60 s; in a quick run, some more than that.
LIMIT_S, _QUICK_LIMIT_S = 90.0, 75.0
# A peer that did not recover twice is not asked again.
_HOPELESS = 2
_HOLD_S = 15.0
_SHARED_FOLDER = "/var/tmp"
KILL, HANG, HOST = "worker SIGKILL", "worker SIGSTOP", "host killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A peer and a fault. `quick`: measured in a quick run too; `note`: what the peer can do of it by its documents."""

    peer: Peer
    fault: str
    quick: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.peer.name}: {self.fault}"


CASES = (
    Case(peer=TORCHFT, fault=KILL),
    Case(peer=TORCHFT, fault=HANG),
    Case(peer=TORCHFT, fault=HOST, quick=False),
    Case(peer=TORCHFT_TUNED, fault=KILL),
    Case(peer=TORCHFT_TUNED, fault=HANG),
    Case(peer=TORCHFT_TUNED, fault=HOST),
    Case(peer=RAY_TRAIN, fault=KILL),
    Case(peer=RAY_TRAIN, fault=HOST),
    Case(peer=RAY_TRAIN, fault=HANG, quick=False, note="its health check and Gloo's timeout take 10 and 30 minutes"),
    Case(peer=TORCHRUN, fault=KILL),
    Case(peer=TORCHRUN, fault=HANG, quick=False, note="nothing notices before Gloo's timeout of 30 minutes"),
    Case(peer=TORCHRUN, fault=HOST, quick=False, note="nothing notices before Gloo's timeout of 30 minutes"),
)
# By figure: the peer's case, and Atoll's kind of the same name.
RATIOS = {
    "vs_torchft_kill": (TORCHFT, KILL),
    "vs_torchft_hang": (TORCHFT, HANG),
    "vs_ray_train_kill": (RAY_TRAIN, KILL),
    "vs_ray_train_host": (RAY_TRAIN, HOST),
}


def peers(*, quick: bool) -> Report:
    """Atoll on its ground, then the peers on a lab raised from the same spec."""
    atoll = _atoll(_QUICK_TRIALS if quick else _TRIALS)
    home = Path(tempfile.mkdtemp(prefix="atoll-p-", dir=_SHARED_FOLDER))
    try:
        with raised(replace(networks.two_islands(2), name="peers"), ray=True, home=home) as lab:
            found = measured(lab, home, quick=quick)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return report({f"Atoll: {fault}": trials for fault, trials in atoll.items()} | found, quick=quick)


def _atoll(count: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with ground() as here:
        theatre = Theatre(here, hold_s=_HOLD_S)
        for fault in (KILL, HANG, HOST):
            kind = next(k for k in KINDS if k.name == fault)
            found[fault] = [_told(f"Atoll: {fault}", theatre.tried(kind, number)) for number in range(count)]
        theatre.drop()
    return found


def measured(lab: Lab, home: Path, *, quick: bool, cases: tuple[Case, ...] = CASES) -> dict[str, list[dict[str, Any]]]:
    """The trials of each case. `home`: a folder that all hosts see; the lab's head stands, with Ray."""
    count, limit_s = (_QUICK_TRIALS, _QUICK_LIMIT_S) if quick else (_TRIALS, LIMIT_S)
    found: dict[str, list[dict[str, Any]]] = {}
    for case in [c for c in cases if c.quick or not quick]:
        trials = found[case.name] = []
        while len(trials) < count and sum(t["seconds"] is None for t in trials) < _HOPELESS:
            trials.append(_told(case.name, tried(case, lab, home, len(trials), limit_s)))
    return found


def tried(case: Case, lab: Lab, home: Path, number: int, limit_s: float) -> dict[str, Any]:
    """One fault on a fresh job, mended afterwards. `seconds` None: `problem` says why."""
    if case.peer.missing:
        return {"seconds": None, "problem": case.peer.missing}
    chance = random.Random(f"{case.name} {number}")
    try:
        with running(case.peer, lab, home) as job:
            members = job.steady()
            time.sleep(chance.uniform(0, 0.2))  # at any moment of a step
            victim = chance.choice(members[1:])
            fault = STRIKES[case.fault](lab, victim)
            found = job.recovered(fault, victim, limit_s)
    except NoJob as error:
        return {"seconds": None, "problem": str(error)}
    finally:
        lab.heal()
    if found is None:
        return {"seconds": None, "at_least_s": limit_s, "problem": f"did not recover within {limit_s:g} s"}
    plain = {"raw_s": found.raw_s, "step_s": found.step_s, "members": found.members, "steps_redone": found.redone}
    return {"seconds": found.seconds} | plain


def _signalled(number: signal.Signals) -> Callable[[Lab, Member], float]:
    def strike(_: Lab, victim: Member) -> float:
        moment = time.monotonic()
        if not send_signal(victim.pid, victim.ticks, number):
            raise NoJob(f"the worker on {victim.host} ended before its fault")
        return moment

    return strike


def _host(lab: Lab, victim: Member) -> float:
    moment = time.monotonic()
    lab.kill(victim.host)
    return moment


STRIKES: dict[str, Callable[[Lab, Member], float]] = {
    KILL: _signalled(signal.SIGKILL),
    HANG: _signalled(signal.SIGSTOP),
    HOST: _host,
}


def _told(name: str, trial: dict[str, Any]) -> dict[str, Any]:
    shown = "-" if trial.get("seconds") is None else f"{trial['seconds']:.3f} s"
    print(f"  {time.strftime('%H:%M:%S')} {name}: {shown} {str(trial.get('problem', ''))[:600]}", flush=True)
    return trial


def report(found: dict[str, list[dict[str, Any]]], *, quick: bool) -> Report:
    """The ratios, and a row for each case."""
    figures = [
        _ratio(name, found.get(f"Atoll: {fault}", []), found.get(f"{peer.name}: {fault}", []))
        for name, (peer, fault) in RATIOS.items()
    ]
    notes = {c.name: c.note for c in CASES}
    rows = {name: _row(trials, notes.get(name, "")) for name, trials in found.items()}
    return Report(figures=tuple(figures), details={"rows": rows, "trials": found, "quick": quick})


def _ratio(name: str, own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Figure:
    """Their median over Atoll's. A trial of theirs that ran into the limit counts as the limit."""
    mine = [t["seconds"] for t in own if t.get("seconds") is not None]
    bounds = [t["seconds"] if t["seconds"] is not None else t.get("at_least_s") for t in theirs]
    measured_s = [b for b in bounds if b is not None]
    if not mine or len(mine) < len(own):
        return Figure(name=name, value=None, bar=1.0, note=f"Atoll recovered in time in {len(mine)} of {len(own)}")
    if not measured_s or len(measured_s) < len(theirs):
        why = next((t["problem"] for t in theirs if t.get("problem")), "not measured")
        return Figure(name=name, value=None, bar=1.0, note=why)
    peer_s, atoll_s = statistics.median(measured_s), statistics.median(mine)
    late = sum(t["seconds"] is None for t in theirs)
    note = f"median of {len(measured_s)}, {peer_s:.3g} s, over Atoll's of {len(mine)}, {atoll_s:.3g} s"
    if late:
        note += f"; at least: {late} of {len(theirs)} did not recover in the time that is counted for them"
    # Faster than can be told from one undisturbed step would make any ratio: a hundredth of a second is the least.
    return Figure(name=name, value=peer_s / max(atoll_s, 0.01), bar=1.0, note=note)


def _row(trials: list[dict[str, Any]], note: str) -> dict[str, Any]:
    known = [t["seconds"] for t in trials if t.get("seconds") is not None]
    # Of Atoll the account of samples says it.
    redone = max((t.get("steps_redone", t.get("steps_lost", 0)) for t in trials), default=0)
    problem = next((str(t["problem"])[:120] for t in trials if t.get("problem")), "")
    return {
        "n": len(trials),
        "median_s": rounded(statistics.median(known)) if known else None,
        "worst_s": rounded(max(known)) if known else None,
        "not_in_time": len(trials) - len(known),
        "members": min((t["members"] for t in trials if t.get("members")), default=None),
        "steps_redone": redone if known else None,
        "note": "; ".join(filter(None, (problem, note))),
    }
