"""States, and writers with them, whose I/O process is a thread: what is armed here works there."""

import pytest
from checkpoint_crews import Crew, leaked


@pytest.fixture
def state():
    """A small state that needs every rule of the format; `scale` makes another with the same shapes."""
    import torch

    def make(scale=1.0):
        shared = torch.arange(6.0).view(2, 3) * scale
        return {
            "model": {"a/b": shared, "tied": shared, "größe": torch.full((3,), scale, dtype=torch.bfloat16)},
            "optimizer": {"state": {0: {"step": torch.tensor(scale), "m": torch.ones(4, 4).T * scale}}},
            "scaler": {"on": torch.tensor([True, False]), "none": torch.empty(0, 3)},
            "lr": (0.1, {"last": 3}),
        }

    return make


@pytest.fixture
def crew(tmp_path):
    """`crew(size, ...)` makes the writers of an epoch; all are closed at the end, and what they told is kept."""
    made = []

    def make(size, **changes):
        made.append(Crew(size, **{"directory": tmp_path / "checkpoints", **changes}))
        return made[-1]

    yield make
    for each in made:
        for writer in each.writers:
            writer.finish(0.0)
    assert leaked() == []


@pytest.fixture(autouse=True)
def _nothing_armed():
    yield
    from atoll.fault.inject import disarm

    disarm()
