"""A state of several GiB in a GPU's memory: what a save of it costs a step, and what its digest costs the device."""

import pytest
import torch

from benchmarks.checkpoint_parts_gpu import gpu

pytestmark = pytest.mark.gpu


def test_save_of_a_state_on_a_gpu_is_measured(tmp_path, tell):
    if not torch.cuda.is_available():
        pytest.skip("no GPU test here: torch sees no CUDA device")
    report = gpu(quick=False, place=tmp_path)
    for figure in report.figures:
        tell(f"{figure.name} = {figure.value:.3g}; {figure.note}")
    assert all(figure.value is not None and figure.value > 0 for figure in report.figures)
