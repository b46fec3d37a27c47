"""What this rank holds of a state: logical tensors, boxes of them, and views of local memory; nothing is copied.

- A plain tensor is one whole box, held by `holders`.
- A DTensor is the boxes of its local part, held by the ranks of its mesh that have the same part.
- An `Affine` declaration says that ranges of a dimension of a local tensor are ranges of other tensors: a fused weight
  is views of its parts (q, k and v; gate and up, interleaved as they may be), a stack of some of the experts is a range of
  the stack of all.
- `rename` gives tensors their names in the whole model, where a pipeline stage numbers its layers by itself.

Everything else of the state stays in the tree, as JSON. Where tensors share their memory the state holds one.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from atoll.checkpoint.boxes import Box, overlap, whole
from atoll.checkpoint.logical import Held, Logical, RankLayout
from atoll.checkpoint.torch_placements import holders_of, parts_of
from atoll.checkpoint.torch_state import flatten
from atoll.errors import StateError


@dataclass(frozen=True, slots=True)
class Part:
    """[begin, end) of a local tensor's dimension is [at, at + end - begin) of that dimension of tensor `name`.

    `extent` is the whole extent of tensor `name` there.
    """

    begin: int
    end: int
    name: str
    at: int
    extent: int


@dataclass(frozen=True, slots=True)
class Affine:
    """How dimension `dim` of a tensor is made of ranges of others. `holders`: who holds it, where not all do."""

    dim: int
    parts: tuple[Part, ...]
    holders: tuple[int, ...] | None = None


def fused(dim: int, sizes: Mapping[str, int]) -> Affine:
    """Tensors one after the other: `fused(0, {"q.weight": 64, "k.weight": 16, "v.weight": 16})`."""
    ends = itertools.accumulate(sizes.values())
    parts = (Part(end - size, end, name, 0, size) for (name, size), end in zip(sizes.items(), ends, strict=True))
    return Affine(dim, tuple(parts))


def interleaved(dim: int, sizes: Mapping[str, int], groups: int) -> Affine:
    """As `fused`, in `groups` rounds: of each tensor a share, then of each the next; as heads of q, k and v may lie."""
    parts, begin = [], 0
    for group in range(groups):
        for name, size in sizes.items():
            if size % groups:
                raise StateError(f"{name} has {size} in dimension {dim}, which {groups} groups do not divide")
            share = size // groups
            parts.append(Part(begin, begin + share, name, group * share, size))
            begin += share
    return Affine(dim, tuple(parts))


def sliced(name: str, dim: int, first: int, count: int, total: int, holders: Sequence[int] | None = None) -> Affine:
    """This rank's `count` of `total` along `dim`, from `first` on: its experts of all experts."""
    return Affine(dim, (Part(0, count, name, first, total),), None if holders is None else tuple(holders))


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """`views` are this rank's boxes as tensors over its own memory; `tree` is the JSON part, with the tensors' places."""

    tree: dict[str, Any]
    layout: RankLayout
    views: dict[tuple[str, Box], torch.Tensor]


def lay_out(
    state: Mapping[str, Any],
    *,
    rank: int,
    size: int,
    node: str = "",
    holders: Sequence[int] | None = None,
    copies: Mapping[int, Sequence[int]] | None = None,
    affine: Mapping[str, Affine] | None = None,
    rename: Callable[[str], str] | None = None,
) -> Laid:
    """The layout of `state` on `rank` of `size`. Raises `StateError` for what no checkpoint can hold, by its path.

    `holders` are the ranks that hold the plain tensors of this state (all, unless told: a pipeline stage says its own).
    `copies` says for a rank in the numbering of the DTensors' meshes which ranks of the save hold the same: where several
    groups have a mesh of their own each. `affine` is by names before `rename`.
    """
    layer = _Layer(
        tuple(range(size)) if holders is None else tuple(sorted(holders)), copies or {}, affine or {}, rename
    )
    tree = layer.lay(state)
    logicals = tuple(sorted(layer.logicals.values(), key=lambda one: one.name))
    held = tuple(
        Held(name, box, layer.held[name, box]) for name, box in sorted(layer.held)
    )  # fmt: skip
    return Laid(tree=tree, layout=RankLayout(rank=rank, node=node, logicals=logicals, held=held), views=layer.views)


