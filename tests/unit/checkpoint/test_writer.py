import errno
import threading

import pytest
import torch

from atoll.checkpoint import writer
from atoll.checkpoint.arrow_remote import Remote
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_futures import Ending
from atoll.checkpoint.fs_read import block_range, check_block
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_state import digest, flatten, unflatten
from atoll.fault.inject import arm
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed


class Disk:
    """A disk that takes no more until it is let go on."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self):
        self.reached.set()
        assert self.go_on.wait(20)


class HandClock:
    """A clock that stands still until it is set."""

    at = 0.0

    def now(self):
        return 1.0

    def monotonic(self):
        return self.at


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def steps_of(told, kind):
    return [f.step for f in told if isinstance(f, kind)]


def problems(told):
    return [f.problem for f in told if isinstance(f, CheckpointFailed)]


def test_saves_of_all_ranks_become_one_checkpoint_told_once_by_rank_0(crew, state):
    made = crew(3)
    handles = made.save(flatten(state()), 10)
    made.finish()
    assert [type(f) for f in made.told] == [CheckpointCommitted]
    fact = made.told[0]
    assert (fact.trainer, fact.step, fact.path) == ("t0", 10, str(made.directory / "step-00000010"))
    assert fact.bytes == Store(made.directory).latest().bytes
    assert all(h.staged.is_set() and h.local.is_set() and h.ended.is_set() for h in handles)
    assert handles[0].committed


def test_state_may_change_as_soon_as_before_update_returns(crew):
    made = crew(1)
    weights = {"w": torch.ones(1 << 20)}
    made.save(flatten(weights), 1)
    weights["w"].zero_()
    made.finish()
    assert unflatten(Store(made.directory).open())["w"].min() == 1


def test_disk_that_hangs_holds_up_neither_save_nor_update_and_a_third_save_is_skipped(crew, state):
    made, disk = crew(1), Disk()
    arm("before-pack-sync", disk)
    first = made.save(flatten(state(1)), 1)[0]
    assert disk.reached.wait(10)
    second, third = made.save(flatten(state(2)), 2)[0], made.save(flatten(state(3)), 3)[0]
    assert second.staged.is_set()
    assert not first.local.is_set()
    disk.go_on.set()
    assert third.ended.wait(10)
    made.finish()
    assert steps_of(made.told, CheckpointCommitted) == [1, 2]
    assert problems(made.told) == [
        "writer-failed: rank 0: skipped: 2 earlier saves are still being written; save less often, or to a faster disk"
    ]
    assert digest(Store(made.directory).open()) == digest(flatten(state(2)))


def test_full_disk_is_told_once_training_goes_on_and_the_next_save_counts(crew, state):
    made = crew(1)
    arm("before-pack-sync", full_disk)
    made.save_and_wait(flatten(state(1)), 1)
    assert len(problems(made.told)) == 1
    assert "No space left on device; the next save tries again" in problems(made.told)[0]
    assert list(made.directory.glob("step-00000001/*.safetensors")) == []
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    assert steps_of(made.told, CheckpointCommitted) == [2]
    assert [p.name for p in made.directory.glob("step-*")] == ["step-00000002"]


def test_folder_that_cannot_be_made_is_told_by_each_rank(crew, state, tmp_path):
    (tmp_path / "file").write_text("in the way")
    made = crew(2, directory=tmp_path / "file" / "checkpoints")
    handles = made.save(flatten(state()), 1)
    assert all(h.ended.wait(10) for h in handles)
    assert sorted(f.trainer for f in made.told) == ["t0", "t1"]
    assert all("Not a directory" in p for p in problems(made.told))


def test_part_that_a_full_disk_refused_is_written_by_who_holds_the_same(crew, state):
    made = crew(2)
    arm("before-pack-sync", full_disk)
    made.save_and_wait(flatten(state(1)), 1)
    made.finish()
    assert [type(f) for f in made.told] == [CheckpointCommitted]
    store = Store(made.directory)
    assert len(list(made.directory.glob("step-00000001/*-by?.json"))) == 1
    assert digest(store.open(1)) == digest(flatten(state(1)))
    assert store.verify(1).ok


def test_type_that_a_pack_cannot_hold_fails_the_save_by_name(crew):
    made = crew(1)
    made.save_and_wait(flatten({"z": torch.ones(2, dtype=torch.complex64)}), 1)
    assert "tensor 'z' has type torch.complex64" in problems(made.told)[0]


def test_ranks_that_hold_unlike_states_make_no_checkpoint(crew):
    made = crew(2)
    made.save(flatten({"w": torch.ones(2)}), 1, [0])
    made.save(flatten({"w": torch.ones(3)}), 1, [1])
    made.finish()
    assert problems(made.told)[0].startswith("unlike-states: ranks [1] hold other tensor names, types or shapes")
    assert Store(made.directory).list() == []


def test_rank_that_becomes_0_after_a_loss_commits_what_was_begun_before(crew, state):
    made = crew(2)
    survivor = made.save(flatten(state()), 1, ranks=[1])[0]
    assert survivor.local.wait(10)
    arm("before-record", full_disk)
    lost = made.save(flatten(state()), 1, ranks=[0])[0]
    assert lost.ended.wait(10)
    assert not lost.committed
    assert not survivor.ended.is_set()
    made.writers[1].regrouped(rank=0)
    assert survivor.ended.wait(10)
    assert survivor.committed
    assert [f.trainer for f in made.told if isinstance(f, CheckpointCommitted)] == ["t1"]
    assert digest(Store(made.directory).open()) == digest(flatten(state()))


def test_save_whose_other_ranks_never_write_is_given_up_at_the_end(crew, state):
    made = crew(2)
    handle = made.save(flatten(state()), 1, ranks=[0])[0]
    made.writers[0].finish(0.6)
    assert handle.ended.wait(5)
    assert len(problems(made.told)) == 1
    assert not handle.committed


def test_part_of_a_rank_that_was_lost_is_written_by_who_holds_the_same(crew, state):
    made = crew(2)
    handle = made.save(flatten(state()), 1, ranks=[0])[0]
    assert handle.local.wait(10)
    made.writers[0].regrouped(rank=0, gone=[(handle.epoch, 1)])
    assert handle.ended.wait(10)
    assert handle.committed
    assert digest(Store(made.directory).open()) == digest(flatten(state()))


def test_save_whose_rank_was_lost_and_had_no_standby_is_given_up_at_once(crew, state):
    made = crew(2)
    handle = made.save(flatten(state()), 1, ranks=[0], redundancy=0)[0]
    assert handle.local.wait(10)
    made.writers[0].regrouped(rank=0, gone=[(handle.epoch, 1)])
    assert handle.ended.wait(10)
    [problem] = problems(made.told)
    assert problem.startswith("writer-lost: ranks [1] of epoch 1 were lost before they wrote, and no other holds their")


def test_save_whose_lost_rank_had_written_is_committed(crew, state):
    made = crew(2)
    handles = made.save(flatten(state()), 1, ranks=[1])
    assert handles[0].local.wait(10)
    made.writers[0].regrouped(rank=0, gone=[(handles[0].epoch, 1)])
    survivor = made.save(flatten(state()), 1, ranks=[0])[0]
    assert survivor.ended.wait(10)
    assert survivor.committed


def test_save_whose_other_ranks_never_write_is_given_up_in_time(crew, state):
    clock = HandClock()
    made = crew(3, clock=clock, epoch=2)
    handle = made.save(flatten(state()), 4, [0])[0]
    assert handle.local.wait(10)
    clock.at = 61.0
    assert handle.ended.wait(10)
    made.finish(0.0)  # it is told after it has ended
    assert problems(made.told)[0].startswith("writer-lost: ranks [1, 2] of epoch 2 were lost before they wrote")


def test_step_that_another_run_committed_in_the_same_folder_is_not_replaced(crew, state):
    first = crew(2, run="first")
    first.save_and_wait(flatten(state(1)), 1)
    second = crew(2, run="second", keep=1)
    second.save_and_wait(flatten(state(2)), 1, 2)
    second.finish()
    assert problems(second.told)[0].startswith("other-run: step 1 of run first lies in ")
    store = Store(first.directory)
    assert [(c.step, c.run) for c in store.list()] == [(1, "first"), (2, "second")]
    assert store.verify(1).ok
    assert digest(store.open(1)) == digest(flatten(state(1)))


def test_same_step_saved_again_by_a_later_epoch_is_told_not_to_be_kept(crew, state):
    first = crew(2)
    first.save_and_wait(flatten(state(1)), 1)
    again = crew(3, directory=first.directory, epoch=2)
    handles = again.save(flatten(state(2)), 1)
    assert all(h.ended.wait(10) for h in handles)
    again.finish()
    assert not any(h.committed for h in handles)
    why = "step 1 stands as epoch 1 of run run saved it; this save of epoch 2 is not kept"
    assert {h.problem for h in handles} == {why}
    assert [f"{f.step}: {f.problem}" for f in again.told] == [f"1: {why}"]
    assert again.writers[0].memory() == []
    later = [p for p in first.directory.glob("step-00000001/e*") if not p.name.startswith("e1-")]
    assert {(p.name[:2], p.suffix) for p in later} == {("e2", ".json")}  # words that nothing was written


def test_step_of_another_run_is_no_save_of_a_rank_that_does_not_commit(crew, state):
    first = crew(1, run="first")
    first.save_and_wait(flatten(state(1)), 1)
    second = crew(2, run="second")
    handles = second.save(flatten(state(2)), 1)
    assert all(h.ended.wait(10) for h in handles)
    assert not any(h.committed for h in handles)
    assert handles[1].problem.startswith("step 1 stands as epoch 1 of run first saved it")


def test_checkpoint_that_does_not_read_back_is_told_and_older_ones_stay(crew, state):
    made = crew(1, keep=1)
    made.save_and_wait(flatten(state(1)), 1)

    def flip():
        pack = next(made.directory.glob("step-00000002/e*.safetensors"))
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.write_bytes(data)

    arm("after-record", flip)
    made.save_and_wait(flatten(state(2)), 2)
    made.finish()
    assert "committed, but it does not read back" in problems(made.told)[0]
    assert [c.step for c in Store(made.directory).list()] == [1, 2]


def test_closing_without_waiting_ends_the_threads_and_says_what_was_lost(crew, state):
    made, disk = crew(1), Disk()
    arm("before-pack-sync", disk)
    made.save(flatten(state()), 1)
    assert disk.reached.wait(10)
    made.save(flatten(state()), 2)
    made.writers[0].finish(0.0)
    assert sorted(steps_of(made.told, CheckpointFailed)) == [1, 2]
    disk.go_on.set()
    made.writers[0]._threads[1].join(10)


@pytest.mark.parametrize("size", [1, 4])
def test_more_ranks_than_tensors_write_a_checkpoint_too(crew, size):
    made = crew(size)
    made.save_and_wait(flatten({"only": torch.ones(3), "n": 1}), 1)
    assert unflatten(Store(made.directory).open())["only"].tolist() == [1, 1, 1]


def test_each_tier_of_a_save_is_a_value_on_its_handle(crew, state, tmp_path):
    remote = Remote.at((tmp_path / "remote").as_uri(), run="run")
    kept = LinkDecisions(tmp_path / "checkpoints", run="run")
    made = crew(2, keep=1, to=Destination(remote=remote, decisions=kept, keep=Retention(last=1)))
    first = made.save(flatten(state(1)), 1)[0]
    assert first.remote.outcome(20).ending is Ending.DONE
    handles = made.save(flatten(state(2)), 2)
    assert handles[0].remote.outcome(20).ending is Ending.DONE
    assert handles[0].verified.outcome(20).ending is Ending.DONE
    assert [h.local.outcome(20).ending for h in handles] == [Ending.DONE, Ending.DONE]
    assert [h.replicated.outcome(20).ending for h in handles] == [Ending.DONE, Ending.DONE]
    made.finish()
    assert remote.steps() == [2]


def test_tiers_of_a_save_that_failed_say_why(crew, state):
    made = crew(1)
    made.directory.parent.mkdir(parents=True, exist_ok=True)
    made.directory.write_text("no folder")
    handle = made.save(flatten(state(1)), 1)[0]
    assert handle.ended.wait(20)
    assert handle.remote.outcome(5).problem == handle.problem
    assert handle.replicated.outcome().ending is Ending.FAILED


def test_copy_is_not_replicated_where_nobody_stands_by(crew, state):
    handle = crew(1).save(flatten(state(1)), 1)[0]
    assert "no other rank" in handle.replicated.outcome(20).problem
    assert handle.remote.outcome(20).problem == "no remote store is set"


def test_slab_of_a_committed_step_serves_its_blocks_until_it_is_used_again(crew, state):
    made = crew(1)
    made.save_and_wait(flatten(state(1)), 1)
    ((step, epoch, source),) = made.writers[0].memory()
    assert (step, epoch) == (1, 1)
    record = Store(made.directory).record(1)
    for segment in record.segments:
        for index in range(len(segment.blocks())):
            data = source.bytes_of(segment, *block_range(segment, index))
            assert check_block(segment, index, data) is None
    made.save_and_wait(flatten(state(2)), 2, 3)
    assert [step for step, _, _ in made.writers[0].memory()] == [3]


def test_saves_that_do_not_overlap_share_one_slab_and_one_that_does_takes_another(crew, state):
    made, disk = crew(1), Disk()
    made.save_and_wait(flatten(state(1)), 1, 2, 3)
    writer = made.writers[0]
    slabs = [writer._slabs.get_nowait() for _ in range(2)]
    assert sorted(slab.capacity > 0 for slab in slabs) == [False, True]
    for slab in reversed(slabs):
        writer._slabs.put(slab)
    arm("before-pack-sync", disk)
    first = made.save(flatten(state(4)), 4)[0]
    assert disk.reached.wait(10)
    second = made.save(flatten(state(5)), 5)[0]
    assert all(slab.capacity > 0 for slab in slabs)
    disk.go_on.set()
    assert all(handle.ended.wait(10) and handle.committed for handle in (first, second))


def test_copy_that_is_stuck_is_waited_for_once_and_the_updates_after_it_go_on(crew, state, monkeypatch):
    monkeypatch.setattr(writer, "_STAGE_WITHIN_S", 0.2)
    made, stuck = crew(1), Disk()
    arm("before-layout", stuck)
    handle = made.save(flatten(state(1)), 1)[0]
    monkeypatch.setattr(writer, "_STAGE_WITHIN_S", 1000.0)
    updates = threading.Thread(target=made.writers[0].before_update, daemon=True)
    updates.start()
    updates.join(10)
    assert not updates.is_alive()
    stuck.go_on.set()
    assert handle.ended.wait(10)
    assert problems(made.told) == ["writer-failed: rank 0: the state was not copied within 0 s"]
    made.save_and_wait(flatten(state(2)), 2)
    assert steps_of(made.told, CheckpointCommitted) == [2]


def test_save_that_a_regroup_decided_leaves_this_rank_the_place_that_it_has_since(crew, state):
    made = crew(2, epoch=5)
    made.writers[0].regrouped(rank=2, epoch=6)
    made.save(flatten(state()), 1, ranks=[0])
    made.finish(0.0)
    assert list(made.directory.glob("claims-*/*")) == []


def test_writer_that_nobody_has_placed_claims_nothing(crew):
    made = crew(1)
    made.directory.mkdir(parents=True)
    made.finish(10.0)
    assert list(made.directory.glob("claims-*/*")) == []


def test_memory_is_told_while_a_slab_is_given_back(crew, state):
    made = crew(1)
    made.save_and_wait(flatten(state(1)), 1)
    held = made.writers[0]._held

    class Returned:
        def view(self):
            held[-1] = held[next(iter(held))]
            return memoryview(b"")

    at, (handle, image, _) = next(iter(held.items()))
    held[at] = (handle, image, Returned())
    assert [(step, epoch) for step, epoch, _ in made.writers[0].memory()] == [(1, 1)]
