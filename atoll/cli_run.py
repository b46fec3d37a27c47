"""`atoll run` and `atoll submit`: a script's own `atoll.run`, with the command line's flags on top."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from atoll import launch
from atoll.errors import SpecError

File = Annotated[str, typer.Argument(help="FILE.py or FILE.py:FUNCTION.", metavar="FILE[:FUNCTION]")]
Arguments = Annotated[list[str] | None, typer.Argument(help="After `--`: the script's own arguments.")]
Workers = Annotated[int | None, typer.Option("--workers", "-w", help="Trainers with a rank.")]
Spares = Annotated[int | None, typer.Option(help="Warm trainers without a rank.")]
Name = Annotated[str | None, typer.Option(help="Name of the job.")]
Every = Annotated[str | None, typer.Option(help="Steps between checkpoints, 0 for none, or `auto`.", metavar="STEPS")]
Remote = Annotated[str | None, typer.Option(help="URI to which checkpoints are copied: s3://bucket/folder.")]
CheckpointDir = Annotated[str | None, typer.Option(help="Where checkpoints go.")]
Resume = Annotated[str | None, typer.Option(help="Checkpoint directory to start from.")]
Cpus = Annotated[float | None, typer.Option(help="CPUs that each trainer holds.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs that each trainer holds.")]
Seed = Annotated[int | None, typer.Option(help="Seed of data order, dropout and initial weights.")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of ctx.config; VALUE as JSON or text.")]


def run_command(  # noqa: PLR0913 - one parameter a flag
    path: File,
    arguments: Arguments = None,
    *,
    workers: Workers = None,
    spares: Spares = None,
    name: Name = None,
    checkpoint_every: Every = None,
    checkpoint_dir: CheckpointDir = None,
    checkpoint_remote: Remote = None,
    resume: Resume = None,
    cpus_per_worker: Cpus = None,
    gpus_per_worker: Gpus = None,
    seed: Seed = None,
    settings: Setting = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not watch; needs a running cluster.")] = False,
) -> None:
    """Train what FILE hands to atoll.run, or its function `train`, and watch it. Flags win over the script's own."""
    _start(locals(), print_id=False)


def submit_command(  # noqa: PLR0913 - one parameter a flag
    path: File,
    arguments: Arguments = None,
    *,
    workers: Workers = None,
    spares: Spares = None,
    name: Name = None,
    checkpoint_every: Every = None,
    checkpoint_dir: CheckpointDir = None,
    checkpoint_remote: Remote = None,
    resume: Resume = None,
    cpus_per_worker: Cpus = None,
    gpus_per_worker: Gpus = None,
    seed: Seed = None,
    settings: Setting = None,
) -> None:
    """Like `run --detach`: hand the job over and print its run id, nothing else."""
    _start({**locals(), "detach": True}, print_id=True)


def _start(flags: dict[str, Any], *, print_id: bool) -> None:
    every = flags.get("checkpoint_every")
    flags["checkpoint_every"] = int(every) if every is not None and every.isdigit() else every
    path, arguments, settings = flags.pop("path"), flags.pop("arguments"), flags.pop("settings")
    options: Any = {key: value for key, value in flags.items() if value is not None and value is not False}
    overrides = launch.Overrides(options=options, config=parse_settings(settings or []), print_id=print_id)
    file, function = split_path(path)
    launch.run_script(file, function, arguments or [], overrides)


def split_path(text: str) -> tuple[str, str | None]:
    """FILE and FUNCTION of `FILE[:FUNCTION]`; a colon inside the file's name is left alone."""
    file, colon, function = text.rpartition(":")
    if colon and all(part.isidentifier() for part in function.split(".")):
        return file, function
    return text, None


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict; a value that is no JSON is text. Raises `SpecError`."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {setting!r}: write KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
