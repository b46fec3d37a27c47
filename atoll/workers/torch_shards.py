"""The state of a sharded model as named local tensors with their places in the whole, and back.

`local_state` takes DTensors apart: of each, this rank's part and a `Spec` that says where it lies. What is no DTensor is
the same on all ranks. `joined` makes DTensors again on a mesh. Names are those of `checkpoint.torch_state.flatten`, so
that an unsharded state of the same model has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from atoll.checkpoint.boxes import Box, chunk
from atoll.checkpoint.torch_state import Flat, flatten
from atoll.errors import InternalError, StateError


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of the state: its type, its whole shape, and the dimension along which it is sharded (None: it is not)."""

    dtype: str
    shape: tuple[int, ...]
    dim: int | None = None

    def box(self, size: int, index: int) -> Box:
        """What the holder of shard `index` of `size` has of it."""
        return chunk(self.shape, self.dim, size, index)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its type."""
        found: Any = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            raise InternalError(f"a peer told of a tensor of unknown type {self.dtype!r}")
        return found


@dataclass(frozen=True, slots=True)
class Shards:
    """This rank's part of the state: `flat` holds local tensors, `specs` says what they are parts of."""

    flat: Flat
    specs: dict[str, Spec]

    @property
    def tag(self) -> str:
        """16 hex digits over names, types and whole shapes: alike on all ranks that train one model."""
        return tag_of(self.specs)


def tag_of(specs: Mapping[str, Spec]) -> str:
    """As `Shards.tag`."""
    lines = sorted(f"{name}|{s.dtype}|{s.shape}|{s.dim}" for name, s in specs.items())
    return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())


def local_state(state: Mapping[str, Any], mesh: DeviceMesh) -> Shards:
    """The state without DTensors. Raises `StateError` for a DTensor that is not sharded over `mesh` along one dimension."""
    found: dict[str, Spec] = {}
    flat = flatten(_taken_apart(state, "", mesh, found))
    specs = {name: found.get(name) or Spec(_name(t), tuple(t.shape)) for name, t in flat.tensors.items()}
    return Shards(flat, specs)


def joined(tensors: Mapping[str, torch.Tensor], specs: Mapping[str, Spec], mesh: DeviceMesh) -> dict[str, torch.Tensor]:
    """Local tensors as what the model and its optimizer hold: DTensors where they are parts."""
    return {name: _joined(tensor, specs[name], mesh) for name, tensor in tensors.items()}


def _joined(tensor: torch.Tensor, spec: Spec, mesh: DeviceMesh) -> torch.Tensor:
    if spec.dim is None:
        return tensor
    shape = torch.Size(spec.shape)
    stride = torch.empty(shape, device="meta").stride()
    whole: torch.Tensor = DTensor.from_local(
        tensor, mesh, [Shard(spec.dim)], run_check=False, shape=shape, stride=stride
    )
    return whole


def _taken_apart(value: Any, path: str, mesh: DeviceMesh, found: dict[str, Spec]) -> Any:
    """Paths are built as `flatten` builds them."""
    if isinstance(value, DTensor):
        return _local(value, path, mesh, found)
    if isinstance(value, Mapping):
        return {k: _taken_apart(v, f"{path}.{k}" if path else str(k), mesh, found) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_taken_apart(v, f"{path}.{i}", mesh, found) for i, v in enumerate(value))
    return value


def _local(value: DTensor, path: str, mesh: DeviceMesh, found: dict[str, Spec]) -> torch.Tensor:
    [*placements] = value.placements
    if value.device_mesh is not mesh and value.device_mesh != mesh:
        raise StateError(f"{path} lies on another mesh than the one that build was given; use that mesh for all shards")
    if len(placements) != 1 or not isinstance(placements[0], Shard | Replicate):
        raise StateError(
            f"{path} is placed as {tuple(placements)}; ctx.manage(build) takes fully_shard over the mesh that it hands to "
            "build, and no further splitting"
        )
    one = placements[0]
    found[path] = Spec(_name(value), tuple(value.shape), one.dim if isinstance(one, Shard) else None)
    local = value.to_local()
    return local if isinstance(local, torch.Tensor) else torch.as_tensor(local)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
