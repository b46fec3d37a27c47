"""What goes behind a checkpoint that counts, and what must not: parts that a save may still become one with."""

import time

from atoll.checkpoint.fs_retention import retain
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_state import flatten
from atoll.schema.messages import CheckpointCommitted


def test_only_the_last_steps_are_kept_and_leftovers_go_with_them(crew, state):
    made = crew(1, keep=2)
    made.save_and_wait(flatten(state()), 1, 2)
    (made.directory / "step-00000001" / COMMIT).unlink()
    made.save_and_wait(flatten(state()), 3, 4, 5)
    made.finish()
    assert sorted(p.name for p in made.directory.glob("step-*")) == ["step-00000004", "step-00000005"]


def test_save_that_waits_for_a_slow_rank_keeps_its_parts_when_the_next_one_counts_before_it(crew, state):
    made = crew(2, keep=1)
    waits = made.save(flatten(state(1)), 1, [0])[0]
    assert waits.local.wait(10)
    made.save_and_wait(flatten(state(2)), 2)
    deadline = time.monotonic() + 10
    while not made.writers[0].memory():  # its slab goes back when what it does behind its commit is over
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made.save(flatten(state(1)), 1, [1])
    assert waits.ended.wait(10)
    assert waits.committed
    made.finish()
    assert [f.step for f in made.told if isinstance(f, CheckpointCommitted)] == [2, 1]


def test_step_that_is_saved_anew_below_what_counts_is_no_leftover(crew, state):
    """A run that went back to copies in memory computes and saves steps again; the leader is the last to begin."""
    first = crew(1)
    first.save_and_wait(flatten(state(1)), 5)
    again = crew(2, directory=first.directory, epoch=2)
    assert again.save(flatten(state(2)), 4, [1])[0].local.wait(10)
    store = Store(first.directory)
    assert retain(store, run="run", keep=Retention(last=1), newest=5, now=1.0) == ""
    handle = again.save(flatten(state(2)), 4, [0])[0]
    assert handle.ended.wait(10)
    assert handle.committed
    again.save_and_wait(flatten(state(2)), 6)
    again.finish()
    (store.step_directory(4) / COMMIT).unlink(missing_ok=True)
    retain(store, run="run", keep=Retention(last=1), newest=6, now=1.0)
    assert [s.step for s in store.list()] == [6]
    assert not store.step_directory(4).exists()


def test_step_that_counts_stays_while_a_later_epoch_saves_it_anew(crew, state):
    first = crew(1)
    first.save_and_wait(flatten(state(1)), 4, 5)
    again = crew(2, directory=first.directory, epoch=2, keep=1)
    early = again.save(flatten(state(2)), 4, [1])[0]
    assert early.local.wait(10)
    store = Store(first.directory)
    retain(store, run="run", keep=Retention(last=1), newest=5, now=1.0)
    assert [s.step for s in store.list()] == [4, 5]
    late = again.save(flatten(state(2)), 4, [0])[0]
    assert late.ended.wait(10)
    assert late.problem.startswith("step 4 stands as epoch 1")
    again.save_and_wait(flatten(state(2)), 6)
    again.finish()
    assert [p.name for p in store.directory.glob("step-*")] == ["step-00000006"]
