"""Atoll's steps for `torch.distributed.checkpoint`: its `load` and `save` work unchanged with these.

    dcp.load(state, storage_reader=StorageReader("checkpoints/step-00000100"))
    dcp.save(state, storage_writer=StorageWriter("checkpoints/step-00000100"))

The reader shows every tensor as one piece, so DCP's planner asks for just the boxes that each rank needs, whatever the
step was written by, and each is read out of the extents, block by block verified. The writer has each rank write a pack
of its own; what they wrote comes together where DCP gathers results, and there the step is judged and committed as any.

DCP hands values that are no tensors over as pickles. Nothing of that kind is stored: the writer reads them with torch's
restricted loader and keeps them as JSON in the tree, and the reader makes the pickle that DCP expects out of that.
"""

from __future__ import annotations

import io
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import planner as plans
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_stream import Heading, Part, commit_parts, free_step, write_part
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import run_tag
from atoll.checkpoint.torch_state import Flat, bytes_of, flatten, unflatten
from atoll.checkpoint.torch_steps import Step, find, open_step
from atoll.checkpoint.trees import Path as TreePath
from atoll.checkpoint.trees import entries, grown
from atoll.clock import Clock, SystemClock
from atoll.errors import CheckpointError, StateError

__all__ = ["StorageReader", "StorageWriter"]

_STEP = re.compile(r"step-(\d+)")
_EXPORT = "written through torch.distributed.checkpoint; export makes the file of weights"


class StorageReader(storage.StorageReader):
    """Reads `path`, a step or the newest of a folder of steps. Any rank may ask for any boxes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Read `checkpoint_id` from here on."""
        if checkpoint_id is not None:
            self._path = Path(checkpoint_id)

    @property
    def checkpoint_id(self) -> str:
        """What is read."""
        return str(self._path)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The step as DCP sees it: one piece for each tensor, and each value. Raises `CheckpointError`."""
        store, number = find(self._path)
        self._path = store.step_directory(number)  # a newer one that comes meanwhile is not mixed in
        with open_step(self._path) as step:
            return metadata_of(step)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:  # noqa: FBT001 - DCP's
        """Nothing has to be known of the others."""

    def prepare_local_plan(self, plan: plans.LoadPlan) -> plans.LoadPlan:
        """As it is, with the step that it is for."""
        return replace(plan, storage_data=self._path.name)

    def prepare_global_plan(self, plans: list[plans.LoadPlan]) -> list[plans.LoadPlan]:
        """As they are. Raises `CheckpointError` where a step came in between, and ranks would read different ones."""
        found = sorted({str(plan.storage_data) for plan in plans})
        if len(found) > 1:
            raise CheckpointError(f"ranks found {' and '.join(found)} as the newest: load again, or give a step's path")
        return plans

    def read_data(self, plan: plans.LoadPlan, planner: plans.LoadPlanner) -> Future[None]:
        """Fill what `plan` asks for. Raises `CheckpointError`; what was filled then is not to be used."""
        with open_step(self._path) as step:
            places = entries(step.tree)
            tensors = [item for item in plan.items if item.type is not plans.LoadItemType.BYTE_IO]
            for item in plan.items:
                if item.type is plans.LoadItemType.BYTE_IO:
                    planner.load_bytes(item, _pickled(places[item.storage_index.fqn].node))
            _fill(step, {name: e.tensor for name, e in places.items() if e.tensor is not None}, tensors, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a step: a path on this machine."""
        return "://" not in os.fspath(checkpoint_id)


