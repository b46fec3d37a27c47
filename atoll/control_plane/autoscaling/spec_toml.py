"""`autoscaler.toml` to `Scaling`. Every fault of the file is told at once, with its line, key, value and remedy.

cluster = "research"
provider = "ray"                 # or "command", or "lab"
budget_per_hour = 60.0

[types.h200-rack-a]
cpus = 96
gpus = 8
device = "h200"
max = 4
price_per_hour = 24.0
nics = { fast = "400 Gbit/s", slow = "25 Gbit/s" }
island = "rack-a"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.control_plane.autoscaling.spec import NodeType, Scaling
from atoll.control_plane.autoscaling.spec_fields import NAME, OF_A_TYPE, TOP, Field, Kind, objection, rate
from atoll.errors import SpecError
from atoll.schema.job_places import line_of, toml_places
from atoll.schema.nearest import distance, nearest

_SHOWN = 60


def parse(text: str, where: str) -> Scaling:
    """What the file says. `where` is its name for messages. Raises `SpecError` with one line a fault."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: not TOML: {error}") from None
    reader = _Reader(where, toml_places(text))
    types = plain.pop("types", None)
    top = reader.table(plain, TOP, (), extra=("types",))
    kinds = reader.types(types)
    if not reader.faults:
        scaling = Scaling(types=kinds, **top)
        reader.together(scaling)
    if reader.faults:
        raise SpecError("\n".join(fault for _, fault in sorted(reader.faults)))
    return scaling


class _Reader:
    """Collects faults on the way."""

    def __init__(self, where: str, lines: dict[tuple[str | int, ...], int]) -> None:
        self._where = where
        self._lines = lines
        self.faults: list[tuple[int, str]] = []

    def fault(self, path: Sequence[str], problem: str) -> None:
        line = line_of(self._lines, tuple(path))
        self.faults.append((line, f"{self._where}:{line}: {problem}"))

    def table(
        self, plain: Mapping[str, Any], fields: tuple[Field, ...], path: tuple[str, ...], extra: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The known keys with their values, as the dataclass names them."""
        here = f"[{'.'.join(path)}] " if path else ""
        known = {field.key: field for field in fields}
        found = {}
        for key, value in plain.items():
            if key not in known:
                self.fault((*path, key), f"{here}{key} = {_shown(value)}: {_unknown(key, (*known, *extra))}")
            elif problem := objection(known[key], value):
                self.fault((*path, key), f"{here}{key} = {_shown(value)}: {problem}")
            else:
                found[known[key].target] = _value(known[key], value)
        for field in fields:
            if field.needed and field.key not in plain:
                self.fault(path, f"{here}{field.key} is missing: {field.text[0].lower()}{field.text[1:]}")
        return found

    def types(self, plain: Any) -> tuple[NodeType, ...]:
        if not isinstance(plain, Mapping) or not plain:
            self.fault(("types",), "no types of machines; add [types.NAME] with cpus and max")
            return ()
        kinds = []
        for name, row in plain.items():
            path = ("types", name)
            if not NAME.fullmatch(name):
                self.fault(path, f"[types.{name}]: {name!r} is not {Kind.NAME}")
            elif not isinstance(row, Mapping):
                self.fault(path, f"types.{name} = {_shown(row)}: write [types.{name}] with its keys")
            else:
                found = self.table(row, OF_A_TYPE, path)
                if {"cpus", "most"} <= set(found):
                    kinds.append(NodeType(name=name, **found))
        return tuple(kinds)

    def together(self, scaling: Scaling) -> None:
        """What contradicts each other."""
        for kind in scaling.types:
            here = ("types", kind.name)
            if kind.least > kind.most:
                self.fault((*here, "min"), f"[types.{kind.name}] min = {kind.least} is more than max = {kind.most}")
            if kind.cpus == 0 and kind.gpus == 0:
                self.fault((*here, "cpus"), f"[types.{kind.name}] cpus = 0: it offers nothing; give it cpus or gpus")
        always = sum(kind.least * kind.price_per_hour for kind in scaling.types)
        if scaling.budget_per_hour is not None and always > scaling.budget_per_hour:
            self.fault(
                ("budget_per_hour",),
                f"budget_per_hour = {scaling.budget_per_hour:g}: the machines that always stand cost {always:g} already",
            )
        if scaling.sold_out_most_s < scaling.sold_out_s:
            self.fault(
                ("sold_out_most_s",),
                f"sold_out_most_s = {scaling.sold_out_most_s:g} is less than sold_out_s = {scaling.sold_out_s:g}",
            )


def _value(field: Field, value: Any) -> Any:
    if field.kind is Kind.NUMBER:
        return float(value)
    return {name: rate(text) for name, text in value.items()} if field.kind is Kind.RATES else value


def _unknown(key: str, known: Sequence[str]) -> str:
    longer = [k for k in known if k.startswith(key.lower()) or key.lower().startswith(k)]
    near = nearest(key, longer or known)
    if near is not None and (longer or distance(key.lower(), near) <= max(2, len(near) // 2)):
        return f"unknown key; did you mean {near!r}?"
    return f"unknown key; known are {', '.join(known)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
