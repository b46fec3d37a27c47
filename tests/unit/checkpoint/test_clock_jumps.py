"""Clocks that jump while a save is under way: no false success, nothing lost, and no epoch that is over gets a say."""

import threading

import pytest
from pyarrow import fs
from remote_stores import Flaky

from atoll.checkpoint.arrow_remote import Remote
from atoll.checkpoint.commit import Commit
from atoll.checkpoint.fs_claims import Claim, Overtaken
from atoll.checkpoint.fs_decisions import LinkDecisions
from atoll.checkpoint.fs_futures import Ending
from atoll.checkpoint.fs_retrying import Backoff
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_restore import Restore
from atoll.checkpoint.torch_state import digest, flatten
from atoll.clock import SystemClock
from atoll.fault.inject import arm
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed

YEARS = 10 * 365 * 86_400.0
# Set back to before the Unix time began, back, and forward.
JUMPS = [-1e10, -YEARS, YEARS]
# From the call to the deletion of what is old: on the trainer's threads, in the I/O process, and where the leader decides.
PLACES = ["save-begun", "job-taken", "between-pack-and-sidecar", "before-claim", "before-judging", "before-record"]
PLACES += ["after-record", "before-retention", "before-removal"]


class Jumping(SystemClock):
    """The machine's clock, set by `wall` seconds; `lost` seconds passed at once, as for a host that was suspended."""

    wall = lost = 0.0

    def now(self):
        return super().now() + self.wall

    def monotonic(self):
        return super().monotonic() + self.lost


def steps_of(told, kind):
    return [f.step for f in told if isinstance(f, kind)]


@pytest.fixture
def clock():
    return Jumping()


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("place", PLACES)
def test_wall_clock_that_is_set_anywhere_in_a_save_changes_neither_its_commit_nor_what_is_kept(
    crew, state, clock, place, jump
):
    young = 0.0 if place == "before-removal" else 1e6  # nothing is removed while all are young
    made = crew(2, clock=clock, keep=Retention(last=2, seconds=young))
    passed = threading.Event()

    def set_clock():
        clock.wall = jump
        passed.set()

    arm(place, set_clock)
    for step in (1, 2, 3, 4):
        made.save_and_wait(flatten(state(step)), step)
    made.finish()
    assert passed.is_set()
    assert steps_of(made.told, CheckpointCommitted) == [1, 2, 3, 4]
    assert steps_of(made.told, CheckpointFailed) == []
    store = Store(made.directory)
    assert list(store.committed_steps())[-2:] == [3, 4]
    assert all(store.verify(step).ok for step in store.committed_steps())
    assert digest(store.open()) == digest(flatten(state(4)))


@pytest.mark.parametrize("jump", JUMPS)
def test_leader_whose_clock_jumped_is_of_its_epoch_still(crew, state, clock, jump):
    """The lease of an epoch knows no time: neither an old leader far ahead nor a new one far behind changes who leads."""
    old = crew(1, clock=clock, keep=9)
    old.save_and_wait(flatten(state(1)), 1)
    clock.wall = jump
    new = crew(1, epoch=2, keep=9)
    new.save_and_wait(flatten(state(2)), 2)
    (handle,) = old.save(flatten(state(3)), 3)
    assert handle.ended.wait(20)
    assert not handle.committed
    store = Store(old.directory)
    assert list(store.committed_steps()) == [1, 2]
    with pytest.raises(Overtaken):
        store.under(Claim(old.directory, run="run", epoch=1)).delete(1)


@pytest.mark.parametrize("place", ["after-handover", "before-judging", "before-record", "before-telling"])
def test_host_that_was_suspended_for_a_day_in_a_save_tells_what_is_on_storage(crew, state, clock, place):
    made = crew(2, clock=clock, keep=9)

    def suspend():
        clock.lost += 86_400.0

    arm(place, suspend)
    for step in (1, 2):
        handles = made.save(flatten(state(step)), step)
        for handle in handles:
            # Patience is measured by what this rank's own part took, which was a day: it has an end all the same.
            while not handle.ended.wait(5):
                clock.lost = 5 * clock.lost + 1.0
                assert clock.lost < 1e12
    made.finish()
    store = Store(made.directory)
    assert steps_of(made.told, CheckpointCommitted) == list(store.committed_steps())
    assert sorted(steps_of(made.told, CheckpointCommitted) + steps_of(made.told, CheckpointFailed)) == [1, 2]
    assert digest(store.open()) == digest(flatten(state(2)))


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("place", ["before-upload", "before-decision", "after-decision"])
def test_wall_clock_that_is_set_in_an_upload_leaves_one_record_that_counts(crew, state, clock, place, jump, tmp_path):
    files = Flaky(fs.LocalFileSystem())
    remote = Remote(lambda: (fs.PyFileSystem(files), str(tmp_path / "there")), run="run", uri="flaky://x")
    decisions = LinkDecisions(tmp_path / "checkpoints", run="run")
    to = Destination(remote=remote, decisions=decisions, keep=Retention(last=1), backoff=Backoff(tries=1))
    made = crew(1, clock=clock, to=to)
    arm(place, lambda: setattr(clock, "wall", jump))
    for step in (1, 2):
        (handle,) = made.save(flatten(state(step)), step)
        assert handle.remote.outcome(20).ending is Ending.DONE
    made.finish()
    assert remote.steps()[-1] == 2
    empty = Store(tmp_path / "lost")
    found = Restore(empty, run="run", damaged=lambda *_: None, to=to).newest()
    assert digest(found) == digest(flatten(state(2)))


def test_coordinators_of_one_epoch_that_commit_at_once_agree_on_one_record(crew, state):
    """Two that both take themselves for the leader: the file system lets one of them make the record."""
    made = crew(2, keep=99)
    for step in range(1, 13):
        made.save_and_wait(flatten(state(step)), step)
    made.finish()
    store = Store(made.directory)
    for step in range(1, 13):
        (store.step_directory(step) / "commit.json").unlink()
        begin, found = threading.Barrier(2), []

        def commit(now, step=step, begin=begin, found=found):
            mine = Store(made.directory).under(Claim(made.directory, run="run", epoch=1))
            begin.wait(10)
            found.append(mine.try_commit(step, 1, 2, run="run", now=now))

        both = [threading.Thread(target=commit, args=(now,)) for now in (1.0, 2.0)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(20)
        assert all(isinstance(each, Commit) for each in found)
        assert len(found) == 2
        assert [each.record.at for each in found] == [store.record(step).at] * 2
