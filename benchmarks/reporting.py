"""Figures with their bars, what a results file holds, and the table made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.ui.wording import plain_log
from benchmarks.timing import rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`value` None: not measurable here, for the reason in `note`. `bar`: at least (`floor`) or at most."""

    name: str
    value: float | None
    bar: float | None = None
    floor: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is nothing to compare."""
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if self.floor else self.value <= self.bar

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        value = None if self.value is None else rounded(self.value)
        sign = ">=" if self.floor else "<="
        bar = None if self.bar is None else f"{sign} {self.bar:g}"
        return {"value": value, "bar": bar, "met": self.met, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a part found: figures, and the measurements behind them."""

    figures: tuple[Figure, ...]
    details: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"figures": {f.name: f.plain() for f in self.figures}, "details": self.details}


def last_line(kept: Mapping[str, Any], failed: Iterable[str]) -> str:
    """One JSON object: every figure of every part, which bars were missed, and which parts failed."""
    figures = {name: f for part in kept["parts"].values() for name, f in part["figures"].items()}
    said: dict[str, Any] = {name: f["value"] for name, f in figures.items()}
    said["missed"] = sorted(name for name, f in figures.items() if f["met"] is False)
    said["not_measurable"] = sorted(name for name, f in figures.items() if f["value"] is None)
    said["failed"] = sorted(failed)
    said |= {"quick": kept["quick"], "machine": kept["machine"]}
    return json.dumps(said)


def table(kept: Mapping[str, Any], title: str) -> str:
    """The figures for people, in Markdown. Rows that a part has of its own come below them."""
    mode = "a quick run: fewer repetitions, figures for orientation only" if kept["quick"] else "a full run"
    lines = [
        f"# {title}",
        "",
        f"On {kept['machine']}; {mode}. All peers were measured in the same run.",
        "",
    ]
    lines += ["| figure | measured | bar | met | how |", "|---|---|---|---|---|"]
    for part in kept["parts"].values():
        for name, f in part["figures"].items():
            value = "not measurable here" if f["value"] is None else f"{f['value']:g}"
            met = {True: "yes", False: "**no**", None: "-"}[f["met"]]
            lines.append(f"| {name} | {value} | {f['bar'] or '-'} | {met} | {_cell(f['note'])} |")
    for part in kept["parts"].values():
        lines += _rows(part["details"].get("rows", {}))
    return "\n".join(lines) + "\n"


def _rows(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of rows that have the same columns."""
    if not rows:
        return []
    columns = list(next(iter(rows.values())))
    lines = ["", f"| | {' | '.join(c.replace('_', ' ') for c in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            "-" if row[c] is None else f"{row[c]:g}" if isinstance(row[c], float) else _cell(str(row[c]))
            for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(text: str) -> str:
    """What a process said last may hold colours, line ends and bars, which would end a cell or its row."""
    return " ".join(plain_log(text)).replace("|", "\\|")
