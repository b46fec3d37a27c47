"""`atoll checkpoints ls|verify`: what is durable, and whether it still reads as it was written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.clock import SystemClock
from atoll.errors import CheckpointError, NotFoundError
from atoll.schema.views import RunView

if TYPE_CHECKING:
    from atoll.checkpoint.report import Report

_STEP = re.compile(r"step-(\d+)")

checkpoints_app = typer.Typer(help="List and verify checkpoints.", no_args_is_help=True, rich_markup_mode=None)


@checkpoints_app.command(name="ls")
def list_checkpoints(run: Annotated[str, typer.Argument(help="Run id.")]) -> None:
    """List the durable checkpoints of a run."""
    from rich.console import Console  # noqa: PLC0415 - rich only where tables are printed

    from atoll import cli_tables  # noqa: PLC0415 - likewise
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    with Client() as client:
        found = client.checkpoints(run)
    Console().print(
        cli_tables.checkpoints(found, SystemClock().now()) if found else f"{run} has no durable checkpoint yet"
    )


@checkpoints_app.command()
def verify(
    source: Annotated[str, typer.Argument(help="Run id, or a checkpoint directory.", metavar="RUN|DIR")],
    step: Annotated[int | None, typer.Option(help="Only this step.")] = None,
) -> None:
    """Read every block of the checkpoints and compare it with its checksum. Exit code 3 where one is damaged."""
    place = find_checkpoints(source)
    bad = 0
    for report in _reports(place.directory, step if step is not None else place.step):
        typer.echo(report.line())
        bad += not report.ok
    if bad:
        raise CheckpointError(f"{bad} checkpoint(s) under {place.directory} do not read as they were written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder of checkpoints; `step` is set where one of them was named. `run` is the run that made them, if known."""

    directory: Path
    step: int | None = None
    run: RunView | None = None


def find_checkpoints(source: str) -> Place:
    """What `source` means: a folder of checkpoints, one checkpoint in it, or the run that made them."""
    path = Path(source)
    if path.is_dir():
        return place_of(path.absolute())
    if "/" in source:
        raise NotFoundError(f"no directory {path.absolute()}; give a checkpoint directory or a run id")
    from atoll.client import Client  # noqa: PLC0415 - as above

    with Client() as client:
        view = client.run(source)
    if view.checkpoint is None:
        raise NotFoundError(f"run {source} has no durable checkpoint; set checkpoint_every, or give a directory")
    return dataclasses.replace(place_of(Path(view.checkpoint.path)), run=view)


def place_of(path: Path) -> Place:
    """`path` as a folder of checkpoints, or as one checkpoint in its folder."""
    match = _STEP.fullmatch(path.name)
    return Place(directory=path.parent, step=int(match[1])) if match else Place(directory=path)


def _reports(directory: Path, step: int | None) -> Sequence[Report]:
    from atoll.checkpoint.fs_inspect import verify as read_back  # noqa: PLC0415 - torch takes seconds

    return read_back(directory, step)
