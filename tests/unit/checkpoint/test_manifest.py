import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.checkpoint.manifest import FORMAT, CommitRecord, PackRecord, pack_stem, seal, unseal
from atoll.errors import CheckpointError


@pytest.fixture
def record(pack):
    tree = {"lr": 0.1, "nan": float("nan"), "name": "größe \ud800", "$items": [[0, {"$tensor": "w"}]]}
    packs = (pack(0, 1, ("w",), tree=None),)
    return CommitRecord(format=FORMAT, run="run", step=5, epoch=1, at=1.5, packs=packs, tree=tree)


def test_sealed_record_reads_back_the_same(record):
    again = unseal(CommitRecord, seal(record), "here")
    assert seal(again) == seal(record)
    assert again.packs == record.packs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_a_record_goes_unnoticed(record, data):
    sealed = bytearray(seal(record))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with suppress(CheckpointError):  # else it was white space, which changes nothing
        assert seal(unseal(CommitRecord, bytes(sealed), "here")) == seal(record)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"record": {}, "xxh3": ""}', b"\xff"])
def test_what_is_no_record_is_refused_by_name(data):
    for cls in (CommitRecord, PackRecord):
        with pytest.raises(CheckpointError, match="here is not a readable record"):
            unseal(cls, data, "here")


def test_record_of_a_newer_format_asks_for_the_build_that_wrote_it(record):
    plain = json.loads(seal(record))
    plain["record"]["format"] = FORMAT + 1
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this build reads {FORMAT}"):
        unseal(CommitRecord, json.dumps(plain).encode(), "here")


def test_pack_names_differ_between_runs_that_share_a_folder():
    one, other = (pack_stem(run=run, epoch=3, rank=0, size=4) for run in ("a", "b"))
    assert one != other
    assert one.startswith("e3-r0of4-")
