"""Which rank writes which tensor, and whether the packs of a save hold each tensor exactly once.

All members hold the same state, so each writes a share of about equal bytes: largest first, to whoever has least (the
LPT rule, Graham 1969: the fullest share is at most 4/3 of the best division of whole tensors). The shares follow from
names and sizes alone: no rank asks another.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def shares(sizes: Mapping[str, int], writers: int) -> tuple[tuple[str, ...], ...]:
    """The tensor names of each writer; `sizes` are bytes."""
    names: list[list[str]] = [[] for _ in range(writers)]
    # Equal loads go to the lowest rank; empty tensors count as a byte, so that a million of them are shared out too.
    loads = [(0, writer) for writer in range(writers)]
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        load, writer = loads[0]
        heapq.heapreplace(loads, (load + max(1, sizes[name]), writer))
        names[writer].append(name)
    return tuple(tuple(n) for n in names)


def tensor_names(tree: Any) -> set[str]:
    """The names of all tensors that a state's JSON tree needs."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict) and "$tensor" in node:
            found.add(node["$tensor"])
        elif isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found


def coverage_problem(needed: set[str], packs: Iterable[Iterable[str]]) -> str:
    """Empty where every needed tensor lies in exactly one pack; else what is wrong."""
    held = Counter(name for pack in packs for name in pack)
    missing = sorted(needed - held.keys())
    if missing:
        return f"{len(missing)} tensors are in no pack, {missing[0]!r} first"
    twice = sorted(name for name, count in held.items() if count > 1)
    return f"{len(twice)} tensors are in two packs, {twice[0]!r} first" if twice else ""
