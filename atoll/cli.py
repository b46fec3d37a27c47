"""The command line of Atoll, its doors for people who type.

`atoll up, down, run, submit, validate, ls, status, logs, metrics, stop, story,
plan, why, top, resize, suspend, resume, queues, topology, drain, undrain,
chaos, checkpoints, lab, cluster, autoscale, serve, simulate` and `doctor`.
Every command is a thin layer over `Client`, except those that start something, which go through `atoll.launch`. An
`AtollError` is one line on stderr and the error's exit code, never a traceback. What is slow to import (httpx, rich's
tables, Ray) is imported by the command that needs it, so that `--help` and `version` answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll import config, launch
from atoll.cli_autoscale import autoscale
from atoll.cli_chaos import chaos_app
from atoll.cli_checkpoints_files import checkpoints_app
from atoll.cli_cluster import cluster_app
from atoll.cli_drain import drain, undrain
from atoll.cli_lab import lab_app
from atoll.cli_metrics import metrics
from atoll.cli_run import run_command, submit_command, validate
from atoll.cli_serve import serve
from atoll.cli_sharing import plan, queues_app, resize, resume, suspend, top, why
from atoll.cli_simulate import simulate
from atoll.cli_topology import topology
from atoll.cli_users import audit, users_app
from atoll.clock import SystemClock

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.client import Client

app = typer.Typer(
    help="One elastic cluster out of a patchwork of machines: trains and serves models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[str, typer.Argument(help="Run id, as `atoll ls` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the views as JSON.")]


def main() -> None:
    """Run the command line."""
    with launch.reported():
        app()


def _client() -> Client:
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    return Client()


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console()


def _print_json(value: Any) -> None:
    from atoll.schema.codec import to_plain  # noqa: PLC0415 - as above

    sys.stdout.write(json.dumps(to_plain(value)) + "\n")


# -- the cluster -----------------------------------------------------------------------------------------------------


@app.command()
def up(
    address: Annotated[
        str | None, typer.Option(help="GCS address of a running Ray cluster; else one is started.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of REST and dashboard.")] = None,
    *,
    tls: Annotated[bool | None, typer.Option(help="REST and dashboard by https; else as they were.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on, with --tls; this host alone unless given.")] = "",
    name: Annotated[list[str] | None, typer.Option(help="A name that people call it by; repeat it.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Your own certificate chain, PEM; else one is made.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Whom clients trust for it; itself unless given.")] = None,
) -> None:
    """Start Atoll, on a Ray cluster of its own unless one is named, and leave it running."""
    console, settings = _console(), config.load()
    launch.choose_tls(
        settings,
        launch.TlsChoice(
            tls=tls, host=host, names=tuple(name or ()), certificate=tls_cert, key=tls_key, authority=tls_ca
        ),
    )
    info = launch.up(settings, address, port, lambda text: console.print(text, style="dim", markup=False))
    console.print(f"Atoll is up at {info.rest_url}", markup=False, soft_wrap=True)
    console.print(
        f"  sign in with the token in {settings.home / 'token'}, or at the link that `atoll status --link` prints",
        markup=False,
        soft_wrap=True,
    )
    if info.rest_url.startswith("https"):
        ca = settings.home / config.TLS_DIR / config.TLS_CA
        console.print(
            f"  clients elsewhere need ATOLL_ADDRESS and ATOLL_CA, a copy of {ca}", markup=False, soft_wrap=True
        )
    console.print("  submit with `atoll run FILE`, end with `atoll down`", markup=False, soft_wrap=True)


@app.command()
def down() -> None:
    """Stop all runs at a step boundary and end what `atoll up` started."""
    settings = config.load()
    for name in launch.down(settings, lambda text: _console().print(text, style="dim", markup=False)):
        typer.echo(f"{name} is down")


# -- runs ------------------------------------------------------------------------------------------------------------


app.command(name="run")(run_command)
app.command(name="submit")(submit_command)
app.command()(validate)
app.command()(serve)


@app.command()
def ls(*, as_json: AsJson = False) -> None:
    """List the runs, the newest first."""
    with _client() as client:
        found = client.runs()
    if as_json:
        _print_json(found)
        return
    from atoll import cli_tables  # noqa: PLC0415 - as above

    _console().print(cli_tables.runs(found, SystemClock().now()) if found else "no runs yet; `atoll run FILE`")


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="A run; the cluster unless given.")] = None,
    *,
    as_json: AsJson = False,
    link: Annotated[bool, typer.Option(help="Print only a link that signs a browser in. Keep it to yourself.")] = False,
) -> None:
    """Show one run, or the cluster and its nodes."""
    with _client() as client:
        if link:
            typer.echo(f"{client.url}/?token={client.token}")
        elif run is not None:
            _show_run(client, run, as_json=as_json)
        else:
            _show_cluster(client, as_json=as_json)


def _show_run(client: Client, run: str, *, as_json: bool) -> None:
    view = client.run(run)
    if as_json:
        _print_json(view)
        return
    from atoll import cli_tables  # noqa: PLC0415 - as above

    _console().print(cli_tables.run(view, SystemClock().now()))


def _show_cluster(client: Client, *, as_json: bool) -> None:
    version, nodes = client.version(), client.nodes()
    if as_json:
        _print_json({"url": client.url, "version": version, "nodes": nodes})
        return
    from atoll import cli_tables  # noqa: PLC0415 - as above

    console = _console()
    console.print(f"Atoll {version.atoll} at {client.url}", markup=False, soft_wrap=True)
    console.print(cli_tables.nodes(nodes))


@app.command()
def logs(
    run: Run,
    *,
    trainer: Annotated[str | None, typer.Option("--trainer", "-t", help="Only this trainer's.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print what the trainers of a run wrote."""
    with _client() as client:
        last = None
        for piece in client.logs(run, trainer, follow=follow):
            if trainer is None and piece.trainer != last:
                sys.stdout.write(f"==> {piece.trainer} <==\n")
            last = piece.trainer
            sys.stdout.write(piece.text)
            sys.stdout.flush()


