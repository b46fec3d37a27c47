"""A real device, or the reason why there is none. Needs torch, CuPy and pytest, not the rest of Atoll's dependencies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# An older pytest than this project's does not read its settings.
for folder in (Path(__file__).parents[2], Path(__file__).parents[1] / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture
def device():
    """The first CUDA device with NCCL."""
    import torch

    from atoll.collectives.nccl_cuda import CudaDevice, usable

    missing = usable()
    if missing is not None:
        pytest.skip(f"no GPU test here: {missing}")
    found = CudaDevice(torch.device("cuda", 0))
    found.enter()
    return found


@pytest.fixture
def tell(capsys):
    """Say a measurement, whether or not pytest keeps output back."""

    def said(text):
        with capsys.disabled():
            sys.stdout.write(f"\n{text}")

    return said
