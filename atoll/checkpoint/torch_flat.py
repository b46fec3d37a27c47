"""Flat states as the writer takes them: what each rank holds of named tensors that are cut in one dimension or not at all.

No collective: the layouts of all ranks follow from the boxes that each rank's place gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.fs_pack import logical_of
from atoll.checkpoint.logical import Held, Logical, RankLayout
from atoll.checkpoint.torch_state import Flat


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatState:
    """What one rank holds, as `writer.State` asks for it."""

    tree: dict[str, Any]
    layout: RankLayout
    views: Mapping[tuple[str, Box], torch.Tensor]


def replicated(flat: Flat, rank: int, nodes: Sequence[str]) -> tuple[FlatState, tuple[RankLayout, ...]]:
    """All ranks hold all of it; `nodes` are their hosts. This rank's state, and the layouts of all."""
    logicals = tuple(logical_of(name, tensor) for name, tensor in flat.tensors.items())
    everybody = tuple(range(len(nodes)))
    held = tuple(Held(one.name, whole(one.shape), everybody) for one in logicals if one.count)
    layouts = tuple(RankLayout(rank=r, node=node, logicals=logicals, held=held) for r, node in enumerate(nodes))
    views = {(h.tensor, h.box): flat.tensors[h.tensor] for h in held}
    return FlatState(tree=flat.meta, layout=layouts[rank], views=views), layouts


def cut(
    flat: Flat,
    logicals: Sequence[Logical],
    rank: int,
    nodes: Sequence[str],
    of: Callable[[Logical, int], tuple[Box, tuple[int, ...]]],
) -> tuple[FlatState, tuple[RankLayout, ...]]:
    """`flat` holds this rank's boxes; `of(tensor, rank)` says which box a rank has of it, and who holds it, too."""
    whole_state = tuple(logicals)
    layouts = tuple(_layout(whole_state, r, node, of) for r, node in enumerate(nodes))
    mine = layouts[rank]
    views = {(h.tensor, h.box): flat.tensors[h.tensor] for h in mine.held}
    return FlatState(tree=flat.meta, layout=mine, views=views), layouts


def _layout(
    logicals: tuple[Logical, ...], rank: int, node: str, of: Callable[[Logical, int], tuple[Box, tuple[int, ...]]]
) -> RankLayout:
    boxes = ((one, *of(one, rank)) for one in logicals)
    held = tuple(Held(one.name, box, holders) for one, box, holders in boxes if box.count)
    return RankLayout(rank=rank, node=node, logicals=logicals, held=held)
