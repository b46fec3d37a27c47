"""docs/checkpoints.md is enough to write a reader from: one that was reads what writers wrote."""

import ast
import inspect

import format_2_reader
import pytest
import torch
from format_2_reader import Step

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.torch_digests import elements
from atoll.checkpoint.torch_flat import cut
from atoll.checkpoint.torch_state import Flat, flatten

MOST_LINES = 60


def test_reader_of_the_specification_is_short_and_knows_nothing_of_atoll():
    source = inspect.getsource(format_2_reader)
    assert len(source.splitlines()) <= MOST_LINES
    names = {n.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in node.names}
    assert names == {"base64", "json", "pathlib", "numpy", "pyarrow", "xxhash"}
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]


@pytest.fixture
def saved(crew, state):
    """A step of three ranks that share packs and the file of weights."""
    made = crew(3)
    made.save_and_wait(flatten(state()), 1, weights="model")
    made.finish()
    return Store(made.directory).step_directory(1)


def test_it_reads_packs_and_weights_and_the_tree(saved, state):
    step, flat = Step(saved), flatten(state())
    assert step.record["tree"] == flat.meta
    assert {t["name"] for t in step.record["tensors"]} == flat.tensors.keys()
    assert step.record["weights"]
    for name, tensor in flat.tensors.items():
        assert (step.tensor(name) == elements(tensor)).all(), name


def test_it_reads_tensors_that_are_cut(crew):
    whole = torch.arange(70.0).view(10, 7)
    logical = Logical("model.w", "float32", (10, 7))
    boxes = [Box((0, 0), (10, 2)), Box((0, 2), (10, 7))]
    made = crew(2)
    for rank in range(2):
        part = Flat(tensors={"model.w": whole[boxes[rank].within(Box((0, 0), (10, 7)))]}, meta={"model": {}})
        mine, layouts = cut(part, [logical], rank, ["a", "b"], lambda _, r: (boxes[r], (r,)))
        made.writers[rank].save(mine, layouts, step=4, epoch=1, rank=rank, weights="model")
        made.writers[rank].before_update()
    made.finish()
    step = Step(Store(made.directory).step_directory(4))
    assert "is no range of rows" in step.record["export"]
    assert (step.tensor("model.w") == elements(whole)).all()


def test_it_finds_a_changed_byte_in_every_file_that_holds_data(saved):
    named = {e["file"] for e in Step(saved).extents} | {p.name for p in saved.glob("*.arrow")} | {"commit.json"}
    for file in sorted(named):
        data = (saved / file).read_bytes()
        (saved / file).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        with pytest.raises((AssertionError, ValueError)):
            read_all(saved)
        (saved / file).write_bytes(data)
    read_all(saved)


def read_all(path):
    step = Step(path)
    return [step.tensor(t["name"]) for t in step.record["tensors"]]