app.command()(metrics)


@app.command()
def stop(run: Run, reason: Annotated[str, typer.Option(help="Goes into the story.")] = "asked by `atoll stop`") -> None:
    """Stop a run at its next step boundary."""
    with _client() as client:
        client.stop(run, reason)
    typer.echo(f"{run} stops at its next step boundary")


@app.command()
def story(
    subject: Annotated[str, typer.Argument(help="A run, trainer or node, or the [cause] of an event.")],
    limit: Annotated[int, typer.Option(help="The last so many events.")] = 200,
) -> None:
    """Tell what happened to a run, trainer or node, or what one cause brought about."""
    from atoll import cli_tables  # noqa: PLC0415 - as above

    with _client() as client:
        for line in cli_tables.story(client.story(subject, limit)):
            typer.echo(line)


app.command()(plan)
app.command()(why)
app.command()(top)
app.command()(resize)
app.command()(suspend)
app.command()(resume)
app.add_typer(queues_app, name="queues")
app.command()(topology)
app.command()(simulate)
app.command()(autoscale)
app.add_typer(cluster_app, name="cluster")
app.command()(drain)
app.command()(undrain)
app.add_typer(chaos_app, name="chaos")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(lab_app, name="lab")
app.add_typer(users_app, name="users")
app.command()(audit)

# -- about -----------------------------------------------------------------------------------------------------------


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check versions, ports, clocks, disk and devices on every node. Exit code 1 where something is wrong."""
    with _client() as client:
        found = client.doctor()
    if as_json:
        _print_json(found)
    else:
        from atoll import cli_tables  # noqa: PLC0415 - rich only where tables are printed

        _console().print(cli_tables.findings(found))
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """The version of Atoll."""
    import atoll  # noqa: PLC0415 - its name is the module's own

    typer.echo(f"atoll {atoll.__version__}")
