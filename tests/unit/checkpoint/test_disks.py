"""Disks that fail while a save is written: no false success, and training never waits for them."""

import ctypes
import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from atoll.checkpoint import fs_files, fs_sources, hanging, writer
from atoll.checkpoint.commit import Commit
from atoll.checkpoint.fs_files import Disk, make_directory, publish
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_writing import write_runs
from atoll.checkpoint.image import Run
from atoll.checkpoint.manifest import BLOCK_BYTES
from atoll.checkpoint.torch_state import digest, flatten
from atoll.errors import CheckpointError
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed


class Faulty(Disk):
    """Fails in one way for files whose name holds `part`."""

    def __init__(self, part, *, fails_open=0, fails_write=0, fails_sync=0, fails_link=0, at_most=None, wait=None):
        self._part = part
        self._open, self._write, self._sync, self._link = fails_open, fails_write, fails_sync, fails_link
        self._at_most, self._wait = at_most, wait

    def open(self, path, flags):
        self._fail(path, self._open)
        return super().open(path, flags)

    def write(self, handle, data, offset):
        if self._wait is not None:
            assert self._wait.wait(20)
        self._fail(named(handle), self._write)
        return super().write(handle, data[: self._at_most], offset)

    def sync(self, handle):
        self._fail(named(handle), self._sync)
        super().sync(handle)

    def link(self, source, target):
        self._fail(target, self._link)
        super().link(source, target)

    def _fail(self, path, number):
        if number and self._part in path.name:
            raise OSError(number, os.strerror(number))


def named(handle):
    return Path(f"/proc/self/fd/{handle}").readlink()


@pytest.fixture
def disk():
    yield fs_files.use
    fs_files.use(Disk())


FAULTS = [
    {"fails_write": errno.ENOSPC},
    {"fails_write": errno.EIO},
    {"fails_sync": errno.EIO},
    {"fails_open": errno.EROFS},
    {"fails_open": errno.EACCES},
    {"fails_link": errno.ENOSPC},
    {"fails_write": errno.EROFS},
]


def big(step):
    return flatten({"model": {"w": torch.full((300_000,), float(step)), "v": torch.full((7,), float(step))}})


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: "-".join(f) + "-" + errno.errorcode[next(iter(f.values()))])
@pytest.mark.parametrize("part", ["e1-r0of1", "model-", "commit.json"])
def test_disk_that_fails_commits_nothing_says_so_and_the_next_save_counts(crew, disk, fault, part):
    made = crew(1)
    made.save_and_wait(big(1), 1, weights="model")
    disk(Faulty(part, **fault))
    made.save_and_wait(big(2), 2, weights="model")
    store = Store(made.directory)
    committed = store.is_committed(2)
    assert committed == (part == "model-" and "fails_link" in fault)  # that file is never linked
    assert [f.step for f in made.told if isinstance(f, CheckpointFailed)] == ([] if committed else [2])
    disk(Disk())
    made.save_and_wait(big(3), 3, weights="model")
    made.finish()
    assert [f.step for f in made.told if isinstance(f, CheckpointCommitted)][-1] == 3
    assert all(store.verify(step).ok for step in store.committed_steps())
    assert digest(store.open()) == digest(big(3))


@pytest.mark.parametrize(
    "fault",
    [{"part": "e1-r0of1", "at_most": 0}, {"part": "step-00000002", "fails_sync": errno.EIO}],
    ids=["takes-nothing", "names-not-durable"],
)
def test_disk_that_takes_nothing_or_keeps_no_names_commits_nothing_and_says_so(crew, disk, fault):
    made = crew(1)
    made.save_and_wait(big(1), 1)
    disk(Faulty(**fault))
    made.save_and_wait(big(2), 2)
    disk(Disk())
    made.finish()
    assert not Store(made.directory).is_committed(2)
    assert [f.step for f in made.told if isinstance(f, CheckpointFailed)] == [2]
    assert digest(Store(made.directory).open()) == digest(big(1))


def test_disk_that_is_slow_at_every_write_delays_the_commit_and_nothing_else(crew, disk):
    turn = threading.Semaphore(0)
    slow = Faulty("", at_most=1 << 16)
    slow.write, plain = lambda *words: turn.acquire(timeout=20) and plain(*words), slow.write
    disk(slow)
    made = crew(1)
    (handle,) = made.save(big(1), 1)
    assert handle.staged.is_set()
    for _ in range(200):
        assert not Store(made.directory).is_committed(1) or handle.ended.wait(20)
        turn.release()
    assert handle.ended.wait(20)
    assert handle.committed
    made.finish()
    assert digest(Store(made.directory).open()) == digest(big(1))


