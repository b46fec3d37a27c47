"""`atoll lab up|ls|exec|cut|heal|slow|freeze|thaw|kill|bench|down`: a mixed cluster on this machine.

Without `--lab` a command means the one lab that stands. `exec` becomes the command that it runs, so its exit code,
signals and terminal are those of the command.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import NotFoundError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.lab.lab_runtime import Lab
    from atoll.lab.spec import LabSpec

lab_app = typer.Typer(
    help="A mixed cluster on this machine: hosts as network namespaces, shaped links, real Ray nodes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str | None, typer.Option("--lab", "-l", help="Which lab; the only one unless given.")]
Host = Annotated[str, typer.Argument(help="A host, as `atoll lab ls` shows it.")]


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console  # noqa: PLC0415 - rich only where it is needed

    return Console(stderr=stderr)


def _lab(name: str | None) -> Lab:
    from atoll import config  # noqa: PLC0415 - the lab's modules only where a lab is meant
    from atoll.lab.fs_state import Labs  # noqa: PLC0415 - likewise
    from atoll.lab.lab_runtime import attach  # noqa: PLC0415 - likewise

    home = config.load().home
    names = Labs(home).names()
    if name is None and len(names) != 1:
        known = ", ".join(names)
        raise NotFoundError(
            f"several labs stand; say which with --lab: {known}" if names else "no lab stands; `atoll lab up FILE`"
        )
    return attach(name or names[0], home=home)


def read_spec(file: Path, name: str | None = None) -> LabSpec:
    """The lab of a file, under another name if one is given. Raises `SpecError`."""
    from dataclasses import replace  # noqa: PLC0415 - as above

    from atoll.lab import spec_toml  # noqa: PLC0415 - as above
    from atoll.lab.spec import check  # noqa: PLC0415 - as above

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the lab file {file}: {error}") from None
    spec = spec_toml.parse(text, str(file), file.stem.replace("_", "-").lower())
    return check(replace(spec, name=name), "--name") if name else spec


@lab_app.command()
def up(
    file: Annotated[Path, typer.Argument(help="What to raise, as in examples/lab.")],
    name: Annotated[str | None, typer.Option(help="Its name; else the file's.")] = None,
    *,
    ray: Annotated[bool, typer.Option(help="Start a Ray node in each host, and Ray's head in one more.")] = True,
    head_only: Annotated[bool, typer.Option(help="Of Ray only the head: `atoll autoscale` starts the hosts.")] = False,
) -> None:
    """Raise a lab and leave it standing."""
    from atoll.lab import lab_runtime, ray_nodes  # noqa: PLC0415 - as above

    console, spec = _console(), read_spec(file, name)
    lab = lab_runtime.up(spec)
    try:
        if ray:
            start = ray_nodes.start_head if head_only else ray_nodes.start
            start(lab, lambda text: console.print(text, style="dim", markup=False))
    except BaseException:  # Ctrl-C too: half a cluster helps nobody
        lab.down()
        raise
    for notice in lab.notices:
        console.print(notice, style="yellow", markup=False)
    console.print(f"lab {lab.name} stands: {', '.join(lab.layout.nics)}", markup=False, soft_wrap=True)
    console.print(
        "  look with `atoll lab ls`, run with `atoll lab exec HOST COMMAND`, end with `atoll lab down`",
        markup=False,
        soft_wrap=True,
    )
    if ray:
        console.print(
            "  `atoll lab exec head ray job submit -- python train.py` finds its Ray", markup=False, soft_wrap=True
        )


@lab_app.command()
def ls(*, as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show the labs: hosts, addresses, declared and measured rates, what has befallen them."""
    from atoll import cli_lab_tables, config  # noqa: PLC0415 - as above
    from atoll.lab.fs_state import Labs  # noqa: PLC0415 - as above
    from atoll.lab.status_runtime import status  # noqa: PLC0415 - as above
    from atoll.schema.codec import to_plain  # noqa: PLC0415 - as above

    found = [status(_lab(name)) for name in Labs(config.load().home).names()]
    if as_json:
        sys.stdout.write(json.dumps(to_plain(found)) + "\n")
        return
    console = _console()
    for one in found:
        for part in cli_lab_tables.lab(one):
            console.print(part, markup=False, soft_wrap=isinstance(part, str))
    if not found:
        console.print("no lab stands; `atoll lab up FILE`", markup=False)


