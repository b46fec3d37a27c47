"""A job file, TOML or YAML: from its text to checked options, or to every fault in it with its line.

Three judges in turn. The language itself (one fault, since what follows cannot be read). The keys and types of
`job_keys`: all faults at once, an unknown key with the nearest known one. Then `check_spec`, on what `launch_spec` makes
of the options; its first objection names a field, and `Document.located` finds the line. Text that comes without types (metadata of
`ray job submit`) goes the same way, read as JSON where it is JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import SchemaError, SpecError
from atoll.schema.codec import build
from atoll.schema.durations import seconds
from atoll.schema.job_keys import REQUIRED, SECONDS, field_of, hints, keys
from atoll.schema.job_places import KeyPath, line_of, toml_places, yaml_places
from atoll.schema.nearest import nearest

ENDINGS = (".toml", ".yaml", ".yml")
# YAML 1.1 reads 1e-4, as every training script writes a rate, as text.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+\Z")
_TOML_PLACE = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")
# How `check_spec` begins: `workers=0: at least 1`, `alternatives[0]: ...`.
_OBJECTION = re.compile(r"(\w+)((?:\[[^\]]*\])*)(?:=(.*?))?: (.*)", re.DOTALL)
# Bounds of workers are mostly written as one key.
_BOUNDS = {"min_workers": "workers", "worker_sizes": "workers"}
_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing to correct. `nearest` is the valid key that an unknown one is most like."""

    source: str
    line: int | None
    key: str
    value: str
    problem: str
    nearest: str | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        what = f"{self.key} = {self.value}: " if self.key and self.value else f"{self.key}: " if self.key else ""
        hint = f"; the nearest valid key is {self.nearest!r}" if self.nearest else ""
        return f"{where}: {what}{self.problem}{hint}"


class JobFileError(SpecError):
    """A job file with faults, each on a line of its own. Not a code of its own: to programs it is a spec at fault."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that was read: `options` by field of `JobSpec`, and where each stood."""

    source: str
    options: dict[str, Any]
    places: Mapping[KeyPath, int] = field(default_factory=dict)
    prefix: str = ""

    def located(self, error: SpecError) -> JobFileError:
        """The objection of a later judge, which begins with `field=value:`, at the line of that field."""
        if isinstance(error, JobFileError):
            return error
        found = _OBJECTION.fullmatch(str(error))
        if found is None or found[1] not in hints():
            return JobFileError([Fault(source=self.source, line=None, key="", value="", problem=str(error))])
        name, inside, value, problem = found.groups(default="")
        written = [k for k in (name, name.removesuffix(SECONDS), _BOUNDS.get(name, "")) if (k,) in self.places]
        line = line_of(self.places, tuple(written[:1])) if self.places else None
        key = self.prefix + name + inside
        return JobFileError([Fault(source=self.source, line=line, key=key, value=value, problem=problem)])


def parse(text: str, source: str) -> Document:
    """Read a job file. Raises `JobFileError` with all faults of keys and types."""
    plain, places, faults = _parse_toml(text, source) if source.endswith(".toml") else _parse_yaml(text, source)
    options, more = _checked(plain, source, places)
    faults += more
    for key in REQUIRED:
        if key not in plain and not faults:
            faults.append(_fault(source, places, (), f"the key {key!r} is missing", key=""))
    if faults:
        raise JobFileError(sorted(faults, key=lambda f: f.line or 0))
    return Document(source=source, options=options, places=places)


def parse_metadata(metadata: Mapping[str, str], prefix: str, source: str) -> Document:
    """Options out of `{prefix}queue`-like keys with text values; `{prefix}config.lr` sets one entry of `config`.

    Keys without the prefix belong to others. Raises `JobFileError`.
    """
    plain: dict[str, Any] = {}
    for name, text in metadata.items():
        if not name.startswith(prefix):
            continue
        top, _, rest = name.removeprefix(prefix).partition(".")
        if rest and top in {"config", "env"}:
            plain.setdefault(top, {})[rest] = text if top == "env" else _value(text)
        else:
            key = name.removeprefix(prefix)
            plain[key] = text if hints().get(key) in {str, str | None} else _value(text)
    options, faults = _checked(plain, source, {}, prefix)
    if faults:
        raise JobFileError(faults)
    return Document(source=source, options=options, prefix=prefix)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- languages -------------------------------------------------------------------------------------------------------