class StorageWriter(storage.StorageWriter):
    """Writes step `path` (`.../step-NUMBER`) in the name of `run`. All ranks have to see its folder."""

    def __init__(self, path: str | os.PathLike[str], *, run: str = "dcp", clock: Clock | None = None) -> None:
        self._path, self._run, self._clock = Path(path), run, clock or SystemClock()
        self._rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Write `checkpoint_id` from here on."""
        if checkpoint_id is not None:
            self._path = Path(checkpoint_id)

    @property
    def checkpoint_id(self) -> str:
        """What is written."""
        return str(self._path)

    def storage_meta(self) -> StorageMeta:
        """The step's path."""
        return StorageMeta(checkpoint_id=str(self._path))

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002, FBT001 - DCP's
        """Raises `CheckpointError` for a path that names no step, or one that is committed."""
        self._rank = int(kwargs.get("rank", dist.get_rank() if dist.is_initialized() else 0))
        store, step = self._target()
        free_step(store, step)

    def prepare_local_plan(self, plan: plans.SavePlan) -> plans.SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[plans.SavePlan]) -> list[plans.SavePlan]:
        """As they are: every rank writes what DCP's planner left it."""
        return plans

    def write_data(self, plan: plans.SavePlan, planner: plans.SavePlanner) -> Future[list[storage.WriteResult]]:
        """Write this rank's pack; the last result is what `finish` needs of it."""
        store, step = self._target()
        told = _told_by(plan, planner)
        # A name that no other try has: what one left behind is never taken for another's.
        stem = f"dcp-r{self._rank}-{run_tag(self._run)}-{uuid.uuid4().hex[:12]}"

        def fetch(logical: Logical, box: Box) -> memoryview:
            return bytes_of(_resolved(planner, told.pieces[logical.name, box]))

        pieces = [(told.logicals[name], box) for name, box in told.pieces]
        pieces += [(one, Box((0,) * len(one.shape), one.shape)) for one in told.logicals.values() if not one.count]
        part = write_part(store.step_directory(step), stem, pieces, fetch, rank=self._rank)
        results = [storage.WriteResult(index=item.index, size_in_bytes=0, storage_data=None) for item in plan.items]
        ours = storage.WriteResult(
            index=MetadataIndex(""),
            size_in_bytes=sum(s.bytes for s in part.segments),
            storage_data=_Told(part=part, values=told.values),
        )
        done: Future[list[storage.WriteResult]] = Future()
        done.set_result([*results, ours])
        return done

    def finish(self, metadata: Metadata, results: list[list[storage.WriteResult]]) -> None:
        """On one rank, when all have written: judge and commit. Raises `CheckpointError`."""
        store, step = self._target()
        told = sorted(
            (r.storage_data for each in results for r in each if isinstance(r.storage_data, _Told)),
            key=lambda one: one.part.rank,
        )
        values = {name: node for one in told for name, node in one.values.items()}
        paths: Mapping[str, TreePath] = metadata.planner_data or {}
        nodes = {
            name: values[name] if isinstance(found, BytesStorageMetadata) else {"$tensor": name}
            for name, found in metadata.state_dict_metadata.items()
        }
        tree = grown((tuple(paths.get(name, (name,))), node) for name, node in nodes.items())
        commit_parts(
            store,
            [replace(one.part, rank=at) for at, one in enumerate(told)],
            tree,
            Heading(run=self._run, step=step, now=self._clock.now(), export=_EXPORT),
        )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it names a step."""
        return _STEP.fullmatch(Path(checkpoint_id).name) is not None

    def _target(self) -> tuple[Store, int]:
        named = _STEP.fullmatch(self._path.name)
        if named is None:
            raise CheckpointError(f"{self._path} names no step; give a path that ends in step-NUMBER")
        return Store(self._path.absolute().parent), int(named[1])


# -- reading -----------------------------------------------------------------------------------------------------------


def metadata_of(step: Step) -> Metadata:
    """What a step holds, in DCP's words."""
    found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    paths: dict[str, TreePath] = {}
    for name, entry in entries(step.tree).items():
        paths[name] = entry.path
        found[name] = BytesStorageMetadata() if entry.tensor is None else _as_stored(step.logicals[entry.tensor])
    for name, logical in step.logicals.items():  # parts of fused ones have no place of their own in the tree
        if name not in found:
            found[name], paths[name] = _as_stored(logical), (name,)
    return Metadata(state_dict_metadata=found, planner_data=paths, storage_data={}, storage_meta=StorageMeta())


