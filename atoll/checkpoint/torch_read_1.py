"""Reading a pack of format 1: in order, once, each block compared with its checksum as its last byte passes.

`read_pack` fills the tensors straight from the file and gives them out only when the whole pack verified, so that a
flipped bit never reaches a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from atoll.checkpoint.format1 import PackRecord
from atoll.checkpoint.fs_check_1 import compare, read_into, size_problem
from atoll.checkpoint.fs_pack import DTYPES
from atoll.checkpoint.image import LENGTH_BYTES
from atoll.errors import CheckpointError


def read_pack(path: Path, record: PackRecord) -> dict[str, torch.Tensor]:
    """The tensors of a pack. Raises `CheckpointError` for the first block that does not verify."""
    problem = size_problem(path, record)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    try:
        with path.open("rb", buffering=0) as file:
            length = int.from_bytes(_verified_prefix(file, path, record, LENGTH_BYTES)[:LENGTH_BYTES], "little")
            start = LENGTH_BYTES + length
            prefix = _verified_prefix(file, path, record, start)
            header: dict[str, Any] = json.loads(prefix[LENGTH_BYTES:start])
            header.pop("__metadata__", None)
            return _fill(file, path, record, header, start)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _verified_prefix(file: BinaryIO, path: Path, record: PackRecord, length: int) -> bytes:
    """At least the first `length` bytes, as whole verified blocks."""
    file.seek(0)
    blocks = -(-length // record.block_bytes)
    data = bytearray(min(blocks * record.block_bytes, record.bytes))
    _Checked(file, path, record).into(memoryview(data))
    return bytes(data)


def _fill(
    file: BinaryIO, path: Path, record: PackRecord, header: dict[str, Any], start: int
) -> dict[str, torch.Tensor]:
    file.seek(0)
    checked = _Checked(file, path, record)
    checked.into(memoryview(bytearray(start)))
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        if tensor.numel():
            checked.into(tensor.reshape(-1).view(torch.uint8).numpy().data)
        tensors[name] = tensor
    return tensors


class _Checked:
    """A pack read from its beginning. Raises `CheckpointError` at the end of a block that does not verify."""

    def __init__(self, file: BinaryIO, path: Path, record: PackRecord) -> None:
        self._file, self._path, self._record = file, path, record
        self._at = 0
        self._hash = xxhash.xxh3_64()

    def into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes."""
        done = 0
        while done < len(target):
            block_end = min((self._at // self._record.block_bytes + 1) * self._record.block_bytes, self._record.bytes)
            piece = target[done : done + block_end - self._at]
            read_into(self._file, piece)
            self._hash.update(piece)
            self._at += len(piece)
            done += len(piece)
            if self._at == block_end:
                self._end_block()

    def _end_block(self) -> None:
        index = (self._at - 1) // self._record.block_bytes
        finding = compare(self._record, index, self._hash.hexdigest())
        if finding:
            raise CheckpointError(f"{self._path}: {finding.line()}")
        self._hash = xxhash.xxh3_64()
