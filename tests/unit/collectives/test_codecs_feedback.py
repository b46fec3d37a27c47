"""Codecs with residuals: what is held back stays small however long it goes on, and descent arrives."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from atoll.collectives.torch_blocks import BLOCK  # noqa: E402
from atoll.collectives.torch_codecs import CODECS, codec  # noqa: E402
from atoll.collectives.torch_residuals import Residuals  # noqa: E402

NAMES = sorted(CODECS)
COUNT = 3 * BLOCK + 77


def sent(name, values, seed):
    """What receivers read."""
    code, decoded = np.empty(codec(name).encoded_bytes(values.size), np.uint8), np.empty_like(values)
    codec(name).encode(values, code, decoded, seed=seed)
    return decoded


def stepped(residuals, name, gradient, *, commit=True):
    """What receivers read of `gradient` and of what was lost before."""
    feedback = residuals.feedback("w", gradient.size)
    values = feedback.corrected(gradient, 0, gradient.size)
    decoded = sent(name, values, None)
    feedback.keep(0, gradient.size, values, decoded)
    residuals.told("w", feedback)
    residuals.commit() if commit else residuals.rollback()
    return decoded


def held(residuals):
    return residuals.state_dict()["w"].numpy()


def gradients(steps, *, long_tail, count=COUNT):
    chance = np.random.default_rng(7)
    for _ in range(steps):
        sizes = np.exp(chance.standard_normal(count)) if long_tail else 1.0
        yield (chance.standard_normal(count) * sizes).astype(np.float32)


def energy(values):
    return float((values.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("long_tail", "share"), [(False, 0.4), (True, 0.85)])
def test_rounding_for_residuals_leaves_less_than_there_was(name, long_tail, share):
    (values,) = gradients(1, long_tail=long_tail)
    assert energy(values - sent(name, values, None)) < share * energy(values)


@pytest.mark.parametrize("name", ["onebit", "ternary"])
@pytest.mark.parametrize("values", [[1.0] + [0.0] * 1023, [1.0, -1e-6] * 512, [1e-40] * 3, [5.0] * BLOCK])
def test_of_no_block_is_all_left(name, values):
    values = np.array(values, np.float32)
    assert energy(values - sent(name, values, None)) <= (1 - 0.99 / BLOCK) * energy(values)


def test_chance_leaves_more_than_there_was_so_that_residuals_need_the_threshold():
    (values,) = gradients(1, long_tail=False)
    assert energy(values - sent("ternary", values, 1)) > energy(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("long_tail", [False, True])
def test_what_is_held_back_does_not_grow_with_the_steps(name, long_tail):
    residuals, sizes = Residuals(), []
    for gradient in gradients(120, long_tail=long_tail):
        stepped(residuals, name, gradient)
        sizes.append(energy(held(residuals)))
    assert max(sizes[60:]) < 2 * max(sizes[:60])
    # Nor is it more than a few gradients.
    assert sizes[-1] < 8 * energy(gradient)


@pytest.mark.parametrize("name", NAMES)
def test_over_steps_all_that_was_given_is_read_up_to_what_is_held(name):
    residuals, given, read = Residuals(), np.zeros(COUNT), np.zeros(COUNT)
    for gradient in gradients(60, long_tail=True):
        given += gradient
        read += stepped(residuals, name, gradient)
    assert np.allclose(given, read + held(residuals), atol=1e-3)
    # The mean of what is read comes to the mean of what was given: the rest is one residual over all steps.
    off = np.abs(given - read) / 60
    assert off.max() <= np.abs(held(residuals)).max() / 60 + 1e-4


def left_after_descent(send):
    """Two islands with goals of their own descend a quadratic at a falling rate; the share of the way that is left.

    `send(island, gradient)`: what is read of the gradient. Neither island's gradient goes to zero at the common goal.
    """
    chance = np.random.default_rng(3)
    curvature = np.exp(chance.uniform(-1.5, 1.5, COUNT)).astype(np.float32)
    goals = [chance.standard_normal(COUNT).astype(np.float32) for _ in range(2)]
    goal, x = sum(goals) / 2, np.zeros(COUNT, np.float32)
    for step in range(400):
        read = sum(send(island, curvature * (x - own)) for island, own in enumerate(goals))
        x = x - np.float32(0.1 / (1 + step / 25)) * read
    return energy(x - goal) / energy(goal)


@pytest.mark.parametrize("name", NAMES)
def test_descent_arrives_with_residuals(name):
    memories = [Residuals(), Residuals()]
    assert left_after_descent(lambda island, gradient: stepped(memories[island], name, gradient)) < 0.005


@pytest.mark.parametrize("name", ["onebit", "ternary"])
def test_descent_stays_away_without_residuals(name):
    assert left_after_descent(lambda _, gradient: sent(name, gradient, None)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_step_tried_again_after_a_rollback_sends_the_same_bits(name):
    residuals = Residuals()
    first, second, third = gradients(3, long_tail=False)
    stepped(residuals, name, first)
    before = held(residuals).copy()
    stepped(residuals, name, second, commit=False)
    assert np.array_equal(held(residuals), before)
    other = Residuals()
    other.load_state_dict(residuals.state_dict())
    for gradient in (second, third):
        assert np.array_equal(stepped(residuals, name, gradient), stepped(other, name, gradient))
