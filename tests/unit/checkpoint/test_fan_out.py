"""Several ranks restore one step: each block is read once, whoever wants it, and damage stops all of them."""

import threading

import pytest

pytest.importorskip("torch")

import torch
from checkpoint_crews import Crew

from atoll.checkpoint.boxes import chunk, whole
from atoll.checkpoint.fs_read import Wanted, opened
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_fan_out import restore
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError

WITHIN_S = 20.0
# Blocks of 4 MiB: some of them lie across the cuts of three ranks.
STATE = {
    "weight": torch.arange(3_000_000, dtype=torch.float32).view(3000, 1000),
    "half": torch.arange(7_000, dtype=torch.int32).view(70, 100).to(torch.bfloat16),
    "step": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
}


class Trades:
    """Ranks that are threads."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=WITHIN_S)
        self._sent = [None] * size

    def of(self, rank):
        def trade(messages):
            self._sent[rank] = list(messages)
            self._barrier.wait()
            found = [sent[rank] for sent in self._sent]
            self._barrier.wait()
            return found

        return trade


@pytest.fixture
def saved(tmp_path):
    crew = Crew(2, directory=tmp_path)
    handles = crew.save(Flat(tensors=STATE, meta={}), 1)
    for handle in handles:
        assert handle.ended.wait(WITHIN_S)
        assert handle.committed, handle.problem
    for writer in crew.writers:
        writer.finish(WITHIN_S)
    return Store(tmp_path)


def wants_of(rank, size, *, replicated=False):
    found = []
    for name, tensor in STATE.items():
        shape = tuple(tensor.shape)
        box = whole(shape) if replicated or not shape else chunk(shape, 0, size, rank)
        found.append(Wanted(name, box))
    return found


def restored(store, size, **options):
    """Targets, bytes read and problems of each rank."""
    wants = [wants_of(rank, size, **options) for rank in range(size)]
    trades, found = Trades(size), [None] * size

    def run(rank):
        reading = opened(store.step_directory(1), store.record(1))
        targets = {(w.tensor, w.box): torch.zeros(w.box.shape, dtype=STATE[w.tensor].dtype) for w in wants[rank]}
        problem = ""
        try:
            restore(reading, rank, wants, targets, trades.of(rank))
        except CheckpointError as error:
            problem = str(error)
        found[rank] = targets, reading.bytes_read, problem

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WITHIN_S)
    assert all(found)
    return found


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("replicated", [False, True])
def test_each_rank_gets_its_boxes_and_no_block_is_read_twice(saved, size, replicated):
    found = restored(saved, size, replicated=replicated)
    assert not [problem for _, _, problem in found if problem]
    for targets, _, _ in found:
        for (name, box), tensor in targets.items():
            assert torch.equal(tensor, STATE[name][box.within(whole(STATE[name].shape))])
    stored = sum(segment.bytes for segment in saved.record(1).segments)
    assert sum(count for _, count, _ in found) <= stored


def test_damaged_block_is_an_error_on_every_rank(saved):
    pack = max(saved.step_directory(1).glob("*.safetensors"), key=lambda p: p.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    problems = [problem for _, _, problem in restored(saved, 3)]
    assert len(problems) == 3
    assert all("weight" in problem for problem in problems)
