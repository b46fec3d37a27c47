import json
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from atoll.checkpoint import format1
from atoll.checkpoint.manifest import (
    BLOCK_BYTES,
    FORMAT,
    CommitRecord,
    NewerFormat,
    Segment,
    Table,
    TensorRecord,
    Word,
    pack_stem,
    packed_sums,
    seal,
    unseal,
    unseal_commit,
)
from atoll.errors import CheckpointError


@pytest.fixture(scope="module")
def record():
    tree = {"lr": 0.1, "nan": float("nan"), "name": "größe \ud800", "$items": [[0, {"$tensor": "w"}]]}
    segment = Segment(rank=0, file="f", begin=0, bytes=5, block_bytes=BLOCK_BYTES, sums=packed_sums([7]))
    return CommitRecord(
        format=FORMAT,
        run="run",
        step=5,
        epoch=1,
        size=1,
        at=1.5,
        segments=(segment,),
        tables=(Table(file="t", bytes=3, xxh3="0"),),
        tensors=(TensorRecord(name="w", dtype="float32", shape=(2, 3), digest="aa"),),
        tree=tree,
        words=("w",),
    )


def test_sealed_record_reads_back_the_same(record):
    again = unseal_commit(seal(record), "here")
    assert seal(again) == seal(record)
    assert (again.segments, again.tensors) == (record.segments, record.tensors)
    assert again.segments[0].blocks() == (7,)


def test_record_of_format_1_reads_as_such():
    pack = {
        "file": "f", "run": "run", "step": 5, "epoch": 1, "rank": 0, "size": 1, "bytes": 3, "block_bytes": 4,
        "blocks": ["0"], "tensors": ["w"],
    }  # fmt: skip
    old = {"format": 1, "run": "run", "step": 5, "epoch": 1, "at": 1.5, "packs": [pack], "tree": {}}
    text = json.dumps(old, sort_keys=True, separators=(",", ":")).encode()
    data = json.dumps({"record": old, "xxh3": xxhash.xxh3_64_hexdigest(text)}).encode()
    found = unseal_commit(data, "here")
    assert isinstance(found, format1.CommitRecord)
    assert (found.size_bytes(), found.files) == (3, ("f", "f.json"))


def test_segment_without_one_checksum_for_each_block_is_refused():
    segment = Segment(rank=0, file="f", begin=0, bytes=BLOCK_BYTES + 1, block_bytes=BLOCK_BYTES, sums=packed_sums([7]))
    with pytest.raises(CheckpointError, match="f from byte 0 has not one checksum for each block"):
        segment.blocks()


@given(data=st.data())
def test_no_changed_byte_of_a_record_goes_unnoticed(record, data):
    sealed = bytearray(seal(record))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CheckpointError, match="here"):
        unseal_commit(bytes(sealed), "here")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"record": {}, "xxh3": ""}', b"\xff"])
def test_what_is_no_record_is_refused_by_name(data):
    for cls in (CommitRecord, Word):
        with pytest.raises(CheckpointError, match=r"here (is not a readable record|was changed after)"):
            unseal(cls, data, "here")


def test_record_of_a_newer_format_asks_for_the_build_that_wrote_it(record):
    plain = json.loads(seal(record))
    plain["record"]["format"] = FORMAT + 1
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this build reads up to {FORMAT}"):
        unseal(CommitRecord, json.dumps(plain).encode(), "here")


def newer(record):
    plain = json.loads(seal(record))["record"] | {"format": FORMAT + 1, "unheard": "of"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"record": plain, "xxh3": xxhash.xxh3_64_hexdigest(text)}, indent=1).encode()


def test_whole_record_of_a_newer_format_is_told_from_a_damaged_one(record):
    with pytest.raises(NewerFormat, match=f"format {FORMAT + 1}, .*a newer Atoll wrote it") as found:
        unseal_commit(newer(record), "here")
    assert found.value.run == "run"
    flipped = seal(record).replace(b'"format":2', b'"format":3')
    with pytest.raises(CheckpointError) as found:
        unseal_commit(flipped, "here")
    assert not isinstance(found.value, NewerFormat)


def test_pack_names_differ_between_runs_that_share_a_folder():
    one, other = (pack_stem(run=run, epoch=3, rank=0, size=4) for run in ("a", "b"))
    assert one != other
    assert one.startswith("e3-r0of4-")


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "..", ".", "", "a/b", "a\0b"])
@pytest.mark.parametrize("where", ["beside", "segment", "table", "word"])
def test_record_that_names_what_lies_elsewhere_is_refused(record, name, where):
    changes = {
        "beside": {"beside": {name: "owned"}},
        "segment": {"segments": (replace(record.segments[0], file=name),)},
        "table": {"tables": (replace(record.tables[0], file=name),)},
        "word": {"words": (name,)},
    }
    with pytest.raises(CheckpointError, match="which is no file of its own folder"):
        unseal_commit(seal(replace(record, **changes[where])), "here")


@pytest.mark.parametrize("change", [{"block_bytes": 0}, {"begin": -4096}, {"bytes": -1}])
def test_record_with_numbers_that_no_file_has_is_refused(record, change):
    with pytest.raises(CheckpointError, match="as no file is"):
        unseal_commit(seal(replace(record, segments=(replace(record.segments[0], **change),))), "here")


def test_record_with_a_type_that_no_tensor_has_is_refused(record):
    with pytest.raises(CheckpointError, match="of type nonsense"):
        unseal_commit(seal(replace(record, tensors=(replace(record.tensors[0], dtype="nonsense"),))), "here")


def test_record_that_is_nested_without_end_is_refused():
    with pytest.raises(CheckpointError, match="is not a readable record"):
        unseal_commit(b'{"record":' + b"[" * 200_000 + b"]" * 200_000 + b',"xxh3":"0"}', "here")
