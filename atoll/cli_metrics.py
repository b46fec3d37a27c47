"""`atoll metrics`: what the steps of a run measured, of one that trains as of one that ended months ago.

A table of the last steps for people, CSV or one JSON object a line for programs, all of them then.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import SpecError
from atoll.schema.views import MetricPoint

if TYPE_CHECKING:
    from rich.table import Table

_FIXED = ("step", "at", "step_s", "samples", "members", "epoch")
_FORMS = ("table", "csv", "jsonl")
_LAST = 20


def metrics(
    run: Annotated[str, typer.Argument(help="Run id, as `atoll ls` shows it.")],
    *,
    after_step: Annotated[int, typer.Option(help="Only steps above this one.")] = -1,
    last: Annotated[int | None, typer.Option(min=1, help=f"Only the last so many; {_LAST} in a table.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv or jsonl.")] = "table",
) -> None:
    """Print what the committed steps of a run measured; of one that ended, too."""
    if form not in _FORMS:
        raise SpecError(f"--format {form!r}: one of {', '.join(_FORMS)}")
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    with Client() as client:
        found = client.metrics(run, after_step)
    many = last or (_LAST if form == "table" else len(found))
    points = found[-many:] if many else []
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows(points))
    elif form == "jsonl":
        sys.stdout.writelines(json.dumps(_plain(point)) + "\n" for point in points)
    else:
        from rich.console import Console  # noqa: PLC0415 - as above

        Console().print(_table(points) if points else f"{run} has committed no step yet")


def rows(points: Iterable[MetricPoint]) -> Iterable[list[Any]]:
    """A head and a row for each point; '' where a step did not report a metric."""
    points = list(points)
    names = sorted({name for point in points for name in point.metrics})
    yield [*_FIXED, *names]
    for point in points:
        yield [*(getattr(point, name) for name in _FIXED), *(point.metrics.get(name, "") for name in names)]


def _plain(point: MetricPoint) -> dict[str, Any]:
    return {name: getattr(point, name) for name in _FIXED} | {"metrics": point.metrics}


def _table(points: list[MetricPoint]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - as above

    head, *body = rows(points)
    table = Table(box=None, pad_edge=False)
    for name in head:
        if name != "at":
            table.add_column(str(name).upper(), justify="right")
    for row in body:
        table.add_row(
            *(f"{v:.4g}" if isinstance(v, float) else str(v) for n, v in zip(head, row, strict=True) if n != "at")
        )
    return table
