"""JSON form of the schema's dataclasses.

Every message is a frozen dataclass. `encode` writes it as a JSON object whose `"type"` is the class name, fields at
their defaults included, so that a log of messages reads without the code. `decode` builds the value again from the
class's type hints: unknown fields are ignored (a newer peer may send more), a missing field without a default, a wrong
scalar type or an unknown `"type"` is a `SchemaError` that names the place. Only data comes out: no class outside the
given ones can be named by the input.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from atoll.errors import SchemaError

T = TypeVar("T")
# What is written and read as it is: most fields, and so the first to be asked for.
_SCALARS = frozenset({str, int, float, bool, type(None)})
# Whole numbers up to here are themselves as a float.
_EXACT = 2.0**53
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=True)


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists and scalars; dataclasses carry their class name under `"type"`."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if dataclasses.is_dataclass(kind):
        return {"type": kind.__name__} | {name: to_plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    return value


def encode(value: Any) -> bytes:
    """One line of JSON, without a newline."""
    return _json.encode(to_plain(value)).encode()


class Registry:
    """The closed set of message classes that one channel may carry."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {c.__name__: c for c in classes}

    def decode(self, data: bytes | str) -> Any:
        """The message in `data`. Raises `SchemaError` for anything that is not one of the registered classes."""
        plain = _load(data)
        name = plain.get("type") if isinstance(plain, dict) else None
        cls = self._classes.get(name) if isinstance(name, str) else None
        if cls is None:
            raise SchemaError(f"unknown message type {name!r}; expected one of {sorted(self._classes)}")
        return from_plain(cls, plain)


def decode_as(cls: type[T], data: bytes | str) -> T:
    """The `cls` written in `data`. Raises `SchemaError`."""
    return from_plain(cls, _load(data))


def _load(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from None


def from_plain(cls: type[T], plain: Any) -> T:
    """A `cls` from the plain form of `to_plain`. Raises `SchemaError` naming the field."""
    return typing.cast("T", _build(cls, plain, cls.__name__))


def build(kind: Any, plain: Any, where: str) -> Any:
    """A value of any type that a field of a message may have. Raises `SchemaError` that begins with `where`."""
    return _build(kind, plain, where)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it has no default, of each field; a `NewType` is what it stands for."""
    hints, found = _hints(cls), []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        while isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append((field.name, kind, bare))
    return tuple(found)


def _build(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, typing.NewType):
        return _build(kind.__supertype__, value, where)
    origin = typing.get_origin(kind)
    if origin is not None:
        return _build_generic(origin, typing.get_args(kind), value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _build_enum(kind, value, where)
    return _build_scalar(kind, value, where)


def _build_generic(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin in {types.UnionType, typing.Union}:
        return _build_union(args, value, where)
    if origin is dict:
        return _build_dict(args, value, where)
    if origin is typing.Literal:
        return _expect(value in args, value, args, where)
    return _build_sequence(origin, args, value, where)


def _build_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    tag = value.get("type") if isinstance(value, dict) else None
    tagged = [o for o in options if isinstance(o, type) and o.__name__ == tag]
    problems = []
    for option in tagged or [o for o in options if o is not type(None)]:
        try:
            return _build(option, value, where)
        except SchemaError as error:
            problems.append(str(error))
    raise SchemaError("; ".join(problems) or f"{where}: {value!r} fits none of {options}")


def _build_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    _expect(isinstance(value, list | tuple), value, origin, where)
    if origin is tuple and args and args[-1] is not Ellipsis:
        _expect(len(value) == len(args), value, f"{len(args)} items", where)
        return tuple(_build(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    item = args[0] if args else Any
    return origin(_build(item, v, f"{where}[{i}]") for i, v in enumerate(value))


def _build_dict(args: tuple[Any, ...], value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, dict, where)
    key, item = args or (str, Any)
    key = getattr(key, "__supertype__", key)
    return {(int(k) if key is int else k): _build(item, v, f"{where}.{k}") for k, v in value.items()}


def _build_dataclass(cls: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, cls, where)
    given = {}
    for name, kind, bare in _fields(cls):
        if name in value:
            found = value[name]
            plain = kind in _SCALARS and type(found) is kind
            given[name] = found if plain else _build(kind, found, f"{where}.{name}")
        elif bare:
            raise SchemaError(f"{where}.{name} is missing")
    return cls(**given)


def _build_enum(kind: type[enum.Enum], value: Any, where: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise SchemaError(f"{where}: {value!r} is not one of {[m.value for m in kind]}") from None


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any or kind is object:
        return value
    if kind is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), value, kind, where)
        try:
            return float(value)
        except OverflowError:
            raise SchemaError(f"{where}: a number of {len(str(value))} digits is out of range") from None
    if kind is int:
        if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
            return int(value)  # JSON has one kind of number: some writers write 16 as 16.0
        return _expect(isinstance(value, int) and not isinstance(value, bool), value, kind, where)
    return _expect(isinstance(value, kind), value, kind, where)


def _expect(ok: bool, value: Any, kind: Any, where: str) -> Any:  # noqa: FBT001 - reads as a sentence at each call
    if not ok:
        raise SchemaError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value
