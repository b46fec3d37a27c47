"""The table of extents: what was written is read, a million rows open by metadata alone, and damage is never told on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint import fs_extents
from atoll.checkpoint.boxes import Box, chunk, whole
from atoll.checkpoint.extents import Extent, extents_of, merged
from atoll.checkpoint.fs_extents import ExtentFile, extents_bytes
from atoll.checkpoint.logical import Logical
from atoll.errors import CheckpointError

LOGICALS = [Logical("a", "float32", (6, 4)), Logical("b", "int8", ()), Logical("c", "bfloat16", (5,))]


def rows_of(logicals, ranks):
    found = []
    for rank in range(ranks):
        for one in logicals:
            box = chunk(one.shape, 0, ranks, rank) if one.shape else whole(())
            if box.count and (one.shape or rank == 0):
                found.append(Extent(one.name, box, f"pack-{rank}", rank, 64 * len(found), box.count * one.itemsize))
    return found


def as_rows(extents):
    return [extents.extent(i) for i in range(len(extents))]


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 9))
def test_table_that_is_written_and_read_is_the_same(ranks, batch):
    rows = rows_of(LOGICALS, ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs_extents, "BATCH_ROWS", batch)
        file = ExtentFile(extents_bytes(extents_of(LOGICALS, rows), {"blocks": b"\x00\xff"}))
    by_place = sorted(rows, key=lambda r: (r.tensor, r.box.start))
    assert as_rows(file.all()) == by_place
    assert len(file) == len(rows)
    assert file.entry("blocks") == b"\x00\xff"
    for names in ({"c"}, {"a", "b"}, set()):
        assert as_rows(file.of(names)) == [r for r in by_place if r.tensor in names]


def test_tables_of_ranks_merge_into_that_of_all():
    rows = rows_of(LOGICALS, 3)
    parts = [
        extents_of([one for one in LOGICALS if rank == 0 or one.name == "c"], [r for r in rows if r.rank == rank])
        for rank in range(3)
        if rank == 0
    ]
    parts += [extents_of([LOGICALS[2], LOGICALS[0]], [r for r in rows if r.rank == rank]) for rank in (1, 2)]
    together = merged(parts)
    assert as_rows(together) == sorted(rows, key=lambda r: (r.tensor, r.box.start))
    assert len(merged([])) == 0


def test_flipped_byte_anywhere_is_refused_or_changes_nothing_that_is_told():
    extents = extents_of(LOGICALS, rows_of(LOGICALS, 3))
    data = extents_bytes(extents)
    expected = as_rows(extents)
    silent = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            told = ExtentFile(bytes(damaged)).all()
        except CheckpointError:
            continue
        assert as_rows(told) == expected, at
        silent += 1
    # Padding, field names that nobody reads by, a second copy of the schema: not the numbers.
    assert silent < len(data) * 0.7


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_truncated_file_is_refused_by_name(tmp_path, size):
    path = tmp_path / "e1.arrow"
    path.write_bytes(extents_bytes(extents_of(LOGICALS, rows_of(LOGICALS, 3)))[:size])
    with pytest.raises(CheckpointError, match=r"e1\.arrow"):
        ExtentFile(path)


def test_stock_arrow_reads_the_file():
    rows = rows_of(LOGICALS, 2)
    table = pa.ipc.open_file(pa.BufferReader(extents_bytes(extents_of(LOGICALS, rows)))).read_all()
    assert table.num_rows == len(rows)
    assert [name for name, *_ in json.loads(table.schema.metadata[b"tensors"])] == ["a", "b", "c"]


def test_opening_reads_no_batch(monkeypatch):
    data = extents_bytes(extents_of(LOGICALS, rows_of(LOGICALS, 3)))
    read = []
    monkeypatch.setattr(ExtentFile, "_read", lambda self, index: read.append(index))
    file = ExtentFile(data)
    assert (len(file), file.files, file.logicals) == (7, ("pack-0", "pack-1", "pack-2"), tuple(LOGICALS))
    assert read == []


def test_only_batches_with_a_wanted_tensor_are_read(monkeypatch):
    monkeypatch.setattr(fs_extents, "BATCH_ROWS", 10)
    logicals = [Logical(f"t{i:03}", "int8", (4,)) for i in range(100)]
    rows = [Extent(one.name, Box((0,), (4,)), "f", 0, 4 * i, 4) for i, one in enumerate(logicals)]
    file = ExtentFile(extents_bytes(extents_of(logicals, rows)))
    read, plain = [], ExtentFile._read
    monkeypatch.setattr(ExtentFile, "_read", lambda self, index: (read.append(index), plain(self, index))[1])
    assert as_rows(file.of({"t005", "t042"})) == [rows[5], rows[42]]
    assert read == [0, 4]
    assert np.array_equal(file.of({"t099"}).offset, [396])
