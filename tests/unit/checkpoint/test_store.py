import errno
import fcntl
import json
import os
from dataclasses import replace

import pytest
import torch

from atoll.checkpoint.commit import Refusal, Refuse, Wait
from atoll.checkpoint.fs_files import reading
from atoll.checkpoint.fs_inspect import list_checkpoints, verify
from atoll.checkpoint.fs_retention import retain
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.manifest import seal, unseal_commit
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_state import digest, flatten, unflatten
from atoll.errors import CheckpointError, NotFoundError


@pytest.fixture
def three(crew, state):
    """Steps 1 to 3 by two ranks."""
    made = crew(2)
    for step in (1, 2, 3):
        made.save_and_wait(flatten(state(step)), step)
    made.finish()
    return Store(made.directory)


def packs(store, step):
    return sorted(store.step_directory(step).glob("*.safetensors"))


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_committed_steps_are_listed_oldest_first_and_open_by_number_or_newest(three, state):
    assert [(c.step, c.run, c.epoch) for c in three.list()] == [(1, "run", 1), (2, "run", 1), (3, "run", 1)]
    assert three.latest().bytes == sum(p.stat().st_size for p in packs(three, 3))
    assert digest(three.open(2)) == digest(flatten(state(2)))
    assert digest(three.open()) == digest(flatten(state(3)))
    assert unflatten(three.open())["lr"] == (0.1, {"last": 3})


def test_folder_without_checkpoints_says_so(tmp_path):
    assert Store(tmp_path / "none").list() == []
    assert Store(tmp_path / "none").latest() is None
    with pytest.raises(CheckpointError, match="no committed checkpoint under"):
        Store(tmp_path).open()


def test_unknown_step_names_one_to_use(three):
    with pytest.raises(CheckpointError, match="No such file or directory; use step 3 instead"):
        three.open(9)


def test_damaged_pack_is_refused_with_block_and_an_older_step(three):
    flip(packs(three, 3)[1])
    words = (
        r"r1of2-\w+\.safetensors: block 0 \(bytes 0 to \d+\) has checksum \w+, \w+ was written; it holds tensor "
        r"'[\w./]+'(, '[\w./]+')*, written by rank 1; use step 2 instead"
    )
    with pytest.raises(CheckpointError, match=words):
        three.open(3)
    report = three.verify(3)
    assert [p.ok for p in report.packs if p.checked] == [True, False]
    assert report.line().startswith("step 3: DAMAGED, 6 files, 2 blocks")
    assert three.verify(2).ok


def test_missing_pack_is_reported_beside_the_good_one(three):
    packs(three, 3)[0].unlink()
    report = three.verify(3)
    assert [p.ok for p in report.packs] == [False, True, True, True, True, True]
    assert report.packs[0].problem == (
        "No such file or directory; written by rank 0: tensor 'optimizer.state.0.m' is gone"
    )
    with pytest.raises(CheckpointError, match="use step 2 instead"):
        three.open()


def test_edited_record_is_refused_and_not_listed_but_verify_names_it(three):
    path = three.step_directory(3) / COMMIT
    plain = json.loads(path.read_bytes())
    plain["record"]["tree"]["lr"]["$tuple"][0] = 0.2
    path.write_text(json.dumps(plain))
    assert [c.step for c in three.list()] == [1, 2]
    with pytest.raises(CheckpointError, match=r"was changed after it was written.*use step 2 instead"):
        three.open(3)
    reports = verify(three.directory)
    assert [r.ok for r in reports] == [True, True, False]
    assert "was changed after it was written" in reports[2].line()


def test_record_under_another_steps_name_is_refused(three):
    three.step_directory(3).rename(three.step_directory(7))
    with pytest.raises(CheckpointError, match="is the record of step 3"):
        three.open(7)


def test_all_steps_damaged_says_that_none_is_left(three):
    for step in (1, 2):
        three.delete(step)
    flip(packs(three, 3)[0])
    with pytest.raises(CheckpointError, match="no other checkpoint lies under"):
        three.open()


def test_inspection_takes_a_folder_or_one_step_in_it(three):
    assert [c.step for c in list_checkpoints(three.directory)] == [1, 2, 3]
    assert [c.step for c in list_checkpoints(three.step_directory(2))] == [2]
    assert [r.step for r in verify(three.step_directory(2))] == [2]
    assert [r.step for r in verify(three.directory, 1)] == [1]


