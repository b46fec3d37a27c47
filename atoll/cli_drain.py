"""`atoll drain` and `atoll undrain`: a node is emptied before it is switched off, and taken back.

`atoll drain NODE` asks the cluster and watches until every process there is proven gone. `atoll drain --here` is for the
hook of a provider or service manager on the node itself: it leaves a notice for the node's agent, and so needs neither
the cluster's address nor its token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll import config
from atoll.clock import SystemClock
from atoll.errors import ClusterError, NotFoundError, SpecError
from atoll.schema.durations import seconds
from atoll.schema.views import DrainView

if TYPE_CHECKING:
    from atoll.client import Client

LOOK_S = 0.3
# After its deadline the control plane has fenced what was left; proofs come within seconds, or the node is gone.
PROOF_S = 15.0

Node = Annotated[str, typer.Argument(help="Node, as `atoll status` shows it.")]


def drain(
    node: Annotated[str | None, typer.Argument(help="Node, as `atoll status` shows it.")] = None,
    *,
    within: Annotated[str, typer.Option(help="When the node must be empty at the latest: 30s, 5m, 1h.")] = "30s",
    reason: Annotated[str, typer.Option(help="Goes into the story.")] = "asked by `atoll drain`",
    wait: Annotated[bool, typer.Option(help="Stay until every process there is proven gone.")] = True,
    here: Annotated[bool, typer.Option("--here", help="This machine, by a notice to its own agent.")] = False,
) -> None:
    """Empty a node: trainers move elsewhere at a step boundary, nobody comes, what is left at the deadline is ended."""
    span = seconds(within)
    if here == (node is not None):
        raise SpecError("say which node: its name as `atoll status` shows it, or --here for this machine's")
    if node is None:
        for notice in _leave_notice(config.load().home, within):
            typer.echo(f"its agent reads {notice}")
        return
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    with Client() as client:
        until = client.drain(node, span, reason)
        if not wait:
            typer.echo(f"{node} is drained by {time.strftime('%H:%M:%S', time.localtime(until))}")
            return
        _watch(client, node, until)


def undrain(node: Node) -> None:
    """Let trainers be placed on a drained node again."""
    from atoll.client import Client  # noqa: PLC0415 - as above

    with Client() as client:
        client.undrain(node)
    typer.echo(f"trainers may be placed on {node} again")


def _watch(client: Client, node: str, until: float) -> None:
    clock = SystemClock()
    began = clock.monotonic()
    last = -1
    for view in _views(client, node):
        if view.left:
            typer.echo(
                f"{node} is drained after {clock.monotonic() - began:.1f} s: no process of any run is left there"
            )
            return
        if view.trainers != last:
            last = view.trainers
            typer.echo(f"{node}: {last} process{'es' * (last != 1)} there, {max(until - clock.now(), 0.0):.0f} s left")
        if clock.now() > until + PROOF_S:
            raise ClusterError(
                f"{node}: the deadline passed {PROOF_S:.0f} s ago and the end of {last} processes is not proven; "
                f"`atoll story {node}` tells what was done"
            )


def _views(client: Client, node: str) -> Iterator[DrainView]:
    """How far the drain is, again and again."""
    while True:
        found = next((n.drain for n in client.nodes() if n.node == node), None)
        if found is not None:
            yield found
        time.sleep(LOOK_S)


def _leave_notice(home: Path, within: str) -> list[Path]:
    nodes = [p for p in (home / "nodes").glob("*") if p.is_dir()]
    if not nodes:
        raise NotFoundError(f"no agent has served this machine: there is nothing under {home / 'nodes'}")
    notices = [node / "notice" for node in nodes]
    for notice in notices:
        notice.write_text(f"{within}\n", encoding="ascii")
    return notices
