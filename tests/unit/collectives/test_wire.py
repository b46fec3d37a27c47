"""Frames: they survive any cutting of the stream, and damage is an error for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.collectives import wire
from atoll.collectives.wire import Abort, Header, Kind, Reader, farewell, pack, read_abort, unpack
from atoll.errors import HandshakeError, InternalError

EPOCH = 7
U32 = st.integers(0, 2**32 - 1)
MESSAGES = st.lists(st.tuples(st.integers(0, 9), U32, U32, st.binary(max_size=50)), max_size=8)


def stream_of(messages):
    return b"".join(pack(Header(Kind.DATA, lane, EPOCH, s, p, len(b))) + b for lane, s, p, b in messages)


def read_all(reader, data, sizes):
    frames, left = [], memoryview(data)
    while left:
        space = reader.space()
        count = min(len(space), len(left), next(sizes))
        space[:count] = left[:count]
        left = left[count:]
        frame = reader.fed(count)
        frames += [frame] if frame else []
    return frames


def anywhere(header):
    return memoryview(bytearray(header.length))


def endless(number):
    while True:
        yield number


@given(messages=MESSAGES, sizes=st.lists(st.integers(1, 40), min_size=1))
def test_frames_are_the_same_wherever_the_stream_is_cut(messages, sizes):
    reader = Reader(EPOCH, anywhere)
    frames = read_all(reader, stream_of(messages), iter(sizes * 1000))
    assert [(f.header.lane, f.header.sequence, f.header.part, bytes(f.body)) for f in frames] == messages
    assert reader.at_boundary


@given(
    header=st.builds(
        Header,
        st.sampled_from(Kind),
        st.integers(0, 2**16 - 1),
        U32,
        U32,
        U32,
        st.integers(0, wire.LARGEST_FAREWELL_BYTES),
    )
)
def test_a_header_reads_as_it_was_written(header):
    assert unpack(pack(header)) == header


def test_a_body_is_received_into_the_memory_that_waits_for_it():
    memory = memoryview(bytearray(5))
    reader = Reader(EPOCH, lambda _: memory)
    (frame,) = read_all(reader, stream_of([(0, 1, 0, b"reefs")]), endless(3))
    assert frame.body is memory
    assert bytes(memory) == b"reefs"


def test_half_a_frame_is_not_at_a_boundary():
    reader = Reader(EPOCH, anywhere)
    read_all(reader, stream_of([(0, 1, 0, b"reefs")])[:-1], endless(100))
    assert not reader.at_boundary


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        pack(Header(Kind.DATA, 0, EPOCH - 1, 1, 0, 0)),
        pack(Header(Kind.DATA, 0, EPOCH, 1, 0, wire.LARGEST_BYTES + 1)),
        pack(Header(Kind.ABORT, 0, EPOCH, 1, 0, wire.LARGEST_FAREWELL_BYTES + 1)),
        pack(Header(Kind.BYE, 0, EPOCH, 0, 0, 0)).replace(bytes([wire.PROTOCOL, Kind.BYE]), bytes([wire.PROTOCOL, 9])),
    ],
    ids=["another protocol", "an older epoch", "absurd length", "absurd farewell", "unknown kind"],
)
def test_damage_is_an_error_and_stays_one(data):
    reader = Reader(EPOCH, anywhere)
    with pytest.raises(HandshakeError):
        read_all(reader, data, endless(100))
    with pytest.raises(HandshakeError):
        reader.space()


def test_another_length_than_expected_is_a_fault_of_the_program():
    reader = Reader(EPOCH, lambda _: memoryview(bytearray(4)))
    with pytest.raises(InternalError, match="different operations"):
        read_all(reader, stream_of([(0, 1, 0, b"reefs")]), endless(100))


@given(st.builds(Abort, st.text(max_size=200), st.none() | st.text(max_size=20), st.booleans()))
def test_an_abort_says_why_and_who(why):
    (frame,) = read_all(Reader(EPOCH, anywhere), farewell(Kind.ABORT, EPOCH, why), endless(11))
    assert frame.header.kind is Kind.ABORT
    assert read_abort(frame.body) == why


def test_a_very_long_reason_is_cut_and_not_taken_for_damage():
    last = farewell(Kind.ABORT, EPOCH, Abort("\U0001f41a" * 10**5, "t1"))
    (frame,) = read_all(Reader(EPOCH, anywhere), last, endless(10**6))
    assert read_abort(frame.body).culprit == "t1"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{}", b"null"])
def test_an_abort_that_cannot_be_read_still_aborts(body):
    why = read_abort(body)
    assert "cannot be read" in why.reason
    assert why.culprit is None
    assert not why.differ
