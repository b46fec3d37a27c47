"""Residuals: pending until the step is decided, kept by who lost them, and part of the sum sooner or later."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from atoll.collectives.torch_residuals import Residuals  # noqa: E402
from atoll.errors import InternalError  # noqa: E402


def lost(residuals, start, end, loss, *, key="w", count=8):
    """One operation that loses `loss` of each element of [start, end)."""
    feedback = residuals.feedback(key, count)
    feedback.keep(start, end, np.full(end - start, loss, np.float32), np.zeros(end - start, np.float32))
    residuals.told(key, feedback)


def held(residuals, key="w", count=8):
    return residuals.feedback(key, count).corrected(np.zeros(count, np.float32), 0, count).tolist()


def test_losses_count_from_the_commit_on():
    residuals = Residuals()
    lost(residuals, 0, 4, 1.5)
    assert held(residuals) == [0.0] * 8
    residuals.commit()
    assert held(residuals) == [1.5] * 4 + [0.0] * 4


def test_a_step_tried_again_starts_from_the_same_memory():
    residuals = Residuals()
    lost(residuals, 0, 8, 1.0)
    residuals.commit()
    lost(residuals, 0, 8, 2.0)
    residuals.rollback()
    residuals.commit()
    assert held(residuals) == [1.0] * 8


def test_the_last_of_several_tries_counts():
    residuals = Residuals()
    lost(residuals, 0, 8, 2.0)
    lost(residuals, 0, 8, 3.0)
    residuals.commit()
    assert held(residuals) == [3.0] * 8


def test_buckets_that_a_step_leaves_out_keep_what_they_hold():
    residuals = Residuals()
    lost(residuals, 0, 8, 1.0, key="a")
    lost(residuals, 0, 8, 2.0, key="b")
    residuals.commit()
    lost(residuals, 0, 8, 5.0, key="b")
    residuals.commit()
    assert (held(residuals, "a")[0], held(residuals, "b")[0]) == (1.0, 5.0)


def test_state_goes_round_without_what_is_pending():
    residuals = Residuals()
    lost(residuals, 2, 5, 0.25)
    residuals.commit()
    lost(residuals, 0, 8, 9.0)
    state = residuals.state_dict()
    other = Residuals()
    lost(other, 0, 8, 7.0)
    other.load_state_dict(state)
    other.commit()  # what was pending before is gone
    assert held(other) == [0.0, 0.0, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0]
    state["w"][0] = 100.0
    assert held(residuals)[0] == held(other)[0] == 0.0


def test_a_bucket_of_another_size_is_refused_with_both_sizes():
    residuals = Residuals()
    lost(residuals, 0, 8, 1.0)
    residuals.commit()
    with pytest.raises(InternalError, match=r"'w'.*8 elements.*with 9"):
        residuals.feedback("w", 9)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.zeros(2, 4), r"'w' are torch.float32 \[2, 4\]"),
        (torch.zeros(8, dtype=torch.int64), "'w' are torch.int64"),
        ([0.0] * 8, "'w' are list"),
    ],
)
def test_a_state_of_another_form_is_refused_and_changes_nothing(state, words):
    residuals = Residuals()
    lost(residuals, 0, 8, 1.0)
    residuals.commit()
    with pytest.raises(InternalError, match=words):
        residuals.load_state_dict({"w": state})
    assert held(residuals) == [1.0] * 8


def test_what_another_rank_encodes_now_is_left_for_the_contribution():
    residuals = Residuals()
    lost(residuals, 0, 8, 1.0)
    residuals.commit()
    feedback = residuals.feedback("w", 8)
    assert feedback.stranded([(0, 3), (6, 8)]).tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert feedback.stranded([(0, 8)]) is None
    assert Residuals().feedback("w", 8).stranded([]) is None
