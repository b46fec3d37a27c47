"""A state's JSON tree as paths, and back: how other programs name what is in a state.

`torch.distributed.checkpoint` knows a state as a flat dict: each tensor and each value that holds no tensor under its
path, joined by dots. Mappings are always walked; a list only where there is a mapping or a tensor somewhere in it, a tuple
never (here: where it holds a tensor, which DCP could not load). A path's text parts are keys, its numbers places in a
list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from atoll.checkpoint.layout import tensor_names
from atoll.errors import CheckpointError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at `path`: the tensor called `tensor`, or the JSON node `node`."""

    path: Path
    tensor: str | None
    node: Any

    @property
    def name(self) -> str:
        """The path as one word."""
        return ".".join(map(str, self.path))


def entries(tree: dict[str, Any]) -> dict[str, Entry]:
    """All tensors and values of a tree, by their names. Tensors that are declared parts of another are not places."""
    found: dict[str, Entry] = {}
    for entry in _walked(tree, ()):
        found.setdefault(entry.name, entry)
    return found


def grown(found: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """The tree that has these nodes at these paths. Raises `CheckpointError` where two cannot stand together."""
    root: dict[str | int, Any] = {}
    for path, node in found:
        at = root
        for key in path[:-1]:
            at = at.setdefault(key, {})
            if isinstance(at, _Leaf):
                raise CheckpointError(f"{'.'.join(map(str, path))!r} lies within what is a value already")
        if not path or path[-1] in at:
            raise CheckpointError(f"two values of the state are called {'.'.join(map(str, path))!r}")
        at[path[-1]] = _Leaf(node)
    return _mapping(root)


@dataclass(frozen=True, slots=True)
class _Leaf:
    node: Any


def _walked(node: Any, path: Path) -> Iterator[Entry]:
    if isinstance(node, dict) and "$tensor" in node:
        yield Entry(path, node["$tensor"], None)
    elif isinstance(node, dict) and "$parts" in node:
        return
    elif isinstance(node, dict) and "$items" in node:
        for key, value in node["$items"]:
            yield from _walked(value, (*path, str(key)))
    elif isinstance(node, dict) and "$tuple" not in node:
        for key, value in node.items():
            yield from _walked(value, (*path, key))
    elif _is_value(node):
        yield Entry(path, None, node)
    else:
        for at, value in enumerate(node["$tuple"] if isinstance(node, dict) else node):
            yield from _walked(value, (*path, at))


def _is_value(node: Any) -> bool:
    """Whether DCP takes it as one value: a list without mappings or tensors, a tuple without tensors."""
    if isinstance(node, dict):
        return "$tuple" in node and not tensor_names(node)
    return not isinstance(node, list) or all(_is_value(each) for each in node)


def _mapping(children: dict[str | int, Any]) -> dict[str, Any]:
    if any(not isinstance(key, str) for key in children):
        raise CheckpointError(f"a state has text and numbers side by side as keys: {list(children)[:4]}")
    shaped = {str(key): _shaped(value) for key, value in children.items()}
    return {"$items": [list(item) for item in shaped.items()]} if any(k.startswith("$") for k in shaped) else shaped


def _shaped(node: Any) -> Any:
    if isinstance(node, _Leaf):
        return node.node
    if not all(isinstance(key, int) for key in node):
        return _mapping(node)
    gaps = set(range(len(node))) - node.keys()
    if gaps:
        raise CheckpointError(f"a list of the state has no element {min(gaps)}")
    return [_shaped(node[at]) for at in range(len(node))]
