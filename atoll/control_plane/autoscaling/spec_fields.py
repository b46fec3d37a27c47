"""The keys of an `autoscaler.toml`: one table for reading the file, for its errors and for its published JSON schema."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LABEL_KEY = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
# Names become labels, Kubernetes groups and parts of machines' names.
NAME = re.compile(r"[a-z][a-z0-9-]{0,29}[a-z0-9]|[a-z]")
RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg])bit/s\s*", re.IGNORECASE)
_SCALE = {"k": 1e3, "m": 1e6, "g": 1e9}
RESERVED = "atoll-"


class Kind(enum.StrEnum):
    """What a value must be."""

    NUMBER = "a number"
    WHOLE = "a whole number"
    TRUTH = "true or false"
    WORD = "a label's value: letters, digits, '_', '.' and '-', at most 63"
    NAME = "a name: a-z, 0-9 and '-', a letter first, at most 31"
    CHOICE = "one of those named"
    LABELS = "a table of labels"
    RATES = "a table of NICs with rates like '200 Gbit/s'"
    TABLES = "a table of tables, one a provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key. `name`: that of the dataclass, where it is another than the key."""

    key: str
    kind: Kind
    text: str
    name: str = ""
    needed: bool = False
    least: float = 0.0
    above: bool = False
    among: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The name in the dataclass."""
        return self.name or self.key


PROVIDERS = ("ray", "lab", "command")
TOP = (
    Field(key="cluster", kind=Kind.NAME, text="The cluster's name in files that are rendered.", needed=True),
    Field(key="provider", kind=Kind.CHOICE, text="Who starts and ends machines.", among=PROVIDERS),
    Field(key="budget_per_hour", kind=Kind.NUMBER, text="The most that all machines together may cost in an hour."),
    Field(key="patience_s", kind=Kind.NUMBER, text="Seconds that a gang waits before machines are started for it."),
    Field(
        key="room_s", kind=Kind.NUMBER, text="Seconds that room stands for a gang that does not take it.", above=True
    ),
    Field(key="drain_s", kind=Kind.NUMBER, text="Seconds within which an idle machine is drained.", above=True),
    Field(key="sold_out_s", kind=Kind.NUMBER, text="Seconds of the first pause after a type failed.", above=True),
    Field(key="sold_out_most_s", kind=Kind.NUMBER, text="Seconds of the longest such pause.", above=True),
    Field(key="settings", kind=Kind.TABLES, text="What only one provider or target of rendering understands."),
)
OF_A_TYPE = (
    Field(key="cpus", kind=Kind.NUMBER, text="CPUs that Ray offers there.", needed=True),
    Field(key="gpus", kind=Kind.NUMBER, text="Devices that Ray offers there."),
    Field(key="memory_gib", kind=Kind.NUMBER, text="Memory in GiB; 0 leaves it to Ray."),
    Field(key="device", kind=Kind.WORD, text="The device's model, such as h200; cpu where there is none."),
    Field(key="nics", kind=Kind.RATES, text="NICs and what each carries."),
    Field(key="labels", kind=Kind.LABELS, text="Further labels of the Ray node."),
    Field(key="min", kind=Kind.WHOLE, text="Machines that always stand.", name="least"),
    Field(key="max", kind=Kind.WHOLE, text="Machines that stand at most.", name="most", least=1, needed=True),
    Field(key="price_per_hour", kind=Kind.NUMBER, text="Price of one machine and hour."),
    Field(key="speed", kind=Kind.NUMBER, text="Work of one member in a second, until it is measured.", above=True),
    Field(key="idle_s", kind=Kind.NUMBER, text="Seconds that a machine nobody needs stays."),
    Field(key="launch_s", kind=Kind.NUMBER, text="Seconds within which a machine must have joined.", above=True),
    Field(key="spot", kind=Kind.TRUTH, text="The provider may take it back."),
    Field(key="zone", kind=Kind.WORD, text="Where it stands."),
    Field(key="domain", kind=Kind.WORD, text="What fails together with it, such as a rack."),
    Field(key="island", kind=Kind.WORD, text="The fast network it joins, where that is one."),
    Field(key="settings", kind=Kind.TABLES, text="What only one provider or target of rendering understands."),
)


def rate(text: object) -> float | None:
    """Bits a second out of '200 Gbit/s'; None for anything else."""
    found = RATE.fullmatch(text) if isinstance(text, str) else None
    return float(found[1]) * _SCALE[found[2].lower()] if found else None


def objection(field: Field, value: Any) -> str:
    """What is wrong with a value, or ""."""
    match field.kind:
        case Kind.NUMBER | Kind.WHOLE:
            return _of_number(field, value)
        case Kind.CHOICE:
            return "" if value in field.among else f"it is one of {', '.join(field.among)}"
        case Kind.LABELS:
            return _of_labels(value)
        case Kind.TRUTH:
            good = isinstance(value, bool)
        case Kind.NAME | Kind.WORD:
            pattern = NAME if field.kind is Kind.NAME else _LABEL
            good = isinstance(value, str) and pattern.fullmatch(value) is not None
        case Kind.RATES:
            good = isinstance(value, Mapping) and all(rate(v) for v in value.values())
        case Kind.TABLES:
            good = isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values())
    return "" if good else f"it is {field.kind}"


def _of_number(field: Field, value: Any) -> str:
    wanted = int if field.kind is Kind.WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
        return f"it is {field.kind}"
    if value < field.least or (field.above and value <= field.least):
        return f"it is more than {field.least:g}" if field.above else f"it is {field.least:g} or more"
    return ""


def _of_labels(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"it is {Kind.LABELS}"
    for key, label in value.items():
        if not _LABEL_KEY.fullmatch(key) or key.startswith((RESERVED, "ray.io/")):
            return f"{key!r} is no label's name, or begins with {RESERVED!r} or 'ray.io/', which others set"
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            return f"the label {key!r} is {label!r}; {Kind.WORD}"
    return ""


# -- published ---------------------------------------------------------------------------------------------------------

_JSON: Mapping[Kind, Mapping[str, Any]] = {
    Kind.NUMBER: {"type": "number"},
    Kind.WHOLE: {"type": "integer"},
    Kind.TRUTH: {"type": "boolean"},
    Kind.WORD: {"type": "string", "pattern": f"^{_LABEL.pattern}$"},
    Kind.NAME: {"type": "string", "pattern": f"^(?:{NAME.pattern})$"},
    Kind.CHOICE: {"type": "string"},
    Kind.LABELS: {"type": "object", "additionalProperties": {"type": "string", "pattern": f"^{_LABEL.pattern}$"}},
    Kind.RATES: {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[kmgKMG]bit/s\s*$"},
    },
    Kind.TABLES: {"type": "object", "additionalProperties": {"type": "object"}},
}


def schema() -> dict[str, Any]:
    """The JSON schema of the file, as parsed."""
    whole = _object(TOP)
    whole["properties"]["types"] = {
        "type": "object",
        "description": "The types of machines, by name.",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^(?:{NAME.pattern})$"},
        "additionalProperties": _object(OF_A_TYPE),
    }
    whole["required"].append("types")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "autoscaler.toml of Atoll", **whole}


def _object(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f.key: _property(f) for f in fields},
        "required": [f.key for f in fields if f.needed],
        "additionalProperties": False,
    }


def _property(field: Field) -> dict[str, Any]:
    shape = {**_JSON[field.kind], "description": field.text}
    if field.among:
        shape["enum"] = list(field.among)
    if field.kind in {Kind.NUMBER, Kind.WHOLE}:
        shape["exclusiveMinimum" if field.above else "minimum"] = field.least
    return shape
