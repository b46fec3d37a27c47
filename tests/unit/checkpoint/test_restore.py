"""Which tier a state comes back from, block by block, and what is told of the others."""

import errno
import json
import shutil
import threading

import pytest
import xxhash
from pyarrow import fs
from remote_stores import Flaky

from atoll.checkpoint import fs_sources, torch_restore
from atoll.checkpoint.arrow_remote import Remote
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_futures import Ending
from atoll.checkpoint.fs_retrying import Backoff
from atoll.checkpoint.fs_sources import Unasked
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.manifest import FORMAT, NewerFormat
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_restore import Restore
from atoll.checkpoint.torch_state import digest, flatten
from atoll.errors import CheckpointError
from atoll.schema.checkpoints import Tier
from atoll.schema.messages import Rewound

QUICK = Backoff(tries=3, first_s=0.001, most_s=0.002)


class Run:
    """Two durable steps of one rank, both also in a remote store, the last also in memory."""

    def __init__(self, crew, state, tmp_path):
        self.files = Flaky(fs.LocalFileSystem())
        self.remote = Remote(lambda: (fs.PyFileSystem(self.files), str(tmp_path / "there")), run="run", uri="flaky://x")
        decisions = LinkDecisions(tmp_path / "checkpoints", run="run")
        self.to = Destination(remote=self.remote, decisions=decisions, keep=Retention(last=9), backoff=QUICK)
        self.crew, self.state, self.told = crew(1, to=self.to), state, []
        for step in (1, 2):
            (handle,) = self.crew.save(flatten(state(step)), step)
            assert handle.remote.outcome(20).ending is Ending.DONE
        self.store = Store(self.crew.directory)
        self.memory = self.crew.writers[0].memory()
        self.there = tmp_path / "there" / "run"

    def newest(self, **changes):
        given = {"to": self.to, "memory": ()} | changes
        found = Restore(self.store, run="run", damaged=lambda *said: self.told.append(said), **given).newest()
        return None if found is None else digest(found)

    def of(self, step):
        return digest(flatten(self.state(step)))

    def packs(self, step, root=None):
        return sorted((root / f"step-{step:08d}" if root else self.store.step_directory(step)).glob("*.safetensors"))

    def tiers(self):
        return [(step, tier) for step, tier, _ in self.told]


@pytest.fixture
def run(crew, state, tmp_path):
    return Run(crew, state, tmp_path)


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_whole_step_is_read_here_and_the_store_is_not_read(run):
    reads = []
    run.files.open_input_file = reads.append
    assert run.newest() == run.of(2)
    assert (run.told, reads) == ([], [])


def test_damaged_block_comes_from_the_store_and_is_told_with_tensor_rank_and_file(run):
    flip(run.packs(2)[0])
    assert run.newest() == run.of(2)
    ((step, tier, words),) = run.told
    assert (step, tier) == (2, Tier.LOCAL)
    assert run.packs(2)[0].name in words
    assert "tensor '" in words
    assert "rank 0" in words


@pytest.mark.parametrize("lost", ["*.safetensors", "*.arrow", COMMIT])
def test_lost_files_of_a_step_come_from_the_store(run, lost):
    for path in run.store.step_directory(2).glob(lost):
        path.unlink()
    assert run.newest() == run.of(2)


def test_lost_disk_is_made_up_for_by_the_store_even_without_its_decisions(run):
    shutil.rmtree(run.store.directory)
    assert run.newest() == run.of(2)
    assert run.told == []


def test_edited_record_is_not_believed(run):
    path = run.store.step_directory(2) / COMMIT
    found = json.loads(path.read_text())
    found["record"]["tree"] = {}
    path.write_text(json.dumps(found))
    assert run.newest() == run.of(2)
    assert run.tiers() == [(2, Tier.LOCAL)]


def test_memory_serves_what_the_disk_lost(run):
    for path in run.packs(2):
        path.write_bytes(b"")
    assert run.newest(to=None, memory=run.memory) == run.of(2)
    assert run.told == []


