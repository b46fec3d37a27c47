"""Job completion times and utilisation on virtual time: Atoll's arbiter, FIFO gangs as plain Ray gives them, and backfill.

The law and the cluster are those of Gavel's evaluation (OSDI 2020, "continuous-multiple", 36 V100, 36 P100 and 36 K80); here four
devices a host and one island for each type. Beside them, at the load of the bars, the same law on as many V100 alone, where
types do not matter, and at that load `atoll-plain`: the arbiter with trainers that split and sum as plain Ray's do. And
`atoll-as-asked`: the arbiter told what the control plane tells it, with and without declared speeds; `atoll` is told more,
so it is what the arbiter can do and not what a cluster does.
Each seed draws the same jobs for all policies and loads. A figure is the median over seeds of a ratio or difference
between policies on the same jobs.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from atoll.simulate import arena, laws
from atoll.simulate.cluster import Cluster, islands
from atoll.simulate.measures import Measures, measured
from benchmarks.reporting import Figure, Report

LOADS = (0.6, 0.9, 1.2)
# The bars stand at this load.
_LOAD = 0.9
_SEEDS, _QUICK_SEEDS = 3, 1
_JOBS, _QUICK_JOBS = 1000, 150
_PLAIN = "atoll-plain"
_PEERS = ("fifo", "fifo-backfill")
_MIXED = "mixed"
# Told what the control plane tells: with speeds that users declare, and without.
_AS_ASKED = ("atoll-as-asked", "atoll-as-asked-no-speeds")
_POLICIES = ("atoll", _PLAIN, *_AS_ASKED, "fifo", "fifo-backfill")
# At the load of the bars alone.
_ONCE = (_PLAIN, *_AS_ASKED)
_MARKS = {
    "atoll": "",
    _PLAIN: "_plain_trainers",
    "atoll-as-asked": "_as_asked",
    "atoll-as-asked-no-speeds": "_as_asked_no_speeds",
}
CLUSTERS: dict[str, Callable[[], Cluster]] = {
    _MIXED: lambda: islands(27, types=("v100", "p100", "k80"), each=4, island_nodes=9),
    "uniform": lambda: islands(27, types=("v100",), each=4, island_nodes=9),
}
Found = dict[tuple[str, float, str], list[Measures]]


def jct(*, quick: bool) -> Report:
    """All loads, clusters and seeds under all policies."""
    found: Found = {}
    with ProcessPoolExecutor(_QUICK_SEEDS if quick else _SEEDS) as seeds:
        for one in seeds.map(functools.partial(_of_seed, quick=quick), range(_QUICK_SEEDS if quick else _SEEDS)):
            for key, got in one.items():
                found.setdefault(key, []).extend(got)
    return Report(figures=tuple(_figures(found)), details={"rows": _rows(found), "ledger": _ledgers(found)})


def _of_seed(seed: int, *, quick: bool) -> Found:
    """In a process of its own: virtual time does not mind what else the machine does."""
    found: Found = {}
    for where, made in CLUSTERS.items():
        for load in (_LOAD,) if quick or where != _MIXED else LOADS:
            _simulated(found, where, made(), load, seed, _QUICK_JOBS if quick else _JOBS)
    return found


def _simulated(found: Found, where: str, cluster: Cluster, load: float, seed: int, jobs: int) -> None:
    drawn = laws.generate(laws.Traffic(load=load, jobs=jobs), cluster, seed)
    for policy in _POLICIES:
        if policy in _ONCE and load != _LOAD:
            continue
        got = measured(arena.simulate(policy, cluster, drawn))
        found.setdefault((where, load, policy), []).append(got)
        print(
            f"  seed {seed}, {where}, load {load:g}, {policy}: mean JCT {got.mean_jct_s / 3600:.1f} h, "
            f"utilised {got.utilisation:.1%}, held {got.held:.1%}, {got.preemptions} suspended, {got.resizes} resized",
            flush=True,
        )


def _figures(found: Found) -> list[Figure]:
    figures = []
    for (where, load, policy), ours in found.items():
        if policy in _PEERS:
            continue
        for other, name in (("fifo", "fifo"), ("fifo-backfill", "backfill")):
            theirs = found[where, load, other]
            ratios = [b.mean_jct_s / a.mean_jct_s for a, b in zip(ours, theirs, strict=True)]
            gains = [a.utilisation - b.utilisation for a, b in zip(ours, theirs, strict=True)]
            at = "" if (where, load) == (_MIXED, _LOAD) else f"_{where}_{load:g}"
            at += _MARKS[policy]
            bar = not at and other == "fifo"
            figures += [
                Figure(
                    name=f"simulated_jct_vs_{name}{at}",
                    value=statistics.median(ratios),
                    bar=1.5 if bar else None,
                    note=f"mean JCT, {where}, load {load:g}; over seeds {min(ratios):.2f} to {max(ratios):.2f}",
                ),
                Figure(
                    name=f"simulated_utilisation_gain{'' if other == 'fifo' else '_vs_backfill'}{at}",
                    value=statistics.median(gains),
                    bar=0.15 if bar else None,
                    note=f"what was asked for, as delivered, over all; {where}, load {load:g}; {min(gains):.3f} to {max(gains):.3f}",
                ),
            ]
    return figures


def _rows(found: Found) -> dict[str, dict[str, Any]]:
    return {
        f"{where}, load {load:g}, {policy}": {
            "mean_JCT_h": _median(all_, lambda m: m.mean_jct_s / 3600),
            "median_h": _median(all_, lambda m: m.median_jct_s / 3600),
            "p95_h": _median(all_, lambda m: m.p95_jct_s / 3600),
            "queued_h": _median(all_, lambda m: m.mean_delay_s / 3600),
            "utilised": _median(all_, lambda m: m.utilisation),
            "busy": _median(all_, lambda m: m.busy),
            "held": _median(all_, lambda m: m.held),
            "makespan_h": _median(all_, lambda m: m.makespan_s / 3600),
            "suspended": _median(all_, lambda m: m.preemptions),
            "resized": _median(all_, lambda m: m.resizes),
            "fairness": _median(all_, lambda m: m.fairness),
        }
        for (where, load, policy), all_ in found.items()
    }


def _ledgers(found: Found) -> dict[str, Any]:
    """Of the first seed: where the window's device-seconds went, by device type; queues beside."""
    return {
        f"{where}, load {load:g}, {policy}": {
            "devices": all_[0].ledger,
            "queues": {name: dataclasses.asdict(queue) for name, queue in all_[0].queues.items()},
        }
        for (where, load, policy), all_ in found.items()
    }


def _median(all_: list[Measures], of: Callable[[Measures], float]) -> float:
    return float(f"{statistics.median(of(m) for m in all_):.4g}")
