"""Memory for sums under way, kept between operations: fresh pages cost more than the sum itself.

Used by one thread. What a poisoned operation held is not given back (bytes may still be arriving in it), so it is freed
with the operation.
"""

from __future__ import annotations

from collections import defaultdict

import torch

# Keeps a few buckets of gradients; what exceeds it is freed, so that one large transfer is not held for ever.
KEPT_BYTES = 128 << 20


class Scratch:
    """A pool of flat CPU tensors."""

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
        self._kept_bytes = 0

    def take(self, count: int, dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:
        """A tensor [count] with arbitrary content; `pinned` memory is what a GPU copies to and from directly."""
        size = count * dtype.itemsize
        free = self._free[size, pinned]
        if free:
            self._kept_bytes -= size
            return free.pop().view(dtype)
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned).view(dtype)

    def give_back(self, tensor: torch.Tensor, *, pinned: bool = False) -> None:
        """`tensor` came from `take` with the same `pinned`, and nothing uses it any more."""
        size = tensor.numel() * tensor.dtype.itemsize
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept_bytes += size
            self._free[size, pinned].append(tensor.view(torch.uint8))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory [bytes] of a contiguous CPU tensor; the view keeps it alive."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return tensor.view(torch.uint8).numpy().data
