"""A pack: one safetensors file, laid out in a slab of memory and written as it lies there.

The slab's layout is the file image, so staging a tensor is one copy, and writing and checksums read straight on.
Stock `safetensors` opens the file.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from atoll.checkpoint.manifest import BLOCK_BYTES, PackRecord
from atoll.checkpoint.torch_state import size_of
from atoll.errors import CheckpointError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_LENGTH_BYTES = 8
_PAGE = mmap.PAGESIZE


class Slab:
    """Reusable page-aligned memory that holds one pack's file image."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self.length = 0

    def lay_out(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the header for `tensors`; the places of their bytes are fixed from here on."""
        # Wide types first, so that every tensor starts at a multiple of its element size.
        names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset, places = 0, {}
        for name in names:
            size = size_of(tensors[name])
            header[name] = {
                "dtype": _dtype_name(name, tensors[name]),
                "shape": list(tensors[name].shape),
                "data_offsets": [offset, offset + size],
            }
            places[name] = (offset, offset + size)
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH_BYTES)
        start = _LENGTH_BYTES + len(text)
        self._places = {name: (start + a, start + b) for name, (a, b) in places.items()}
        self.length = start + offset
        memory = self._reserve(self.length)
        memory[:_LENGTH_BYTES] = len(text).to_bytes(_LENGTH_BYTES, "little")
        memory[_LENGTH_BYTES:start] = text

    def stage(self, name: str, tensor: torch.Tensor) -> None:
        """Copy one tensor's elements into its place."""
        start, end = self._places[name]
        if start == end:
            return
        place = torch.frombuffer(self._reserve(self.length), dtype=torch.uint8, count=end - start, offset=start)
        # copy_ releases the GIL and gathers strided tensors in one pass.
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())

    def view(self) -> memoryview:
        """All of the memory, at least `length` bytes rounded up to pages."""
        return memoryview(self._reserve(self.length))

    def blocks(self) -> tuple[str, ...]:
        """Checksums of the file image."""
        return checksums(self.view()[: self.length])

    def _reserve(self, length: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < length:
            self._memory = mmap.mmap(-1, max(_PAGE, -(-length // _PAGE) * _PAGE))
        return self._memory


def checksums(data: memoryview | bytes | bytearray) -> tuple[str, ...]:
    """xxh3_64 (hex) of each block of `BLOCK_BYTES`."""
    whole = memoryview(data)
    return tuple(
        xxhash.xxh3_64_hexdigest(whole[at : at + BLOCK_BYTES]) for at in range(0, max(1, len(whole)), BLOCK_BYTES)
    )


def pack_problems(path: Path, record: PackRecord) -> list[str]:
    """What is wrong with a pack's bytes, a line each; empty where all blocks read as they were written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return [f"{path}: {error.strerror or error}"]
    return _problems(path, record, data)


def read_pack(path: Path, record: PackRecord) -> dict[str, torch.Tensor]:
    """The tensors of a pack. Raises `CheckpointError` for the first block that does not verify."""
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    problems = _problems(path, record, data)
    if problems:
        raise CheckpointError(problems[0])
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(bytes(data[_LENGTH_BYTES:start]))
    header.pop("__metadata__", None)
    return {name: _tensor(data, start, entry) for name, entry in header.items()}


def _problems(path: Path, record: PackRecord, data: bytes | bytearray) -> list[str]:
    if len(data) != record.bytes:
        return [f"{path}: {len(data)} bytes, {record.bytes} were written"]
    found = checksums(data)
    return [
        f"{path}: block {i} (bytes {i * BLOCK_BYTES} to {min((i + 1) * BLOCK_BYTES, len(data))}) has checksum {now}, "
        f"{then} was written"
        for i, (now, then) in enumerate(zip(found, record.blocks, strict=True))
        if now != then
    ]


def _tensor(data: bytearray, start: int, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=start + begin)
    return flat.clone().view(dtype).view(entry["shape"])


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    if tensor.dtype not in _NAMES:
        raise CheckpointError(f"tensor {name!r} has type {tensor.dtype}, which safetensors cannot hold; convert it")
    return _NAMES[tensor.dtype]
