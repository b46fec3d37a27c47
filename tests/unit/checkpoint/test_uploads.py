"""Copies in a remote store: a folder behind `pyarrow.fs`, and one that fails, gives little at once, or hangs."""

import errno
import threading
from pathlib import Path

import pytest
from pyarrow import fs
from remote_stores import Flaky

from atoll.checkpoint.arrow_remote import Remote, RemoteCopy, RemoteError
from atoll.checkpoint.fs_claims import Claim
from atoll.checkpoint.fs_decisions import LinkDecisions, counting
from atoll.checkpoint.fs_files import Disk
from atoll.checkpoint.fs_futures import Ending, Future
from atoll.checkpoint.fs_retrying import Backoff
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_uploader import Destination, Uploader, read_back, record_name
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_state import flatten
from atoll.clock import SystemClock
from atoll.errors import CheckpointError
from atoll.fault.inject import arm
from atoll.fault.places import UPLOAD_FAILPOINTS
from atoll.schema.checkpoints import TierState
from atoll.schema.messages import CheckpointCopied, CheckpointFailed

QUICK = Backoff(tries=4, first_s=0.001, most_s=0.002)


class Copying:
    """Uploaders over one folder of checkpoints and one store."""

    def __init__(self, store, base, files=None, keep=9):
        self.store, self.files, self.told, self.keep = store, files or Flaky(fs.LocalFileSystem()), [], keep
        self.remote = Remote(lambda: (fs.PyFileSystem(self.files), str(base)), run="run", uri="flaky://kept")
        self.decisions = LinkDecisions(store.directory, run="run")
        self.open = []

    def uploader(self):
        to = Destination(remote=self.remote, decisions=self.decisions, keep=Retention(last=self.keep), backoff=QUICK)
        made = Uploader(self.store, to, run="run", trainer="t0", tell=self.told.append, clock=SystemClock())
        self.open.append(made)
        return made

    def copy(self, *steps, uploader=None):
        uploader, endings = uploader or self.uploader(), []
        for step in steps:
            future = Future()
            uploader.put(step, future)
            endings.append(future.outcome(20))
        return endings[-1]

    def states(self, step):
        said = [f.state for f in self.told if isinstance(f, CheckpointCopied) and f.step == step]
        return [state for state in said if state is not TierState.COPYING]

    def names(self, step):
        return [r.name for r in self.remote.records(step)]


@pytest.fixture
def copying(crew, state, tmp_path):
    """`copying(**)`: three steps are durable, and may be copied."""
    made = crew(2)
    for step in (1, 2, 3):
        made.save_and_wait(flatten(state(step)), step)
    made.finish()
    found = []

    def make(**changes):
        found.append(Copying(Store(made.directory), tmp_path / "remote", **changes))
        return found[-1]

    yield make
    for each in found:
        each.files.free.set()
        for uploader in each.open:
            uploader.finish(5.0)


def test_copy_has_the_same_files_and_its_record_last(copying):
    kept = copying()
    assert kept.copy(2).ending is Ending.DONE
    local = kept.store.step_directory(2)
    record = kept.store.record(2)
    for file in record.files:
        assert kept.remote.read(2, file) == (local / file).read_bytes()
    (name,) = kept.names(2)
    assert name == record_name(record, (local / COMMIT).read_bytes()).name == kept.decisions.decided(2)
    assert kept.files.written[-1].endswith(name)
    assert kept.states(2)[-1] is TierState.WHOLE
    read_back(kept.remote, kept.remote.records(2)[0])


def test_stores_are_opened_by_their_uri_and_hold_each_run_apart(copying, tmp_path):
    found = Remote.at((tmp_path / "by-uri").as_uri(), run="run")
    found.write(7, "a", [b"12", b"34"], lambda _: None)
    assert (tmp_path / "by-uri" / "run" / "step-00000007" / "a").read_bytes() == b"1234"
    assert found.steps() == [7]
    assert Remote.at((tmp_path / "by-uri").as_uri(), run="other").steps() == []
    with pytest.raises(CheckpointError, match="nowhere://x"):
        Remote.at("nowhere://x", run="run").steps()


def test_copy_in_a_mounted_folder_is_durable_before_it_counts(tmp_path, monkeypatch):
    synced, plain = [], Disk.sync

    def sync(self, handle):
        plain(self, handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())

    monkeypatch.setattr(Disk, "sync", sync)
    Remote.at((tmp_path / "by-uri").as_uri(), run="run").write(7, "a", [b"12", b"34"], lambda _: None)
    folder = tmp_path / "by-uri" / "run" / "step-00000007"
    assert synced[-2:] == [folder / "a", folder]
    assert {tmp_path, tmp_path / "by-uri", tmp_path / "by-uri" / "run"} <= set(synced)


