"""Digests: one law in three forms, and what it must not let pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint import digests
from atoll.checkpoint.boxes import Box, whole, without
from atoll.checkpoint.digests import digest_bytes, tensor_digest
from atoll.checkpoint.logical import ITEMSIZES, Logical
from atoll.checkpoint.torch_digests import digest_box, digest_in_torch

TYPES = sorted(ITEMSIZES)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (4, 0, 2), (2, 3, 4), (5, 1, 3, 2), (70, 1001)]


def made(dtype, shape, seed=0):
    count = int(np.prod(shape)) * ITEMSIZES[dtype]
    raw = np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)
    if dtype == "bool":
        raw &= 1
    if not count:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(shape)


def mix(number):
    """SplitMix64 as its authors write it."""
    z = number & digests.MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & digests.MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & digests.MASK
    return z ^ (z >> 31)


def by_the_law(data, itemsize):
    size = min(itemsize, 8)
    found = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
    return sum(mix(bits + (i + 1) * digests.GAMMA) for i, bits in enumerate(found)) & digests.MASK


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(digests, "_compiled", None)
    elif not digests.compiled():
        pytest.skip("the extension was not built here")


def test_mix_gives_the_published_numbers_of_splitmix64():
    assert mix(digests.GAMMA) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_all_forms_agree_for_every_type_and_shape(form, dtype, shape):
    tensor, logical = made(dtype, shape), Logical("w", dtype, shape)
    expected = digest_in_torch(tensor, logical, whole(shape))
    assert digest_box(tensor, logical, whole(shape)) == expected
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    assert digest_bytes(data, logical, whole(shape)) == expected
    if tensor.numel() < 1000:
        assert expected == by_the_law(data, ITEMSIZES[dtype])


@st.composite
def cut_tensors(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    boxes = [whole(shape)]
    for _ in range(draw(st.integers(0, 8))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        start = tuple(draw(st.integers(a, b - 1)) for a, b in zip(box.start, box.stop, strict=True))
        stop = tuple(draw(st.integers(a + 1, b)) for a, b in zip(start, box.stop, strict=True))
        hole = Box(start, stop)
        boxes += [hole, *without(box, hole)]
    return shape, boxes


@settings(deadline=None)
@given(cut_tensors(), st.sampled_from(TYPES), st.booleans())
def test_digest_of_any_partition_is_that_of_the_whole(cut, dtype, transposed):
    shape, boxes = cut
    tensor, logical = made(dtype, shape), Logical("w", dtype, shape)
    if transposed:  # the same values, lying otherwise in memory
        tensor = tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    parts = [digest_box(tensor[box.within(whole(shape))], logical, box) for box in boxes]
    assert tensor_digest(logical, parts) == tensor_digest(logical, [digest_in_torch(tensor, logical, whole(shape))])


@settings(deadline=None)
@given(st.sampled_from(TYPES), st.integers(0, 10**6), st.data())
def test_one_flipped_bit_or_two_swapped_elements_change_it(dtype, seed, data):
    size, count = ITEMSIZES[dtype], 33
    logical = Logical("w", dtype, (count,))
    raw = bytearray(np.random.default_rng(seed).bytes(count * size))
    before = digest_bytes(raw, logical, whole((count,)))
    at = data.draw(st.integers(0, count * size - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    flipped = digest_bytes(raw, logical, whole((count,)))
    assert flipped != before
    one, other = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    a, b = slice(one * size, (one + 1) * size), slice(other * size, (other + 1) * size)
    if raw[a] != raw[b]:
        raw[a], raw[b] = raw[b], raw[a]
        assert digest_bytes(raw, logical, whole((count,))) != flipped


def test_name_type_and_shape_belong_to_the_digest():
    told = {
        tensor_digest(one, [])
        for one in (
            Logical("a", "int8", (4,)),
            Logical("b", "int8", (4,)),
            Logical("a", "uint8", (4,)),
            Logical("a", "int8", (2, 2)),
        )
    }
    assert len(told) == 4


def test_conjugate_and_negative_views_are_digested_as_the_values_they_stand_for():
    values = made("complex64", (4, 3))
    logical = Logical("w", "complex64", (4, 3))
    for view in (values.conj(), values.conj().imag):
        other = Logical("w", str(view.dtype).removeprefix("torch."), (4, 3))
        solid = view.clone().resolve_conj().resolve_neg()
        assert digest_box(view, other, whole((4, 3))) == digest_box(solid, other, whole((4, 3)))
    assert digest_box(values.conj(), logical, whole((4, 3))) != digest_box(values, logical, whole((4, 3)))


def test_box_that_reaches_out_of_its_tensor_is_refused(form):
    with pytest.raises(ValueError, match="reaches out"):
        digest_bytes(bytes(8), Logical("w", "int8", (8,)), Box((1,), (9,)))


@pytest.mark.skipif(not digests.compiled(), reason="the extension walks raw memory, so it looks for itself as well")
def test_extension_refuses_what_does_not_fit_together():
    values = np.zeros((2, 3), dtype=np.uint16)
    for whole_of, start in (((2,), (0,)), ((2, 3), (0, 1)), ((2, 3), (-1, 0)), ((2, 3), (0,))):
        with pytest.raises(ValueError, match=r"dimensions|reaches out"):
            digests._compiled(values, whole_of, start)
    with pytest.raises(ValueError, match="1, 2, 4 or 8 bytes"):
        digests._compiled(np.zeros(2, dtype=np.complex128), (2,), (0,))


def test_values_of_another_shape_than_their_box_are_refused(form):
    with pytest.raises(ValueError, match="has elements"):
        digest_box(torch.zeros(3, dtype=torch.int8), Logical("w", "int8", (8,)), Box((0,), (4,)))
