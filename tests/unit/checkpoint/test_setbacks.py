"""What goes wrong beside the writing itself: each is told, fails the saves in hand and no more, and ends no thread."""

import errno
import os
import threading
from pathlib import Path

import pytest
from checkpoint_crews import IoThread

from atoll.checkpoint import fs_committer
from atoll.checkpoint.arrow_remote import Remote
from atoll.checkpoint.boxes import whole
from atoll.checkpoint.fs_committer import Committer, Handle
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_futures import Ending
from atoll.checkpoint.fs_part import Part
from atoll.checkpoint.fs_sources import Unasked
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.logical import Held, Logical, RankLayout
from atoll.checkpoint.manifest import Word, seal
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.sharing import Save, Sharing
from atoll.checkpoint.torch_state import digest, flatten
from atoll.fault.inject import arm
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed


class HandClock:
    """A clock that stands still until it is set."""

    at = 0.0

    def now(self):
        return 1.0

    def monotonic(self):
        return self.at


class Once:
    """Fails the first call that it is asked to, and no other."""

    def __init__(self, error):
        self._errors = [error]

    def __call__(self, wanted=True):
        if wanted and self._errors:
            raise self._errors.pop()


def os_error(number):
    return OSError(number, os.strerror(number))


def full_disk():
    raise os_error(errno.ENOSPC)


def steps_of(told, kind):
    return [f.step for f in told if isinstance(f, kind)]


def problems(told):
    return [f.problem for f in told if isinstance(f, CheckpointFailed)]


def exists_that_fails(monkeypatch, error, which):
    """`Path.exists` with one failure in the writing thread, for the first path that `which` holds of."""
    once, plain = Once(error), Path.exists

    def exists(path, **options):
        once(threading.current_thread().name == "atoll-checkpoint-write" and which(path))
        return plain(path, **options)

    monkeypatch.setattr(Path, "exists", exists)


# -- the writing thread goes on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE], ids=errno.errorcode.get)
def test_host_that_starts_no_process_fails_the_save_and_the_next_one_counts(crew, state, number):
    short = True

    def start(end):
        if short:
            raise os_error(number)
        return IoThread(end)

    made = crew(1, start=start)
    made.save_and_wait(flatten(state(1)), 1)
    short = False
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    [problem] = problems(made.told)
    assert f"the I/O process could not be started: [Errno {number}]" in problem
    assert steps_of(made.told, CheckpointCommitted) == [2]


def test_folder_that_cannot_be_asked_by_who_leads_fails_the_save_and_the_next_one_counts(crew, state, monkeypatch):
    made = crew(1)
    exists_that_fails(monkeypatch, os_error(errno.ESTALE), lambda path: path == made.directory)
    made.save_and_wait(flatten(state(1)), 1)
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    assert ["Stale file handle" in problem for problem in problems(made.told)] == [True]
    assert steps_of(made.told, CheckpointCommitted) == [2]


def test_steps_that_cannot_be_listed_when_leading_begins_keep_no_step_from_storage(crew, state, monkeypatch, tmp_path):
    remote = Remote.at((tmp_path / "remote").as_uri(), run="run")
    kept = LinkDecisions(tmp_path / "checkpoints", run="run")
    once, plain = Once(Unasked("the folder gives an error")), Store.committed_steps

    def committed_steps(store):
        once()
        return plain(store)

    monkeypatch.setattr(Store, "committed_steps", committed_steps)
    made = crew(1, to=Destination(remote=remote, decisions=kept, keep=Retention(last=1)))
    handle = made.save(flatten(state(1)), 1)[0]
    assert handle.remote.outcome(20).ending is Ending.DONE
    assert handle.committed


def test_standby_that_cannot_ask_the_folder_leaves_word_of_it_and_the_next_save_counts(crew, state, monkeypatch):
    made = crew(2)
    exists_that_fails(monkeypatch, os_error(errno.EIO), lambda path: path.name.endswith("-by0.json"))
    handle = made.save(flatten(state(1)), 1, ranks=[0])[0]
    assert handle.local.wait(10)
    made.writers[0].regrouped(rank=0, gone=[(handle.epoch, 1)])
    assert handle.ended.wait(10)
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    assert ["in its place rank 0: [Errno 5]" in problem for problem in problems(made.told)] == [True]
    assert steps_of(made.told, CheckpointCommitted) == [2]


def test_error_that_nobody_foresaw_fails_each_save_in_hand_once_and_the_next_one_counts(crew, state, monkeypatch):
    once, plain = Once(RuntimeError("odd")), Committer.poll

    def poll(committer, **options):
        once(committer.pending)
        plain(committer, **options)

    monkeypatch.setattr(Committer, "poll", poll)
    made = crew(1)
    made.save_and_wait(flatten(state(1)), 1)
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    assert problems(made.told) == ["RuntimeError: odd; the next save tries again"]
    assert steps_of(made.told, CheckpointCommitted) == [2]


