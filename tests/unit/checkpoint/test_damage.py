"""A checkpoint that was tampered with in any way: noticed, named, never loaded."""

import os
import shutil

import pytest
import torch
from checkpoint_crews import Crew
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_read import Wanted, divided, opened
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.torch_read import read_into
from atoll.checkpoint.torch_state import digest, flatten
from atoll.errors import CheckpointError

RANKS = 3


def state(step):
    generator = torch.Generator().manual_seed(step)
    weights = {f"w{i}": torch.randn(20 + i, 3, generator=generator) for i in range(4)}
    return flatten({"model": weights, "optimizer": {"m": torch.randn(9, 5, generator=generator), "n": step}})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage")
    crew = Crew(RANKS, directory=path / "made", keep=9)
    crew.save_and_wait(state(1), 1, 2, weights="model", config="{}")
    crew.save_and_wait(state(3), 3, weights="model", config="{}")
    crew.finish()
    return Store(path / "made")


@pytest.fixture(scope="module")
def copy(original, tmp_path_factory):
    """The store once more, to be damaged; `restore(file)` mends it."""
    path = tmp_path_factory.mktemp("copy") / "made"
    shutil.copytree(original.directory, path)
    return Store(path)


def files(store, step=1):
    return sorted(p for p in store.step_directory(step).iterdir() if p.is_file())


def mend(original, path):
    shutil.copyfile(original.step_directory(1) / path.name, path)


def assert_noticed(store, path):
    """Verifying names the file, and reading never gives other values than were written."""
    report = store.verify(1)
    assert not report.ok, path.name
    assert any(path.name in line for line in report.problems), report.problems
    try:
        found = store.open(1)
    except CheckpointError:
        return
    # Words, headers and files for others' readers are not read for a state.
    assert path.name != COMMIT
    assert digest(found) == digest(state(1))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_flipped_byte_of_any_file_is_noticed(original, copy, data):
    path = data.draw(st.sampled_from(files(copy)))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    content = bytearray(path.read_bytes())
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert_noticed(copy, path)
    finally:
        mend(original, path)
    assert copy.verify(1).ok


def test_flipped_byte_of_a_pack_or_of_the_weights_names_tensor_and_rank(original, copy):
    for path in (p for p in files(copy) if p.suffix == ".safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"block 0 .* it holds tensor '\S+'.* written by rank \d"):
            copy.open(1)
        mend(original, path)


def test_file_that_is_gone_truncated_lengthened_or_of_another_step_is_noticed(original, copy):
    for path in files(copy):
        content = path.read_bytes()
        for length in (0, len(content) // 2, len(content) - 1):
            os.truncate(path, length)
            assert_noticed(copy, path)
            path.write_bytes(content)
        path.unlink()
        if path.name == COMMIT:
            assert 1 not in copy.committed_steps()
        else:
            assert_noticed(copy, path)
        other = copy.step_directory(3) / path.name
        if other.read_bytes() != content:  # those for other programs are the same in each step
            shutil.copyfile(other, path)
            assert_noticed(copy, path)
        path.write_bytes(content)
    assert copy.verify(1).ok


# -- reading ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_reads_as_cut_out_of_the_whole(original, data):
    reading = opened(original.step_directory(3), original.record(3))
    name, tensor = data.draw(st.sampled_from(sorted(state(3).tensors.items())))
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in tensor.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    target = torch.zeros(box.shape[::-1]).T if data.draw(st.booleans()) else torch.zeros(box.shape)
    read_into(reading, {(name, box): target})
    assert torch.equal(target, tensor[tuple(slice(a, b) for a, b in ends)])


@given(ranks=st.integers(1, 6))
def test_blocks_that_several_want_are_read_by_one_of_them(original, ranks):
    reading = opened(original.step_directory(1), original.record(1))
    shapes = {t.name: t.shape for t in original.record(1).tensors}
    needs = {
        r: reading.blocks(
            Wanted(n, Box((s[0] * r // ranks, 0), (s[0] * (r + 1) // ranks, s[1]))) for n, s in shapes.items()
        )
        for r in range(ranks)
    }
    found = divided(needs, lambda _: 1)
    read = [block for blocks in found.values() for block in blocks]
    assert len(read) == len(set(read))
    assert set(read) == {block for blocks in needs.values() for block in blocks}
