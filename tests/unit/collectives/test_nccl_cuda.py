"""What can be held of the CUDA device without one: what it asks of CuPy, and what it says where there is none."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch

from atoll.collectives import nccl_cuda
from atoll.collectives.nccl_cuda import CudaDevice, NcclLibrary, usable
from atoll.collectives.nccl_device import NCCL_OPS, NCCL_TYPES
from atoll.errors import DeviceError

IDENTITY = bytes(range(100, 228))


class Communicator:
    """`cupy.cuda.nccl.NcclCommunicator` of one version: its names and the order of their arguments."""

    takes: type = bytes
    chars = range(-128, 128)

    def __init__(self, ndev, commId, rank):  # noqa: N803 - CuPy's name
        if not isinstance(commId, self.takes):
            raise TypeError("Argument 'commId' has incorrect type")
        if self.takes is tuple and not all(number in self.chars for number in commId):
            raise OverflowError("value too large to convert to char")
        self.calls = [("init", ndev, bytes(b & 0xFF for b in commId), rank)]

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):  # noqa: N802
        self.calls.append(("reduceScatter", sendbuf, recvbuf, recvcount, datatype, op, stream))

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802
        self.calls.append(("allGather", sendbuf, recvbuf, count, datatype, stream))

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        self.calls.append(("allReduce", sendbuf, recvbuf, count, datatype, op, stream))

    def check_async_error(self):
        self.calls.append("check_async_error")

    def abort(self):
        self.calls.append("abort")

    def destroy(self):
        self.calls.append("destroy")


@dataclass
class Stream:
    cuda_stream: int = 77


@dataclass
class Nccl:
    unique: object
    communicator: type = Communicator
    available: bool = True
    made: list = field(default_factory=list)

    def module(self, monkeypatch):
        found = types.ModuleType("cupy.cuda.nccl")
        found.available, found.NcclCommunicator = self.available, self.communicator
        found.get_unique_id = lambda: self.unique
        for name in ("cupy", "cupy.cuda"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", found)
        return found


VERSIONS = {
    "CuPy 14": (IDENTITY, bytes, None),
    "CuPy 13 on x86": (tuple(b - 256 if b > 127 else b for b in IDENTITY), tuple, range(-128, 128)),
    "CuPy 13 on ARM": (tuple(IDENTITY), tuple, range(256)),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_name_is_128_bytes_whatever_cupy_makes_of_it(monkeypatch, version):
    unique, takes, chars = VERSIONS[version]
    kind = type("Versioned", (Communicator,), {"takes": takes, "chars": chars})
    Nccl(unique, kind).module(monkeypatch)
    device = CudaDevice(torch.device("cuda", 1))
    assert device.unique_id() == IDENTITY
    assert device.library(4, 2, IDENTITY)._communicator.calls == [("init", 4, IDENTITY, 2)]


def test_calls_carry_addresses_counts_types_and_streams(monkeypatch):
    library = NcclLibrary(Nccl(IDENTITY).module(monkeypatch), 4, 1, IDENTITY)
    whole, part = torch.zeros(12, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    library.reduce_scatter(whole, part, "max", Stream())
    library.all_gather(part, whole, Stream())
    library.all_reduce(whole, whole, "sum", Stream())
    library.check()
    library.abort()
    library.destroy()
    assert library._communicator.calls[1:] == [
        ("reduceScatter", whole.data_ptr(), part.data_ptr(), 3, 9, 2, 77),
        ("allGather", part.data_ptr(), whole.data_ptr(), 3, 9, 77),
        ("allReduce", whole.data_ptr(), whole.data_ptr(), 12, 9, 0, 77),
        "check_async_error",
        "abort",
        "destroy",
    ]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.zeros(12), torch.zeros(4)),
        (torch.zeros(12), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(12), torch.zeros(6)[::2]),
    ],
    ids=["length", "type", "gaps"],
)
def test_memory_that_does_not_fit_is_refused_before_nccl_gets_its_address(monkeypatch, source, target):
    library = NcclLibrary(Nccl(IDENTITY).module(monkeypatch), 4, 0, IDENTITY)
    with pytest.raises(DeviceError, match="must be contiguous and fit"):
        library.reduce_scatter(source, target, "sum", Stream())
    assert len(library._communicator.calls) == 1


def test_a_name_that_is_none_is_refused(monkeypatch):
    Nccl(IDENTITY).module(monkeypatch)
    with pytest.raises(DeviceError, match="this one 0: is a rank without NCCL"):
        CudaDevice(torch.device("cuda", 0)).library(2, 1, b"")


def test_without_cupy_the_error_names_the_extra(monkeypatch):
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match=r"pip install 'atoll\[nccl\]'"):
        CudaDevice(torch.device("cuda", 0))


def test_cupy_without_nccl_says_so(monkeypatch):
    Nccl(IDENTITY, available=False).module(monkeypatch)
    with pytest.raises(DeviceError, match="finds no NCCL"):
        CudaDevice(torch.device("cuda", 0))


def test_a_cpu_is_no_cuda_device():
    with pytest.raises(DeviceError, match="not on cpu"):
        CudaDevice(torch.device("cpu"))


def test_usable_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device" in usable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "atoll[nccl]" in usable()
    Nccl(IDENTITY).module(monkeypatch)
    assert usable() is None


def test_numbers_are_those_of_nccl_h():
    assert {str(k): v for k, v in NCCL_TYPES.items()} == {
        "torch.int8": 0, "torch.uint8": 1, "torch.int32": 2, "torch.int64": 4, "torch.float16": 6,
        "torch.float32": 7, "torch.float64": 8, "torch.bfloat16": 9,
    }  # fmt: skip
    assert NCCL_OPS == {"sum": 0, "max": 2, "min": 3}


def test_importing_the_nccl_modules_loads_no_cupy():
    code = (
        "import sys, atoll.collectives.nccl_island, atoll.collectives.nccl_cuda;"
        "sys.exit(any(name.split('.')[0] == 'cupy' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert nccl_cuda.usable.__doc__