@dataclass(slots=True)
class _Layer:
    """The layout as it grows."""

    holders: tuple[int, ...]
    copies: Mapping[int, Sequence[int]]
    affine: Mapping[str, Affine]
    rename: Callable[[str], str] | None
    logicals: dict[str, Logical] = field(default_factory=dict)
    held: dict[tuple[str, Box], tuple[int, ...]] = field(default_factory=dict)
    views: dict[tuple[str, Box], torch.Tensor] = field(default_factory=dict)

    def lay(self, state: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, torch.Tensor] = {}
        flat = flatten(_local_state(state, "", found))
        cut = {path: tensor for path, tensor in found.items() if isinstance(tensor, DTensor)}
        unknown = sorted(self.affine.keys() - flat.tensors.keys())
        if unknown:
            raise StateError(f"{unknown[0]!r} is declared as made of other tensors, and the state has no such tensor")
        places: dict[str, Any] = {}
        for name, tensor in flat.tensors.items():
            places[name] = self._place(name, tensor, cut.get(name))
        tree: dict[str, Any] = _renamed(flat.meta, places)
        return tree

    def _place(self, name: str, tensor: torch.Tensor, cut: DTensor | None) -> Any:
        """Take one tensor's boxes down; what stands for it in the tree."""
        shape = tuple(tensor.shape if cut is None else cut.shape)
        boxes = [(whole(shape), whole(shape))] if cut is None else parts_of(cut, name)
        declared = self.affine.get(name)
        holders = self.holders if cut is None else holders_of(cut, self.copies)
        if declared is None:
            self._add(self._called(name), shape, tensor, boxes, holders)
            return {"$tensor": self._called(name)}
        if declared.holders is not None:
            holders = declared.holders
        for part_name, part_shape, pieces in _split(name, shape, boxes, declared):
            self._add(self._called(part_name), part_shape, tensor, pieces, holders)
        names = dict.fromkeys(part.name for part in declared.parts)
        return {"$parts": [{"$tensor": self._called(part)} for part in names]}

    def _called(self, name: str) -> str:
        return self.rename(name) if self.rename is not None else name

    def _add(
        self,
        name: str,
        shape: tuple[int, ...],
        tensor: torch.Tensor,
        boxes: Iterable[tuple[Box, Box]],
        holders: tuple[int, ...],
    ) -> None:
        logical = Logical(name, str(tensor.dtype).removeprefix("torch."), shape)
        if not logical.itemsize or self.logicals.setdefault(name, logical) != logical:
            raise StateError(f"two tensors of the state are called {name!r} and have other types or shapes")
        here = whole(tuple(tensor.shape))
        for box, local in boxes:
            if not box.count:
                continue
            if (name, box) in self.views:
                raise StateError(f"two tensors of the state are called {name!r}; rename one")
            self.held[name, box] = holders
            self.views[name, box] = tensor[local.within(here)]


def _split(
    name: str, shape: tuple[int, ...], boxes: Sequence[tuple[Box, Box]], declared: Affine
) -> list[tuple[str, tuple[int, ...], list[tuple[Box, Box]]]]:
    """The parts of a fused tensor: name, whole shape, boxes in it with their places in the local tensor."""
    dim = declared.dim
    covered = sorted((part.begin, part.end) for part in declared.parts)
    ends = [0, *(end for _, end in covered)]
    if ends[-1] != shape[dim] or any(begin != end for (begin, _), end in zip(covered, ends, strict=False)):
        raise StateError(f"{name} is {list(shape)}; its declared parts are {covered} in dimension {dim}, not all of it")
    found: defaultdict[tuple[str, tuple[int, ...]], list[tuple[Box, Box]]] = defaultdict(list)
    for part in declared.parts:
        part_shape = (*shape[:dim], part.extent, *shape[dim + 1 :])
        mine = found[part.name, part_shape]
        range_of = Box(
            (*(0,) * dim, part.begin, *(0,) * (len(shape) - dim - 1)),
            (*shape[:dim], part.end, *shape[dim + 1 :]),
        )
        for there, here in boxes:
            common = overlap(there, range_of)
            if common is not None:
                inside = _shifted(common, tuple(h - t for h, t in zip(here.start, there.start, strict=True)))
                shift = tuple(part.at - part.begin if d == dim else 0 for d in range(len(shape)))
                mine.append((_shifted(common, shift), inside))
    return [(part_name, part_shape, pieces) for (part_name, part_shape), pieces in found.items()]


def _shifted(box: Box, by: Sequence[int]) -> Box:
    return Box(
        tuple(a + s for a, s in zip(box.start, by, strict=True)),
        tuple(b + s for b, s in zip(box.stop, by, strict=True)),
    )


def _local_state(value: Any, path: str, found: dict[str, torch.Tensor]) -> Any:
    """The state with local parts in the place of DTensors; `found` has all tensors by paths as `flatten` builds them."""
    if isinstance(value, torch.Tensor):
        if path in found:
            raise StateError(f"two tensors of the state are called {path!r}; rename one")
        found[path] = value
        return cast("DTensor", value.detach()).to_local() if isinstance(value, DTensor) else value
    if isinstance(value, Mapping):
        plain = all(isinstance(k, str) and not k.startswith("$") for k in value)
        return {k: _local_state(v, f"{path}.{k}" if path or not plain else k, found) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_local_state(v, f"{path}.{i}", found) for i, v in enumerate(value))
    if isinstance(value, list):
        return [_local_state(v, f"{path}.{i}", found) for i, v in enumerate(value)]
    return value


def _renamed(node: Any, places: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_renamed(v, places) for v in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return places[node["$tensor"]]
    return {k: _renamed(v, places) for k, v in node.items()}
