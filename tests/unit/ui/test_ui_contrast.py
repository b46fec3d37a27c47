"""The stylesheet's colours against WCAG 2.2: text 4.5 to 1, lines and marks 3 to 1, by day and by night."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).resolve().parents[3] / "atoll/ui/dashboard.css").read_text("utf-8")
TEXT_ON = [
    *[(ink, ground) for ink in ("ink", "muted", "lagoon", "coral", "kelp", "dune") for ground in ("surface", "bg")],
    ("muted", "raised"),
    ("lagoon", "lagoon-soft"),
    ("coral", "coral-soft"),
    ("kelp", "kelp-soft"),
    ("dune", "dune-soft"),
    ("on-deep", "deep"),
]


def palette(theme: str) -> dict[str, str]:
    block = re.search(
        r":root\[data-theme=\"dark\"\] \{(.*?)\n\}" if theme == "dark" else r":root \{(.*?)\n\}", CSS, re.DOTALL
    )
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXT_ON)
def test_text_can_be_read(theme, ink, ground):
    colours = palette(theme)
    assert contrast(colours[ink], colours[ground]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("line", ["lagoon", "coral", "kelp", "dune", "mark"])
def test_lines_of_charts_can_be_seen(theme, line):
    colours = palette(theme)
    assert contrast(colours[line], colours["surface"]) >= 3.0


def test_both_themes_define_the_same_colours():
    assert palette("light").keys() == palette("dark").keys()
