"""Codecs: what they lose is bounded, what is added is what was reported, and nothing broken comes out whole."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.collectives.torch_codecs import BLOCK, CODECS, codec, ratio
from atoll.errors import InternalError

NAMES = sorted(CODECS)
SIZES = [0, 1, 7, 1023, 1024, 1025, 100_001]


def values_of(count, seed=0, scale=1.0):
    """[count] normal values, with a tenth of them a hundred times larger."""
    chance = np.random.default_rng(seed)
    values = chance.standard_normal(count) * np.where(chance.random(count) < 0.1, 100.0, 1.0) * scale
    return values.astype(np.float32)


def encoded(name, values, seed=0):
    """(bytes, what receivers read)"""
    made = codec(name)
    out, decoded = np.empty(made.encoded_bytes(values.size), np.uint8), np.empty_like(values)
    made.encode(values, out, decoded, seed=seed)
    return out, decoded


def same_bits(one, other):
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", SIZES)
def test_what_is_read_is_off_by_no_more_than_the_bound(name, count):
    for scale in (1.0, 1e-20, 1e20):
        values = values_of(count, seed=count, scale=scale)
        _, decoded = encoded(name, values)
        assert (np.abs(decoded.astype(np.float64) - values) <= codec(name).error_bound(values)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("seed", [3, None])
def test_a_receiver_adds_bit_for_bit_what_the_sender_was_told(name, count, seed):
    values, before = values_of(count, seed=1), values_of(count, seed=2)
    out, decoded = encoded(name, values, seed=seed)
    total = before.copy()
    codec(name).decode_add(out, total)
    assert same_bits(total, before + decoded)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_values_give_the_same_bytes_wherever_they_lie(name):
    values = values_of(5000)
    apart = np.concatenate([np.zeros(3, np.float32), values])[3:]  # at another alignment
    dirty = np.full(codec(name).encoded_bytes(5000), 0xAB, np.uint8)
    codec(name).encode(apart, dirty, np.empty_like(values), seed=9)
    assert np.array_equal(encoded(name, values, seed=9)[0], dirty)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [3, BLOCK, 2 * BLOCK + 5])
def test_zeros_stay_zero(name, count):
    _, decoded = encoded(name, np.zeros(count, np.float32))
    assert not decoded.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-36, 1e30, 3e38])
@pytest.mark.parametrize("seed", [0, None])
def test_tiny_and_huge_blocks_keep_to_the_bound(name, size, seed):
    values = (np.linspace(-1, 1, 2 * BLOCK + 7) * size).astype(np.float32)
    _, decoded = encoded(name, values, seed=seed)
    assert (np.abs(decoded.astype(np.float64) - values) <= codec(name).error_bound(values)).all()


@pytest.mark.parametrize("name", ["int8", "onebit", "ternary"])  # bf16 has no number so large: as torch's
@pytest.mark.parametrize("seed", [0, None])
def test_blocks_of_the_largest_float32_come_out_finite_though_their_sum_is_not(name, seed):
    values = np.full(BLOCK + 3, np.finfo(np.float32).max)
    values[::2] *= -1
    _, decoded = encoded(name, values, seed=seed)
    assert decoded == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 1500, 2 * BLOCK + 6])
@pytest.mark.parametrize("seed", [0, None])
def test_what_is_not_finite_comes_out_not_finite_and_spoils_its_block_at_most(name, bad, at, seed):
    values = values_of(2 * BLOCK + 7)
    clean = encoded(name, values, seed=seed)[1]
    values[at] = bad
    out, decoded = encoded(name, values, seed=seed)
    total = np.zeros_like(values)
    codec(name).decode_add(out, total)
    assert not np.isfinite(decoded[at])
    assert not np.isfinite(total[at])
    others = np.arange(values.size) // BLOCK != at // BLOCK
    assert same_bits(decoded[others], clean[others])


def test_bf16_rounds_as_torch_does():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    assert same_bits(encoded("bf16", values)[1], expected)


def test_one_outlier_costs_int8_only_its_own_block():
    values = values_of(3 * BLOCK) / 100
    values[BLOCK + 5] = 1e6
    _, decoded = encoded("int8", values)
    off = np.abs(decoded - values).reshape(3, BLOCK).max(1)
    assert off[0] < 0.05
    assert off[2] < 0.05
    assert off[1] > 1.0


@pytest.mark.parametrize("count", [1, 7, BLOCK, BLOCK + 3])
def test_onebit_keeps_the_sum_of_each_sign(count):
    values = values_of(count, seed=4)
    _, decoded = encoded("onebit", values)
    for here in (values >= 0, values < 0):
        assert decoded[here].astype(np.float64).sum() == pytest.approx(
            values[here].astype(np.float64).sum(), rel=1e-4, abs=1e-4
        )


def test_ternary_is_right_in_the_mean_over_seeds():
    values = values_of(BLOCK + 200, seed=5)
    rounds = 400
    mean = np.zeros(values.size)
    for seed in range(rounds):
        mean += encoded("ternary", values, seed=seed * 2654435761)[1]
    mean /= rounds
    limit = np.repeat([np.abs(values[:BLOCK]).max(), np.abs(values[BLOCK:]).max()], [BLOCK, 200])
    # A value v among -s, 0 and s has variance |v| (s - |v|): all within five deviations of their mean, and
    # eight draws for values so small that few are expected.
    deviation = np.sqrt(np.abs(values) * (limit - np.abs(values)) / rounds)
    assert (np.abs(mean - values) <= 5 * deviation + 8 * limit / rounds).all()


def test_ternary_rounds_otherwise_with_another_seed():
    values = values_of(BLOCK)
    assert not np.array_equal(encoded("ternary", values, seed=1)[0], encoded("ternary", values, seed=2)[0])


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        ("bf16", 0, 0),
        ("bf16", 7, 14),
        ("int8", 0, 0),
        ("int8", 1, 5),
        ("int8", BLOCK, BLOCK + 4),
        ("int8", BLOCK + 1, BLOCK + 9),
        ("onebit", 1, 9),
        ("onebit", BLOCK + 1, 129 + 16),
        ("ternary", 9, 4 + 4),
        ("ternary", BLOCK, 4 + 256),
    ],
)
def test_codes_take_the_bytes_that_their_form_says(name, count, size):
    assert codec(name).encoded_bytes(count) == size


@pytest.mark.parametrize(("name", "expected"), [("bf16", 0.5), ("int8", 0.25), ("onebit", 1 / 32), ("ternary", 1 / 16)])
def test_ratios_are_those_of_large_messages(name, expected):
    assert ratio(name) == pytest.approx(expected, rel=0.07)


def test_an_unknown_codec_is_refused_with_those_there_are():
    with pytest.raises(InternalError, match=r"'zip'.*bf16, int8, onebit, ternary"):
        codec("zip")