def test_copy_in_a_mounted_folder_that_cannot_be_made_durable_does_not_count(tmp_path, monkeypatch):
    def sync(_self, _handle):
        raise OSError(errno.EIO, "Input/output error")

    found = Remote.at(tmp_path.as_uri(), run="run")
    found.write(7, "a", [b"12"], lambda _: None)
    monkeypatch.setattr(Disk, "sync", sync)
    with pytest.raises(RemoteError, match="Input/output error"):
        found.write(7, "a", [b"34"], lambda _: None)


def test_store_below_another_holds_copies_too(tmp_path):
    (tmp_path / "inner").mkdir()
    below = fs.SubTreeFileSystem(str(tmp_path / "inner"), fs.LocalFileSystem())
    found = Remote(lambda: (below, "kept"), run="run", uri="inner")
    found.write(1, "a", [b"x"], lambda _: None)
    assert found.read(1, "a") == b"x"
    found.delete(1, found.files(1))
    assert found.steps() == []


@pytest.mark.parametrize("failures", [1, 3])
def test_store_that_fails_for_a_while_gets_the_copy_all_the_same(copying, failures):
    kept = copying()
    kept.files.fail = failures
    assert kept.copy(1).ending is Ending.DONE
    assert len(kept.names(1)) == 1


def test_store_that_goes_on_failing_is_told_and_the_next_step_tries_anew(copying):
    kept = copying()
    kept.files.fail = 10_000
    uploader = kept.uploader()
    ended = kept.copy(1, uploader=uploader)
    assert ended.ending is Ending.FAILED
    assert "given up after 4 tries" in ended.problem
    assert kept.states(1) == [TierState.FAILED]
    kept.files.fail = 0
    assert kept.copy(2, uploader=uploader).ending is Ending.DONE


def test_store_that_loses_bytes_without_a_word_is_noticed(copying):
    kept = copying()
    kept.files.lose = 1
    assert kept.copy(1).ending is Ending.DONE
    read_back(kept.remote, kept.remote.records(1)[0])


def test_store_that_gives_little_at_once_reads_back_whole(copying):
    kept = copying()
    kept.copy(1)
    kept.files.at_once = 5
    assert kept.remote.read_at(1, kept.store.record(1).tables[0].file, 0, 64).nbytes == 64
    segment = kept.store.record(1).segments[0]
    assert RemoteCopy(kept.remote, 1).bytes_of(segment, segment.begin, 20).nbytes == 20


def test_store_that_hangs_holds_up_nobody_and_newer_steps_take_the_place_of_those_that_wait(copying):
    kept = copying()
    kept.files.free.clear()
    uploader, futures = kept.uploader(), [Future() for _ in range(3)]
    uploader.put(1, futures[0])
    assert kept.files.hanging.wait(10)
    uploader.put(2, futures[1])
    uploader.put(3, futures[2])
    assert futures[0].outcome().ending is Ending.PENDING
    assert "skipped" in futures[1].outcome(5).problem
    kept.files.free.set()
    assert futures[2].outcome(10).ending is Ending.DONE


def test_what_is_there_is_compared_and_not_sent_again(copying):
    kept = copying()
    kept.copy(1)
    sent = list(kept.files.written)
    assert kept.copy(1).ending is Ending.DONE
    assert kept.files.written == sent
    first = kept.store.record(1).segments[0].file
    kept.remote.delete(1, kept.remote.files(1))
    kept.remote.write(1, first, [bytes((kept.store.step_directory(1) / first).stat().st_size)], lambda _: None)
    assert kept.copy(1).ending is Ending.DONE
    read_back(kept.remote, kept.remote.records(1)[0])


class Ended(BaseException):
    """In the place of a kill: nothing catches it."""


