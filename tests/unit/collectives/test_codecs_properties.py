"""Codecs on any finite values: the bound holds, receivers agree with the sender, the same values give the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives.torch_blocks import BLOCK, TILE
from atoll.collectives.torch_codecs import CODECS, codec

# The largest number of bf16: beyond it its rounding, as torch's, gives infinity.
_BF16_LARGEST = float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])
_ANY = st.floats(width=32, min_value=-_BF16_LARGEST, max_value=_BF16_LARGEST)
_SEEDS = st.none() | st.integers(0, 2**64 - 1)


@st.composite
def arrays(draw):
    """float32 [count]: a few drawn values over and over, around the edges of bytes, blocks and tiles."""
    drawn = np.array(draw(st.lists(_ANY, min_size=1, max_size=24)), np.float32)
    edge = draw(st.sampled_from([0, 8, BLOCK, 2 * BLOCK, TILE * BLOCK]))
    return np.resize(drawn, max(0, edge + draw(st.integers(-9, 9))))


def encoded(name, values, seed, filled_with=0):
    code, decoded = np.full(codec(name).encoded_bytes(values.size), filled_with, np.uint8), np.empty_like(values)
    codec(name).encode(values, code, decoded, seed=seed)
    return code, decoded


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=60, deadline=None)
@given(values=arrays(), seed=_SEEDS)
def test_any_finite_values_come_back_within_the_bound(name, values, seed):
    before = values.copy()
    _, decoded = encoded(name, values, seed)
    bound = codec(name).error_bound(values)
    assert bound.shape == values.shape
    assert (np.abs(decoded.astype(np.float64) - values) <= bound).all()
    assert np.array_equal(values, before)  # what is encoded is only read


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=40, deadline=None)
@given(values=arrays(), seed=_SEEDS)
def test_receivers_of_any_values_add_what_the_sender_was_told(name, values, seed):
    code, decoded = encoded(name, values, seed, filled_with=0xAB)
    again, _ = encoded(name, values, seed)
    assert np.array_equal(code, again)  # every byte is written, and by the values alone
    total = np.zeros_like(values)
    codec(name).decode_add(code, total)
    assert np.array_equal(total, decoded)


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=40, deadline=None)
@given(values=arrays(), at=st.integers(0, 2**20), bad=st.sampled_from([np.inf, -np.inf, np.nan]), seed=_SEEDS)
def test_what_is_not_finite_never_comes_out_finite(name, values, at, bad, seed):
    if not values.size:
        return
    values[at % values.size] = bad
    code, decoded = encoded(name, values, seed)
    total = np.zeros_like(values)
    codec(name).decode_add(code, total)
    assert not np.isfinite(decoded[at % values.size])
    assert not np.isfinite(total[at % values.size])