def test_damaged_memory_is_passed_over(run):
    for step, _, source in run.memory:
        if step == 2:
            source._memory[: source._runs[-1][2]] = bytes(source._runs[-1][2])
    assert run.newest(memory=run.memory) == run.of(2)
    assert run.tiers() == [(2, Tier.MEMORY)]


def test_memory_of_another_save_of_the_same_step_is_not_used(run):
    other = [(step, epoch + 1, source) for step, epoch, source in run.memory]
    for path in run.packs(2):
        path.write_bytes(b"")
    run.newest(to=None, memory=other)
    assert (2, Tier.MEMORY) not in run.tiers()


def test_step_that_is_whole_nowhere_gives_way_to_the_older_one_and_is_set_aside(run, crew, state):
    flip(run.packs(2)[0])
    flip(run.packs(2, run.there)[0])
    assert run.newest() == run.of(1)
    assert run.tiers() == [(2, Tier.LOCAL), (2, Tier.REMOTE)]
    assert run.store.committed_steps() == [1]
    assert [p.name[:21] for p in run.store.directory.glob("damaged-*")] == ["damaged-step-00000002"]
    run.told.clear()
    assert run.newest() == run.of(1)
    again = crew(1, to=run.to, epoch=2)
    (handle,) = again.save(flatten(state(5)), 2)
    assert handle.remote.outcome(20).ending is Ending.DONE
    shutil.rmtree(run.store.step_directory(2))
    assert run.newest() == run.of(5)


def test_run_whose_steps_are_all_damaged_is_told_so_and_nothing_is_loaded(run):
    for step in (1, 2):
        flip(run.packs(step)[0])
    with pytest.raises(CheckpointError, match=r"step 2: .*has checksum"):
        run.newest(to=None)
    assert run.store.committed_steps() == [1, 2]


def test_store_that_cannot_be_asked_does_not_matter_where_all_is_here(run):
    run.files.fail = 10_000
    assert run.newest() == run.of(2)


def test_store_that_cannot_be_asked_is_no_empty_one(run):
    shutil.rmtree(run.store.directory)
    run.files.fail = 10_000
    with pytest.raises(CheckpointError, match="given up after 3 tries"):
        run.newest()


def test_store_that_fails_now_and_then_and_gives_little_at_once_is_read_whole(run):
    shutil.rmtree(run.store.directory)
    run.files.fail, run.files.at_once = 2, 37
    assert run.newest() == run.of(2)


def test_store_that_fails_for_a_while_costs_no_step(run, monkeypatch):
    shutil.rmtree(run.store.step_directory(2))
    plain = run.remote.record

    def record(one):
        run.files.fail = 3 * (one.step == 2)
        return plain(one)

    monkeypatch.setattr(run.remote, "record", record)
    with pytest.raises(Unasked, match="given up after 3 tries"):
        run.newest()
    monkeypatch.undo()
    assert (run.to.decisions.withdrawn(2), run.newest()) == (frozenset(), run.of(2))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_disk_that_fails_for_a_while_costs_no_step_and_its_blocks_come_from_elsewhere(run, code, monkeypatch):
    plain = fs_sources.read_at

    def read_at(path, view, offset):
        if "step-00000002" in str(path):
            raise OSError(code, "the disk gives nothing")
        return plain(path, view, offset)

    monkeypatch.setattr(fs_sources, "read_at", read_at)
    with pytest.raises(Unasked, match="the disk gives nothing"):
        run.newest(to=None)
    assert run.newest() == run.of(2)
    assert (run.told, run.store.committed_steps()) == ([], [1, 2])


def test_folder_that_is_not_mounted_is_no_damage(run):
    record = run.store.record(2)
    run.store.step_directory(2).rename(run.store.directory / "elsewhere")
    with pytest.raises(Unasked):
        Restore(run.store, run="run", damaged=lambda *_: None).opened(record, [Tier.LOCAL])


