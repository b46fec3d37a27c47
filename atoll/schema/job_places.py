"""On which line of a job file each key stands.

`tomllib` and YAML's loader give values without places. TOML is cut into statements here (a header, or a key with its
value, over as many lines as its strings and brackets take), and each is read by `tomllib` itself, which says what names
it sets; a statement that opens in line 7 puts all its names there. YAML's own node tree carries lines.

A place is found by its path: `("config", "lr")`, or `("alternatives", 0, "island")` in a list of tables.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]
# Strings, which may hold brackets and line ends; comments; brackets; line ends. Longest first.
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""' r"|'''.*?'''" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|\#[^\n]*" r"|[\[{]|[\]}]|\n",
    re.DOTALL,
)


def line_of(places: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the nearest thing around it; 1 for the file as a whole."""
    while path and path not in places:
        path = path[:-1]
    return places.get(path, 1)


def toml_places(text: str) -> dict[KeyPath, int]:
    """Path -> line, of a text that `tomllib` reads."""
    places: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        plain = tomllib.loads(statement)
        if statement.startswith("[["):
            names = _names(plain)
            counts[names] = counts.get(names, -1) + 1
            table = (*_inside(names[:-1], counts), names[-1], counts[names])
            places.setdefault(table[:-1], line)
            places[table] = line
        elif statement.startswith("["):
            table = _inside(_names(plain), counts)
            places[table] = line
        else:
            for path in _paths(plain, table):
                places.setdefault(path, line)
    return places


def _statements(text: str) -> Iterator[tuple[int, str]]:
    depth, begin, line, begin_line = 0, 0, 1, 1
    for token in _TOKEN.finditer(text + "\n"):
        found = token[0]
        line += found.count("\n")
        if found in "[{":
            depth += 1
        elif found in "]}":
            depth -= 1
        elif found == "\n" and depth == 0:
            statement = text[begin : token.start()].strip()
            if statement and not statement.startswith("#"):
                yield begin_line, statement
            begin, begin_line = token.end(), line


def _names(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a header, `[a.b]` or `[[a.b]]`."""
    names: list[str] = []
    inner: Any = plain
    while isinstance(inner, dict) and inner:
        (name,) = inner
        names.append(name)
        inner = inner[name]
    return tuple(names)


def _inside(names: tuple[str, ...], counts: Mapping[KeyPath, int]) -> KeyPath:
    """`names` with the number of the last table behind each that is a list of tables."""
    path: KeyPath = ()
    for n, name in enumerate(names, 1):
        path = (*path, name)
        if names[:n] in counts:
            path = (*path, counts[names[:n]])
    return path


def _paths(plain: Any, path: KeyPath) -> Iterator[KeyPath]:
    items: Any = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from _paths(inner, (*path, name))


def yaml_places(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Path and line of everything below a node of YAML, a key said twice as often as it is said."""
    if node.id == "mapping":
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from yaml_places(value, (*path, key.value))
    elif node.id == "sequence":
        for n, value in enumerate(node.value):
            yield (*path, n), value.start_mark.line + 1
            yield from yaml_places(value, (*path, n))
