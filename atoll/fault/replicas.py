"""Replicas that should hold the same values after a step, and whose digests say that one does not.

Digests are compared within a numeric class (device, build, optimizer kernel) only: unlike arithmetic is no corruption.
Whoever differs from more than half of its class is corrupt. Where no value has such a majority nobody can tell who is
wrong, and nobody is named: `split` says so, and only a checkpoint can help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from atoll.fault.verdicts import Corrupt
from atoll.schema.ids import RunId, TrainerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What one replica held after a step. `numeric`: the class within which arithmetic gives the same bits."""

    trainer: TrainerId
    numeric: str
    value: str


def corrupt(run: RunId, step: int, digests: Iterable[Digest]) -> Corrupt | None:
    """Who holds other values than the majority of its class; None where all agree or no majority can say."""
    told = list(digests)
    wrong: list[TrainerId] = []
    words: list[str] = []
    for numeric in sorted({d.numeric for d in told}):
        group = [d for d in told if d.numeric == numeric]
        value, count = Counter(d.value for d in group).most_common(1)[0]
        others = [d for d in group if d.value != value]
        if others and 2 * count > len(group):
            wrong += [d.trainer for d in others]
            differ = ", ".join(f"{d.trainer} has {d.value}" for d in others)
            words.append(f"after step {step} {count} of {len(group)} replicas ({numeric}) have {value}, but {differ}")
    return Corrupt(run=run, step=step, trainers=tuple(wrong), evidence="; ".join(words)) if wrong else None


def split(digests: Iterable[Digest]) -> tuple[TrainerId, ...]:
    """Replicas of classes in which no value has a majority, though they differ."""
    told = list(digests)
    found: list[TrainerId] = []
    for numeric in sorted({d.numeric for d in told}):
        group = [d for d in told if d.numeric == numeric]
        count = Counter(d.value for d in group).most_common(1)[0][1]
        if 2 * count <= len(group) and len(group) > 1:
            found += [d.trainer for d in group]
    return tuple(found)
