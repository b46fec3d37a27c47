"""State as named tensors and a JSON tree, and back: what a checkpoint holds and what a joiner receives.

`flatten` walks nested state_dicts. Each tensor becomes an entry named by its path (`model.blocks.0.weight`), the tree
keeps its place as `{"$tensor": name}`. Keys that are not plain strings (an optimizer's integer keys) and tuples are
written as `{"$items": ...}` and `{"$tuple": ...}`, so that `unflatten` gives back the very same types. Nothing else is
allowed: no pickle, ever. Tensors that share all of their memory are stored once, and are one tensor again afterwards.

That is told from where their elements lie. A rank's part of a sharded tensor may have none; then tied weights are told
from their storage, which is one object however often a tensor is detached, so that ranks with rows and ranks without
name the same tensors. Only where nothing else of the state lies in that storage: empty parts of a buffer of many tensors
lie at one place without being one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from atoll.errors import CheckpointError, StateError

_MASK = (1 << 64) - 1
_SCALARS = (str, int, float, bool, type(None))
# What the safetensors header keeps for itself.
_RESERVED = "__metadata__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """`tensors` by name, `meta` the JSON tree that holds their places and everything else."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(size_of(t) for t in self.tensors.values())


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of one tensor's elements."""
    return tensor.numel() * tensor.element_size()


def flatten(state: Mapping[str, Any]) -> Flat:
    """`state` without copies. Raises `StateError` naming the path and type of what cannot be written down."""
    flattener = _Flattener(_empty_alone(state))
    tree = flattener.walk(state, "")
    return Flat(tensors=flattener.tensors, meta=tree)


def unflatten(flat: Flat) -> dict[str, Any]:
    """The nested state again, over the tensors of `flat`."""
    built: dict[str, Any] = _build(flat.meta, flat.tensors)
    return built


def digest(flat: Flat) -> int:
    """64 bits over names, types, shapes, bytes and the JSON tree; the order of the entries does not matter."""
    tree = json.dumps(flat.meta, sort_keys=True, separators=(",", ":")).encode()
    tensors = sum(tensor_digest(name, tensor) for name, tensor in flat.tensors.items())
    return (tensors + xxhash.xxh3_64_intdigest(tree)) & _MASK


def shape_digest(flat: Flat) -> str:
    """16 hex digits over names, types and shapes: alike on ranks that can share out one state."""
    lines = sorted(_label(name, tensor) for name, tensor in flat.tensors.items())
    return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())


def tensor_digest(name: str, tensor: torch.Tensor) -> int:
    """64 bits (xxh3) of one named tensor."""
    return xxhash.xxh3_64_intdigest(bytes_of(tensor), seed=xxhash.xxh3_64_intdigest(_label(name, tensor).encode()))


def _label(name: str, tensor: torch.Tensor) -> str:
    return f"{name}|{tensor.dtype}|{tuple(tensor.shape)}"


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements in row-major order [bytes]; a copy only where they do not lie so in host memory."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class _Flattener:
    def __init__(self, alone: Collection[int]) -> None:
        self._alone = alone
        self.tensors: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def walk(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._add(value, path)}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, tuple):
            return {"$tuple": [self.walk(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if isinstance(value, list):
            return [self.walk(v, f"{path}.{i}") for i, v in enumerate(value)]
        if type(value) in _SCALARS or isinstance(value, str | int | float):
            return value
        raise StateError(
            f"state {path.lstrip('.')!r} is a {type(value).__module__}.{type(value).__qualname__}; checkpoints hold "
            "tensors, numbers, text, lists and dicts only: give it as one of these in state_dict()"
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: self.walk(v, f"{path}.{k}" if path else k) for k, v in value.items()}
        for key in value:
            if type(key) not in _SCALARS:
                raise StateError(f"state {path!r} has a key of type {type(key).__qualname__}; use text or numbers")
        return {"$items": [[k, self.walk(v, f"{path}.{k}")] for k, v in value.items()]}

    def _add(self, tensor: torch.Tensor, path: str) -> str:
        problem = _tensor_problem(tensor, path)
        if problem:
            raise StateError(f"state {path!r} is {problem}")
        alias = (tensor.data_ptr() if tensor.numel() else _storage(tensor), *_form(tensor))
        if (tensor.numel() or _storage(tensor) in self._alone) and alias in self._seen:
            return self._seen[alias]
        name = path
        while name in self.tensors or name == _RESERVED:
            name += "'"
        self.tensors[name] = tensor.detach()
        self._seen[alias] = name
        return name


def _empty_alone(state: Any) -> Collection[int]:
    """The storages in which the state has one empty tensor and nothing else, under whatever names."""
    found = list(_dense(state))
    forms: dict[int, set[tuple[Any, ...]]] = {_storage(tensor): set() for tensor in found if not tensor.numel()}
    for tensor in found if forms else ():
        if (storage := _storage(tensor)) in forms:
            forms[storage].add((tensor.storage_offset(), *_form(tensor)))
    return {storage for storage, kinds in forms.items() if len(kinds) == 1}


def _dense(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not _tensor_problem(value, ""):
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _dense(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _dense(each)


def _storage(tensor: torch.Tensor) -> int:
    """Which memory it lies in: a number that no other memory has while the tensor lives, also where there is none."""
    found: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - the address of empty storages is 0
    return found


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def _tensor_problem(tensor: torch.Tensor, path: str) -> str:
    if not path.isascii() and any("\ud800" <= c <= "\udfff" for c in path):
        return "named by text that is not Unicode; rename its key"
    if tensor.is_meta:
        return "a tensor on the meta device, which has no values; give it storage first"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"a tensor of layout {tensor.layout}, quantized={tensor.is_quantized}; convert it to a dense one"
    if hasattr(tensor, "to_local"):
        return "a DTensor; give its full_tensor(), or leave it out of the managed state"
    return ""


def _build(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_build(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return _tensor(node["$tensor"], tensors)
    if "$tuple" in node:
        return tuple(_build(v, tensors) for v in node["$tuple"])
    if "$items" in node:
        return {k: _build(v, tensors) for k, v in node["$items"]}
    return {k: _build(v, tensors) for k, v in node.items()}


def _tensor(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"the state names tensor {name!r}, which is not there; {len(tensors)} others are")
    return tensors[name]