def test_sector_that_cannot_be_read_is_told_by_tensor_and_rank(crew, monkeypatch):
    made = crew(2)
    made.save_and_wait(big(1), 1)
    made.finish()

    def unreadable(path, view, offset):
        if path.suffix == ".safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fs_files.read_at(path, view, offset)

    monkeypatch.setattr(fs_sources, "read_at", unreadable)
    with pytest.raises(CheckpointError, match=r"Input/output error; it held tensor 'model\.w'.*, written by rank \d"):
        Store(made.directory).open()
    assert "Input/output error" in Store(made.directory).verify(1).problems[0]


@pytest.mark.parametrize("at_most", [1 << 12, 1 << 19, 70_001])
def test_disk_that_takes_little_at_once_loses_nothing(crew, disk, at_most):
    disk(Faulty("", at_most=at_most))
    made = crew(2)
    made.save_and_wait(big(1), 1, weights="model")
    made.finish()
    assert Store(made.directory).verify(1).ok
    assert digest(Store(made.directory).open()) == digest(big(1))


def test_disk_of_one_rank_that_fails_is_made_good_by_another(crew, disk):
    disk(Faulty("r1of3-afc3b562.s", fails_sync=errno.EIO))
    made = crew(3)
    made.save_and_wait(big(1), 1)
    made.finish()
    assert [type(f) for f in made.told] == [CheckpointCommitted]
    assert digest(Store(made.directory).open()) == digest(big(1))


def test_disk_that_hangs_keeps_neither_the_save_nor_the_update_waiting(crew, disk):
    go_on = threading.Event()
    disk(Faulty("", wait=go_on))
    made = crew(1)
    handle = made.save(big(1), 1)[0]
    assert handle.staged.is_set()
    assert not handle.local.is_set()
    go_on.set()
    assert handle.ended.wait(10)
    assert handle.committed


class Watched(Disk):
    """Keeps what was asked, and where in memory the data of whole blocks lay."""

    def __init__(self):
        self.reserved, self.places, self.direct = [], [], True

    def reserve(self, handle, begin, length):
        assert not self.places
        super().reserve(handle, begin, length)
        self.reserved.append((begin, length))
        if os.fstat(handle).st_size:  # a file system that reserves has the length at once
            assert os.fstat(handle).st_size >= begin + length

    def write(self, handle, data, offset):
        self.direct = self.direct and bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)
        if len(data) == BLOCK_BYTES:
            self.places.append(None if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data)))
        return super().write(handle, data, offset)


def test_ranges_of_a_shared_file_are_reserved_and_nothing_else_of_it(tmp_path, disk):
    seen, data = Watched(), os.urandom(6_000_000)
    disk(seen)
    common = {"file": "model.safetensors", "total": 20_000_000, "exclusive": False}
    runs = [
        Run(at=4096, begin=4096, bytes=1_000_000, **common),
        Run(at=2_000_000, begin=10_000_000, bytes=4_000_000, **common),
    ]
    write_runs(tmp_path, runs, memoryview(data))
    assert seen.reserved == [(4096, 1_000_000), (10_000_000, 4_000_000)]
    found = (tmp_path / "model.safetensors").read_bytes()
    assert len(found) == 20_000_000
    assert found[4096:1_004_096] == data[4096:1_004_096]
    assert found[10_000_000:14_000_000] == data[2_000_000:]
    seen.reserved.clear()
    seen.places.clear()
    write_runs(tmp_path, [Run(file="own", at=0, begin=0, bytes=4096, total=4096, exclusive=True)], memoryview(data))
    assert seen.reserved == []


def test_blocks_go_directly_from_memory_in_one_piece_and_others_from_the_slab(tmp_path, disk):
    seen, data = Watched(), os.urandom(3 * BLOCK_BYTES)
    disk(seen)
    run = Run(file="own", at=0, begin=0, bytes=len(data), total=len(data), exclusive=True)
    write_runs(tmp_path, [run], memoryview(data))
    assert (tmp_path / "own").read_bytes() == data
    assert len(seen.places) == 3
    if seen.direct:
        assert len(set(seen.places)) == 1
        assert seen.places[0] % (2 << 20) == 0
    else:  # read-only as the bytes given
        assert set(seen.places) == {None}