def test_inspection_of_nothing_says_what_is_there(three, tmp_path):
    with pytest.raises(NotFoundError, match=r"no committed step 9 in .*; there are 1, 2, 3"):
        verify(three.directory, 9)
    with pytest.raises(NotFoundError, match="no directory"):
        list_checkpoints(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no committed checkpoint in"):
        verify(tmp_path)


def test_step_that_is_being_read_is_not_deleted(three):
    with reading(three.step_directory(1) / COMMIT):
        assert not three.delete(1)
        assert three.verify(1).ok
    assert three.delete(1)
    assert not three.step_directory(1).exists()
    assert three.delete(1)


def as_over_nfs(handle, kind, plain=fcntl.flock):
    """There an exclusive lock wants a handle for writing, and a shared one a handle for reading."""
    mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == (os.O_RDONLY if kind & fcntl.LOCK_EX else os.O_WRONLY):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    plain(handle, kind)


def test_step_that_is_being_read_over_nfs_is_not_deleted(three, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", as_over_nfs)
    with reading(three.step_directory(1) / COMMIT):
        assert not three.delete(1)
    assert three.delete(1)


def test_step_whose_record_may_not_be_written_is_deleted_all_the_same(three, monkeypatch):
    plain = os.open

    def read_only(path, flags, *rest, **named):
        if flags & os.O_ACCMODE and str(path).endswith(COMMIT):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    with reading(three.step_directory(1) / COMMIT):
        assert not three.delete(1)
    assert three.delete(1)


def test_retention_keeps_the_newest_and_only_its_own_runs_steps(three):
    assert retain(three, run="other", keep=Retention(last=1), newest=3, now=0.0) == ""
    assert [c.step for c in three.list()] == [1, 2, 3]
    assert retain(three, run="run", keep=Retention(last=2), newest=3, now=0.0) == ""
    assert [c.step for c in three.list()] == [2, 3]


def test_retention_deletes_nothing_behind_a_step_that_does_not_read_back(three):
    flip(packs(three, 3)[0])
    assert "block 0" in retain(three, run="run", keep=Retention(last=1), newest=3, now=0.0)
    assert [c.step for c in three.list()] == [1, 2, 3]


def test_step_without_its_record_is_no_checkpoint_until_someone_completes_it(three, state):
    (three.step_directory(3) / COMMIT).unlink()
    assert [c.step for c in three.list()] == [1, 2]
    assert digest(three.open()) == digest(flatten(state(2)))
    assert three.complete("other", now=1.0) == []
    assert three.complete("run", now=1.0) == [3]
    assert digest(three.open()) == digest(flatten(state(3)))


def test_leftover_that_lacks_a_pack_is_never_completed(three):
    (three.step_directory(3) / COMMIT).unlink()
    packs(three, 3)[1].unlink()
    assert three.complete("run", now=1.0) == []
    found = three.try_commit(3, 1, 2, run="run", now=1.0)
    assert isinstance(found, Refuse)
    assert found.why is Refusal.PACK_GONE
    packs(three, 3)[0].with_suffix(".json").unlink()
    assert three.try_commit(3, 1, 2, run="run", now=1.0) == Wait(missing=(0,))


def test_unreadable_sidecar_counts_as_not_there(three):
    (three.step_directory(3) / COMMIT).unlink()
    flip(packs(three, 3)[1].with_suffix(".json"), 40)
    assert three.try_commit(3, 1, 2, run="run", now=1.0) == Wait(missing=(1,))


def test_packs_of_another_epoch_are_swept_and_the_committed_ones_kept(three, crew, state):
    (three.step_directory(2) / COMMIT).unlink()
    again = crew(1, epoch=2, directory=three.directory)
    again.save_and_wait(flatten(state(2)), 2)
    assert len(packs(three, 2)) == 3
    three.sweep(2, "run")
    assert [p.name[:8] for p in packs(three, 2)] == ["e2-r0of1"]
    assert three.verify(2).ok


def test_tensors_of_one_epoch_open_whatever_the_number_of_ranks(crew, state, tmp_path):
    found = set()
    for size in (1, 2, 5):
        made = crew(size, directory=tmp_path / str(size))
        made.save_and_wait(flatten(state()), 1)
        found.add(digest(Store(made.directory).open()))
    assert found == {digest(flatten(state()))}
    assert torch.equal(unflatten(Store(tmp_path / "5").open())["model"]["tied"], state()["model"]["tied"])


def test_folders_that_only_look_like_steps_are_none(tmp_path):
    store = Store(tmp_path)
    for name in ("step-5", "step-\N{SUPERSCRIPT TWO}", "step-000000005", "step-\N{ARABIC-INDIC DIGIT TWO}2345678"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file")
    assert (store.uncommitted_steps(), store.complete("run", now=1.0)) == ([], [])


def test_record_without_tables_gives_no_memory_that_nobody_wrote(three):
    path = three.step_directory(3) / COMMIT
    record = unseal_commit(path.read_bytes(), "here")
    path.write_bytes(seal(replace(record, segments=(), tables=())))
    with pytest.raises(CheckpointError, match="its tables have 0 elements of tensor"):
        three.open(3)
    assert not three.verify(3).ok