def test_old_steps_that_cannot_be_deleted_are_told_and_the_checkpoint_stands(crew, state, monkeypatch):
    made = crew(1, keep=1)
    made.save_and_wait(flatten(state(1)), 1)
    once, plain = Once(os_error(errno.EIO)), fs_committer.retain

    def retain(*words, **options):
        once()
        return plain(*words, **options)

    monkeypatch.setattr(fs_committer, "retain", retain)
    handle = made.save(flatten(state(2)), 2)[0]
    assert "Input/output error" in handle.verified.outcome(20).problem
    made.save_and_wait(flatten(state(3)), 3)
    made.finish()
    assert handle.committed
    assert steps_of(made.told, CheckpointCommitted) == [1, 2, 3]
    assert problems(made.told) == [
        "committed, but older steps stay until the next one: [Errno 5] Input/output error",
    ]
    assert Store(made.directory).committed_steps() == [3]


# -- what became of a part -----------------------------------------------------------------------------------------------


def test_part_that_a_full_disk_refused_is_staged_and_not_durable(crew, state):
    made = crew(1)
    arm("before-pack-sync", full_disk)
    handle = made.save(flatten(state()), 1)[0]
    assert "No space left on device" in handle.local.outcome(20).problem
    assert handle.staged.outcome().ending is Ending.DONE


def test_part_that_was_not_copied_is_neither_staged_nor_durable(crew, state):
    made = crew(1)
    arm("before-staging", full_disk)
    handle = made.save(flatten(state()), 1)[0]
    assert "No space left on device" in handle.staged.outcome(20).problem
    assert "No space left on device" in handle.local.outcome(20).problem


def test_part_of_a_skipped_save_is_neither_staged_nor_durable(crew):
    handle = crew(1).writers[0].skip(step=1, epoch=1, rank=0, size=1, problem="nothing is managed")
    assert handle.staged.outcome().problem == "nothing is managed"
    assert handle.local.outcome(20).problem == "nothing is managed"


def test_save_without_a_free_slab_is_neither_staged_nor_durable(crew, state):
    made = crew(1)
    for _ in range(2):
        made.writers[0]._slabs.get_nowait()
    handle = made.save(flatten(state()), 1)[0]
    assert handle.staged.outcome().problem.startswith("skipped: 2 earlier saves are still being written")
    assert handle.local.outcome(20).ending is Ending.FAILED


def test_part_is_replicated_only_where_others_hold_all_of_it(tmp_path):
    """Rank 0 writes `a` and `b`, of which ranks 1 and 2 hold one each."""
    holders = {"a": (0, 1), "b": (0, 2), "c": (1,), "d": (2,)}
    sizes = {"a": 4, "b": 4, "c": 64, "d": 64}
    logicals = {name: Logical(name, "float32", (size,)) for name, size in sizes.items()}
    layouts = []
    for rank in range(3):
        mine = [logicals[name] for name, ranks in holders.items() if rank in ranks]
        held = tuple(Held(one.name, whole(one.shape), holders[one.name]) for one in mine)
        layouts.append(RankLayout(rank=rank, node=f"n{rank}", logicals=tuple(mine), held=held))
    save = Save(run="run", step=1, epoch=1, size=3)
    part = Part(Handle(step=1, epoch=1, rank=0, size=3, began=0.0), save, sharing=Sharing(layouts))
    assert [name for name, _ in part.sharing.assignment.own[0]] == ["a", "b"]
    assert part.lacking(tmp_path) == "no other rank holds what this one wrote"
    for rank, left in ((1, "no other rank holds 1 of the boxes that this one wrote"), (2, "")):
        word = Word(run="run", step=1, epoch=1, rank=rank, size=3, by=rank, standby=(0,))
        (tmp_path / f"{save.stem(rank)}.json").write_bytes(seal(word))
        assert part.lacking(tmp_path) == left


# -- ranks that hang -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_part_of_a_rank_that_hangs_is_written_by_who_holds_the_same(crew, state, size):
    clock = HandClock()
    made = crew(size, clock=clock)
    handles = made.save(flatten(state()), 1, [rank for rank in range(size) if rank != 1])
    assert all(handle.local.wait(10) for handle in handles)
    clock.at = 61.0
    assert all(handle.ended.wait(10) for handle in handles)
    assert all(handle.committed for handle in handles)
    made.finish()
    assert [type(f) for f in made.told] == [CheckpointCommitted]
    assert digest(Store(made.directory).open()) == digest(flatten(state()))


def test_standby_keeps_what_may_be_asked_of_it_for_so_long_and_no_longer(crew, state):
    clock = HandClock()
    made = crew(2, clock=clock)
    handle = made.save(flatten(state()), 1, [1])[0]
    assert handle.local.wait(10)
    clock.at = 61.0
    assert not handle.ended.wait(0.2)
    clock.at = 181.0
    assert handle.ended.wait(10)
    assert handle.problem == "never committed by rank 0"


def test_standby_without_memory_for_the_next_save_waits_for_no_request(crew, state, monkeypatch):
    clock = HandClock()
    made = crew(2, clock=clock)
    handles = [made.save(flatten(state()), step, [1])[0] for step in (1, 2)]
    assert all(handle.local.wait(10) for handle in handles)
    committer = made.writers[1]._committer
    look = committer.poll

    def look_later(**options):
        clock.at = 61.0
        look(**options)

    # Time moves before a look, not in the middle of one: the memory of the first that ends would do for a next save.
    monkeypatch.setattr(committer, "poll", look_later)
    assert all(handle.ended.wait(10) for handle in handles)
