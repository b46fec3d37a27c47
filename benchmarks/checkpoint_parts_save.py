"""Parts that save: how long a step is held up, and how fast a slab gets durable."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.checkpoint_ground import Ground, ground
from benchmarks.checkpoint_state import FULL, QUICK
from benchmarks.reporting import Figure, Report

_STALL_BAR, _SHARE_BAR, _WRITE_BAR = 0.2, 0.02, 0.8
_STALL_PAIRS = (30, 3)
# Emulated: what a step of this state takes on a device that is some fifty times faster than these cores.
_COMPUTE_S = (0.5, 0.1)
_EVERY = 10
_ROWS = (128, 16)
_SHARE_PAIRS = (5, 2)
_WRITE_ROUNDS = (15, 2)
_PEERS = ("dcp_thread", "dcp_process")
_WRITERS = ("atoll", "raw", "dcp", "torch.save", "safetensors")


def stall(*, quick: bool, place: Path) -> Report:
    """How long a save holds a step up, with compute that takes no processor; against torch's asynchronous save."""
    compute_s = _COMPUTE_S[quick]
    with ground(place) as field:
        sizes = _ready(field, quick=quick)
        names = ("atoll", *_PEERS)
        for name in names:
            field.save(name, compute_s=compute_s)
        order = timing.rounds(names, _STALL_PAIRS[quick], seed=1)
        found = timing.paired(order, [field.save(n, compute_s=compute_s, rest_s=_EVERY * compute_s) for n in order])
        # With nothing to compute meanwhile all of the copy is waited for: the worst that a save can do to a step.
        order = timing.rounds(names, max(3, _STALL_PAIRS[quick] // 5), seed=2)
        worst = timing.paired(order, [field.save(n) for n in order])
    blocked = {name: [held_up(answers) for answers in saves] for name, saves in found.items()}
    peer = min(_PEERS, key=lambda name: statistics.median(blocked[name]))
    mine, other = timing.spread(blocked["atoll"]), timing.spread(blocked[peer])
    low, high = _interval(blocked["atoll"], blocked[peer])
    note = (
        f"{1e3 * mine.median:.3g} ms / {1e3 * other.median:.3g} ms ({peer}), {mine.count} pairs, 95 % {low:.2g}..{high:.2g}; "
        f"{sum(sizes) / 2**30:.2f} GiB on {len(sizes)} ranks"
    )
    value = timing.ratio(blocked["atoll"], blocked[peer])
    details: dict[str, Any] = {f"{name}_blocked_s": timing.spread(values).plain() for name, values in blocked.items()}
    for name, saves in found.items():
        details[f"{name}_durable_s"] = timing.spread([durable(answers) for answers in saves]).plain()
        details[f"{name}_call_s"] = timing.spread([max(a["call_s"] for a in answers) for answers in saves]).plain()
    for name, saves in worst.items():
        details[f"{name}_blocked_without_compute_s"] = timing.spread([held_up(answers) for answers in saves]).plain()
    return Report(
        figures=(Figure(name="stall_vs_dcp", value=value, bar=_STALL_BAR, floor=False, note=note),),
        details=details | {"compute_s": compute_s, "state_bytes": sizes},
    )


def share(*, quick: bool, place: Path) -> Report:
    """Real steps, a save each ten: what share of them is spent blocked, and how much longer they take for all reasons."""
    with ground(place) as field:
        _ready(field, quick=quick)
        for saves in (True, False):
            field.train(saves=saves, steps=2, rows=_ROWS[quick])
        order = timing.rounds(("with", "without"), _SHARE_PAIRS[quick], seed=3)
        found = [field.train(saves=name == "with", steps=_EVERY, rows=_ROWS[quick]) for name in order]
    runs = timing.paired(order, found)
    took = {name: [max(a["took_s"] for a in answers) for answers in answered] for name, answered in runs.items()}
    shares = [max(a["blocked_s"] for a in answers) / max(a["took_s"] for a in answers) for answers in runs["with"]]
    blocked = timing.spread([max(a["blocked_s"] for a in answers) for answers in runs["with"]])
    per_step = timing.spread([s / _EVERY for s in took["without"]])
    note = f"{1e3 * blocked.median:.3g} ms in {_EVERY} steps of {per_step.median:.3g} s; median of {len(shares)}"
    slower = timing.ratio(took["with"], took["without"]) - 1
    low, high = _interval(took["with"], took["without"])
    words = (
        f"time of {_EVERY} steps with a save by that without, 95 % {low - 1:+.2%}..{high - 1:+.2%}; two cores do all"
    )
    return Report(
        figures=(
            Figure(name="stall_share", value=statistics.median(shares), bar=_SHARE_BAR, floor=False, note=note),
            Figure(name="save_contention", value=slower, note=words),
        ),
        details={
            "with_s": timing.spread(took["with"]).plain(),
            "without_s": timing.spread(took["without"]).plain(),
            "blocked_s": blocked.plain(),
            "shares": [timing.rounded(one) for one in shares],
        },
    )


def write(*, quick: bool, place: Path) -> Report:
    """From slabs to a durable commit, with all checksums and digests, against raw direct writes of as much."""
    with ground(place) as field:
        sizes = _ready(field, quick=quick)
        for name in _WRITERS:
            field.write(name)
        order = timing.rounds(_WRITERS, _WRITE_ROUNDS[quick], seed=4)
        found = timing.paired(order, [field.write(name) for name in order])
    seconds = {name: [written(answers) for answers in saves] for name, saves in found.items()}
    raw = timing.spread(seconds["raw"])
    figures = []
    for name in (n for n in _WRITERS if n != "raw"):
        mine = timing.spread(seconds[name])
        low, high = _interval(seconds["raw"], seconds[name])
        label, bar = ("write_of_raw", _WRITE_BAR) if name == "atoll" else (f"{name}_write_of_raw", None)
        note = f"raw {raw.median:.3g} s / {mine.median:.3g} s, {mine.count} pairs, 95 % {low:.2f}..{high:.2f}"
        figures.append(Figure(name=label, value=timing.ratio(seconds["raw"], seconds[name]), bar=bar, note=note))
    gigabytes = sum(sizes) / 1e9
    details = {f"{name}_s": timing.spread(values).plain() for name, values in seconds.items()}
    rates = {f"{name}_gb_s": timing.rounded(gigabytes / timing.spread(v).median) for name, v in seconds.items()}
    return Report(
        figures=tuple(figures), details=details | rates | {"state_bytes": sizes, "phases": phases(found["atoll"])}
    )


def phases(saves: Sequence[Sequence[dict[str, Any]]]) -> dict[str, dict[str, float | int]]:
    """Where ours spends its time: until the first part is durable, until the last one is, and until the record is."""
    spans: dict[str, list[float]] = {"first_part_s": [], "last_part_s": [], "record_s": []}
    for answers in saves:
        local = [a["local"] for a in answers]
        spans["first_part_s"].append(min(local) - min(a["staged"] for a in answers))
        spans["last_part_s"].append(max(local) - min(local))
        spans["record_s"].append(_ended(answers) - max(local))
    return {name: timing.spread(values).plain() for name, values in spans.items()}


def held_up(answers: Sequence[dict[str, Any]]) -> float:
    """A step of all ranks is held up by the one that is held up longest."""
    return max(float(a["blocked_s"]) for a in answers)


def durable(answers: Sequence[dict[str, Any]]) -> float:
    """From the call to the end."""
    return _ended(answers) - float(answers[0]["begun"])


def written(answers: Sequence[dict[str, Any]]) -> float:
    """From full slabs to the end; for savers that copy nothing first, from the call."""
    return _ended(answers) - min(float(a["staged"]) for a in answers)


def _ended(answers: Sequence[dict[str, Any]]) -> float:
    """Ours ends with the record, which rank 0 makes: what others notice later is no part of it. Else with the last rank."""
    return max(float(a["durable"]) for a in (answers[:1] if answers[0]["by"] == "atoll" else answers))


def _ready(field: Ground, *, quick: bool) -> list[int]:
    field.hold(QUICK if quick else FULL)
    return field.lay()


def _interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """Of the ratio of medians."""
    pairs = list(zip(above, below, strict=True))
    return timing.interval(lambda drawn: timing.ratio([a for a, _ in drawn], [b for _, b in drawn]), pairs, seed=5)
