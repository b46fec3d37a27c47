"""The core's times as figures: a tick over 10,000 nodes with 1,000 runs queued, and events a second."""

from __future__ import annotations

import statistics

from benchmarks.reporting import Figure, Report
from benchmarks.scheduling_core import core_events_per_s, tick_ms

_SEEDS, _QUICK_SEEDS = 3, 1
_SECONDS, _QUICK_SECONDS = 5.0, 1.0


def tick(*, quick: bool) -> Report:
    """The worse of cold and warm, each a median over worlds; a tick is cold when the whole index is built for it."""
    found = [tick_ms(seed=seed) for seed in range(_QUICK_SEEDS if quick else _SEEDS)]
    cold = statistics.median(one["cold_ms"] for one in found)
    warm = statistics.median(one["warm_ms"] for one in found)
    worst = max(one["warm_worst_ms"] for one in found)
    shape = f"{min(one['classes'] for one in found):g} node classes, {found[0]['grants']:g} runs that hold nodes"
    return Report(
        figures=(
            _most("tick_ms_10000_nodes_1000_queued", max(cold, warm), f"the worse of cold and warm; {shape}"),
            _most("tick_ms_10000_nodes_1000_queued_cold", cold, "from a snapshot: index and tick"),
            _most(
                "tick_ms_10000_nodes_1000_queued_warm",
                warm,
                f"after a second's events; the worst tick took {worst:g} ms",
            ),
        ),
        details={"worlds": found},
    )


def _most(name: str, value: float, note: str) -> Figure:
    return Figure(name=name, value=value, bar=500.0, floor=False, note=note)


def events(*, quick: bool) -> Report:
    """Folded into the index one after another, nothing durable."""
    seeds = range(_QUICK_SEEDS if quick else _SEEDS)
    found = [core_events_per_s(_QUICK_SECONDS if quick else _SECONDS, seed=seed) for seed in seeds]
    value = statistics.median(one["events_per_s"] for one in found)
    note = "asks, grants and nodes that come, change and go, on 2,000 nodes; one process"
    return Report(figures=(Figure(name="events_per_s", value=value, bar=20_000.0, note=note),), details={"runs": found})
