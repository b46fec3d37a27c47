"""The seam to a device: streams, events, memory, copies and its collective library.

`nccl_cuda` is the real one; tests use a double that carries streams out as late as their events allow and refuses every
access that no wait puts in order. Nothing here waits: an event is asked (`query`), a stream is told (`wait_event`).
Streams and events are torch's own classes, or look like them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

# `ncclDataType_t` and `ncclRedOp_t`: numbers of NCCL's binary interface, the same in every version.
NCCL_TYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
NCCL_OPS = {"sum": 0, "max": 2, "min": 3}


class Event(Protocol):
    """A place in a stream."""

    def record(self, stream: Any) -> None:
        """Be true once all that is in the stream now is done."""

    def query(self) -> bool:
        """True once it is."""


class Stream(Protocol):
    """What the device carries out one after the other."""

    def wait_event(self, event: Any) -> None:
        """Let what comes later wait for it, on the device."""

    def query(self) -> bool:
        """True where nothing is left to do."""


class Library(Protocol):
    """The communicator of one island in one epoch. All its ranks call the same operations in the same order."""

    def reduce_scatter(self, source: torch.Tensor, target: torch.Tensor, op: str, stream: Stream) -> None:
        """`target` [n] becomes this rank's part of the `op` over `source` [ranks * n]."""

    def all_gather(self, source: torch.Tensor, target: torch.Tensor, stream: Stream) -> None:
        """`target` [ranks * n] becomes every rank's `source` [n]."""

    def all_reduce(self, source: torch.Tensor, target: torch.Tensor, op: str, stream: Stream) -> None:
        """`target` becomes the `op` over every rank's `source`."""

    def check(self) -> None:
        """Raises where the library noticed a failure on its own."""

    def abort(self) -> None:
        """End all that runs on the device, without a result; from any thread, and it may take its time."""

    def destroy(self) -> None:
        """Let go of it once nothing runs."""


class Device(Protocol):
    """One accelerator, as one rank sees it."""

    def enter(self) -> None:
        """Make it the calling thread's device."""

    def owns(self, buffer: torch.Tensor) -> bool:
        """Whether the memory is on this device."""

    def current_stream(self) -> Stream:
        """The one that the caller queues its work in."""

    def side_stream(self) -> Stream:
        """One of our own."""

    def event(self) -> Event:
        """Not recorded yet."""

    def memory(self, count: int, dtype: torch.dtype, stream: Stream) -> torch.Tensor:
        """Device memory [count] whose first and last user is `stream`."""

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Host memory [count] that the device can copy to and from by itself."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, stream: Stream) -> None:
        """In the stream's turn."""

    def unique_id(self) -> bytes:
        """A name for a new communicator, for one rank to make and all to be told."""

    def library(self, size: int, rank: int, unique_id: bytes) -> Library:
        """The communicator of that name; returns once all `size` ranks have come, and cannot be interrupted."""
