"""A directory that `torch.distributed.checkpoint` wrote, read without trusting it.

DCP keeps what it knows of a checkpoint in a pickle, and a pickle can run anything. Here it may name what DCP itself writes
there and nothing else, and it gets stand-ins that hold fields; DCP's own objects are made of these, field by field. Tensors are read by torch's own reader, which loads them with
`weights_only`, and so are values, which torch's own planner would not.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - a machine that knows stand-ins of DCP's own data classes and nothing else
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.logical import ITEMSIZES, Logical
from atoll.errors import CheckpointError

_DESCRIPTION = ".metadata"


# DCP's own classes, each of which is written as an object with fields.
_CLASSES = (
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    "_StorageInfo",
)
_ENCODINGS = frozenset(metadata._MEM_FORMAT_ENCODING.__members__)  # noqa: SLF001 - by the name under which it is written


class _Plain(pickle.Unpickler):
    """Objects with fields in the place of DCP's own. Made anew for each file.

    A pickle can set fields of whatever it names, also of a class, for the whole process; so nothing that it can name is
    used anywhere else.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.held = {name: type(name, (), {"__setstate__": _set}) for name in _CLASSES}
        encoding = type("_MEM_FORMAT_ENCODING", (), {"__init__": lambda *_: None})

        def member(of: object, name: object) -> None:
            if of is not encoding or name not in _ENCODINGS:
                raise pickle.UnpicklingError(f"it asks {of!r} for {name!r}, which DCP does not write there")

        self._plain: dict[tuple[str, str], Any] = {
            **{(metadata.__name__, name): self.held[name] for name in _CLASSES if name != "_StorageInfo"},
            (filesystem.__name__, "_StorageInfo"): self.held["_StorageInfo"],
            (metadata.__name__, "_MEM_FORMAT_ENCODING"): encoding,
            # How Python before 3.11.4 writes a member of an enumeration.
            ("builtins", "getattr"): member,
            ("torch.serialization", "_get_layout"): lambda _: None,
            # Where it once lay.
            **{
                ("pathlib", name): lambda *parts: "/".join(parts)
                for name in ("PosixPath", "PurePosixPath", "WindowsPath")
            },
            # Classes and values of C, of which nothing can be set.
            ("torch", "Size"): tuple,
            ("collections", "OrderedDict"): dict,
            **{("torch", name): getattr(torch, name) for name in ITEMSIZES if hasattr(torch, name)},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Raises `UnpicklingError` for all else."""
        try:
            return self._plain[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which DCP does not write there") from None


def _set(self: Any, state: Any) -> None:
    """Fields as an object has them, or, of `TensorProperties`, in their order."""
    fields = dict(zip(("dtype",), state, strict=False)) if isinstance(state, tuple) else state
    self.__dict__["fields"] = dict(fields)


def _described(data: bytes) -> Metadata:
    """DCP's own objects with what a pickle says of them, each field of its own type."""
    reader = _Plain(data)
    held = reader.held

    def fields(found: Any, name: str) -> dict[str, Any]:
        given: dict[str, Any] = _is(found, held[name]).__dict__["fields"]
        return given

    def entry(found: Any) -> TensorStorageMetadata | BytesStorageMetadata:
        if type(found) is held["BytesStorageMetadata"]:
            return BytesStorageMetadata()
        one = fields(found, "TensorStorageMetadata")
        dtype = _is(fields(one["properties"], "TensorProperties")["dtype"], torch.dtype)
        size = _numbers(one["size"])
        chunks = [chunk(fields(each, "ChunkStorageMetadata"), size) for each in _is(one["chunks"], list)]
        return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=size, chunks=chunks)

    def chunk(one: dict[str, Any], size: torch.Size) -> ChunkStorageMetadata:
        offsets, sizes = _numbers(one["offsets"]), _numbers(one["sizes"])
        if any(at + n > most for at, n, most in zip(offsets, sizes, size, strict=True)):
            raise ValueError(f"a piece of {list(sizes)} at {list(offsets)} reaches out of its tensor of {list(size)}")
        return ChunkStorageMetadata(offsets=offsets, sizes=sizes)

    def index(found: Any) -> MetadataIndex:
        one = fields(found, "MetadataIndex")
        offset, at = one.get("offset"), one.get("index")
        at = _is(at, int) if at is not None else None
        return MetadataIndex(_is(one["fqn"], str), _numbers(offset) if offset is not None else None, at)

    def lies(found: Any) -> filesystem._StorageInfo:
        one = fields(found, "_StorageInfo")
        given = {
            name: _is(one[name], kind) for name, kind in (("relative_path", str), ("offset", int), ("length", int))
        }
        if one.get("transform_descriptors"):
            given["transform_descriptors"] = [_is(each, str) for each in one["transform_descriptors"]]
        return filesystem._StorageInfo(**given)  # noqa: SLF001 - as it is written

    top = fields(reader.load(), "Metadata")
    paths = {
        _is(n, str): tuple(_is(k, str | int) for k in _is(p, tuple)) for n, p in (top["planner_data"] or {}).items()
    }
    return Metadata(
        state_dict_metadata={_is(name, str): entry(one) for name, one in _is(top["state_dict_metadata"], dict).items()},
        planner_data=paths,
        storage_data={index(at): lies(one) for at, one in _is(top["storage_data"], dict).items()},
        storage_meta=StorageMeta(),
    )


