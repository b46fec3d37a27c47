"""What ranks mean, in sixteen bytes and in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.collectives.call import CALL_BYTES, CODECS, DTYPES, KINDS, NO_CALL, OPS, Call, difference, pack, unpack
from atoll.errors import HandshakeError

CALLS = st.builds(
    Call,
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    count=st.integers(0, 2**64 - 1),
    op=st.sampled_from(OPS),
    codec=st.sampled_from(CODECS),
    plan=st.integers(0, 2**32 - 1),
)


@given(call=CALLS)
def test_a_call_goes_round(call):
    assert len(pack(call)) == CALL_BYTES
    assert unpack(pack(call)) == call


def test_no_call_is_the_empty_one():
    assert unpack(NO_CALL) == Call("")


def test_a_type_without_a_number_is_another_one():
    assert unpack(pack(Call("broadcast", "float4_e2m1fn_x2", 3))).dtype == "other"


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_number_that_no_peer_sends_is_a_damaged_stream(at):
    data = bytearray(pack(Call("all_reduce", "float32", 1, "sum")))
    data[at] = 0xEE
    with pytest.raises(HandshakeError, match="238"):
        unpack(bytes(data))


def test_the_words_of_a_difference_name_both_ranks_and_calls():
    mine, theirs = Call("all_reduce", "float32", 10, "sum", "int8", 7), Call("all_reduce", "float32", 9, "sum", plan=7)
    words = difference(pack(mine), pack(theirs), rank=2, peer=5)
    assert "rank 5 calls all_reduce sum of float32[9]" in words
    assert "rank 2 all_reduce sum of float32[10] in int8" in words


def test_calls_that_differ_in_the_plan_alone_tell_both_plans():
    one, other = (pack(Call("all_reduce", "int64", 4, "max", plan=p)) for p in (0xABC, 0xDEF))
    words = difference(one, other, rank=0, peer=1)
    assert words == "different plans for all_reduce max of int64[4]: 00000def on rank 1, 00000abc on rank 0"