Read = tuple[dict[str, Any], Mapping[KeyPath, int], list[Fault]]


def _parse_toml(text: str, source: str) -> Read:
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_PLACE.search(str(error))
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        problem = _TOML_PLACE.sub("", str(error)).strip()
        raise JobFileError([_no_language(source, line, "TOML", problem)]) from None
    return plain, toml_places(text), []


def _parse_yaml(text: str, source: str) -> Read:
    import yaml  # noqa: PLC0415 - `import atoll` loads nothing but the standard library

    try:
        node = yaml.compose(text, Loader=_yaml_loader())
        plain = yaml.load(text, Loader=_yaml_loader())  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise JobFileError(
            [_no_language(source, line, "YAML", getattr(error, "problem", None) or str(error))]
        ) from None
    if not isinstance(plain, dict):
        raise JobFileError([_no_language(source, 1, "YAML", "a job file is a table of keys and values")])
    places: dict[KeyPath, int] = {}
    faults = []
    for path, line in yaml_places(node):
        if path in places and path[-1] != "<<":
            problem = f"said twice, first in line {places[path]}"
            faults.append(Fault(source=source, line=line, key=_dotted(path), value="", problem=problem))
        places.setdefault(path, line)
    return plain, places, faults


@functools.cache
def _yaml_loader() -> Any:
    import yaml  # noqa: PLC0415 - as above

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """With floats as YAML 1.2 has them."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    return Loader


def _no_language(source: str, line: int, language: str, problem: str) -> Fault:
    return Fault(source=source, line=line, key="", value="", problem=f"no {language}: {problem}")


# -- keys and types --------------------------------------------------------------------------------------------------


def _checked(
    plain: Mapping[str, Any], source: str, places: Mapping[KeyPath, int], prefix: str = ""
) -> tuple[dict[str, Any], list[Fault]]:
    options: dict[str, Any] = {}
    faults: list[Fault] = []
    known, whole = hints(), typing.cast("Any", plain)
    for key, value in plain.items():
        name = field_of(str(key))
        if name not in known:
            near = nearest(str(key), keys())
            fault = _fault(source, places, (key,), "no such key", value=value, key=f"{prefix}{key}")
            faults.append(dataclasses.replace(fault, nearest=f"{prefix}{near}"))
            continue
        unknown = list(_unknown_inside(known[name], value, (key,)))
        for path, near in unknown:
            inner = functools.reduce(operator.getitem, path, whole)
            fault = _fault(source, places, path, "no such key", value=inner, key=prefix + _dotted(path))
            faults.append(dataclasses.replace(fault, nearest=near))
        try:
            options[name] = build(known[name], _with_unit(name, value), str(key))
        except (SchemaError, SpecError) as error:
            problem = str(error).partition(": ")[2] if isinstance(error, SchemaError) else str(error)
            fault = _fault(source, places, (key,), _said(problem), value=value, key=f"{prefix}{key}")
            faults += [] if unknown else [fault]
    return options, faults


def _with_unit(name: str, value: Any) -> Any:
    return seconds(value) if name.endswith(SECONDS) and isinstance(value, str) else value


def _unknown_inside(kind: Any, value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str | None]]:
    """Unknown keys of tables that are dataclasses, with the nearest known one; the codec passes over them."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        for option in args:
            yield from _unknown_inside(option, value, path)
    elif origin in {tuple, list} and isinstance(value, list):
        for n, item in enumerate(value):
            yield from _unknown_inside(args[0], item, (*path, n))
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        names = {f.name: typing.get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}
        for key, inner in value.items():
            if key in names:
                yield from _unknown_inside(names[key], inner, (*path, key))
            else:
                yield (*path, key), nearest(str(key), names)


_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "dict": "a table"}


def _said(problem: str) -> str:
    """The codec's words, `expected int, got 'x'`, for people; the value is named beside it."""
    found = re.fullmatch(r"expected (\w+), got .*", problem, re.DOTALL)
    return f"must be {_WORDS.get(found[1], found[1])}" if found else problem


def _fault(
    source: str, places: Mapping[KeyPath, int], path: KeyPath, problem: str, *, key: str, value: Any = None
) -> Fault:
    shown = "" if value is None else _shown(value)
    line = line_of(places, path) if places else None
    return Fault(source=source, line=line, key=key, value=shown, problem=problem)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" if n else str(p) for n, p in enumerate(path))