def _is(found: Any, kind: Any) -> Any:
    if not isinstance(found, kind) or isinstance(found, bool):
        raise TypeError(f"it has {found!r:.80} where DCP writes {getattr(kind, '__name__', kind)}")
    return found


def _numbers(found: Any) -> torch.Size:
    if any(_is(n, int) < 0 for n in _is(found, tuple)):
        raise ValueError(f"it has a size or place {found!r:.80}")
    return torch.Size(found)


class DcpFiles(FileSystemReader):
    """One directory. Raises `CheckpointError` where it is none, or wants to be trusted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.directory = path
        self.metadata = self.read_metadata()
        self.set_up_storage_reader(self.metadata, is_coordinator=True)
        for info in self.storage_data.values():
            name = PurePosixPath(info.relative_path)
            if name.is_absolute() or ".." in name.parts:
                raise CheckpointError(f"{path} keeps data in {name}, outside of itself")

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The directory's description."""
        path = self.directory / _DESCRIPTION
        try:
            return _described(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; give a directory that DCP wrote") from None
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path} is not read: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever bytes make a pickle machine say
            raise CheckpointError(f"{path} describes no checkpoint: {error!r:.200}") from None

    def tensors(self) -> Iterator[tuple[Logical, Box]]:
        """The pieces of all tensors; one without elements has an empty one."""
        for name, one in self.metadata.state_dict_metadata.items():
            if isinstance(one, TensorStorageMetadata):
                logical = Logical(name, str(one.properties.dtype).removeprefix("torch."), tuple(one.size))
                for piece in one.chunks:
                    start = tuple(piece.offsets)
                    yield logical, Box(start, tuple(a + n for a, n in zip(start, piece.sizes, strict=True)))

    def values(self) -> Iterator[tuple[str, io.BytesIO]]:
        """What is no tensor, as torch saved it."""
        for name, one in self.metadata.state_dict_metadata.items():
            if not isinstance(one, TensorStorageMetadata):
                index, landing = MetadataIndex(name), _Landing()
                none = torch.Size([])
                self._read(ReadItem(LoadItemType.BYTE_IO, index, none, index, none, none), landing)
                yield name, landing.value

    def piece(self, logical: Logical, box: Box) -> torch.Tensor:
        """The values of one piece."""
        landing = _Landing(torch.empty(box.shape, dtype=getattr(torch, logical.dtype)))
        index, none = MetadataIndex(logical.name, box.start), torch.Size([0] * len(box.start))
        self._read(ReadItem(LoadItemType.TENSOR, index, none, index, none, torch.Size(box.shape)), landing)
        return landing.tensor

    def _read(self, item: ReadItem, landing: _Landing) -> None:
        try:
            self.read_data(LoadPlan([item]), landing).wait()
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes torch say
            raise CheckpointError(f"{self.directory}: {item.storage_index.fqn!r} cannot be read: {error}") from None


class _Landing(LoadPlanner):
    """Takes one item."""

    def __init__(self, tensor: torch.Tensor | None = None) -> None:
        self.tensor = torch.empty(0) if tensor is None else tensor
        self.value = io.BytesIO()

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        """Nothing to plan."""

    def create_local_plan(self) -> LoadPlan:
        """Nothing to plan."""
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to plan."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Nothing to plan."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:  # noqa: ARG002 - DCP's signature
        """Kept as it is."""
        self.value = value

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:  # noqa: ARG002 - likewise
        """Where the values go."""
        return self.tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """They are there."""
