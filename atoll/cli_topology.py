"""`atoll topology`: islands as a tree of hosts with their NICs, then trunks and links with rates, latencies and ages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.clock import SystemClock
from atoll.schema.topology import Host, rate_text
from atoll.schema.views import IslandView, LinkView, TopologyView

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

# More lines than this push the tree off the screen; `--links` prints all.
LINKS_SHOWN = 40


def topology(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the view as JSON.")] = False,
    links: Annotated[
        bool, typer.Option("--links", help=f"Print all links, also where more than {LINKS_SHOWN}.")
    ] = False,
) -> None:
    """Show the network: islands, hosts with their NICs, measured links, and why they count as such."""
    from atoll.client import Client  # noqa: PLC0415 - httpx costs 150 ms

    with Client() as client:
        view = client.topology()
    if as_json:
        from atoll.schema.codec import to_plain  # noqa: PLC0415 - only where it is printed

        sys.stdout.write(json.dumps(to_plain(view)) + "\n")
        return
    from rich.console import Console  # noqa: PLC0415 - rich only where it is printed

    console = Console()
    if not view.hosts:
        console.print("no agent has told its NICs yet; `atoll status` shows which hosts have one")
        return
    console.print(island_tree(view))
    for line in _notes(view):
        console.print(line, markup=False, soft_wrap=True)
    if view.links:
        console.print(links_table(view, SystemClock().now(), limit=None if links else LINKS_SHOWN))


def island_tree(view: TopologyView) -> Tree:
    """The islands, the hosts in them, and the NICs of each."""
    from rich.tree import Tree  # noqa: PLC0415 - as above

    hosts: dict[str, Host] = {h.node: h for h in view.hosts}
    root = Tree(_island_text("network", view.islands), guide_style="dim")
    _grow(root, view.islands, hosts, "")
    return root


def _grow(branch: Tree, island: IslandView, hosts: dict[str, Host], number: str) -> None:
    if not island.children:
        for node in island.nodes:
            _host(branch, node, hosts.get(node))
        return
    for place, child in enumerate(island.children, 1):
        name = f"{number}{place}"
        if len(child.nodes) == 1:
            _host(branch, child.nodes[0], hosts.get(child.nodes[0]), f": {child.reason}")
        else:
            _grow(branch.add(_island_text(f"island {name}", child)), child, hosts, f"{name}.")


def _island_text(name: str, island: IslandView) -> str:
    latency = f", {latency_text(island.latency_s)}" if island.latency_s is not None else ""
    return _plain(f"{name}: {island.reason}{latency}")


def _host(branch: Tree, node: str, host: Host | None, note: str = "") -> None:
    own = sorted((k, v) for k, v in host.labels.items() if not k.startswith("ray.io/")) if host else []
    labels = "".join(f" {k}={v}" for k, v in own)
    leaf = branch.add(_plain(f"{node}{labels}{note}"))
    for nic in host.nics if host else ():
        leaf.add(_plain(f"{nic.name or 'NIC'} {nic.host}/{nic.prefix}: {rate_text(nic.bandwidth)}"))


def _plain(words: str) -> str:
    """Names are data: nothing in them is markup."""
    from rich.markup import escape  # noqa: PLC0415 - as above

    return escape(words)


def _notes(view: TopologyView) -> Iterator[str]:
    for trunk in view.trunks:
        yield f"trunk {' '.join(trunk.sources)} -> {' '.join(trunk.targets)}: {rate_text(trunk.bandwidth)} for all together"
    if view.unmeasured:
        yield f"{view.unmeasured} pair{'s' * (view.unmeasured != 1)} of hosts not measured yet"
    for pair, problem in sorted(view.problems.items()):
        yield f"{pair}: no link measured: {problem}"


def links_table(view: TopologyView, now: float, limit: int | None = None) -> Table:
    """The measured pairs of NICs, the slowest first: what is worth a look is on top."""
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("FROM", "TO", "THERE", "BACK", "LATENCY", "MEASURED"):
        table.add_column(column, justify="right" if column in {"THERE", "BACK", "LATENCY"} else "left")
    pairs = sorted(view.both_ways(), key=lambda pair: min(_rates(pair)))
    for link, back in pairs[:limit]:
        table.add_row(
            _plain(f"{link.source} {link.source_nic}"),
            _plain(f"{link.target} {link.target_nic}"),
            rate_text(link.bandwidth),
            rate_text(back.bandwidth if back else None),
            latency_text(link.latency_s),
            _ago(now - link.at),
        )
    if limit is not None and len(pairs) > limit:
        table.caption = f"{len(pairs) - limit} faster ones are not shown; `atoll topology --links` prints all"
    return table


def _rates(pair: tuple[LinkView, LinkView | None]) -> Iterable[float]:
    return [link.bandwidth for link in pair if link is not None]


def latency_text(seconds: float) -> str:
    """One way, in the unit that fits."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"  # noqa: PLR2004 - a millisecond


def _ago(seconds: float) -> str:
    from atoll.cli_tables import ago  # noqa: PLC0415 - as above

    return ago(0.0, seconds)
