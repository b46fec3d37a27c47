"""Every byte of every file of a small checkpoint, flipped one after the other; every file gone, cut short, another's.

Whatever was done to the copy in the folder: the state that comes back is the one that was written, each file from the
next tier where it is needed for the state, and what was wrong is named: the file, and tensor and rank for a tensor's byte.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoint_crews import Crew

from atoll.checkpoint.arrow_remote import Remote, RemoteCopy
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_futures import Ending
from atoll.checkpoint.fs_read import opened
from atoll.checkpoint.fs_sources import Folder
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_restore import Restore
from atoll.checkpoint.torch_state import digest, flatten
from atoll.schema.checkpoints import Tier

# What a state is read from; words and the files for other programs' readers are only verified.
FOR_THE_STATE = (COMMIT, "*.arrow", "*.safetensors")
BESIDE = ("e*.json", "model.safetensors.index.json")


def state(step):
    model = {"w": torch.full((3, 2), float(step)), "b": torch.full((3,), float(step))}
    return flatten({"model": model, "n": step, "o": {"größe": torch.full((2,), step)}})


@dataclass(frozen=True)
class Byte:
    """Who wrote it, of which tensor it is, and whether a state is read from its block: one of headers alone is not."""

    rank: int
    tensors: tuple[str, ...]
    needed: bool

    @property
    def words(self):
        return (f"rank {self.rank}", *map(repr, self.tensors))


class Kept:
    """Steps 1 and 2 of two ranks, both whole in a folder and in a remote store."""

    def __init__(self, base):
        remote = Remote.at((base / "there").as_uri(), run="run")
        decisions = LinkDecisions(base / "made", run="run")
        self.to = Destination(remote=remote, decisions=decisions, keep=Retention(last=9))
        crew = Crew(2, directory=base / "made", keep=9, to=self.to)
        for step in (2, 1):  # of each the rank that commits says when it is copied
            handles = crew.save(state(step), step, weights="model")
            assert handles[0].remote.outcome(20).ending is Ending.DONE
        crew.finish()
        self.store, self.there = Store(base / "made"), base / "there" / "run"
        self.wanted = digest(state(2))
        self.bytes = {}
        record = self.store.record(2)
        lying = opened(self.store.step_directory(2), record).lying
        for segment in record.segments:
            end = segment.begin + segment.bytes
            needed = any(lying.within(segment.file, segment.begin, end))  # each segment is one block here
            for at in range(segment.begin, end):
                tensors = tuple(e.tensor for e in lying.within(segment.file, at, at + 1))
                self.bytes[segment.file, at] = Byte(segment.rank, tensors, needed)

    def files(self, *patterns):
        return sorted({p for pattern in patterns for p in self.store.step_directory(2).glob(pattern)})

    def read(self):
        """The digest of what is loaded, its step's epoch being checked by it, and what was told meanwhile."""
        told = []
        found = Restore(self.store, run="run", damaged=lambda *said: told.append(said), to=self.to).newest()
        return digest(found), told


@pytest.fixture(scope="module")
def kept():
    torch.set_num_threads(1)
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    base = Path(tempfile.mkdtemp(prefix="atoll-bytes-", dir=where))
    yield Kept(base)
    shutil.rmtree(base)


def flipped(path):
    """For each byte of a file in turn: its place, while another value is there. A bit of it, another one each time."""
    original = path.read_bytes()
    try:
        with path.open("r+b", buffering=0) as file:
            for at, value in enumerate(original):
                os.pwrite(file.fileno(), bytes([value ^ 1 << at % 8]), at)
                yield at
                os.pwrite(file.fileno(), bytes([value]), at)
    finally:
        path.write_bytes(original)


def rows(reading):
    """All extents of an opened step."""
    return [list(reading.lying.within(file, 0, 1 << 30)) for file in sorted(reading.segments)]


def assert_next_tier_is_used_and_the_file_named(kept, path, *words):
    found, told = kept.read()
    assert found == kept.wanted
    assert [(step, tier) for step, tier, _ in told] == [(2, Tier.LOCAL)]
    for word in (path.name, *words):
        assert word in told[0][2]


@pytest.mark.parametrize("pattern", [COMMIT, "*.safetensors"])
def test_each_flipped_byte_that_the_state_needs_is_named_and_the_next_tier_used(kept, pattern):
    for path in kept.files(pattern):
        for at in flipped(path):
            byte = kept.bytes.get((path.name, at))
            if byte is None or byte.needed:
                assert_next_tier_is_used_and_the_file_named(kept, path, *(byte.words if byte is not None else ()))
            else:
                assert kept.read() == (kept.wanted, [])
    assert kept.read() == (kept.wanted, [])