@lab_app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    host: Host,
    command: Annotated[list[str], typer.Argument(help="What to run there.", metavar="COMMAND...")],
    name: Name = None,
) -> None:
    """Run a command inside a host. Options of `exec` come before HOST."""
    words = _lab(name).words(host, command[1:] if command[:1] == ["--"] else command)
    sys.stdout.flush()
    os.execv(words[0], words)  # noqa: S606 - no shell is the point


@lab_app.command()
def cut(
    host: Host,
    nic: Annotated[str | None, typer.Argument(help="One of its NICs; all unless given.")] = None,
    name: Name = None,
) -> None:
    """Cut a host's cables: what is sent over them vanishes, and no end is told."""
    _lab(name).cut(host, nic)
    typer.echo(f"{host} is cut off" + (f" on {nic}" if nic else ""))


@lab_app.command()
def heal(
    host: Annotated[str | None, typer.Argument(help="One host; all unless given.")] = None, name: Name = None
) -> None:
    """Undo cuts and slowed links; a killed host comes back with nothing on its disk, and with a new Ray node."""
    lab = _lab(name)
    lab.heal(host)
    typer.echo(f"{host or 'the lab'} is whole again")


@lab_app.command()
def slow(
    first: Annotated[str, typer.Argument(help="A host.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    rate: Annotated[str, typer.Argument(help="Such as '10 Mbit/s' or 10mbit.")],
    name: Name = None,
) -> None:
    """Hold what two hosts send each other to a rate; the traffic of others is not touched."""
    _lab(name).slow(first, second, rate)
    typer.echo(f"{first} and {second} reach each other at {rate} at most")


@lab_app.command()
def freeze(host: Host, name: Name = None) -> None:
    """Stop every process of a host where it stands."""
    _lab(name).freeze(host)
    typer.echo(f"{host} stands still")


@lab_app.command()
def thaw(host: Host, name: Name = None) -> None:
    """Let a frozen host go on."""
    _lab(name).thaw(host)
    typer.echo(f"{host} goes on")


@lab_app.command()
def kill(host: Host, name: Name = None) -> None:
    """Lose a host: it falls silent, its processes end, its disk is gone. `heal` brings it back empty."""
    _lab(name).kill(host)
    typer.echo(f"{host} is lost")


@lab_app.command()
def bench(
    name: Name = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Measure every link by a short transfer each way, and compare with what is declared."""
    from atoll import cli_lab_tables  # noqa: PLC0415 - as above
    from atoll.lab.bench_runtime import measure  # noqa: PLC0415 - as above
    from atoll.schema.codec import to_plain  # noqa: PLC0415 - as above

    lab = _lab(name)
    with _console(stderr=True).status("measuring") as line:
        rows = measure(lab, lambda index, count: line.update(f"measuring, round {index + 1} of {count}"))
    if as_json:
        sys.stdout.write(json.dumps(to_plain(rows)) + "\n")
    else:
        _console().print(cli_lab_tables.measured(rows))


@lab_app.command()
def down(
    name: Annotated[str | None, typer.Argument(help="Which lab; the only one unless given.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every lab of this user.")] = False,
) -> None:
    """End all of a lab, also of one that was raised half, and nothing else."""
    from atoll import config  # noqa: PLC0415 - as above
    from atoll.lab.fs_state import Labs  # noqa: PLC0415 - as above
    from atoll.lab.raising_runtime import take_down  # noqa: PLC0415 - as above

    labs = Labs(config.load().home)
    for chosen in labs.names() if everything else [_lab(name).name]:
        ended = take_down(labs, chosen)
        typer.echo(f"lab {chosen} is down ({ended} processes ended)")