def test_damage_here_is_no_reason_to_go_back_while_the_store_cannot_be_asked(run):
    flip(run.packs(2)[0])
    run.files.fail = 10_000
    with pytest.raises(Unasked, match="has checksum"):
        run.newest()
    assert run.store.committed_steps() == [1, 2]


def test_step_saved_anew_after_a_return_counts_and_the_doubted_copy_of_it_never_does(run, crew, state):
    doubted = Rewound(step=1, epoch=1).spoils
    run.files.fail = 10_000
    assert run.newest(doubted=doubted) == run.of(1)
    run.files.fail = 0
    again = crew(1, to=run.to, epoch=3)
    (handle,) = again.save(flatten(state(5)), 2)
    assert handle.remote.outcome(20).ending is Ending.DONE
    assert run.newest(doubted=doubted) == run.of(5)
    shutil.rmtree(run.store.step_directory(2))
    assert run.newest(doubted=doubted) == run.of(5)


def test_step_saved_anew_is_not_in_doubt_for_an_older_copy_of_the_same_step(run, crew, state):
    run.store.set_aside(2)
    (handle,) = crew(1, epoch=3).save(flatten(state(5)), 2)
    assert handle.ended.wait(20)
    assert run.newest(doubted=Rewound(step=1, epoch=1).spoils) == run.of(5)


def test_store_that_hangs_holds_up_no_step_that_is_here(run, monkeypatch):
    monkeypatch.setattr(torch_restore, "_BESIDE_S", 0.01)
    run.files.free.clear()
    try:
        assert run.newest() == run.of(2)
    finally:
        run.files.free.set()
        for asking in [t for t in threading.enumerate() if t.name == "atoll-checkpoint-ask"]:
            asking.join(30.0)


def test_nothing_anywhere_is_an_answer(run, tmp_path):
    store = Store(tmp_path / "empty")
    assert Restore(store, run="run", damaged=lambda *_: None).newest() is None
    assert Restore(store, run="other", damaged=lambda *_: None, to=None).newest() is None


def test_two_that_decide_at_once_both_hear_of_the_same_record(tmp_path, monkeypatch):
    one, other = (LinkDecisions(tmp_path, run="run") for _ in range(2))
    plain, heard = one.decided, []

    def decided(step):
        found = plain(step)
        if not heard:
            heard.append(other.decide(step, "theirs"))
        return found

    monkeypatch.setattr(one, "decided", decided)
    assert (one.decide(7, "ours"), heard, other.decided(7)) == ("theirs", ["theirs"], "theirs")
    assert one.steps() == {7}


def made_newer(path, run="run"):
    """The record at `path` as a later build might have written it; its name in a remote store has its checksum."""
    plain = json.loads(path.read_bytes())["record"] | {"format": FORMAT + 1, "run": run}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(json.dumps({"record": plain, "xxh3": xxhash.xxh3_64_hexdigest(text)}).encode())


@pytest.mark.parametrize("remote", [True, False])
def test_step_of_a_newer_format_is_neither_gone_behind_nor_set_aside(run, remote):
    made_newer(run.store.step_directory(2) / COMMIT)
    with pytest.raises(NewerFormat, match="a newer Atoll wrote it"):
        run.newest(**({} if remote else {"to": None}))
    assert (run.told, list(run.store.committed_steps())) == ([], [1, 2])
    assert run.to.decisions.decided(2)
    assert run.store.verify(2).line().startswith("step 2: NOT READ")


def test_copy_of_a_newer_format_in_the_store_is_neither_gone_behind_nor_withdrawn(run):
    (record,) = (run.there / "step-00000002").glob("commit-*")
    made_newer(record)
    shutil.rmtree(run.store.step_directory(2))
    with pytest.raises(NewerFormat):
        run.newest()
    assert run.told == []
    assert run.to.decisions.decided(2)


def test_step_of_a_newer_format_of_another_run_is_nobodys_concern(run):
    made_newer(run.store.step_directory(2) / COMMIT, run="other")
    assert run.newest(to=None) == run.of(1)
    assert list(run.store.committed_steps()) == [1, 2]
