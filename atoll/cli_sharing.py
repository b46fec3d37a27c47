"""`atoll plan`, `why`, `top`, `queues`, `resize`, `suspend` and `resume`: how runs share the cluster.

All of it is asked of the running control plane: a plan is its very next decision, on its state as it is.
"""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.clock import SystemClock
from atoll.errors import SpecError

if TYPE_CHECKING:
    from atoll.client import Client
    from atoll.schema.queues import Sharing

Run = Annotated[str, typer.Argument(help="Run id, as `atoll ls` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the view as JSON.")]
Reason = Annotated[str, typer.Option(help="Goes into the story.")]

queues_app = typer.Typer(help="How the cluster is shared: flavors, queues, quotas.", no_args_is_help=True)


def _client() -> Client:
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    return Client()


def _print_json(value: Any) -> None:
    from atoll.schema.codec import to_plain  # noqa: PLC0415 - as above

    sys.stdout.write(json.dumps(to_plain(value)) + "\n")


def _print(*renderables: Any) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich only where tables are printed

    console = Console()
    for one in renderables:
        console.print(one, markup=False, soft_wrap=True)


def plan(
    file: Annotated[str, typer.Argument(help="A job file: .toml, .yaml.", metavar="FILE")], *, as_json: AsJson = False
) -> None:
    """Say what would become of a job if it were submitted now. Exit code 1 where it can never run."""
    from atoll import cli_sharing_tables as tables  # noqa: PLC0415 - as above
    from atoll.launch_spec import read_job  # noqa: PLC0415 - as above

    with _client() as client:
        view = client.plan(read_job(file))
    if as_json:
        _print_json(view)
    else:
        _print(*tables.plan(view, SystemClock().now()))
    if view.verdict == "never":
        raise typer.Exit(1)


def why(run: Run, *, as_json: AsJson = False) -> None:
    """Say why a run waits, or stands as it does: each alternative with what is against it, its place in line, its share."""
    from atoll import cli_sharing_tables as tables  # noqa: PLC0415 - as above

    with _client() as client:
        view = client.why(run)
    if as_json:
        _print_json(view)
    else:
        _print(*tables.why(view, SystemClock().now()))


def top(
    *,
    as_json: AsJson = False,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and do not go on.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show queues, shares, runs, nodes and where the time of devices goes, live."""
    with _client() as client:
        if as_json:
            _print_json(client.top())
            return
        if once or not sys.stdout.isatty():
            _print(*_screen(client))
            return
        from rich.console import Group  # noqa: PLC0415 - as above
        from rich.live import Live  # noqa: PLC0415 - as above

        with Live(Group(*_screen(client)), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(Group(*_screen(client)), refresh=True)


def _screen(client: Client) -> list[Any]:
    from atoll import cli_sharing_tables as tables  # noqa: PLC0415 - as above
    from atoll import cli_tables  # noqa: PLC0415 - as above

    now, view, nodes = SystemClock().now(), client.top(), client.nodes()
    runs = [run for run in client.runs() if not run.state.ended]
    return [*tables.top(view), cli_tables.runs(runs, now), cli_tables.nodes(nodes)]


def resize(
    run: Run,
    workers: Annotated[int, typer.Argument(help="How many workers it is to have.")],
    reason: Reason = "asked by `atoll resize`",
) -> None:
    """Make an elastic run smaller or larger, at a step boundary and without losing a step. It does not grow beyond that."""
    with _client() as client:
        client.resize(run, workers, reason)
    typer.echo(
        f"{run} goes on with {workers} worker{'s' * (workers != 1)}, with more than now as soon as there is room"
    )


def suspend(run: Run, reason: Reason = "asked by `atoll suspend`") -> None:
    """Have a run save at its next step boundary, leave its seats, and wait until it is resumed."""
    with _client() as client:
        client.suspend(run, reason)
    typer.echo(f"{run} saves and leaves; `atoll resume {run}` lets it go on from there")


def resume(run: Run, reason: Reason = "asked by `atoll resume`") -> None:
    """Let a run that was suspended go on when there is room."""
    with _client() as client:
        client.resume(run, reason)
    typer.echo(f"{run} waits for room; `atoll why {run}` says what for")


@queues_app.command(name="show")
def show_queues(*, as_json: AsJson = False) -> None:
    """Show flavors, queues and quotas."""
    from atoll import cli_sharing_tables as tables  # noqa: PLC0415 - as above

    with _client() as client:
        sharing = client.queues()
    if as_json:
        _print_json(sharing)
    else:
        _print(*tables.queues(sharing))


@queues_app.command(name="set")
def set_queues(
    file: Annotated[str, typer.Argument(help="TOML with [[flavor]], [[queue]] and [settings].", metavar="FILE")],
) -> None:
    """Share the cluster as FILE says, from now on."""
    sharing = read_sharing(Path(file))
    with _client() as client:
        client.set_queues(sharing)
    typer.echo(f"queues: {', '.join(queue.name for queue in sharing.queue)}")


def read_sharing(file: Path) -> Sharing:
    """What FILE says, checked. Raises `SpecError`."""
    from atoll.errors import SchemaError  # noqa: PLC0415 - as above
    from atoll.schema.codec import from_plain  # noqa: PLC0415 - as above
    from atoll.schema.queues import Sharing, check_sharing, unknown_keys  # noqa: PLC0415 - as above

    try:
        plain = tomllib.loads(file.read_text(encoding="utf-8"))
        strangers = unknown_keys(plain)
        if strangers:
            raise SpecError(f"{file}: {'; '.join(strangers)}")
        return check_sharing(from_plain(Sharing, plain))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, SchemaError) as error:
        raise SpecError(f"{file}: {error}") from None