def test_file_system_that_reserves_nothing_takes_writes_all_the_same(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fs_files, "_fallocate", lambda *values: asked.append(values) or -1)
    data = os.urandom(9_000_000)
    run = Run(file="model.safetensors", at=0, begin=0, bytes=len(data), total=len(data), exclusive=False)
    write_runs(tmp_path, [run], memoryview(data))
    assert [values[1:] for values in asked] == [(0, 0, len(data))]
    assert (tmp_path / "model.safetensors").read_bytes() == data
    monkeypatch.setattr(fs_files, "_fallocate", None)  # a system that has no such call
    write_runs(tmp_path, [run], memoryview(data))


class Recording(Disk):
    """Keeps the names of what was made durable."""

    def __init__(self):
        self.synced = []

    def sync(self, handle):
        super().sync(handle)
        self.synced.append(named(handle))


def test_record_that_another_made_is_durable_before_it_is_told(crew, disk):
    made = crew(1)
    made.save_and_wait(big(1), 1)
    made.finish()
    store, seen = Store(made.directory), Recording()
    disk(seen)
    assert isinstance(store.try_commit(1, 1, 1, run="run", now=1.0), Commit)
    assert {store.step_directory(1), store.directory} <= set(seen.synced)
    seen.synced.clear()
    store.complete("run", now=1.0)
    assert {store.step_directory(1), store.directory} <= set(seen.synced)


def test_name_that_another_gave_is_durable_before_that_is_said(tmp_path, disk):
    seen = Recording()
    disk(seen)
    assert publish(tmp_path / "a", b"1")
    seen.synced.clear()
    assert not publish(tmp_path / "a", b"2")
    assert seen.synced[-1] == tmp_path


def test_folder_that_another_made_and_did_not_live_to_sync_is_durable(tmp_path, disk):
    (tmp_path / "theirs").mkdir()
    seen = Recording()
    disk(seen)
    make_directory(tmp_path / "theirs")
    assert seen.synced == [tmp_path]
    make_directory(tmp_path / "theirs" / "a" / "b")
    assert seen.synced[1:] == [tmp_path, tmp_path / "theirs", tmp_path / "theirs" / "a"]


def test_folder_whose_parent_belongs_to_others_takes_folders(tmp_path, disk):
    (tmp_path / "theirs").mkdir()
    disk(Faulty(tmp_path.name, fails_sync=errno.EINVAL))
    make_directory(tmp_path / "theirs")


@pytest.mark.parametrize("fault", [{"fails_write": errno.EIO}, {"fails_sync": errno.EIO}], ids=["write", "sync"])
def test_writes_that_fail_leave_no_handle_open(tmp_path, disk, fault):
    data = bytes(1 << 16)
    run = Run(file="a.safetensors", at=0, begin=0, bytes=len(data), total=len(data), exclusive=True)

    def beside(_sums):
        return [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("table", "word")]

    disk(Faulty(".safetensors", **fault))
    with pytest.raises(OSError, match="Input/output error"):
        write_runs(tmp_path, [run], memoryview(data), beside)
    open_there = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # a slab of an earlier test may be collected, and closed, just now
            open_there.append(each.readlink())
    assert not [path for path in open_there if path.is_relative_to(tmp_path)]


def test_disk_that_goes_on_hanging_is_told_of_each_save_and_the_first_one_after_it_counts(crew, disk, monkeypatch):
    monkeypatch.setattr(writer, "_WATCH_S", 0.01)
    monkeypatch.setattr(hanging, "LEAST_S", 0.1)
    go_on = threading.Event()
    disk(Faulty("", wait=go_on))
    made = crew(1)
    handles = []
    for step in (1, 2, 3):
        handles += made.save(big(step), step)
        assert handles[-1].ended.wait(10)
        assert "has not answered for" in handles[-1].problem
        assert not handles[-1].local.is_set()
    monkeypatch.setattr(hanging, "LEAST_S", 1000.0)
    go_on.set()
    assert all(handle.local.wait(10) for handle in handles)
    made.save_and_wait(big(4), 4)
    made.finish()
    assert [f.step for f in made.told if isinstance(f, CheckpointFailed)] == [1, 2, 3]
    assert [f.step for f in made.told if isinstance(f, CheckpointCommitted)] == [4]
    assert digest(Store(made.directory).open()) == digest(big(4))