@pytest.mark.parametrize(
    "place", [p for p in UPLOAD_FAILPOINTS if p not in {"before-remote-removal", "after-withdrawal"}]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_upload_cut_off_anywhere_is_finished_by_the_next_leader(copying, place):
    kept = copying()

    def end():
        raise Ended

    arm(place, end)
    first = kept.uploader()
    first.put(2, Future())
    first._thread.join(10)
    assert len(kept.names(2)) == (1 if place == "after-upload" else 0)
    again = kept.uploader()
    assert kept.copy(2, uploader=again).ending is Ending.DONE
    assert counting(kept.decisions, 2, kept.names(2)) == (kept.names(2)[0], "")
    read_back(kept.remote, kept.remote.records(2)[0])


def test_leader_goes_on_with_the_newest_step_by_itself(copying):
    kept = copying()
    uploader = kept.uploader()
    uploader.resume()
    uploader.finish(10)
    assert kept.remote.steps() == [3]


def test_leader_that_was_overtaken_decides_and_deletes_nothing(copying):
    kept = copying(keep=1)
    kept.copy(1)
    uploader = kept.uploader()
    Claim(kept.store.directory, run="run", epoch=2).hold()
    uploader.resume(Claim(kept.store.directory, run="run", epoch=1))
    ended = kept.copy(2, uploader=uploader)
    uploader.finish(10)
    assert "epoch 2 has claimed" in ended.problem
    assert (kept.decisions.decided(2), kept.names(2), kept.states(2)) == ("", [], [])
    assert len(kept.names(1)) == 1


def test_rot_does_not_spread(copying):
    kept = copying()
    record = kept.store.record(1)
    path = kept.store.step_directory(1) / record.segments[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = kept.copy(1)
    assert "has checksum" in ended.problem
    assert kept.names(1) == []


def test_older_copies_go_behind_one_that_was_read_back(copying):
    kept = copying(keep=2)
    uploader = kept.uploader()
    for step in (1, 2, 3):
        kept.copy(step, uploader=uploader)
    uploader.finish(10)
    assert kept.remote.steps() == [2, 3]
    assert kept.states(1) == [TierState.WHOLE, TierState.GONE]
    assert kept.decisions.decided(1) == ""


def test_older_copies_stay_where_the_newest_does_not_read_back(copying):
    kept = copying(keep=1)
    uploader = kept.uploader()
    kept.copy(1, uploader=uploader)
    kept.files.flip = True
    kept.copy(2, uploader=uploader)
    uploader.finish(10)
    assert kept.remote.steps() == [1, 2]
    assert kept.states(2)[-1] is TierState.DAMAGED


@pytest.mark.parametrize("place", ["before-remote-removal", "after-withdrawal"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_half_a_deletion_is_finished_later_and_never_counts(copying, place):
    kept = copying(keep=1)
    kept.copy(1)

    def end():
        raise Ended

    arm(place, end)
    first = kept.uploader()
    first.put(2, Future())
    first._thread.join(10)
    assert kept.remote.steps() == [1, 2]
    assert bool(counting(kept.decisions, 1, kept.names(1))[0]) == (place == "before-remote-removal")
    uploader = kept.uploader()
    kept.copy(3, uploader=uploader)
    uploader.finish(10)
    assert kept.names(1) == []
    assert kept.remote.steps() == [3]


def test_of_two_that_decide_one_wins_and_both_know(tmp_path):
    decisions, found = LinkDecisions(tmp_path, run="run"), []
    threads = [
        threading.Thread(target=lambda n=n: found.append(LinkDecisions(tmp_path, run="run").decide(5, f"r{n}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert set(found) == {decisions.decided(5)}


def test_withdrawn_record_never_counts_again_and_another_may(tmp_path):
    decisions = LinkDecisions(tmp_path, run="run")
    assert decisions.decide(5, "a") == "a"
    decisions.withdraw(5, "a")
    assert decisions.decided(5) == ""
    assert decisions.decide(5, "a") == ""
    assert decisions.decide(5, "b") == "b"
    assert decisions.decide(5, "c") == "b"
    assert counting(decisions, 5, ["a", "b"]) == ("b", "")
    assert counting(decisions, 5, ["a"]) == ("", "")


def test_without_decisions_a_lone_record_counts_and_of_two_none(tmp_path):
    decisions = LinkDecisions(tmp_path, run="run")
    assert counting(decisions, 5, ["a"]) == ("a", "")
    assert counting(decisions, 5, []) == ("", "")
    assert "2 records" in counting(decisions, 5, ["a", "b"])[1]


def test_waits_double_and_end():
    waits = [Backoff(tries=6, first_s=1.0, most_s=5.0).wait_s(n) for n in range(1, 7)]
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_future_is_a_value_at_any_time():
    future = Future()
    assert future.outcome().ending is Ending.PENDING
    future.set("no room")
    future.set()
    assert (future.outcome(1.0).ending, future.outcome().problem) == (Ending.FAILED, "no room")


def test_failed_deletion_is_told_and_no_failed_copy(copying):
    kept = copying(keep=1)
    uploader = kept.uploader()
    kept.copy(1, uploader=uploader)
    kept.files.keeps = True
    assert kept.copy(2, uploader=uploader).ending is Ending.DONE
    uploader.finish(10)
    assert any(isinstance(f, CheckpointFailed) and "older copies stay" in f.problem for f in kept.told)
    assert kept.states(2) == [TierState.WHOLE]


def test_leader_that_wakes_in_a_deletion_leaves_what_a_later_epoch_copied_meanwhile(copying):
    kept = copying(keep=1)
    kept.copy(1)
    there, go = threading.Event(), threading.Event()

    def hold():
        there.set()
        assert go.wait(20)

    arm("after-withdrawal", hold)
    uploader = kept.uploader()
    kept.copy(2, uploader=uploader)
    assert there.wait(20)
    kept.remote.write(1, "e3-r0of1-12345678.json", [b"of a later epoch"], lambda _: None)
    go.set()
    uploader.finish(10)
    assert kept.remote.files(1) == ["e3-r0of1-12345678.json"]
