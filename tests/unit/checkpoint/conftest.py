"""Pack records without files, and states and writers with them."""

import threading

import pytest

from atoll.checkpoint.manifest import BLOCK_BYTES, PackRecord

STATE = "a" * 16


def pack_record(rank, size, tensors, **changed):
    """A sidecar as rank `rank` of `size` would write it; rank 0's names all tensors in its tree."""
    given = {
        "file": f"r{rank}.safetensors",
        "run": "run",
        "step": 5,
        "epoch": 1,
        "rank": rank,
        "size": size,
        "bytes": 100 + rank,
        "block_bytes": BLOCK_BYTES,
        "blocks": ("0" * 16,),
        "tensors": tuple(tensors),
        "state": STATE,
    }
    return PackRecord(**{**given, **changed})


@pytest.fixture
def pack():
    return pack_record


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
    from atoll.checkpoint.writer import Writer

    made = []

    class Crew:
        def __init__(self, size, *, keep=3, run="run", directory=None, epoch=1):
            self.told, self.size, self.epoch = [], size, epoch
            self.directory = directory or tmp_path / "checkpoints"
            self.writers = [
                Writer(self.directory, run=run, trainer=f"t{r}", tell=self.told.append, keep=keep) for r in range(size)
            ]
            made.append(self)

        def save(self, flat, step, ranks=None):
            ranks = range(self.size) if ranks is None else ranks
            handles = [self.writers[r].save(flat, step=step, epoch=self.epoch, rank=r, size=self.size) for r in ranks]
            for rank in ranks:
                self.writers[rank].before_update()
            return handles

        def save_and_wait(self, flat, *steps):
            for step in steps:
                assert self.save(flat, step)[0].ended.wait(10)

        def finish(self, timeout_s=10.0):
            for writer in reversed(self.writers):
                writer.finish(timeout_s)

    yield Crew
    for crew in made:
        for writer in crew.writers:
            writer.finish(0.0)
    assert [t.name for t in threading.enumerate() if t.name.startswith("atoll-checkpoint")] == []


@pytest.fixture(autouse=True)
def _nothing_armed():
    yield
    from atoll.fault.inject import disarm

    disarm()
