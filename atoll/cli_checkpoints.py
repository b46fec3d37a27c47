"""`atoll checkpoints ls|verify`: what is durable, and whether it still reads as it was written.

The other commands of the group are in `cli_checkpoints_files`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli_bars import bar
from atoll.clock import SystemClock
from atoll.errors import CheckpointError, NotFoundError
from atoll.schema.views import RunView

_STEP = re.compile(r"step-(\d+)")

checkpoints_app = typer.Typer(help="List and verify checkpoints.", no_args_is_help=True, rich_markup_mode=None)


@checkpoints_app.command(name="ls")
def list_checkpoints(source: Annotated[str, typer.Argument(help="Run id, or a folder.", metavar="RUN|DIR")]) -> None:
    """List the durable checkpoints of a run, or in a folder."""
    from rich.console import Console  # noqa: PLC0415 - rich only where tables are printed

    from atoll import cli_tables  # noqa: PLC0415 - likewise

    if Path(source).is_dir():
        _list_folder(Path(source))
        return
    if "/" in source:
        raise NotFoundError(f"no directory {Path(source).absolute()}; give a checkpoint directory or a run id")
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    with Client() as client:
        found = client.checkpoints(source)
    Console().print(
        cli_tables.checkpoints(found, SystemClock().now()) if found else f"{source} has no durable checkpoint yet"
    )


def _list_folder(path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - likewise

    from atoll.checkpoint.fs_inspect import list_checkpoints as stored  # noqa: PLC0415 - only for folders
    from atoll.checkpoint.fs_inspect import unreadable  # noqa: PLC0415 - likewise
    from atoll.cli_tables import ago, size  # noqa: PLC0415 - likewise

    found, bad = stored(path), unreadable(path)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("STEP", "RUN", "EPOCH", "SIZE", "MADE"):
        table.add_column(column, overflow="fold", no_wrap=column == "RUN")
    for one in found:
        made = ago(one.at, SystemClock().now())
        table.add_row(str(one.step), one.run, str(one.epoch), size(one.bytes), made)
    Console().print(table if found else f"{path} has no durable checkpoint")
    if bad:
        raise CheckpointError("; ".join(bad))


@checkpoints_app.command()
def verify(
    source: Annotated[str, typer.Argument(help="Run id, or a checkpoint directory.", metavar="RUN|DIR")],
    step: Annotated[int | None, typer.Option(help="Only this step.")] = None,
) -> None:
    """Read every block of the checkpoints and compare it with its checksum. Exit code 3 where one is damaged."""
    from atoll.checkpoint.fs_inspect import to_verify  # noqa: PLC0415 - only where something is read

    place = find_checkpoints(source)
    store, steps = to_verify(place.directory, step if step is not None else place.step)
    sizes = {s.step: s.bytes for s in store.list()}
    total = sum(sizes.get(each, 0) for each in steps)
    bad = 0
    with bar("verifying") as told:
        for each in steps:
            report = store.verify(each, lambda count: told(count, total))
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
