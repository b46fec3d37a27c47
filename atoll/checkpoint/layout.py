"""Which rank writes which tensor, and whether the packs of a save hold each tensor exactly once.

All members hold the same state, so each writes a share of about equal bytes: largest first, to whoever has least (the
LPT rule, Graham 1969, at most 4/3 of the best). The shares follow from names and sizes alone: no rank asks another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def shares(sizes: Mapping[str, int], writers: int) -> tuple[tuple[str, ...], ...]:
    """The tensor names of each writer; `sizes` are bytes."""
    load = [0] * writers
    names: list[list[str]] = [[] for _ in range(writers)]
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        least = min(range(writers), key=lambda w: (load[w], w))
        load[least] += sizes[name]
        names[least].append(name)
    return tuple(tuple(n) for n in names)


def tensor_names(tree: Any) -> set[str]:
    """The names of all tensors that a state's JSON tree needs."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return {tree["$tensor"]}
        return set().union(*(tensor_names(v) for v in tree.values())) if tree else set()
    if isinstance(tree, list):
        return set().union(*(tensor_names(v) for v in tree)) if tree else set()
    return set()


def coverage_problem(needed: set[str], packs: Iterable[Iterable[str]]) -> str:
    """Empty where every needed tensor lies in exactly one pack; else what is wrong."""
    held = Counter(name for pack in packs for name in pack)
    missing = sorted(needed - held.keys())
    if missing:
        return f"{len(missing)} tensors are in no pack, {missing[0]!r} first"
    twice = sorted(name for name, count in held.items() if count > 1)
    return f"{len(twice)} tensors are in two packs, {twice[0]!r} first" if twice else ""
