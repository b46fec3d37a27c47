"""Parts on four hosts without shaping: where the processor is the limit and not the wire."""

from __future__ import annotations

from benchmarks import contestants_ddp, networks, races, timing
from benchmarks.ranks import RankFailed
from benchmarks.reporting import Figure, Report

HOSTS = 4
_KIB = 1024
# size -> (name, bar, pairs, pairs of a quick run)
SIZES = {
    64 * _KIB: ("64KiB", 1.5, 60, 10),
    networks.MIB: ("1MiB", 1.0, 60, 10),
    64 * networks.MIB: ("64MiB", 0.95, 30, 2),
}
_TELEMETRY_BAR = 0.01
# The size at which DDP cuts its first bucket; larger ones cost telemetry no more.
_TELEMETRY_SIZE = networks.MIB
_TELEMETRY_BATCH = 8
_WARM = 3


def flat(*, quick: bool) -> Report:
    """All-reduce of three sizes against Gloo, in place as Gloo's; beside it `kept`, whose inputs outlive a failure."""
    figures, details = [], {}
    entrants = {"atoll": races.IN_PLACE, "gloo": races.GLOO, "kept": races.OURS}
    names = tuple(entrants)
    with races.field(networks.flat(HOSTS)) as field:
        for size, (name, bar, full, few) in SIZES.items():
            first = field.race(size, entrants, names)
            field.race(size, entrants, timing.rounds(names, 1 if quick else _WARM, seed=size))
            found = field.race(size, entrants, timing.rounds(names, few if quick else full, seed=size + 1))
            low, high = _interval(found.seconds)
            ours, gloo = (timing.spread(found.seconds[n]) for n in ("atoll", "gloo"))
            note = f"{1e3 * gloo.median:.3g} ms / {1e3 * ours.median:.3g} ms, {ours.count} pairs, 95 % {low:.2f}..{high:.2f}"
            value = timing.ratio(found.seconds["gloo"], found.seconds["atoll"])
            figures.append(Figure(name=f"flat_vs_gloo_{name}", value=value, bar=bar, note=note))
            details[name] = {
                "atoll_s": ours.plain(),
                "gloo_s": gloo.plain(),
                "kept_s": timing.spread(found.seconds["kept"]).plain(),
                "kept_vs_gloo": timing.rounded(timing.ratio(found.seconds["gloo"], found.seconds["kept"])),
                "interval": [timing.rounded(low), timing.rounded(high)],
                "atoll_first_s": timing.rounded(first.seconds["atoll"][0]),
                "cpu_seconds": {n: timing.rounded(timing.spread(v).median) for n, v in found.cpu.items()},
                "plan": field.plans(size)[0]["name"],
            }
    return Report(figures=tuple(figures), details=details)


def ddp(*, quick: bool) -> Report:
    """A training step of a GPT under DistributedDataParallel, over our backend and over Gloo: real computing."""
    with races.field(networks.flat(HOSTS), gloo=False) as field:
        field.crew.call(contestants_ddp.prepare, store=field.lab.address(field.order[0], "flat"))
        field.crew.call(contestants_ddp.steps, order=timing.rounds(("atoll", "gloo"), _WARM, seed=1))
        order = timing.rounds(("atoll", "gloo"), 5 if quick else 40, seed=2)
        answers = field.crew.call(contestants_ddp.steps, order=order, limit_s=300)
        checks = field.crew.call(contestants_ddp.compare)
    seconds = timing.paired(order, timing.durations([a["starts"] for a in answers], [a["ends"] for a in answers]))
    for backend in ("atoll", "gloo"):
        if len({c[backend] for c in checks}) > 1:
            raise RankFailed(f"after {len(order)} steps by {backend} ranks hold different weights")
    worst = max(c["difference"] for c in checks)
    if worst > contestants_ddp.TOLERANCE:
        raise RankFailed(f"weights trained over atoll and over gloo differ by {worst:.3g}")
    low, high = _interval(seconds)
    ours, gloo = timing.spread(seconds["atoll"]), timing.spread(seconds["gloo"])
    note = f"{gloo.median:.3f} s / {ours.median:.3f} s a step, {ours.count} pairs, 95 % {low:.2f}..{high:.2f}"
    figure = Figure(name="ddp_vs_gloo", value=timing.ratio(seconds["gloo"], seconds["atoll"]), bar=1.0, note=note)
    details = {"atoll_s": ours.plain(), "gloo_s": gloo.plain(), "weights_differ_by": timing.rounded(worst)}
    return Report(figures=(figure,), details=details)


def telemetry(*, quick: bool) -> Report:
    """CPU-seconds of an operation with and without telemetry, all ranks and threads; without it twice, as a check."""
    entrants = {name: races.OURS | {"telemetry": name == "on"} for name in ("off", "again", "on")}
    with races.field(networks.flat(HOSTS), gloo=False) as field:
        field.race(_TELEMETRY_SIZE, entrants, timing.rounds(tuple(entrants), _WARM, seed=1))
        order = timing.rounds(tuple(entrants), 20 if quick else 500, seed=2)
        found = field.race(_TELEMETRY_SIZE, entrants, order, batch=_TELEMETRY_BATCH, limit_s=600)
    same = list(zip(found.cpu["off"], found.cpu["again"], strict=True))
    pairs = list(zip(found.cpu["off"], found.cpu["on"], strict=True))
    low, high = timing.interval(timing.excess, same, seed=3)
    least, most = timing.interval(timing.excess, pairs, seed=4)
    value = timing.excess(pairs)
    words = f"95 % {least:+.2%}..{most:+.2%} over {len(pairs)} pairs of {_TELEMETRY_BATCH} x 1 MiB; A/A {low:+.2%}..{high:+.2%}"
    # A difference within the noise of equals is none; a bar narrower than that noise proves nothing.
    measurable = (high - low) / 2 <= _TELEMETRY_BAR
    figure = Figure(
        name="telemetry_cost", value=value if measurable else None, bar=_TELEMETRY_BAR, floor=False, note=words
    )
    per_operation = {n: timing.rounded(timing.spread(v).median / _TELEMETRY_BATCH) for n, v in found.cpu.items()}
    details = {
        "excess": timing.rounded(value),
        "interval": [timing.rounded(least), timing.rounded(most)],
        "same_interval": [timing.rounded(low), timing.rounded(high)],
        "cpu_seconds_an_operation": per_operation,
        "size_bytes": _TELEMETRY_SIZE,
    }
    return Report(figures=(figure,), details=details)


def _interval(seconds: dict[str, list[float]]) -> tuple[float, float]:
    """Of Gloo's median by ours."""
    pairs = list(zip(seconds["gloo"], seconds["atoll"], strict=True))
    return timing.interval(lambda drawn: timing.ratio([a for a, _ in drawn], [b for _, b in drawn]), pairs, seed=5)