def test_each_flipped_byte_of_a_table_is_named_and_the_next_tier_used(kept):
    record, directory = kept.store.record(2), kept.store.step_directory(2)
    sources = [Folder(directory), RemoteCopy(kept.to.remote, 2)]
    whole = rows(opened(directory, record))
    for path in kept.files("*.arrow"):
        for at in flipped(path):
            told = []
            found = opened(directory, record, sources, lambda *said, told=told: told.append(said))
            assert [source for source, _ in told] == sources[:1]
            assert path.name in told[0][1]
            assert rows(found) == whole
            if at % 64 == 0:  # opening is all that reads a table; the rest of the way is the same for every byte
                assert_next_tier_is_used_and_the_file_named(kept, path)
    assert kept.read() == (kept.wanted, [])


def test_each_flipped_byte_of_a_pack_or_of_the_weights_is_what_verifying_names(kept):
    for path in kept.files("*.safetensors"):
        for at in flipped(path):
            (problem,) = kept.store.verify(2).problems
            assert all(word in problem for word in (path.name, *kept.bytes[path.name, at].words))
    assert kept.store.verify(2).ok


def test_each_flipped_byte_that_no_state_needs_is_named_by_verifying(kept):
    paths = kept.files(*BESIDE)
    assert len(paths) == 3
    for path in paths:
        for _ in flipped(path):
            (problem,) = kept.store.verify(2).problems
            assert path.name in problem
    assert kept.store.verify(2).ok


def test_all_files_of_a_step_are_among_those_that_are_flipped(kept):
    assert set(kept.files(*FOR_THE_STATE, *BESIDE)) == set(kept.store.step_directory(2).iterdir())
    packed = {(p.name, at) for p in kept.files("*.safetensors") for at in range(p.stat().st_size)}
    assert set(kept.bytes) == packed
    assert {b.rank for b in kept.bytes.values()} == {0, 1}
    assert {name for b in kept.bytes.values() for name in b.tensors} == set(state(2).tensors)


def test_flipped_byte_of_the_last_copy_gives_the_older_step_and_never_its_values(kept, tmp_path):
    """The remote store has the only copy of step 2: what is damaged there is whole nowhere."""
    shutil.copytree(kept.there.parent, tmp_path / "there")
    there = tmp_path / "there" / "run" / "step-00000002"
    for number, (file, at) in enumerate(key for key, byte in kept.bytes.items() if byte.tensors):
        folder = tmp_path / f"made-{number}"
        shutil.copytree(kept.store.directory, folder)
        shutil.rmtree(Store(folder).step_directory(2))
        data = (there / file).read_bytes()
        (there / file).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        remote, decisions = Remote.at((tmp_path / "there").as_uri(), run="run"), LinkDecisions(folder, run="run")
        to, told = Destination(remote=remote, decisions=decisions, keep=Retention(last=9)), []
        found = Restore(Store(folder), run="run", damaged=lambda *said, told=told: told.append(said), to=to)
        assert digest(found.newest()) == digest(state(1))
        assert [(step, tier) for step, tier, _ in told] == [(2, Tier.REMOTE)]
        assert all(word in told[0][2] for word in (file, *kept.bytes[file, at].words))
        (there / file).write_bytes(data)


def damages(kept, path):
    """Every way to lose a file as a whole: gone, of each shorter length, and that of the other step."""
    content = path.read_bytes()
    try:
        path.unlink()
        yield "gone"
        # What is not of the state's values is compared as a whole: all lengths are alike.
        for length in range(0, len(content), 1 if path.suffix == ".safetensors" else 97):
            path.write_bytes(content[:length])
            yield f"cut to {length} bytes"
        other = (kept.store.step_directory(1) / path.name).read_bytes()
        if other != content:
            path.write_bytes(other)
            yield "that of step 1"
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("pattern", [*FOR_THE_STATE, *BESIDE])
def test_file_that_is_gone_cut_short_or_of_another_step_is_named_and_the_next_tier_used(kept, pattern):
    for path in kept.files(pattern):
        for what in damages(kept, path):
            found, told = kept.read()
            assert found == kept.wanted, (path.name, what)
            gone = path.name == COMMIT and what == "gone"
            assert any(path.name in words for *_, words in told) != (gone or pattern in BESIDE), (path.name, what)
            assert any(path.name in problem for problem in kept.store.verify(2).problems), (path.name, what)
            if path.suffix == ".safetensors" and what == "gone":
                assert "tensor '" in told[0][2]
                assert "rank " in told[0][2]
    assert kept.read() == (kept.wanted, [])
    assert kept.store.verify(2).ok
