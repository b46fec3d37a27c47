"""`atoll serve`: a run's newest checkpoint, or one in a directory, behind the OpenAI-compatible endpoint.

Serving is a run like any other, of kind `serve`: its spec is that of the training run with the checkpoint to start from
and the function that builds the model, so that the same file, working directory and devices are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll import config
from atoll.cli_checkpoints import Place, find_checkpoints
from atoll.cli_run import split_path
from atoll.clock import SystemClock
from atoll.errors import AtollError, ClusterError, ConnectError, SpecError
from atoll.launch_spec import JobOptions, build, safe_name
from atoll.schema.ids import RunId
from atoll.schema.spec import JobKind, JobSpec, check_spec

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.client import Client

# A replica imports torch and reads the checkpoint: half a minute here, minutes for a large model on slow disks.
_READY_S = 300.0
_POLL_S = 0.5


def serve(
    source: Annotated[str, typer.Argument(help="Run id, or a checkpoint directory.", metavar="RUN|CHECKPOINT_DIR")],
    *,
    model: Annotated[str | None, typer.Option(help="Name under which clients ask for it.")] = None,
    function: Annotated[
        str | None, typer.Option(help="[FILE:]FUNCTION that builds the bare model; the run's own unless given.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Replicas.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it answers.")] = False,
) -> None:
    """Serve what a run has trained, print how to ask it, and watch it until Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415 - rich and httpx only where they are needed

    from atoll.cli_attach import attach, terminable  # noqa: PLC0415 - likewise
    from atoll.client import Client  # noqa: PLC0415 - likewise

    console, place = Console(), find_checkpoints(source)
    spec = serve_spec(place, model=model, function=function, workers=workers, detach=detach)
    target = config.locate(config.load())
    with terminable(), Client(target.url, target.token) as client:
        run = client.submit(spec)
        console.print(f"{run}: waiting for the first replica", style="dim", markup=False)
        name = _wait_attached(client, target, run, spec.name)
        _print_how(console, client, run, name)
    if not detach:
        raise typer.Exit(attach(target, run, console))


def _wait_attached(client: Client, target: config.Target, run: RunId, name: str) -> str:
    from atoll.cli_attach import beating  # noqa: PLC0415 - as above

    try:
        with beating(target, run):
            return wait_ready(client, run, name)
    except BaseException:  # Ctrl-C and SIGTERM too: nobody waits for the replicas any more
        with contextlib.suppress(AtollError):
            client.stop(run, "given up before it served")
        raise


def serve_spec(place: Place, *, model: str | None, function: str | None, workers: int, detach: bool) -> JobSpec:
    """The spec of the serving run. Raises `SpecError` where nothing says how to build the model."""
    file, builder = split_path(function) if function else ("", None)
    if function and builder is None:
        file, builder = "", function
    trained = place.run.spec if place.run is not None else None
    if trained is None:
        trained = _spec_of_directory(place, file, builder)
    elif file:
        trained = dataclasses.replace(trained, file=str(Path(file).absolute()))
    builds = builder or trained.model
    if builds is None:
        raise SpecError("nothing says how to build the model: pass model= to atoll.run, or --function FUNCTION here")
    return check_spec(
        dataclasses.replace(
            trained,
            kind=JobKind.SERVE,
            name=safe_name(model or trained.name),
            model=builds,
            workers=workers,
            spares=0,
            resume=str(_checkpoint(place)),
            checkpoint_dir=None,
            detach=detach,
            run_id=None,
        )
    )


def _checkpoint(place: Place) -> Path:
    return place.directory if place.step is None else place.directory / f"step-{place.step:08d}"


def _spec_of_directory(place: Place, file: str, builder: str | None) -> JobSpec:
    if not file or builder is None:
        raise SpecError(
            f"{place.directory} does not say which program it belongs to; add --function FILE.py:FUNCTION, "
            "or give the run id instead"
        )
    return build(None, JobOptions(file=file, model=builder), cwd=Path.cwd())


def wait_ready(client: Client, run: RunId, fallback: str, sleep: Callable[[float], None] = time.sleep) -> str:
    """The model's public name once a replica of `run` answers. Raises `ClusterError` where that does not come about."""
    deadline = SystemClock().monotonic() + _READY_S
    while SystemClock().monotonic() < deadline:
        view = client.run(run)
        if view.state.ended:
            raise ClusterError(f"{run} {view.state} before it served: {view.reason}; see `atoll logs {run}`")
        if view.endpoint:
            names = client.models()
            return fallback if fallback in names or not names else names[0]
        sleep(_POLL_S)
    raise ConnectError(f"{run} serves nothing after {_READY_S:.0f} s; see `atoll logs {run}` and `atoll story {run}`")


def _print_how(console: Console, client: Client, run: RunId, name: str) -> None:
    console.print(
        f"{run} serves {name!r} at {client.url}/v1; end it with `atoll stop {run}`", markup=False, soft_wrap=True
    )
    console.print(curl(client.url, name, config.load().home / "token"), markup=False, highlight=False, soft_wrap=True)


def curl(url: str, model: str, token_file: Path) -> str:
    """A line to paste into a shell: asks the model, and takes the token from its file."""
    body = json.dumps({"model": model, "prompt": "def __init__(self", "max_tokens": 64, "stream": True})
    return (
        f"curl -N {url}/v1/completions -H \"Authorization: Bearer $(cat '{token_file}')\" "
        f"-H 'Content-Type: application/json' -d '{body}'"
    )
