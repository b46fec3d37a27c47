"""Spans of time as people write them: `30`, `30s`, `5m`, `1.5h`."""

from __future__ import annotations

import re

from atoll.errors import SpecError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def seconds(text: str) -> float:
    """`text` in seconds. Raises `SpecError` with what would be right."""
    found = _FORM.fullmatch(text.lower())
    if found is None or found[2] not in _UNITS:
        raise SpecError(f"{text!r} is no span of time; write 30s, 5m or 1h (seconds without a unit)")
    return float(found[1]) * _UNITS[found[2]]
