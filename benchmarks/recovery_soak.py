"""A long run under random faults: nothing lost, and nothing that grows.

Faults come at exponentially distributed times; each waits for the run to be whole again, so that what is measured is the
sum of many recoveries and not of one pile-up. The seed is printed: the same seed gives the same faults.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.recovery_ground import Ground, ground
from benchmarks.recovery_kinds import KINDS
from benchmarks.recovery_trials import Theatre
from benchmarks.reporting import Figure, Report
from benchmarks.timing import spread

_LASTS_S, _QUICK_S = 3600.0, 150.0
_EVERY_S = 20.0
_SEED = 4
_NAMES = (
    "worker SIGKILL",
    "rank 0 SIGKILL",
    "worker SIGSTOP",
    "GIL held forever",
    "rank and buddy at once",
    "two failures at once",
    "failure during recovery",
    "failure during a join",
    "link cut",
    "one-way cut",
)
# Of memory or descriptors, from the first third of the time to the last: allocators keep a little of what they had.
_GROWTH = 0.1


def soak(*, quick: bool, seed: int = _SEED) -> Report:
    """Faults for so long, on one run as long as it lasts."""
    lasts = _QUICK_S if quick else _LASTS_S
    kinds = [k for k in KINDS if k.name in _NAMES]
    chance = random.Random(seed)
    print(f"  soak: seed {seed}", flush=True)
    trials: list[dict[str, Any]] = []
    with ground() as here:
        theatre = Theatre(here, hold_s=0.0)
        theatre.run_for(kinds[0])
        sizes = _Sizes(here)
        begun = time.monotonic()
        due = begun
        while (due := due + chance.expovariate(1 / _EVERY_S)) < begun + lasts:
            while time.monotonic() < due:
                sizes.look()
                time.sleep(min(1.0, max(0.01, due - time.monotonic())))
            kind = chance.choice(kinds)
            found = theatre.tried(kind, len(trials)) | {"kind": kind.name, "at_s": time.monotonic() - begun}
            trials.append(found)
            print(
                f"  {found['at_s']:.0f} s {kind.name}: {found.get('seconds')} {found.get('problem', '')[:160]}",
                flush=True,
            )
            sizes.look()
        runs = theatre.runs
        theatre.drop()
    return _report(trials, sizes, seed, lasts, runs)


class _Sizes:
    """Memory (MiB) and open descriptors of each agent and of the control plane, as time goes on."""

    def __init__(self, here: Ground) -> None:
        status = here.status()
        self._processes = {f"agent of {here.host_of(n)}": psutil.Process(p) for n, p in status["agents"].items()}
        self._processes["control plane"] = psutil.Process(int(status["pid"]))
        self._begun = time.monotonic()
        self.memory: dict[str, list[float]] = {name: [] for name in self._processes}
        self.files: dict[str, list[float]] = {name: [] for name in self._processes}
        # The memory at the end of each minute.
        self.by_minute: dict[str, dict[int, float]] = {name: {} for name in self._processes}

    def look(self) -> None:
        minute = int((time.monotonic() - self._begun) / 60)
        for name, process in self._processes.items():
            try:
                self.memory[name].append(process.memory_info().rss / 2**20)
                self.by_minute[name][minute] = round(self.memory[name][-1], 1)
                self.files[name].append(process.num_fds())
            except psutil.Error:
                continue


def growth(values: Sequence[float]) -> float:
    """From the mean of the first third to that of the last, as a share; 0 for too few."""
    third = len(values) // 3
    if third == 0:
        return 0.0
    first, last = sum(values[:third]) / third, sum(values[-third:]) / third
    return last / first - 1


def _report(trials: list[dict[str, Any]], sizes: _Sizes, seed: int, lasts: float, runs: int) -> Report:
    measured = [t["seconds"] for t in trials if t.get("seconds") is not None]
    counted = Counter(t["kind"] for t in trials)
    lost = max(
        (t.get("samples_lost", 0) + t.get("samples_repeated", 0) + t.get("steps_lost", 0) for t in trials), default=0
    )
    memory = {name: growth(values) for name, values in sizes.memory.items()}
    files = {name: growth(values) for name, values in sizes.files.items()}
    note = f"{len(trials)} faults in {lasts:.0f} s, seed {seed}, {runs} runs"
    figures = (
        Figure(name="soak_lost_or_repeated", value=lost, bar=0, floor=False, note=note),
        Figure(name="soak_not_recovered", value=len(trials) - len(measured), bar=0, floor=False, note=note),
        Figure(name="soak_memory_growth", value=max(memory.values()), bar=_GROWTH, floor=False, note=_worst(memory)),
        Figure(name="soak_files_growth", value=max(files.values()), bar=_GROWTH, floor=False, note=_worst(files)),
    )
    details = {
        "seed": seed,
        "kinds": dict(counted),
        "seconds": spread(measured).plain() if measured else None,
        "memory_growth": memory,
        "files_growth": files,
        "memory_mib_by_minute": {name: list(values.values()) for name, values in sizes.by_minute.items()},
        "trials": trials,
    }
    return Report(figures=figures, details=details)


def _worst(growths: dict[str, float]) -> str:
    return f"worst: {max(growths, key=lambda name: growths[name])}"
