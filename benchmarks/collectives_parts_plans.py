"""Parts about the planner: do its predictions hold on networks it has not seen, and does it follow a network that changes."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from typing import Any

from atoll.lab.spec import payload_rate
from atoll.schema.topology import Topology
from benchmarks import contestants, networks, races, timing
from benchmarks.ranks import RankFailed
from benchmarks.reporting import Figure, Report

SEED = 20261121
# A plan predicted to take so many times the chosen one's time is not the best one measured; errors are far below that.
_HOPELESS = 2.5
# Nor is one whose first time was so far from the fastest: the others are measured on.
_CLOSE = 1.3
_REPLAN_BAR = 10
_SIZES, _FAST, _WIDE = (3, 2, 1), (500 * networks.MBIT, 300 * networks.MBIT, 200 * networks.MBIT), 150 * networks.MBIT
# Slow enough that a plan that keeps using the link takes several times as long.
_SLOWED = 25 * networks.MBIT


def predictions(*, quick: bool) -> Report:
    """Random networks: predicted against measured seconds, and the chosen plan against the best measured one."""
    rows = [_network(SEED + n, reps=2 if quick else 5) for n in range(1 if quick else 20)]
    errors = [row["error"] for row in rows]
    regrets = [row["regret"] for row in rows]
    note = f"{len(rows)} random networks from seed {SEED}"
    figures = (
        Figure(
            name="predicted_vs_measured", value=statistics.median(errors), bar=0.15, floor=False, note=f"median, {note}"
        ),
        Figure(name="predicted_vs_measured_worst", value=max(errors), bar=0.4, floor=False, note=f"worst, {note}"),
        Figure(name="plan_regret", value=statistics.mean(regrets), bar=0.05, floor=False, note=f"mean, {note}"),
    )
    return Report(figures=figures, details={"seed": SEED, "networks": rows})


def _network(seed: int, reps: int) -> dict[str, Any]:
    chance = random.Random(seed)
    spec = networks.anyhow(chance)
    size = chance.randrange(1 * networks.MIB, 8 * networks.MIB + 1, 64 * 1024)
    with races.field(spec, gloo=False) as field:
        tried = best_of_each_shape(field.plans(size))
        entrants = {plan["name"]: races.OURS | {"recipe": plan["recipe"]} for plan in tried}
        chosen = tried[0]
        once = field.race(size, entrants, list(entrants)).seconds
        fastest = min(once.values())[0]
        close = [name for name, (took,) in once.items() if took <= _CLOSE * fastest or name == chosen["name"]]
        found = field.race(size, entrants, timing.rounds(close, reps, seed))
    medians = {name: took for name, (took,) in once.items()}
    medians |= {name: timing.spread(values).median for name, values in found.seconds.items()}
    measured = medians[chosen["name"]]
    row = {
        "seed": seed,
        "network": networks.drawn(spec),
        "bytes": size,
        "chosen": chosen["name"],
        "predicted_s": timing.rounded(chosen["predicted_s"]),
        "measured_s": timing.rounded(measured),
        "bound_s": timing.rounded(chosen["lower_bound_s"]),
        "error": timing.rounded(abs(chosen["predicted_s"] - measured) / measured),
        "regret": timing.rounded(measured / min(medians.values()) - 1),
        "plans": {p["name"]: [timing.rounded(p["predicted_s"]), timing.rounded(medians[p["name"]])] for p in tried},
    }
    print(
        f"  {row['network']}, {size} bytes: {row['chosen']}, error {row['error']:.1%}, regret {row['regret']:.1%}",
        flush=True,
    )
    return row


def best_of_each_shape(plans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest of each way of meeting, the chosen one first."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for plan in plans:
        best.setdefault((plan["shape"], plan["meet"], plan["star"]), plan)
    return [plan for plan in best.values() if plan["predicted_s"] <= _HOPELESS * plans[0]["predicted_s"]]


def unequal(*, quick: bool) -> Report:
    """Three islands of unequal size and speed and a host with a slow NIC only; then a link inside the largest is slowed."""
    spec = networks.islands(_SIZES, _FAST, _WIDE, only_slow=1)
    count, before, after = 8 * networks.MIB // 4, 3 if quick else 8, 10 if quick else 30
    with races.field(spec, gloo=False) as field:
        steady = field.crew.call(contestants.watch, count=count, operations=before, limit_s=120)
        field.lab.slow("a0", "a1", _SLOWED)
        slowed = field.crew.call(contestants.watch, count=count, operations=after, limit_s=240)
        field.crew.call(contestants.leave)
        field.meet(epoch=2, gloo=False, known=_with_slow_link(networks.topology(spec, field.lab.address)))
        told = field.crew.call(contestants.watch, count=count, operations=3, limit_s=120)
    for answer in (*steady, *slowed, *told):
        if answer["wrong"]:
            raise RankFailed("a sum of whole numbers is wrong on unequal islands")
    if len({tuple(a["digests"]) for a in slowed}) > 1 or len({tuple(a["plans"]) for a in slowed}) > 1:
        raise RankFailed("ranks hold different results, or followed different plans")
    old = steady[0]["plans"][-1]
    replanned = next((n for n, plan in enumerate(slowed[0]["plans"]) if plan != old), None)
    seconds = timing.durations([a["starts"] for a in slowed], [a["ends"] for a in slowed])
    best = timing.spread(timing.durations([a["starts"] for a in told], [a["ends"] for a in told])).median
    usual = timing.durations([a["starts"] for a in steady], [a["ends"] for a in steady])
    details = {
        "network": networks.drawn(spec),
        "seconds_before": [timing.rounded(s, 3) for s in usual],
        "seconds_after": [timing.rounded(s, 3) for s in seconds],
        "plans": list(dict.fromkeys((*steady[0]["plans"], *slowed[0]["plans"]))),
        "plan_of_who_was_told": told[0]["plans"][0],
        "seconds_of_who_was_told": timing.rounded(best, 3),
        "changes": slowed[0]["changes"],
    }
    found = "never" if replanned is None else f"after {replanned} operations"
    note = (
        f"{found}; {usual[-1]:.2f} s an operation, {seconds[0]:.2f} s slowed, {seconds[-1]:.2f} s at last, "
        f"{best:.2f} s by ranks that were told of it; all sums right"
    )
    value = float(after if replanned is None else replanned)
    figures = (
        Figure(name="replanned_after", value=value, bar=_REPLAN_BAR, floor=False, note=note),
        Figure(
            name="replanned_vs_told", value=seconds[-1] / best, note="seconds of the plan found over that of ranks told"
        ),
    )
    return Report(figures=figures, details=details)


def _with_slow_link(topology: Topology) -> Topology:
    """What is true after the slowing, on every NIC between the two hosts."""
    rate = payload_rate(_SLOWED)
    assert rate is not None
    links = tuple(
        dataclasses.replace(k, bandwidth=min(k.bandwidth, rate)) if {k.source, k.target} == {"a0", "a1"} else k
        for k in topology.links
    )
    return dataclasses.replace(topology, links=links, version=topology.version + 1)
