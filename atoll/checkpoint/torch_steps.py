"""A committed step opened for those who read it as tensors and boxes, whatever its format, while nobody may delete it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atoll.checkpoint import format1
from atoll.checkpoint.boxes import whole
from atoll.checkpoint.fs_files import reading
from atoll.checkpoint.fs_inspect import locate
from atoll.checkpoint.fs_pack import logical_of
from atoll.checkpoint.fs_read import Reading, opened
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.torch_read import Targets, read_into, read_state_1
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError

AnyRecord = CommitRecord | format1.CommitRecord


@dataclass(slots=True)
class Step:
    """One step. Of format 1 all of it is read at once, since its packs are only verified as a whole."""

    directory: Path
    record: AnyRecord
    _reading: Reading | None = None
    _flat: Flat | None = None
    _logicals: Mapping[str, Logical] | None = None

    @property
    def tree(self) -> dict[str, Any]:
        """The state without its tensors."""
        return self.record.tree

    @property
    def logicals(self) -> Mapping[str, Logical]:
        """All tensors, by name."""
        if self._logicals is None:
            self._logicals = self._found(self.record)
        return self._logicals

    def _found(self, record: AnyRecord) -> Mapping[str, Logical]:
        if isinstance(record, CommitRecord):
            return {one.name: one.logical for one in record.tensors}
        return {name: logical_of(name, tensor) for name, tensor in self._whole(record).tensors.items()}

    def fill(self, targets: Targets) -> None:
        """Each target gets its box, verified. Raises `CheckpointError`."""
        if isinstance(self.record, CommitRecord):
            if self._reading is None:
                self._reading = opened(self.directory, self.record)
            read_into(self._reading, targets)
            return
        for (name, box), target in targets.items():
            held = self._whole(self.record).tensors[name]
            target.copy_(held[box.within(whole(tuple(held.shape)))])

    def tensor(self, logical: Logical) -> torch.Tensor:
        """All of one tensor. Raises `CheckpointError`."""
        found = torch.empty(logical.shape, dtype=getattr(torch, logical.dtype))
        self.fill({(logical.name, whole(logical.shape)): found})
        return found

    def _whole(self, record: format1.CommitRecord) -> Flat:
        if self._flat is None:
            self._flat = read_state_1(self.directory, record)
        return self._flat


def find(path: Path) -> tuple[Store, int]:
    """The step that `path` names, or the newest in the folder that it names. Raises `NotFoundError`, `CheckpointError`."""
    store, only = locate(path)
    if only is None:
        there = store.committed_steps()
        if not there:
            raise CheckpointError(f"no committed checkpoint in {store.directory}; give a folder that holds one")
        only = there[-1]
    return store, only


@contextmanager
def open_step(path: Path) -> Iterator[Step]:
    """The step at `path`; nobody deletes it before the end of the block. Raises `NotFoundError`, `CheckpointError`."""
    store, number = find(path)
    record = store.record(number)
    directory = store.step_directory(number)
    try:
        with reading(directory / COMMIT):
            yield Step(directory, record)
    except OSError as error:
        raise CheckpointError(f"step {number}: {error}") from None
