"""The network as its page shows it: islands as lines, links as rows, and both as a picture. Pure: views in, models out.

In the picture islands stand on a circle and their hosts on a smaller one around each place, so that nothing moves between
two looks at the same network. A link's width is its bandwidth on a logarithmic scale; one that leaves its island is dashed.
Colours are CSS variables of the page, as in `charts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.schema.ids import NodeId
from atoll.schema.topology import rate_text
from atoll.schema.views import IslandView, LinkView, TopologyView
from atoll.ui import wording
from atoll.ui.charts import Options
from atoll.ui.views import Tile
from atoll.ui.wording import Tone

_COLOURS = ("var(--lagoon)", "var(--coral)", "var(--kelp)", "var(--dune)")
# Beyond this many hosts lines between all of them are a carpet: one line between islands tells more.
HOSTS_LINKED = 16
ROWS = 80
_ISLANDS_AT, _HOSTS_AT = 100.0, 34.0
_THIN, _THICK = 1.0, 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandRow:
    """One island or host, `depth` steps inside others."""

    name: str
    depth: int
    title: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """One pair of NICs, measured both ways."""

    name: str
    source: str
    target: str
    there: str
    back: str
    latency: str
    age: str


def tiles(view: TopologyView) -> list[Tile]:
    """The network in four numbers."""
    rates = [k.bandwidth for k in view.links]
    span = f"{rate_text(min(rates))} to {rate_text(max(rates))}" if rates else "none measured yet"
    waiting = f"{wording.plural(view.unmeasured, 'pair')} not measured yet" if view.unmeasured else span
    return [
        Tile(
            label="Hosts", value=str(len(view.hosts)), note=wording.plural(sum(len(h.nics) for h in view.hosts), "NIC")
        ),
        Tile(label="Islands", value=str(len(list(_innermost(view.islands)))), note=view.islands.reason),
        Tile(label="Links", value=str(len(view.both_ways())), note=waiting),
        Tile(
            label="Trunks",
            value=str(len(view.trunks)),
            note=f"narrowest {rate_text(min(t.bandwidth for t in view.trunks))}" if view.trunks else "none found",
            tone=Tone.CALM,
        ),
    ]


def island_rows(view: TopologyView) -> list[IslandRow]:
    """The tree of islands, outermost first, each host with its NICs."""
    nics = {
        h.node: ", ".join(f"{n.name or 'NIC'} {n.host} {rate_text(n.bandwidth)}" for n in h.nics) for h in view.hosts
    }
    return list(_tree(view.islands, nics, "", 0))


def _tree(island: IslandView, nics: dict[NodeId, str], number: str, depth: int) -> Iterator[IslandRow]:
    if len(island.nodes) == 1 and number:
        node = island.nodes[0]
        yield IslandRow(name=node, depth=depth, title=node, note=f"{nics.get(node, '')}; {island.reason}")
        return
    title = f"Island {number}" if number else "All hosts"
    yield IslandRow(name=f"island-{number}", depth=depth, title=title, note=island.reason)
    for place, child in enumerate(island.children, 1):
        yield from _tree(child, nics, f"{number}.{place}" if number else str(place), depth + 1)
    if not island.children:
        for node in island.nodes:
            yield IslandRow(name=node, depth=depth + 1, title=node, note=nics.get(node, ""))


def link_rows(view: TopologyView, *, now: float) -> list[LinkRow]:
    """Pairs of NICs, the slowest first, as many as a person reads."""
    pairs = sorted(view.both_ways(), key=_slowest)
    return [_link_row(link, back, now) for link, back in pairs[:ROWS]]


def _link_row(link: LinkView, back: LinkView | None, now: float) -> LinkRow:
    return LinkRow(
        name=f"{link.source}/{link.source_nic}/{link.target}/{link.target_nic}",
        source=f"{link.source} {link.source_nic}",
        target=f"{link.target} {link.target_nic}",
        there=rate_text(link.bandwidth),
        back=rate_text(back.bandwidth) if back else wording.NOTHING,
        latency=_latency(link.latency_s),
        age=wording.ago(link.at, now=now),
    )


def _latency(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} \u00b5s"  # noqa: PLR2004 - one ms


def _slowest(pair: tuple[LinkView, LinkView | None]) -> float:
    link, back = pair
    return min(link.bandwidth, back.bandwidth) if back else link.bandwidth


# -- the picture -------------------------------------------------------------------------------------------------------


def picture(view: TopologyView) -> Options:
    """ECharts options of the graph."""
    groups = list(_innermost(view.islands))
    home = {node: number for number, group in enumerate(groups) for node in group}
    hosts = [
        _host(node, place, number)
        for number, group in enumerate(groups)
        for node, place in zip(group, _places(len(group), *_centre(number, len(groups))), strict=True)
    ]
    return {
        "animation": False,
        "tooltip": {"show": True, "confine": True},
        "series": [
            {
                "type": "graph",
                "layout": "none",
                "roam": False,
                "label": {"show": True, "position": "bottom", "color": "var(--ink)", "fontSize": 11},
                "emphasis": {"disabled": True},
                "data": hosts,
                "links": _lines(view, home),
            }
        ],
    }


def _innermost(island: IslandView) -> Iterator[tuple[NodeId, ...]]:
    if not island.children:
        yield from (island.nodes,) if island.nodes else ()
    for child in island.children:
        yield from _innermost(child)


def _centre(number: int, count: int) -> tuple[float, float]:
    if count == 1:
        return 0.0, 0.0
    angle = 2 * math.pi * number / count - math.pi
    return _ISLANDS_AT * math.cos(angle) * 1.8, _ISLANDS_AT * math.sin(angle)


def _places(count: int, x: float, y: float) -> list[tuple[float, float]]:
    if count == 1:
        return [(x, y)]
    angles = [2 * math.pi * i / count + math.pi / 4 for i in range(count)]
    return [(x + _HOSTS_AT * math.cos(a), y + _HOSTS_AT * math.sin(a)) for a in angles]


def _host(node: NodeId, place: tuple[float, float], number: int) -> dict[str, Any]:
    return {
        "name": node,
        "x": round(place[0], 1),
        "y": round(place[1], 1),
        "symbolSize": 22,
        "itemStyle": {"color": _COLOURS[number % len(_COLOURS)]},
        "tooltip": {"formatter": "{b}"},
    }


def _lines(view: TopologyView, home: dict[NodeId, int]) -> list[dict[str, Any]]:
    """The best link of each pair of hosts; of many hosts only the best between each two islands."""
    best: dict[tuple[object, object], tuple[LinkView, LinkView | None]] = {}
    for pair in view.both_ways():
        link = pair[0]
        ends: tuple[object, object] = (link.source, link.target)
        if len(home) > HOSTS_LINKED:
            one, two = sorted((home.get(link.source, -1), home.get(link.target, -1)))
            if one == two:
                continue
            ends = (one, two)
        if ends not in best or _slowest(pair) > _slowest(best[ends]):
            best[ends] = pair
    rates = [_slowest(pair) for pair in best.values()]
    return [_line(link, _slowest((link, back)), rates, home) for link, back in best.values()]


def _line(link: LinkView, rate: float, rates: Sequence[float], home: dict[NodeId, int]) -> dict[str, Any]:
    low, high = min(rates), max(rates)
    share = math.log(rate / low) / math.log(high / low) if high > low else 0.5
    inside = home.get(link.source) == home.get(link.target)
    return {
        "source": link.source,
        "target": link.target,
        "value": rate_text(rate),
        "lineStyle": {
            "width": round(_THIN + share * (_THICK - _THIN), 1),
            "type": "solid" if inside else [6, 4],
            "color": "var(--muted)",
            "opacity": 0.7,
        },
    }
