"""`atoll checkpoints diff|export|import|gc`: what is done with checkpoints as files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.checkpoint.exchange import Form, Kind
from atoll.cli_bars import bar
from atoll.cli_checkpoints import Place, checkpoints_app, find_checkpoints
from atoll.clock import SystemClock
from atoll.errors import CheckpointError, SpecError

__all__ = ["checkpoints_app"]

Source = Annotated[str, typer.Argument(help="Run id, a checkpoint, or a folder of them.", metavar="RUN|DIR")]


@checkpoints_app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Run id, a checkpoint, or a folder of them: its newest.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    *,
    values: Annotated[bool, typer.Option("--values", help="Read what differs, and say by how much.")] = False,
) -> None:
    """Compare two checkpoints by the digests of their tensors, without reading them. Exit code 1 where they differ."""
    from atoll.checkpoint.torch_diff import compare  # noqa: PLC0415 - torch takes seconds

    places = (_path(find_checkpoints(first)), _path(find_checkpoints(second)))
    with bar("comparing") as told:
        found = compare(*places, values=values, told=told)
    for difference in found:
        typer.echo(difference.line())
    typer.echo(f"{len(found)} differences" if found else "no difference")
    if found:
        raise typer.Exit(1)


@checkpoints_app.command(name="export")
def export_checkpoint(
    source: Source,
    form: Annotated[Form, typer.Option("--to", help="A Hugging Face or a torch.distributed.checkpoint directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to make.")],
    *,
    step: Annotated[int | None, typer.Option(help="This step, not the newest.")] = None,
    under: Annotated[str, typer.Option(help="hf: the name under which the model is managed.")] = "model",
) -> None:
    """Make another program's files of a checkpoint, every block verified on the way."""
    from atoll.checkpoint.torch_export import export_step  # noqa: PLC0415 - torch takes seconds

    place = find_checkpoints(source)
    with bar("exporting") as told:
        done = export_step(_path(place, step), form, out, under=under, told=told)
    typer.echo(f"step {done} is in {out}")


@checkpoints_app.command(name="import")
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="A file or directory of another program.", metavar="PATH")],
    kind: Annotated[Kind, typer.Option("--from", help="What it is: DCP's, torch.save's, or safetensors.")],
    into: Annotated[Path, typer.Option("--into", help="The folder of checkpoints that it comes into.")],
    *,
    step: Annotated[int, typer.Option(min=0, help="Its number there.")] = 0,
    run: Annotated[str, typer.Option(help="The run that it counts as.")] = "import",
    under: Annotated[str | None, typer.Option(help="The name that the state gets; weights alone: model.")] = None,
) -> None:
    """Make a checkpoint of another program's files. Nothing in them is run: plain data is read, all else refused."""
    from atoll.checkpoint.fs_stream import Heading  # noqa: PLC0415 - Arrow and torch take seconds
    from atoll.checkpoint.torch_import import import_step  # noqa: PLC0415 - likewise

    heading = Heading(run=run, step=step, now=SystemClock().now())
    with bar("importing") as told:
        record = import_step(source, kind, into, heading, under=under, told=told)
    typer.echo(f"{len(record.tensors)} tensors, {record.size_bytes() / 1e6:.1f} MB: step {step} in {into}")


@checkpoints_app.command()
def gc(
    source: Annotated[
        str, typer.Argument(help="A folder of checkpoints, or the run that made them.", metavar="RUN|DIR")
    ],
    *,
    keep: Annotated[int, typer.Option(min=1, help="The last so many of each run stay.")] = 3,
    every: Annotated[int, typer.Option(min=0, help="So do steps divisible by this.")] = 0,
    young: Annotated[float, typer.Option(min=0.0, help="So do those made in the last so many hours.")] = 0.0,
    run: Annotated[str | None, typer.Option(help="Only checkpoints of this run.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Damaged steps that were set aside go, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete old checkpoints, and what broken-off saves left, behind a newest one that reads back whole."""
    from atoll.checkpoint import fs_collect  # noqa: PLC0415 - only where it is asked for
    from atoll.checkpoint.fs_store import Store  # noqa: PLC0415 - likewise
    from atoll.checkpoint.retention import Retention  # noqa: PLC0415 - likewise

    place = find_checkpoints(source)
    if place.step is not None and place.run is None:
        raise SpecError(f"{source} is one checkpoint; give the folder that it lies in")
    store = Store(place.directory)
    only = run if run is not None or place.run is None else place.run.run
    found = fs_collect.doomed(store, Retention(last=keep, every=every, seconds=young * 3600), SystemClock().now(), only)
    beside = fs_collect.left(store, only, damaged=damaged)
    every_one: list[fs_collect.Doomed | fs_collect.Left] = [*found, *beside]
    if dry_run or not every_one:
        for one in every_one:
            typer.echo(f"would go: {one.line()}")
        size = sum(one.bytes for one in every_one) / 1e6
        typer.echo(f"{len(every_one)} would go, {size:.1f} MB" if every_one else "nothing to do")
        return
    fs_collect.clear(store, beside)
    went, problems = fs_collect.collect(store, found, lambda newest: next(iter(store.verify(newest).problems), ""))
    for one in [each for each in every_one if each in beside or each in went]:
        typer.echo(f"gone: {one.line()}")
    if problems:
        raise CheckpointError("; ".join(problems))


def _path(place: Place, step: int | None = None) -> Path:
    number = step if step is not None else place.step
    return place.directory if number is None else place.directory / f"step-{number:08d}"
