"""`atoll run`, `atoll submit`, `atoll validate`: a script's own `atoll.run` or a job file, with flags on top."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from atoll import launch
from atoll.errors import AtollError, SpecError
from atoll.launch_spec import check_names, is_job_file, read_job
from atoll.schema.job_keys import json_schema
from atoll.schema.spec import JobSpec

File = Annotated[str, typer.Argument(help="FILE.py or FILE.py:FUNCTION, or a job file: .toml, .yaml.", metavar="FILE")]
Arguments = Annotated[list[str] | None, typer.Argument(help="After `--`: the script's own arguments.")]
Workers = Annotated[
    str | None, typer.Option("--workers", "-w", help="Trainers with a rank: 4, or elastic: 2..16, or 2,4,8.")
]
Queue = Annotated[str | None, typer.Option("--queue", "-q", help="The queue in which it waits.")]
Team = Annotated[str | None, typer.Option(help="Who is charged for it.")]
Priority = Annotated[int | None, typer.Option(help="Larger is served first within its queue.")]
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
    queue: Queue = None,
    team: Team = None,
    priority: Priority = None,
    settings: Setting = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not watch; needs a running cluster.")] = False,
) -> None:
    """Train what FILE says and watch it: a job file, or a script that calls atoll.run or has a function `train`.

    Flags win over what stands in FILE.
    """
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
    queue: Queue = None,
    team: Team = None,
    priority: Priority = None,
    settings: Setting = None,
) -> None:
    """Like `run --detach`: hand the job over and print its run id, nothing else."""
    _start({**locals(), "detach": True}, print_id=True)


def validate(
    files: Annotated[list[str] | None, typer.Argument(help="Job files: .toml, .yaml.", metavar="FILE...")] = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of job files.")] = False,
) -> None:
    """Check job files: each fault with its line, the value, and the nearest valid key. Exit code 2 where there is one."""
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if not files:
        raise SpecError("name a job file, or --schema for what may stand in one")
    code = 0
    for file in files:
        try:
            spec = read_job(file)
            check_names(spec)
        except AtollError as error:
            typer.echo(str(error), err=True)
            code = error.exit_code
        else:
            typer.echo(f"{file}: ok: {spec.name}, {spec.function} of {spec.file}, {wanted(spec)}")
    if code:
        raise typer.Exit(code)


def wanted(spec: JobSpec) -> str:
    """What a job asks for, in a few words."""
    each = f"{spec.cpus_per_worker:g} CPU" + (f" and {spec.gpus_per_worker:g} GPU" if spec.gpus_per_worker else "")
    many = f"{spec.least} to {spec.workers}" if spec.elastic else str(spec.workers)
    return f"{many} worker{'s' * (spec.workers != 1)} of {each}, {spec.spares} spare{'s' * (spec.spares != 1)}"


def _start(flags: dict[str, Any], *, print_id: bool) -> None:
    every = flags.get("checkpoint_every")
    flags["checkpoint_every"] = int(every) if every is not None and every.isdigit() else every
    path, arguments, settings = flags.pop("path"), flags.pop("arguments"), flags.pop("settings")
    options: Any = {key: value for key, value in flags.items() if value is not None and value is not False}
    overrides = launch.Overrides(options=options, config=parse_settings(settings or []), print_id=print_id)
    if is_job_file(path):
        if arguments:
            raise SpecError(
                f"{arguments[0]!r}: a job file takes no arguments; set entries of config with --set KEY=VALUE"
            )
        launch.run_job(path, overrides)
        return
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
