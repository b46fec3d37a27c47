"""Several ranks fill one file of weights: no two of them the same bytes, and none of them once another wrote its part."""

import dataclasses
import threading

import torch

from atoll.checkpoint import fs_writing
from atoll.checkpoint.commit import Commit, Refuse, judge
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.torch_state import digest, flatten

WITHIN_S = 20.0


def begun(crew, flat, rank, *, module="model"):
    mine, layouts = replicated(flat, rank, ["n0", "n1"])
    return crew.writers[rank].save(mine, layouts, step=5, epoch=1, rank=rank, weights=module)


def weights(scale=1.0):
    return flatten({"model": {f"w{i}": torch.full((100_000,), scale + i) for i in range(4)}})


def test_ranks_that_manage_modules_in_another_order_make_no_checkpoint(crew):
    made = crew(2)
    flat = flatten({m: {f"w{i}": torch.full((1000,), float(i)) for i in range(24)} for m in ("a", "b")})
    handles = [begun(made, flat, rank, module=module) for rank, module in enumerate(("a", "b"))]
    assert all(h.ended.wait(WITHIN_S) for h in handles[:1])
    assert handles[0].problem.startswith("unlike-states: ranks [1] name another first module than rank 0")
    assert Store(made.directory).committed_steps() == []


def test_bytes_that_two_ranks_wrote_make_no_checkpoint(crew):
    made = crew(2)
    for handle in [begun(made, weights(), rank) for rank in (0, 1)]:
        assert handle.ended.wait(WITHIN_S)
    told = list(Store(made.directory).words(5, 1, "run"))
    held = {s.file: 1 << 30 for t in told for s in t.word.segments}
    assert isinstance(judge(told, size=2, held=held, now=1.0), Commit)
    [first, *rest] = told[1].word.segments
    segments = (dataclasses.replace(first, begin=first.begin - 1), *rest)
    told[1] = dataclasses.replace(told[1], word=dataclasses.replace(told[1].word, segments=segments))
    found = judge(told, size=2, held=held, now=1.0)
    assert isinstance(found, Refuse)
    assert found.detail.startswith("ranks 0 and 1 wrote the same bytes of model-e1-")


def test_range_that_a_lost_rank_writes_late_changes_no_step_that_another_completed(crew, monkeypatch):
    made = crew(2)
    go, at, write = threading.Event(), threading.Event(), fs_writing._write_file

    def late(*asked):
        if threading.current_thread() is made.writers[1]._io._process._thread:
            at.set()
            assert go.wait(WITHIN_S)
        write(*asked)

    lost = weights()
    made.writers[1]._io._connected()
    monkeypatch.setattr(fs_writing, "_write_file", late)
    for tensor in lost.tensors.values():
        tensor[7] += 0.5  # its memory is not what the others hold, as a reason to be lost
    handles = [begun(made, weights(), 0), begun(made, lost, 1)]
    assert at.wait(WITHIN_S)
    made.writers[0].regrouped(rank=0, epoch=2, gone=[(1, 1)])
    assert handles[0].ended.wait(WITHIN_S)
    assert handles[0].committed, handles[0].problem
    store = Store(made.directory)
    record = store.record(5)
    assert (record.weights, record.beside) == ("", {})
    assert record.export == "rank 0 wrote the part of rank 1 into a file of its own; export makes the file"
    go.set()
    assert handles[1].local.wait(WITHIN_S)
    assert store.verify(5).ok
    assert digest(store.open(5)) == digest(weights())
