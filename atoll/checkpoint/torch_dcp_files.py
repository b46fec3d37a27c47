"""A directory that `torch.distributed.checkpoint` wrote, read without trusting it.

DCP keeps what it knows of a checkpoint in a pickle, and a pickle can run anything. Here it may name the classes that DCP
itself writes there and nothing else: all of them hold data. Tensors are read by torch's own reader, which loads them with
`weights_only`, and so are values, which torch's own planner would not.
"""

from __future__ import annotations

import enum
import io
import pickle  # noqa: TID251 - a machine that knows DCP's own data classes and nothing else
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.logical import ITEMSIZES, Logical
from atoll.errors import CheckpointError

_DESCRIPTION = ".metadata"


def _member(of: object, name: object) -> enum.Enum:
    """A member of an enumeration, and nothing else that `getattr` could reach."""
    if not (isinstance(of, enum.EnumMeta) and isinstance(name, str) and name in of.__members__):
        raise pickle.UnpicklingError(f"it asks {of!r} for {name!r}, which DCP does not write there")
    member: enum.Enum = of.__members__[name]
    return member


_PLAIN: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,  # noqa: SLF001 - by the name under which it is written
    ("torch", "Size"): torch.Size,
    # How Python before 3.11.4 writes a member of an enumeration.
    ("builtins", "getattr"): _member,
    # Looks a name up in a list of layouts.
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,  # noqa: SLF001 - likewise
    # Where it once lay; a pure path touches no file.
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib", "PurePosixPath"): PurePosixPath,
    ("pathlib", "WindowsPath"): PureWindowsPath,
    ("collections", "OrderedDict"): dict,
    **{("torch", name): getattr(torch, name) for name in ITEMSIZES if hasattr(torch, name)},
}


class _Plain(pickle.Unpickler):
    """Data of DCP's own classes."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises `UnpicklingError` for all else."""
        try:
            return _PLAIN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which DCP does not write there") from None


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
            found = _Plain(io.BytesIO(path.read_bytes())).load()
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; give a directory that DCP wrote") from None
        except Exception as error:  # noqa: BLE001 - whatever bytes make a pickle machine say
            raise CheckpointError(f"{path} is not read: {error}") from None
        if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
            raise CheckpointError(f"{path} describes no checkpoint")
        found.storage_meta = StorageMeta()
        return found

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
