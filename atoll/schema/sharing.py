"""What a job says of how it shares the cluster: its queue, how far it stretches, and where it would rather be.

Plain data and its checks; what is made of it is the queue's and the arbiter's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.errors import SpecError
from atoll.schema.ids import is_safe_name

if TYPE_CHECKING:
    from atoll.schema.spec import JobSpec

# Whoever names no queue is in this one.
DEFAULT_QUEUE = "default"
# Larger is served first. Who says nothing is in the middle.
PRIORITIES = range(101)
DEFAULT_PRIORITY = 50
# Each costs a search at every decision while the run waits.
MOST_ALTERNATIVES = 32
MOST_SIZES = 1_024
# Beyond what anything here can be, and far within what every sum of such numbers can hold: of devices (of a worker, a host, a
# quota), counts (of steps, samples, files), seconds, and what is measured.
MOST_DEVICES = 1e6
MOST_COUNT = 10**15
MOST_S = 1e10
MOST_MEASURED = 1e15
_UNKNOWN = "(0: not known yet)"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One way to place a run's workers.

    On nodes with these `labels`, in so many `islands` at most (0: any), with this `share` of the workers it wants.
    """

    labels: dict[str, str] = field(default_factory=dict)
    islands: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Numbers of workers as a person writes them."""

    workers: int
    min_workers: int | None = None
    worker_sizes: tuple[int, ...] = ()


def bounds(written: int | str) -> Bounds:
    """`4`, `"2..16"` (any number from 2 to 16) or `"2,4,8"` (one of these). Raises `SpecError`."""
    text = str(written).strip()
    found = _RANGE.fullmatch(text)
    if found is not None:
        least, most = int(found[1]), int(found[2])
        if least > most:
            raise SpecError(f"workers={text!r}: from fewer to more, as in '{most}..{least}'")
        return Bounds(workers=most, min_workers=least)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.lstrip("-").isdigit() for part in parts):
        raise SpecError(f"workers={written!r}: a number, a range such as '2..16', or numbers such as '2,4,8'")
    sizes = sorted({int(part) for part in parts})
    if len(sizes) == 1:
        return Bounds(workers=sizes[0])
    return Bounds(workers=sizes[-1], min_workers=sizes[0], worker_sizes=tuple(sizes))


def sharing_rules(spec: JobSpec) -> Sequence[tuple[bool, str]]:
    """What must hold of these fields, each with the problem where it does not."""
    least, sizes = spec.least, spec.worker_sizes
    return [
        (
            1 <= least <= max(spec.workers, 1),
            f"min_workers={spec.min_workers}: from 1 to the {spec.workers} workers that the job wants",
        ),
        (
            not spec.elastic or spec.kind == "train",
            f"min_workers={spec.min_workers}: only a training run is elastic; replicas are as many as asked for",
        ),
        (
            not sizes or (sorted(set(sizes)) == list(sizes) and sizes[0] == least and sizes[-1] == spec.workers),
            f"worker_sizes={list(sizes)}: ascending, from min_workers={least} to workers={spec.workers}",
        ),
        (len(sizes) <= MOST_SIZES, f"worker_sizes: {len(sizes)} of them, at most {MOST_SIZES}"),
        (
            len(spec.alternatives) <= MOST_ALTERNATIVES,
            f"alternatives: {len(spec.alternatives)} of them, at most {MOST_ALTERNATIVES}",
        ),
        (is_safe_name(spec.queue), f"queue={spec.queue!r}: use letters, digits, '_', '.' and '-' only"),
        (spec.team is None or is_safe_name(spec.team), f"team={spec.team!r}: letters, digits, '_', '.' and '-' only"),
        (
            spec.priority in PRIORITIES,
            f"priority={spec.priority}: from {PRIORITIES.start} to {PRIORITIES.stop - 1}, larger is served first",
        ),
        (
            spec.expected_s is None or 0 < spec.expected_s <= MOST_S,
            f"expected_s={spec.expected_s}: seconds that the run will take, at most {MOST_S:.0e}, or nothing",
        ),
        (0 <= spec.batch <= MOST_COUNT, f"batch={spec.batch}: samples of a step {_UNKNOWN}, at most {MOST_COUNT:.0e}"),
        (
            0 <= spec.sync_mib <= MOST_MEASURED,
            f"sync_mib={spec.sync_mib}: MiB that a step adds up {_UNKNOWN}, at most {MOST_MEASURED:.0e}",
        ),
        *(
            (
                0 < speed <= MOST_MEASURED,
                f"speeds.{device}={speed}: samples a second, above 0, at most {MOST_MEASURED:.0e}",
            )
            for device, speed in spec.speeds.items()
        ),
        *(
            (
                0 <= a.islands <= MOST_COUNT and 0 < a.share <= 1,
                f"alternatives[{i}]: islands={a.islands} (0: any), share={a.share} (0 to 1)",
            )
            for i, a in enumerate(spec.alternatives)
        ),
    ]
