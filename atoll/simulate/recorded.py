"""Recorded workloads: jobs from a table (CSV with a header) or from lines of JSON.

| column | meaning |
|---|---|
| `submitted_s` | seconds since the record began; any order |
| `workers` | that were asked for |
| `duration_s` | it ran, or would run, on `workers` of the reference device on one host |
| `id` | a name; `job-NNNNN` unless given |
| `least`, `most` | workers between which it is elastic, by powers of two times `least`; rigid unless given |
| `model` | one of the models of `laws`; `resnet-50` unless given |
| `queue`, `user`, `priority` | `default`, "" and 50 unless given |

A value that cannot be right is a `SpecError` that names line, column and value; so is a column that nobody knows.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from atoll.errors import SpecError
from atoll.schema.ids import RunId, is_safe_name
from atoll.simulate.cluster import Cluster
from atoll.simulate.jobs import Job, Model
from atoll.simulate.laws import MODELS, REFERENCE
from atoll.simulate.progress import step_s

NEEDED = ("submitted_s", "workers", "duration_s")
COLUMNS = (*NEEDED, "id", "least", "most", "model", "queue", "user", "priority")
T = TypeVar("T")


def read(lines: Iterable[str], name: str, cluster: Cluster) -> tuple[Job, ...]:
    """The jobs of a record, in order of arrival. `name` ends in `.csv`, or its lines are JSON."""
    rows = _table(lines, name) if name.endswith(".csv") else _objects(lines, name)
    jobs = [_job(_Row(place, row), number, cluster) for number, (place, row) in enumerate(rows)]
    if not jobs:
        raise SpecError(f"{name} has no job in it")
    if twice := _twice(job.id for job in jobs):
        raise SpecError(f"{name}: two jobs are called {twice!r}")
    return tuple(sorted(jobs, key=lambda job: job.submitted_s))


def _table(lines: Iterable[str], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    for row in reader:
        if None in row:
            raise SpecError(f"{name} line {reader.line_num}: more values than the header has columns")
        yield f"{name} line {reader.line_num}", {k: v for k, v in row.items() if v not in {None, ""}}


def _objects(lines: Iterable[str], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SpecError(f"{name} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SpecError(f"{name} line {number} is not an object: {line.strip()[:60]}")
        yield f"{name} line {number}", row


class _Row:
    """One line, read value by value."""

    def __init__(self, place: str, row: Mapping[str, Any]) -> None:
        self._place, self._row = place, row
        if unknown := sorted(set(row) - set(COLUMNS)):
            raise SpecError(f"{place}: column {unknown[0]!r} is not one of {', '.join(COLUMNS)}")
        if missing := [column for column in NEEDED if column not in row]:
            raise SpecError(f"{place}: {missing[0]} is missing")

    def get(self, column: str, kind: Callable[[Any], T], default: T, *, least: float = -math.inf) -> T:
        """The value, at least `least` where it is a number."""
        if column not in self._row:
            return default
        value = self._row[column]
        try:
            found = kind(value)
        except (TypeError, ValueError):
            raise SpecError(f"{self._place}: {column}={value!r} is no {kind.__name__}") from None
        if isinstance(found, int | float) and not (least <= found < math.inf):
            raise SpecError(f"{self._place}: {column}={value!r}: {least:g} or more")
        return found

    def name(self, column: str, default: str) -> str:
        """A name without spaces and slashes."""
        found = self.get(column, str, default)
        if found and not is_safe_name(found):
            raise SpecError(f"{self._place}: {column}={found!r}: use letters, digits, '_', '.' and '-' only")
        return found

    def model(self) -> Model:
        """The model of that name."""
        wanted = self.get("model", str, "resnet-50")
        found = next((m for m in MODELS if m.name == wanted), None)
        if found is None:
            raise SpecError(f"{self._place}: model={wanted!r}: one of {', '.join(m.name for m in MODELS)}")
        return found

    def fail(self, words: str) -> SpecError:
        """An error at this line."""
        return SpecError(f"{self._place}: {words}")


def _job(row: _Row, number: int, cluster: Cluster) -> Job:
    model, workers = row.model(), row.get("workers", int, 1, least=1)
    least, most = row.get("least", int, workers, least=1), row.get("most", int, workers, least=1)
    if not least <= workers <= most:
        raise row.fail(f"least={least}, workers={workers}, most={most}: in this order")
    if least > cluster.devices:
        raise row.fail(f"{least} workers never fit: the cluster has {cluster.devices} devices")
    batch = model.batch * workers
    rate = batch / step_s(model, batch, workers, workers * model.speeds[REFERENCE], cluster.local)
    sizes = {least, workers, most} | {least << n for n in range(most.bit_length()) if least << n <= most}
    return Job(
        id=RunId(row.name("id", f"job-{number:05d}")),
        submitted_s=row.get("submitted_s", float, 0.0, least=0.0),
        model=model,
        samples=row.get("duration_s", float, 0.0, least=0.001) * rate,
        workers=workers,
        sizes=tuple(sorted(sizes)),
        queue=row.name("queue", "default"),
        user=row.name("user", ""),
        priority=row.get("priority", int, 50, least=0),
    )


def _twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
