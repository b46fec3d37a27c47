"""A CUDA device with NCCL through CuPy: `cupy.cuda.nccl` on torch's memory and streams, by address.

CuPy is asked for nothing but NCCL, and only when a device is opened: this module imports without CuPy and without a GPU.
CuPy lets go of the interpreter's lock in all of NCCL's calls, so another thread can abort one that does not return.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from atoll.collectives.nccl_device import NCCL_OPS, NCCL_TYPES, Event, Library, Stream
from atoll.errors import DeviceError

_INSTALL = "install the extra: pip install 'atoll[nccl]' (cupy-cuda13x and NCCL)"
_ID_BYTES = 128
_LARGEST_CHAR = 127
# torch's pools of streams: those of high priority are rarely anyone else's, and NCCL's kernels shall not queue for a
# place behind a long computation while other ranks wait for them.
_HIGH = -1


def usable() -> str | None:
    """Why this process cannot use NCCL; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: torch.cuda.is_available() is False"
    try:
        _nccl()
    except DeviceError as error:
        return str(error)
    return None


def _nccl() -> Any:
    """`cupy.cuda.nccl`. Raises `DeviceError` that says what to install."""
    try:
        with warnings.catch_warnings():
            # CuPy warns where it finds no libnccl, and `available` says so again.
            warnings.simplefilter("ignore")
            nccl = importlib.import_module("cupy.cuda.nccl")
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported ({error}): {_INSTALL}") from error
    if not getattr(nccl, "available", False):
        raise DeviceError(f"CuPy is there and finds no NCCL library: {_INSTALL}")
    return nccl


class CudaDevice:
    """The device of one rank. Raises `DeviceError` where there is no CuPy or it has no NCCL."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise DeviceError(f"NCCL works on CUDA devices, not on {device}")
        self._nccl = _nccl()
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)

    def enter(self) -> None:
        """Make it the calling thread's device, for torch and for the driver (NCCL reads the driver's)."""
        torch.cuda.set_device(self.device)
        importlib.import_module("cupy").cuda.Device(self.device.index).use()

    def owns(self, buffer: torch.Tensor) -> bool:
        """Not on another device, nor on the host."""
        return buffer.device == self.device

    def current_stream(self) -> Stream:
        """Of the calling thread."""
        return torch.cuda.current_stream(self.device)

    def side_stream(self) -> Stream:
        """From torch's pool, so that torch's allocator knows it; never in step with the legacy default stream."""
        return torch.cuda.Stream(self.device, priority=_HIGH)  # type: ignore[no-untyped-call]

    def event(self) -> Event:
        """Without a time stamp: those cost more."""
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def memory(self, count: int, dtype: torch.dtype, stream: Any) -> torch.Tensor:
        """From torch's allocator: freed, it goes to later work of the same stream only."""
        with torch.cuda.stream(stream):
            return torch.empty(count, dtype=dtype, device=self.device)

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """From torch's allocator of page-locked memory."""
        return torch.empty(count, dtype=dtype, pin_memory=True)

    def copy(self, source: torch.Tensor, target: torch.Tensor, stream: Any) -> None:
        """Returns at once: one side is on the device, the other too or pinned."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def unique_id(self) -> bytes:
        """CuPy 14 gives bytes, CuPy 13 numbers that are signed on some processors."""
        made = self._nccl.get_unique_id()
        return made if isinstance(made, bytes) else bytes(number & 0xFF for number in made)

    def library(self, size: int, rank: int, unique_id: bytes) -> Library:
        """Waits for all ranks."""
        if len(unique_id) != _ID_BYTES:
            raise DeviceError(
                f"NCCL's names have {_ID_BYTES} bytes, this one {len(unique_id)}: is a rank without NCCL?"
            )
        return NcclLibrary(self._nccl, size, rank, unique_id)


class NcclLibrary:
    """`cupy.cuda.nccl.NcclCommunicator` on torch tensors."""

    def __init__(self, nccl: Any, size: int, rank: int, unique_id: bytes) -> None:
        self._size = size
        self._communicator = _communicator(nccl, size, rank, unique_id)

    def reduce_scatter(self, source: torch.Tensor, target: torch.Tensor, op: str, stream: Any) -> None:
        """The count is that of one part."""
        _fitting(source, target, self._size, 1)
        kind, number = NCCL_TYPES[source.dtype], NCCL_OPS[op]
        addresses = source.data_ptr(), target.data_ptr()
        self._communicator.reduceScatter(*addresses, target.numel(), kind, number, stream.cuda_stream)

    def all_gather(self, source: torch.Tensor, target: torch.Tensor, stream: Any) -> None:
        """The count is that of one part."""
        _fitting(source, target, 1, self._size)
        addresses = source.data_ptr(), target.data_ptr()
        self._communicator.allGather(*addresses, source.numel(), NCCL_TYPES[source.dtype], stream.cuda_stream)

    def all_reduce(self, source: torch.Tensor, target: torch.Tensor, op: str, stream: Any) -> None:
        """The count is that of all."""
        _fitting(source, target, 1, 1)
        kind, number = NCCL_TYPES[source.dtype], NCCL_OPS[op]
        addresses = source.data_ptr(), target.data_ptr()
        self._communicator.allReduce(*addresses, source.numel(), kind, number, stream.cuda_stream)

    def check(self) -> None:
        """Raises `NcclError`."""
        self._communicator.check_async_error()

    def abort(self) -> None:
        """`ncclCommAbort`."""
        self._communicator.abort()

    def destroy(self) -> None:
        """`ncclCommDestroy`."""
        self._communicator.destroy()


def _communicator(nccl: Any, size: int, rank: int, unique_id: bytes) -> Any:
    try:
        return nccl.NcclCommunicator(size, unique_id, rank)
    except TypeError:
        # CuPy 13 takes a tuple of C chars, and before it calls NCCL it refuses numbers that a char of this processor
        # cannot hold.
        try:
            return nccl.NcclCommunicator(size, tuple(b - 256 if b > _LARGEST_CHAR else b for b in unique_id), rank)
        except OverflowError:
            return nccl.NcclCommunicator(size, tuple(unique_id), rank)


def _fitting(source: torch.Tensor, target: torch.Tensor, sources: int, targets: int) -> None:
    """NCCL is told addresses: a wrong length would overwrite a stranger's memory."""
    right = source.numel() * targets == target.numel() * sources
    if not (right and source.dtype == target.dtype and source.is_contiguous() and target.is_contiguous()):
        said = f"{source.dtype}{list(source.shape)} into {target.dtype}{list(target.shape)}"
        raise DeviceError(f"NCCL cannot go from {said}, {sources} to {targets}: both must be contiguous and fit")
