"""Curves of simulations as SVG, without a library: colours are CSS variables with a dark set, on a ground of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from atoll.simulate.engine import Outcome

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 64, 20, 64, 40
_DAY = 86_400.0
_STYLE = """
svg { --paper: #ffffff; --ink: #1f2733; --faint: #68727f; --band: #eef1f5; --line: #c6ccd4;
  --c0: #2b78c5; --c1: #cf6f12; --c2: #2f8f55; --c3: #8a57cc; --c4: #c2474f; --c5: #16898b; }
@media (prefers-color-scheme: dark) { svg { --paper: #151a21; --ink: #e3e8ee; --faint: #98a3b0; --band: #212934;
  --line: #414c59; --c0: #6aaef0; --c1: #f0a356; --c2: #67c68d; --c3: #bb98f0; --c4: #f0868c; --c5: #55c5c7; } }
text { font: 12px system-ui, sans-serif; fill: var(--ink) } .faint { fill: var(--faint); font-size: 11px }
.title { font-size: 13px; font-weight: 600 }
"""
Points = Sequence[tuple[float, float]]


def pictures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """File name -> picture: devices held and jobs waiting over time, and how JCTs are distributed."""
    window = max(o.window[1] for o in outcomes)
    held = {o.policy: [(s.at, s.held / o.cluster.devices) for s in o.samples if s.at <= window] for o in outcomes}
    waiting = {o.policy: [(s.at, float(s.waiting)) for s in o.samples if s.at <= window] for o in outcomes}
    days, share = _days(window), _percent
    return {
        "held.svg": chart("Devices held", "share of the cluster", held, x=days, y=share, top=1.0),
        "waiting.svg": chart("Jobs that wait", "until the last arrival", waiting, x=days, y=_number),
        "jct.svg": chart(
            "Job completion times",
            "share of jobs that took at most so long",
            _jcts(outcomes),
            x=_hours,
            y=share,
            top=1.0,
        ),
    }


def chart(
    title: str,
    note: str,
    lines: Mapping[str, Points],
    *,
    x: Callable[[float], str],
    y: Callable[[float], str],
    top: float | None = None,
) -> str:
    """Lines by name on common axes that begin at 0; `x` and `y` put numbers into words."""
    right = max((p[0] for points in lines.values() for p in points), default=1.0) or 1.0
    high = top or max((p[1] for points in lines.values() for p in points), default=1.0) or 1.0
    parts = [*_axes(right, high, x, y)]
    for number, (name, points) in enumerate(lines.items()):
        colour = f"var(--c{number % 6})"
        path = " ".join(f"{_x(a, right):.1f},{_y(b, high):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        at = _LEFT + 150 * number
        parts.append(f'<rect x="{at}" y="50" width="10" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{at + 15}" y="56" class="faint">{escape(name)}</text>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="10" fill="var(--paper)"/>',
        f'<text x="{_LEFT}" y="24" class="title">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="40" class="faint">{escape(note)}</text>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _axes(right: float, high: float, x: Callable[[float], str], y: Callable[[float], str]) -> Iterator[str]:
    for quarter in range(5):
        value = high * quarter / 4
        at = _y(value, high)
        yield f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" stroke="var(--line)"/>'
        yield f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" class="faint">{y(value)}</text>'
        place = right * quarter / 4
        yield (
            f'<text x="{_x(place, right):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" '
            f'class="faint">{x(place)}</text>'
        )


def _jcts(outcomes: Sequence[Outcome]) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for outcome in outcomes:
        late = [r for r in outcome.runs if r.job.submitted_s >= outcome.window[0] and r.finished_at is not None]
        times = sorted((r.finished_at or 0.0) - r.job.submitted_s for r in late)
        every = max(1, len(times) // 200)
        found[outcome.policy] = [(t, (n + 1) / len(times)) for n, t in enumerate(times) if n % every == 0]
    return found


def _x(value: float, right: float) -> float:
    return _LEFT + value / right * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - min(value / high, 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _days(span: float) -> Callable[[float], str]:
    return (lambda s: f"day {s / _DAY:.0f}") if span > 4 * _DAY else _hours


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _number(value: float) -> str:
    return f"{value:.0f}"
