# ruff: noqa: INP001 - a tool beside the documents, not a package
"""Draws `docs/plans-*.svg` from plans that the planner really makes: `python docs/plan_pictures.py`.

Two kinds of picture. *Order*: ranks are columns, time goes down; a solid arrow is a `Reduce`, a dashed one a `Spread`, a bar
with dots a `Meet`; a colour is one range of elements. *Time*: each row is what one NIC sends, in seconds, as the cost model
plays the plan. Colours are CSS variables with a dark set, on a ground of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from atoll.collectives.network import Network, network_on
from atoll.collectives.plan import Meet, Move, Plan, Program, Reduce, Spread
from atoll.collectives.plan_cost import Costs, _Play
from atoll.collectives.plan_shapes import build, ranks_of
from atoll.collectives.planner import Choice, Planner
from atoll.schema.ids import NodeId
from atoll.schema.topology import Host, Link, Nic, Topology

HERE = Path(__file__).parent
# Bytes of TCP payload a second on wires of 500 and 50 Mbit/s.
FAST, SLOW = 500e6 / 8 * 1448 / 1514, 50e6 / 8 * 1448 / 1514
LATENCY_S = 150e-6
COUNT = 2 << 20  # float32: 8 MiB
ITEM_BYTES = 4

_LANE, _LEFT, _STEP, _ROW = 104, 64, 15, 12
_STYLE = """
svg { --paper: #ffffff; --ink: #1f2733; --faint: #68727f; --band: #eef1f5; --line: #c6ccd4;
  --c0: #2b78c5; --c1: #cf6f12; --c2: #2f8f55; --c3: #8a57cc; --c4: #c2474f; --c5: #16898b; }
@media (prefers-color-scheme: dark) { svg { --paper: #151a21; --ink: #e3e8ee; --faint: #98a3b0; --band: #212934;
  --line: #414c59; --c0: #6aaef0; --c1: #f0a356; --c2: #67c68d; --c3: #bb98f0; --c4: #f0868c; --c5: #55c5c7; } }
text { font: 12px system-ui, sans-serif; fill: var(--ink) } .faint { fill: var(--faint); font-size: 11px }
.title { font-size: 13px; font-weight: 600 }
"""


def main() -> None:
    """Write all pictures beside this file."""
    one, two, uneven = network([4], [FAST]), network([3, 3], [FAST, FAST]), network([2, 3], [FAST, FAST])
    six = network([6], [FAST])
    pair = network([2, 2], [FAST, FAST])
    for name, picture in {
        "ring": order(one, chosen(one, "ring"), "Flat ring: each range is summed along a chain, then handed on"),
        "doubling": order(six, chosen(six, "doubling", 16 << 10), "Doubling: pairs meet at distance 1, 2, ..."),
        "chain": order(two, chosen(two, "islands", star=False), "Islands: chains inside, heads meet across"),
        "star": order(two, chosen(two, "islands", star=True), "Islands: straight to the head (star), heads meet"),
        "uneven": order(uneven, chosen(uneven, "islands", star=True), "Unlike islands: cut wherever one of them is"),
        "pipeline": strips(pair, chosen(pair, "islands", star=True)),
    }.items():
        (HERE / f"plans-{name}.svg").write_text(picture, encoding="utf-8")


# -- networks and plans ------------------------------------------------------------------------------------------------


def network(sizes: Sequence[int], rates: Sequence[float]) -> Network:
    """Islands of so many hosts, of these rates inside; each host also has a slow NIC that reaches all."""
    nodes = [(NodeId(f"{'ewn'[i]}{n}"), i) for i, size in enumerate(sizes) for n in range(size)]
    hosts = tuple(
        Host(
            node=node,
            nics=(
                Nic(name="fast", host=f"10.{i}.0.{n}", bandwidth=rates[i]),
                Nic(name="slow", host=f"10.9.0.{n}", bandwidth=SLOW),
            ),
        )
        for n, (node, i) in enumerate(nodes)
    )
    links = [
        Link(source=a, source_nic=nic, target=b, target_nic=nic, latency_s=LATENCY_S, bandwidth=rate)
        for (a, i), (b, j) in itertools.permutations(nodes, 2)
        for nic, rate in (("fast", rates[i]), ("slow", SLOW))
        if nic == "slow" or i == j
    ]
    return network_on(tuple(node for node, _ in nodes), Topology(hosts=hosts, links=tuple(links)))


def chosen(where: Network, shape: str, size_bytes: int = COUNT * ITEM_BYTES, *, star: bool = False) -> Choice:
    """The planner's best candidate of this shape."""
    found = Planner(where.fabric, where.groups).candidates(size_bytes // ITEM_BYTES, ITEM_BYTES)
    fitting = (c for c in found if c.recipe.shape == shape and (shape != "islands" or c.recipe.meet))
    return next(c for c in fitting if shape != "islands" or c.recipe.star == star)


# -- order -------------------------------------------------------------------------------------------------------------


def order(where: Network, choice: Choice, title: str) -> str:
    """One slice of every range, move by move."""
    plan = build(dataclasses.replace(choice.recipe, slices=1), COUNT)
    rows, height = _placed(plan)
    width, top = _LEFT + _LANE * plan.size, 92
    parts = [*_columns(where, top - 10, height + 20)]
    parts += [_drawn(move, number, top + y) for move, number, y in rows]
    parts += _legend(plan, top + height + 32)
    return _svg(max(width, 620), top + height + 56, title, "", parts)


def _placed(plan: Plan) -> tuple[list[tuple[Move, int, int]], int]:
    """Each move with its program's number and its place, and how high it all is. What can happen at once lies level."""
    levels: dict[int, list[tuple[Move, int]]] = {}
    for number, program in enumerate(plan.programs):
        for level, move in _levels(program):
            levels.setdefault(level, []).append((move, number))
    placed, y = [], 0
    for level in sorted(levels):
        lines: list[list[tuple[int, int]]] = []
        for move, number in levels[level]:
            span = min(_ranks(move)), max(_ranks(move))
            line = next((n for n, taken in enumerate(lines) if all(_apart(span, s) for s in taken)), len(lines))
            lines += [[]] * (line == len(lines))
            lines[line] = [*lines[line], span]
            placed.append((move, number, y + line * _STEP))
        y += len(lines) * _STEP + _STEP // 2
    return placed, y - _STEP


def _levels(program: Program) -> Iterator[tuple[int, Move]]:
    """After how many messages a move can begin."""
    reached: dict[int, int] = {}
    for move in program.moves:
        senders = move.members if isinstance(move, Meet) else (move.source,)
        level = max(reached.get(r, 0) for r in senders) + 1
        for rank in move.members if isinstance(move, Meet) else (move.target,):
            reached[rank] = max(reached.get(rank, 0), level)
        yield level, move


def _ranks(move: Move) -> tuple[int, ...]:
    return move.members if isinstance(move, Meet) else (move.source, move.target)


def _apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] < other[0] or other[1] < one[0]


def _columns(where: Network, top: int, height: int) -> Iterator[str]:
    """A line for each rank, a band for each island."""
    groups = where.groups if isinstance(where.groups, tuple) else (where.groups,)
    for group in groups if any(isinstance(g, tuple) for g in groups) else (groups,):
        first, last = _x(min(ranks_of(group))) - 40, _x(max(ranks_of(group))) + 40
        yield _rect(first, top - 40, last - first, height + 44, "var(--band)", round_=8)
    for rank, node in enumerate(where.nodes):
        yield f'<text x="{_x(rank)}" y="{top - 22}" text-anchor="middle">rank {rank}</text>'
        yield f'<text x="{_x(rank)}" y="{top - 8}" text-anchor="middle" class="faint">host {node}</text>'
        yield _line(_x(rank), top, _x(rank), top + height, "var(--line)", 1)


def _drawn(move: Move, number: int, y: int) -> str:
    colour = _colour(number)
    if isinstance(move, Meet):
        first, last = _x(min(move.members)), _x(max(move.members))
        dots = "".join(f'<circle cx="{_x(m)}" cy="{y}" r="5" fill="{colour}"/>' for m in move.members)
        return _line(first, y, last, y, colour, 4) + dots
    source, target = _x(move.source), _x(move.target)
    way = 1 if target > source else -1
    dash = ' stroke-dasharray="5 4"' if isinstance(move, Spread) else ""
    head = f"{target},{y} {target - 9 * way},{y - 4} {target - 9 * way},{y + 4}"
    dot = f'<circle cx="{source}" cy="{y}" r="2.5" fill="{colour}"/>'
    return dot + _line(source, y, target - 6 * way, y, colour, 2, dash) + f'<polygon points="{head}" fill="{colour}"/>'


def _legend(plan: Plan, y: int) -> Iterator[str]:
    x = 24
    for number, program in enumerate(plan.programs):
        share = (program.end - program.start) / plan.count
        yield _rect(x, y - 9, 10, 10, _colour(number), round_=2)
        words = "all elements" if len(plan.programs) == 1 else f"{share:.0%}"
        yield f'<text x="{x + 15}" y="{y}" class="faint">{words}</text>'
        x += 100 if len(plan.programs) == 1 else 62
    kinds = [(Reduce, "add"), (Spread, "take over"), (Meet, "exchange and add")]
    for kind, words in kinds:
        if any(isinstance(m, kind) for p in plan.programs for m in p.moves):
            dash = ' stroke-dasharray="5 4"' if kind is Spread else ""
            yield _line(x + 8, y - 4, x + 36, y - 4, "var(--faint)", 4 if kind is Meet else 2, dash)
            yield f'<text x="{x + 42}" y="{y}" class="faint">{words}</text>'
            x += 60 + 6 * len(words)


# -- time --------------------------------------------------------------------------------------------------------------


class _Watched(_Play):
    """A playing that remembers when each message occupied the NIC that sent it: (NIC, from, to, part)."""

    def __init__(self, plan: Plan, where: Network) -> None:
        super().__init__(plan, where.fabric, ITEM_BYTES, Costs())
        self.spans: list[tuple[int, float, float, int]] = []

    def _start(self, pair: tuple[int, int], now: float) -> None:
        line = self._lines[pair]
        if not line.busy and line.queue:
            nic, part = line.route.resources[0], line.queue[0][0]
            begin = max(now, self._free[nic])
            super()._start(pair, now)
            self.spans.append((nic, begin, self._free[nic], part))


def strips(where: Network, choice: Choice) -> str:
    """The plan in one slice, and as it was chosen, on one scale of seconds."""
    panels = []
    for slices in (1, choice.recipe.slices):
        plan = build(dataclasses.replace(choice.recipe, slices=slices), COUNT)
        play = _Watched(plan, where)
        panels.append((plan, play.run(), play.spans))
    longest, parts, y = max(end for _, end, _ in panels), [], 66
    for plan, end, spans in panels:
        words = "slice" if len(plan.programs) == where.fabric.size // 2 else "slices"
        number = len(plan.programs) // (where.fabric.size // 2)
        parts.append(f'<text x="24" y="{y}">each share in {number} {words}: {end:.3f} s</text>')
        parts += _strip(where, plan, spans, y + 10, 640 / longest)
        y += 40 + 2 * where.fabric.size * _ROW
    parts += _axis(y - 20, longest, 640 / longest)
    bound = choice.reason.lower_bound_s
    parts.append(_line(130 + 640 * bound / longest, 56, 130 + 640 * bound / longest, y - 20, "var(--ink)", 1, _DOTS))
    parts.append(f'<text x="{130 + 640 * bound / longest - 6:.0f}" y="56" text-anchor="end" class="faint">bound</text>')
    for n, words in enumerate(("up: added in the island", "across: heads exchange", "down: taken over")):
        parts.append(_rect(130 + 190 * n, y + 12, 10, 10, f"var(--c{n})", round_=2))
        parts.append(f'<text x="{146 + 190 * n}" y="{y + 21}" class="faint">{words}</text>')
    note = "Two islands of two hosts, 500 Mbit/s inside, a 50 Mbit/s NIC on each host between; 8 MiB of float32"
    return _svg(800, y + 36, "Slices let the levels overlap", note, parts)


_DOTS = ' stroke-dasharray="2 3"'


def _strip(
    where: Network, plan: Plan, spans: Iterable[tuple[int, float, float, int]], top: int, scale: float
) -> Iterator[str]:
    """What each NIC sends: a row for each host's fast one, then its slow one."""
    widest = max(len(p.moves) for p in plan.programs)
    rows = {nic: number for number, nic in enumerate(_senders(where))}
    for nic, row in rows.items():
        y = top + row * _ROW
        host = where.nodes[row // 2] if row % 2 == 0 else ""
        yield f'<text x="24" y="{y + 9}" class="faint">{host}</text>'
        yield f'<text x="122" y="{y + 9}" text-anchor="end" class="faint">{"slow" if row % 2 else "fast"} NIC out</text>'
        yield _rect(130, y, 640, _ROW - 2, "var(--band)")
        for _, begin, end, part in (s for s in spans if s[0] == nic):
            move = plan.programs[part // widest].moves[part % widest]
            colour = f"var(--c{(Reduce, Meet, Spread).index(type(move))})"
            yield _rect(130 + begin * scale, y, max(0.8, (end - begin) * scale - 0.8), _ROW - 2, colour)


def _senders(where: Network) -> Iterator[int]:
    """The sending NIC inside the island, then that between islands, of each rank."""
    rates = {r.resources[0]: r.bandwidth for r in where.fabric.routes.values()}
    for rank in range(where.fabric.size):
        own = {r.resources[0] for (a, _), r in where.fabric.routes.items() if a == rank}
        yield from sorted(own, key=lambda nic: -rates[nic])


def _axis(y: int, longest: float, scale: float) -> Iterator[str]:
    for tenth in range(int(longest * 10) + 1):
        x = 130 + tenth / 10 * scale
        yield _line(x, y, x, y + 4, "var(--faint)", 1)
        yield f'<text x="{x:.0f}" y="{y + 17}" text-anchor="middle" class="faint">{tenth / 10:g} s</text>'


# -- SVG ---------------------------------------------------------------------------------------------------------------


def _x(rank: int) -> int:
    return _LEFT + _LANE * rank


def _colour(number: int) -> str:
    return f"var(--c{number % 6})"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, wide: int, more: str = "") -> str:  # noqa: PLR0917
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{wide}"{more}/>'


def _rect(x: float, y: float, width: float, height: float, colour: str, *, round_: int = 0) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {where} rx="{round_}" fill="{colour}"/>'


def _svg(width: int, height: int, title: str, note: str, parts: Iterable[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">',
        f"<title>{title}</title><style>{_STYLE}</style>",
        _rect(0, 0, width, height, "var(--paper)", round_=10),
        f'<text x="24" y="26" class="title">{title}</text>',
        f'<text x="24" y="43" class="faint">{note}</text>' if note else "",
        *parts,
        "</svg>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


if __name__ == "__main__":
    main()
