"""A committed step as tensors: whole ones, or any boxes, each block read once and verified."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from atoll.checkpoint import format1
from atoll.checkpoint.boxes import Box, whole
from atoll.checkpoint.fs_read import Block, Reading, Wanted, opened
from atoll.checkpoint.manifest import CommitRecord
from atoll.checkpoint.torch_read_1 import read_pack
from atoll.checkpoint.torch_state import Flat

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SIGNED = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}

# Takes out of a step that is open what it is wanted for. Raises `CheckpointError` where that is not whole.
Take = Callable[[Reading], Flat]
# A box of a tensor, and the tensor (of its shape, strided as it likes) that is to hold it.
Targets = Mapping[tuple[str, Box], torch.Tensor]


def read_state(directory: Path, record: CommitRecord) -> Flat:
    """All of a step. Raises `CheckpointError` naming tensor, rank, file and block of the first damage."""
    return read_whole(opened(directory, record))


def read_whole(reading: Reading) -> Flat:
    """As `read_state`, of a step that is open."""
    record = reading.record
    tensors = {t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in record.tensors}
    read_into(reading, {(name, whole(tensor.shape)): tensor for name, tensor in tensors.items()})
    return Flat(tensors=tensors, meta=record.tree)


def read_into(reading: Reading, targets: Targets, blocks: Iterable[Block] | None = None) -> None:
    """Fill each target with its box. Raises `CheckpointError`; what was filled then is not to be used."""
    bits = {key: _as_bits(tensor) for key, tensor in targets.items()}

    def deliver(key: Hashable, box: Box, values: np.ndarray) -> None:
        _put(bits[key], key[1], box, values)  # type: ignore[index]

    reading.read({key: Wanted(*key) for key, tensor in targets.items() if tensor.numel()}, deliver, blocks)


def fill(target: torch.Tensor, outer: Box, box: Box, values: np.ndarray) -> None:
    """Put the bits of `box` into `target`, which holds `outer`."""
    _put(_as_bits(target), outer, box, values)


def _put(target: np.ndarray | torch.Tensor, outer: Box, box: Box, values: np.ndarray) -> None:
    if isinstance(target, np.ndarray):
        target[box.within(outer)] = values.view(target.dtype)
    else:
        target[box.within(outer)] = torch.from_numpy(values.view(_SIGNED[values.itemsize]).copy())


def read_state_1(directory: Path, record: format1.CommitRecord) -> Flat:
    """All of a step of format 1. Raises `CheckpointError`."""
    tensors: dict[str, torch.Tensor] = {}
    for pack in record.packs:
        tensors |= read_pack(directory / pack.file, pack)
    return Flat(tensors=tensors, meta=record.tree)


def _as_bits(tensor: torch.Tensor) -> np.ndarray | torch.Tensor:
    """The tensor's memory as numbers of its element size: in host memory numpy's, which copies without torch's threads."""
    bits = tensor.detach().view(_BITS[tensor.element_size()])
    return bits.numpy() if bits.device.type == "cpu" else bits
