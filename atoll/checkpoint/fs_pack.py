"""A pack: one safetensors file, laid out in a slab of memory and written as it lies there.

The slab's layout is the file image, so staging a tensor is one copy, and writing and checksums read straight on.
Stock `safetensors` opens the file.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from atoll.checkpoint.manifest import BLOCK_BYTES
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
DTYPES = {name: dtype for dtype, name in _NAMES.items()}
LENGTH_BYTES = 8
_PAGE = mmap.PAGESIZE


class Slab:
    """Reusable page-aligned memory that holds one pack's file image."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self.length = 0

    def lay_out(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the header for `tensors`; the places of their bytes are fixed from here on."""
        header, size = _header(tensors)
        text = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)
        start = LENGTH_BYTES + len(text)
        self._places = {n: (start + e["data_offsets"][0], start + e["data_offsets"][1]) for n, e in header.items()}
        self.length = start + size
        memory = self._reserve(self.length)
        memory[:LENGTH_BYTES] = len(text).to_bytes(LENGTH_BYTES, "little")
        memory[LENGTH_BYTES:start] = text

    def stage(self, name: str, tensor: torch.Tensor) -> None:
        """Copy one tensor's elements into its place."""
        start, end = self._places[name]
        if start == end:
            return
        place = torch.frombuffer(self._reserve(self.length), dtype=torch.uint8, count=end - start, offset=start)
        # copy_ releases the GIL and gathers strided tensors in one pass.
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())

    def tensor(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The place of one tensor, as a tensor of the type and shape of `like` over this memory."""
        start, end = self._places[name]
        if start == end:
            return torch.empty_like(like, device="cpu")
        place = torch.frombuffer(self._reserve(self.length), dtype=torch.uint8, count=end - start, offset=start)
        return place.view(like.dtype).view(like.shape)

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


def _header(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
    """The safetensors entries, and the bytes of all tensors."""
    header: dict[str, Any] = {}
    offset = 0
    # Wide types first, so that every tensor starts at a multiple of its element size.
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):
        end = offset + size_of(tensors[name])
        header[name] = {
            "dtype": _dtype_name(name, tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return header, offset


def checksums(data: memoryview | bytes | bytearray) -> tuple[str, ...]:
    """xxh3_64 (hex) of each block of `BLOCK_BYTES`."""
    whole = memoryview(data)
    return tuple(
        xxhash.xxh3_64_hexdigest(whole[at : at + BLOCK_BYTES]) for at in range(0, max(1, len(whole)), BLOCK_BYTES)
    )


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    if tensor.dtype not in _NAMES:
        raise CheckpointError(f"tensor {name!r} has type {tensor.dtype}, which safetensors cannot hold; convert it")
    return _NAMES[tensor.dtype]
