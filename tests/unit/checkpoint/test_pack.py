"""Packs of format 1, which are only read, and slabs."""

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from atoll.checkpoint.format1 import PackRecord
from atoll.checkpoint.fs_check_1 import check_pack
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.manifest import BLOCK_BYTES
from atoll.checkpoint.torch_read_1 import read_pack
from atoll.checkpoint.torch_staging import pin
from atoll.errors import CheckpointError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


@pytest.fixture
def written(tmp_path):
    """`written(tensors)` writes a pack and gives (path, record)."""

    def write(tensors):
        path = tmp_path / "r0.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
        data = path.read_bytes()
        starts = range(0, max(1, len(data)), BLOCK_BYTES)
        record = PackRecord(
            file=path.name,
            run="run",
            step=5,
            epoch=1,
            rank=0,
            size=1,
            bytes=len(data),
            block_bytes=BLOCK_BYTES,
            blocks=tuple(xxhash.xxh3_64_hexdigest(data[a : a + BLOCK_BYTES]) for a in starts),
            tensors=tuple(tensors),
        )
        return path, record

    return write


def varied():
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"t/{str(d).removeprefix('torch.')}": torch.randn(3, 5, generator=generator).mul(3).to(d) for d in DTYPES
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "ünïcode 'quoted\"": torch.ones(1)}
    return tensors | {"turned": torch.arange(12).view(3, 4).T, "strided": torch.arange(20)[::3]}


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def test_every_type_and_layout_reads_back_and_stock_safetensors_agrees(written):
    path, record = written(varied())
    for found in (read_pack(path, record), load_file(path)):
        assert found.keys() == varied().keys()
        assert all(same(found[name], tensor) for name, tensor in varied().items())


def test_tensors_read_are_their_own_and_may_be_changed(written):
    path, record = written({"a": torch.zeros(4), "b": torch.zeros(4)})
    found = read_pack(path, record)
    found["a"].fill_(1)
    assert found["b"].sum() == 0
    assert found["a"].untyped_storage().nbytes() == 16


def test_pack_without_tensors_is_a_file_that_stock_safetensors_reads(written):
    path, record = written({})
    assert read_pack(path, record) == {}
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == []


def test_slab_is_used_again_for_a_smaller_and_a_larger_pack_and_stock_safetensors_reads_each(tmp_path):
    slab, path = Slab(), tmp_path / "p"
    for count in (50_000, 10, 90_000):
        slab.lay_out({"w": torch.empty(count), "v": torch.empty(3, dtype=torch.bfloat16)})
        slab.tensor("w").fill_(count)
        slab.tensor("v").fill_(1)
        view = slab.view()
        end = 8 + int.from_bytes(view[:8], "little") + 4 * count + 6
        path.write_bytes(view[:end])
        found = load_file(path)
        assert found["w"].eq(count).sum() == count
        assert found["v"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("tail", [-1, 0, 1])
def test_pack_that_ends_near_a_block_edge_verifies(written, tail):
    header = 8 + 8 * 12
    path, record = written({"w": torch.ones(2 * BLOCK_BYTES - header + tail, dtype=torch.uint8)})
    assert check_pack(path, record).ok
    assert read_pack(path, record)["w"].sum() == 2 * BLOCK_BYTES - header + tail


@pytest.mark.parametrize("at", [0, 20, BLOCK_BYTES, 2 * BLOCK_BYTES + 77, -1])
def test_flipped_bit_is_found_in_its_block_and_never_read(written, at):
    path, record = written({"w": torch.zeros(600_000), "v": torch.zeros(2_000_000)})
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    block = (at % len(data)) // BLOCK_BYTES
    report = check_pack(path, record)
    assert [f.block for f in report.findings] == [block]
    finding = report.findings[0]
    assert finding.expected == record.blocks[block] != finding.found
    with pytest.raises(CheckpointError, match=f"block {block} .* has checksum {finding.found}, {finding.expected}"):
        read_pack(path, record)


def test_all_bad_blocks_are_named(written):
    path, record = written({"w": torch.zeros(3 * BLOCK_BYTES, dtype=torch.uint8)})
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    data[2 * BLOCK_BYTES] ^= 1
    path.write_bytes(data)
    assert [f.block for f in check_pack(path, record).findings] == [0, 2]


@pytest.mark.parametrize("length", [0, 5, 1000])
def test_truncated_pack_is_refused(written, length):
    path, record = written({"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:length])
    words = f"{length} bytes are there, {record.bytes} were written"
    assert check_pack(path, record).problem == words
    with pytest.raises(CheckpointError, match=words):
        read_pack(path, record)


def test_missing_pack_is_refused(written):
    path, record = written({"w": torch.zeros(10)})
    path.unlink()
    assert check_pack(path, record).problem == "No such file or directory"
    with pytest.raises(CheckpointError, match="No such file"):
        read_pack(path, record)


def test_type_that_safetensors_cannot_hold_is_named():
    with pytest.raises(CheckpointError, match=r"tensor 'z' has type torch\.complex64"):
        Slab().lay_out({"z": torch.ones(1, dtype=torch.complex64)})


def test_pinned_slab_that_grows_is_unpinned_once_before_its_memory_goes(monkeypatch):
    calls = []

    class Device:
        def cudaHostRegister(self, address, size, flags):  # noqa: N802 - its name in CUDA
            calls.append(("pin", address, size))
            return 0

        def cudaHostUnregister(self, address):  # noqa: N802 - likewise
            calls.append(("unpin", address, slab.capacity))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Device)
    slab = Slab()
    slab.lay_out({"w": torch.zeros(10)})
    pin(slab)
    [(_, first, size)] = calls
    slab.lay_out({"w": torch.zeros(10_000)})
    slab.lay_out({"w": torch.zeros(100_000)})
    assert calls == [("pin", first, size), ("unpin", first, size)]


def test_slab_that_a_device_would_not_pin_is_not_unpinned(monkeypatch):
    calls = []

    class Device:
        def cudaHostRegister(self, *_):  # noqa: N802 - its name in CUDA
            return 1

        def cudaHostUnregister(self, address):  # noqa: N802 - likewise
            calls.append(address)

    monkeypatch.setattr(torch.cuda, "cudart", Device)
    slab = Slab()
    slab.lay_out({"w": torch.zeros(10)})
    pin(slab)
    slab.lay_out({"w": torch.zeros(10_000)})
    assert calls == []
