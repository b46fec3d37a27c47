"""ECharts options of the run page, from committed steps.

Colours are CSS variables of the page, which the SVG renderer passes on, so that one set of options serves light and dark
and a switch of theme costs no message. Lines are thinned to what a screen can show, keeping the lowest and highest value
of each bucket: a step that took ten times as long must not vanish because it was between two kept points. A vertical
mark stands at the first committed step of each new epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from atoll.schema.views import MetricPoint
from atoll.ui.steps import EpochSpan, is_held_out, loss_names, rate

Pair = list[float]
Options = dict[str, Any]

# Twice this many points at most are drawn: about one a pixel of a wide card.
BUCKETS = 300
# More epoch marks than this would hide the line; the newest stay.
MAX_MARKS = 12
_LINE_COLOURS = ("var(--lagoon)", "var(--coral)", "var(--kelp)", "var(--dune)")
_FOUR_DIGITS = "value => value == null ? '' : Number(value).toPrecision(4).replace(/\\.?0+$/, '')"


def thin(pairs: Sequence[Pair], buckets: int = BUCKETS) -> list[Pair]:
    """At most `2 * buckets` of `pairs` ([x, y], x rising): each bucket's lowest and highest, first and last of all."""
    if len(pairs) <= 2 * buckets:
        return list(pairs)
    kept = {0, len(pairs) - 1}
    inner, wide = buckets - 1, len(pairs)
    for b in range(inner):
        span = range(b * wide // inner, (b + 1) * wide // inner)
        kept.add(min(span, key=lambda i: pairs[i][1]))
        kept.add(max(span, key=lambda i: pairs[i][1]))
    return [pairs[i] for i in sorted(kept)]


def loss(points: Sequence[MetricPoint], spans: Sequence[EpochSpan]) -> Options:
    """Training losses as lines, held-out losses as a dashed line with a dot at each measurement."""
    series = [
        _loss_line(name, [[p.step, p.metrics[name]] for p in points if name in p.metrics], i)
        for i, name in enumerate(loss_names(points))
    ]
    return _options(series, spans, _bounds(points))


def step_time(points: Sequence[MetricPoint], spans: Sequence[EpochSpan]) -> Options:
    """Milliseconds of each committed step."""
    return _single("step time, ms", points, spans, lambda p: p.step_s * 1000.0)


def throughput(points: Sequence[MetricPoint], spans: Sequence[EpochSpan]) -> Options:
    """Tokens or samples a second over all members."""
    unit = rate(points[-1])[1] if points else "tokens/s"
    return _single(unit, points, spans, lambda p: rate(p)[0])


def _single(
    name: str,
    points: Sequence[MetricPoint],
    spans: Sequence[EpochSpan],
    value: Callable[[MetricPoint], float],
) -> Options:
    line = _line(name, [[p.step, value(p)] for p in points], _LINE_COLOURS[0])
    line["areaStyle"] = {"color": _LINE_COLOURS[0], "opacity": 0.10}
    options = _options([line], spans, _bounds(points))
    options["yAxis"]["scale"] = False
    options["legend"]["show"] = False
    options["grid"]["top"] = 24
    return options


def _loss_line(name: str, pairs: list[Pair], place: int) -> dict[str, Any]:
    line = _line(_loss_words(name), pairs, _LINE_COLOURS[place % len(_LINE_COLOURS)])
    if is_held_out(name):
        line["lineStyle"] |= {"type": [6, 4], "width": 2}
        line |= {"showSymbol": True, "symbol": "circle", "symbolSize": 6}
    return line


def _loss_words(name: str) -> str:
    if name == "loss":
        return "training loss"
    if name.lower().replace("-", "_") in {"heldout_loss", "held_out_loss"}:
        return "held-out loss"
    return name.replace("_", " ")


def _line(name: str, pairs: list[Pair], colour: str) -> dict[str, Any]:
    return {
        "type": "line",
        "name": name,
        "data": thin(pairs),
        "showSymbol": False,
        "itemStyle": {"color": colour},
        "lineStyle": {"color": colour, "width": 2, "join": "round"},
        "emphasis": {"disabled": True},
    }


def _bounds(points: Sequence[MetricPoint]) -> tuple[float, float]:
    return (float(points[0].step), float(points[-1].step)) if points else (0.0, 1.0)


def marks(spans: Sequence[EpochSpan]) -> dict[str, Any]:
    """A vertical line at the first committed step of each epoch but the first."""
    return {
        "silent": True,
        "symbol": "none",
        "animation": False,
        "lineStyle": {"color": "var(--mark)", "type": [2, 3], "width": 1.5},
        "label": {
            "formatter": "{b}",
            "position": "end",
            "distance": 4,
            "color": "var(--muted)",
            "fontSize": 10,
        },
        "data": [{"name": f"e{span.epoch}", "xAxis": span.first} for span in spans[1:][-MAX_MARKS:]],
    }


def _options(series: list[dict[str, Any]], spans: Sequence[EpochSpan], bounds: tuple[float, float]) -> Options:
    if series:
        series[0]["markLine"] = marks(spans)
    axis_text = {"color": "var(--muted)", "fontSize": 11, "fontFamily": "var(--mono)"}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 20, "top": 44, "bottom": 4, "containLabel": True},
        "legend": {
            "show": True,
            "top": 0,
            "right": 4,
            "icon": "roundRect",
            "itemWidth": 16,
            "itemHeight": 3,
            "itemGap": 18,
            "textStyle": {"color": "var(--muted)", "fontSize": 12},
        },
        "tooltip": {
            "trigger": "axis",
            "confine": True,
            "transitionDuration": 0,
            "backgroundColor": "var(--surface)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--ink)", "fontSize": 12},
            "axisPointer": {"lineStyle": {"color": "var(--muted)", "type": "solid"}},
            ":valueFormatter": _FOUR_DIGITS,
        },
        "xAxis": {
            "type": "value",
            "min": bounds[0],
            "max": max(bounds[1], bounds[0] + 1),
            "axisLine": {"lineStyle": {"color": "var(--line)"}},
            "axisTick": {"show": False},
            "splitLine": {"show": False},
            "axisLabel": {**axis_text, "hideOverlap": True, "showMaxLabel": False},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "splitNumber": 4,
            "axisLabel": axis_text,
            "splitLine": {"lineStyle": {"color": "var(--line)"}},
        },
        "series": series,
    }


def throughput_words(points: Sequence[MetricPoint]) -> str:
    """The unit of the throughput chart."""
    return f"{rate(points[-1])[1]}, all members together" if points else ""
