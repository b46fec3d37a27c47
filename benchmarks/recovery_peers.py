"""What the same faults cost torchft, Ray Train and torchrun, on the same hosts, links and model, in the same run.

Peers come first, while nothing of Atoll runs; then Atoll is brought up in the same lab. A peer's job is started anew for
each fault. torchft's ratio is that of its kindest defaults (`recovery_peers_cases`), and it is also measured with every
timeout brought down; nothing restarts its lost worker, which would only hold its survivors up. Ray Train and torchrun
restart all workers from a checkpoint, which costs the steps since then as well. Peers may have an interpreter of their
own. With `notes` each trial is kept as it comes, and not made again.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from atoll.errors import LabError
from atoll.lab.lab_runtime import Lab
from atoll.workers.proc_runtime import send_signal
from benchmarks import networks
from benchmarks.recovery_ground import SHARED_FOLDER, NotSteady, atoll_over, lab_with_ray
from benchmarks.recovery_kinds import KINDS
from benchmarks.recovery_peers_account import Member
from benchmarks.recovery_peers_cases import CASES, HANG, HOST, KILL, UNSETTLED, Case, own, report
from benchmarks.recovery_peers_jobs import NoJob, running
from benchmarks.recovery_trials import NO_RUN, Theatre
from benchmarks.reporting import Report

_TRIALS, _QUICK_TRIALS = 5, 2
# A peer that did not recover twice is not asked again.
_HOPELESS = 2
_HOLD_S = 15.0
_TELL = 600
Found = dict[str, list[dict[str, Any]]]


def peers(*, quick: bool, python: str = sys.executable, notes: Path | None = None) -> Report:
    """The peers on a lab, then Atoll on the same one. `python`: the interpreter that has the peers."""
    found = _noted(notes)

    def add(name: str, trial: dict[str, Any]) -> None:
        found.setdefault(name, []).append(_told(name, trial))
        # What was not measured is tried again the next time.
        kept = {n: [t for t in trials if _measured(t)] for n, trials in found.items()}
        if notes is not None:
            notes.write_text(json.dumps(kept))

    with _Stage() as stage:
        for case in CASES:
            for number in _numbers(case, found, quick=quick):
                add(case.name, stage.struck(case, number, python))
        for fault in (KILL, HANG, HOST):
            done = len(found.get(own(fault), []))
            for number in range(done, _QUICK_TRIALS if quick else _TRIALS):
                add(own(fault), stage.atoll_struck(fault, number))
    if notes is not None:
        notes.unlink(missing_ok=True)
    return report(found, quick=quick)


def _numbers(case: Case, found: Found, *, quick: bool) -> Iterator[int]:
    """The trials that are left, as long as there is hope."""
    for number in range(len(found.get(case.name, [])), case.quick if quick else case.times):
        if sum(t["seconds"] is None for t in found.get(case.name, [])) < _HOPELESS:
            yield number


def _noted(notes: Path | None) -> Found:
    if notes is None or not notes.exists():
        return {}
    kept: Found = json.loads(notes.read_text())
    return kept


def _measured(trial: dict[str, Any]) -> bool:
    """Of a peer that did not recover a bound is known. Of Atoll there is a verdict then, right or wrong: it is kept as well."""
    return trial.get("seconds") is not None or "at_least_s" in trial or "verdict" in trial


def _told(name: str, trial: dict[str, Any]) -> dict[str, Any]:
    shown = "-" if trial.get("seconds") is None else f"{trial['seconds']:.3f} s"
    words = [f"{trial['members']} go on"] if trial.get("members") else []
    words += [f"{trial['steps_redone']} steps redone"] if trial.get("steps_redone") else []
    words += [UNSETTLED] if not trial.get("settled", True) else []
    words += [str(trial["problem"])[:_TELL]] if trial.get("problem") else []
    print(f"  {time.strftime('%H:%M:%S')} {name}: {shown} {', '.join(words)}", flush=True)
    return trial


class _Stage:
    """A lab, raised when it is needed, and anew where it has been left by a trial that found it out of order."""

    def __init__(self) -> None:
        self._standing = contextlib.ExitStack()
        self._lab: tuple[Lab, Path] | None = None
        self._theatre: Theatre | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def struck(self, case: Case, number: int, python: str) -> dict[str, Any]:
        """A peer's trial; made once more, on another lab if need be, where there was no job to strike."""
        if why := case.peer.missing(python):
            return {"seconds": None, "problem": why}
        for last in (False, True):
            try:
                with self._healed():
                    return struck(case, *self._here(), number, python)
            except (LabError, NoJob) as error:
                if isinstance(error, LabError):
                    self._leave()
                problem = str(error)
                if not last:
                    print(f"  {time.strftime('%H:%M:%S')} {case.name}: {problem[:_TELL]}; once more", flush=True)
        return {"seconds": None, "problem": problem}

    def atoll_struck(self, fault: str, number: int) -> dict[str, Any]:
        """Atoll's own trial, with the same second chance."""
        kind = next(k for k in KINDS if k.name == fault)
        for last in (False, True):
            try:
                trial = self._atoll().tried(kind, number)
            except (LabError, NotSteady) as error:
                trial = {"problem": f"{NO_RUN}: {error}"}
            if not trial.get("problem", "").startswith(NO_RUN):
                break
            self._leave()
            if not last:
                print(f"  {own(fault)}: {trial['problem'][:_TELL]}; on another lab", flush=True)
        return {"seconds": None} | trial

    @contextlib.contextmanager
    def _healed(self) -> Iterator[None]:
        """Mends the lab afterwards, or leaves it: what was measured on it counts all the same."""
        try:
            yield
        finally:
            try:
                if self._lab is not None:
                    self._lab[0].heal()
            except LabError as error:
                print(f"  the lab cannot be mended and is left: {str(error)[-_TELL:]}", flush=True)
                self._leave()

    def _here(self) -> tuple[Lab, Path]:
        if self._lab is None:
            home = Path(tempfile.mkdtemp(prefix="atoll-p-", dir=SHARED_FOLDER))
            self._standing.callback(shutil.rmtree, home, ignore_errors=True)
            spec = replace(networks.two_islands(2), name="peers")
            self._lab = self._standing.enter_context(lab_with_ray(spec, home)), home
            print(f"  {time.strftime('%H:%M:%S')} the lab stands", flush=True)
        return self._lab

    def _atoll(self) -> Theatre:
        if self._theatre is None:
            here = self._standing.enter_context(atoll_over(*self._here()))
            self._theatre = Theatre(here, hold_s=_HOLD_S)
            self._standing.callback(self._theatre.drop)
        return self._theatre

    def _leave(self) -> None:
        self._lab = self._theatre = None
        self._standing.close()


def struck(case: Case, lab: Lab, home: Path, number: int, python: str) -> dict[str, Any]:
    """One fault on a fresh job. `seconds` None: `problem` says why. Raises `NoJob`, `LabError`."""
    chance = random.Random(f"{case.name} {number}")
    with running(case.peer, lab, home, python) as job:
        steady = job.steady()
        time.sleep(chance.uniform(0, 0.2))  # at any moment of a step
        victim = chance.choice(steady.members[1:])
        fault = STRIKES[case.fault](lab, victim)
        found = job.recovered(fault, victim, case.limit_s)
        over, words = job.over, "" if found else job.words()
    settled = {"settled": steady.settled}
    if found is None:
        what = "its job ended" if over else f"did not recover within {case.limit_s:g} s"
        return {"seconds": None, "at_least_s": case.limit_s, "problem": f"{what}; its last words: {words}"} | settled
    plain = {"raw_s": found.raw_s, "step_s": found.step_s, "members": found.members, "steps_redone": found.redone}
    return {"seconds": found.seconds} | plain | settled


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