def _as_stored(logical: Logical) -> TensorStorageMetadata:
    size = torch.Size(logical.shape)
    piece = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=getattr(torch, logical.dtype)), size=size, chunks=[piece]
    )


def _fill(step: Step, tensors: Mapping[str, str], items: Sequence[plans.ReadItem], planner: plans.LoadPlanner) -> None:
    """Each box once, however often it is asked for."""
    wanted: dict[tuple[str, Box], list[tuple[plans.ReadItem, torch.Tensor]]] = {}
    for item in items:
        start = tuple(item.storage_offsets)
        box = Box(start, tuple(a + n for a, n in zip(start, item.lengths, strict=True)))
        name = tensors.get(item.storage_index.fqn, item.storage_index.fqn)
        wanted.setdefault((name, box), []).append((item, planner.resolve_tensor(item).detach()))
    into = {key: _landing(step.logicals[key[0]], found[0][1]) for key, found in wanted.items()}
    step.fill(into)
    for key, found in wanted.items():
        for item, target in found:
            if target is not into[key]:
                target.copy_(into[key])
            planner.commit_tensor(item, target)


def _landing(logical: Logical, target: torch.Tensor) -> torch.Tensor:
    """The target itself where it has the stored type, else memory that is converted from."""
    dtype = getattr(torch, logical.dtype)
    return target if target.dtype == dtype else torch.empty(target.shape, dtype=dtype, device=target.device)


def _pickled(node: Any) -> io.BytesIO:
    data = io.BytesIO()
    torch.save(unflatten(Flat(tensors={}, meta={"value": node}))["value"], data)
    data.seek(0)
    return data


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What one rank wrote, and the values it was left to keep."""

    part: Part
    values: dict[str, Any]


@dataclass(slots=True)
class _Plan:
    logicals: dict[str, Logical] = field(default_factory=dict)
    pieces: dict[tuple[str, Box], plans.WriteItem] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def _told_by(plan: plans.SavePlan, planner: plans.SavePlanner) -> _Plan:
    found = _Plan()
    for item in plan.items:
        name, data = item.index.fqn, item.tensor_data
        if data is None:
            found.values[name] = plain_value(name, planner.resolve_data(item))
            continue
        logical = Logical(name, str(data.properties.dtype).removeprefix("torch."), tuple(data.size))
        start = tuple(data.chunk.offsets)
        box = Box(start, tuple(a + n for a, n in zip(start, data.chunk.sizes, strict=True)))
        found.logicals[name] = logical
        if box.count:
            found.pieces[name, box] = item
    return found


def _resolved(planner: plans.SavePlanner, item: plans.WriteItem) -> torch.Tensor:
    data = planner.resolve_data(item)
    if not isinstance(data, torch.Tensor):
        raise CheckpointError(f"{item.index.fqn} was planned as a tensor and came as {type(data).__name__}")
    return data


def plain_value(name: str, data: Any) -> Any:
    """A value that DCP pickled, as a node of the tree. Raises `StateError` naming what no checkpoint holds."""
    try:
        if isinstance(data, io.BytesIO):
            data.seek(0)
        value = torch.load(data, weights_only=True) if isinstance(data, io.BytesIO) else data
    except Exception as error:  # noqa: BLE001 - whatever a pickle makes torch's loader say
        raise StateError(f"{name!r} is no plain value: {error}") from None
    flat = flatten({name: value})
    if flat.tensors:
        raise StateError(
            f"{name!r} is a {type(value).__name__} that holds tensors; DCP sees tensors in lists and dicts only"
        )
    found = dict(flat.meta.get("$items", ())) if "$items" in flat.meta else flat.meta
    return found[name]
