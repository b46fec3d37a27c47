"""A member of an epoch that is over, frozen at any moment of a save and woken after the next epoch acted on the store."""

import threading

import pytest
from checkpoint_crews import Crew

from atoll.checkpoint.commit import Commit
from atoll.checkpoint.fs_claims import Claim, Overtaken
from atoll.checkpoint.fs_collect import clear, left
from atoll.checkpoint.fs_retention import retain
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.torch_state import digest, flatten
from atoll.fault.inject import CHECKPOINT_FAILPOINTS, arm
from atoll.schema.messages import CheckpointCommitted

DEADLINE_S = 10.0


class Freezer:
    """Holds a thread at a failpoint, as a frozen host would, until `wake`."""

    def __init__(self, place, *, skip=0):
        self._there, self._go = threading.Event(), threading.Event()
        arm(place, self._hold, skip=skip)

    def _hold(self):
        self._there.set()
        assert self._go.wait(DEADLINE_S)

    def frozen(self):
        assert self._there.wait(DEADLINE_S), "nobody came by"

    def wake(self):
        self._go.set()


def claim(directory, epoch, run="run"):
    return Claim(directory, run=run, epoch=epoch)


@pytest.fixture
def store(tmp_path, crew, state):
    """Steps 1 to 3, committed by epoch 1; the claim of its leader is held."""
    made = crew(1, keep=9)
    made.save_and_wait(flatten(state()), 1, 2, 3)
    made.finish()
    return Store(made.directory)


@pytest.fixture
def frozen(store):
    """`frozen(act, place)` runs `act` in a thread that stops at `place`; wake it by `.wake()`, then `.result()`."""
    threads = []

    def start(act, place, skip=0):
        freezer, out = Freezer(place, skip=skip), []

        def body():
            try:
                out.append(act())
            except Exception as error:  # noqa: BLE001 - handed to the test
                out.append(error)

        thread = threading.Thread(target=body, name="atoll-test-zombie")
        thread.start()
        threads.append(thread)
        freezer.frozen()

        def result():
            freezer.wake()
            thread.join(DEADLINE_S)
            return out[0]

        return result

    yield start
    assert not any(t.is_alive() for t in threads)


def packed(store, state, step, epoch):
    """The packs of a save, all on storage, without a commit record."""
    made = Crew(1, directory=store.directory, keep=9, epoch=epoch)
    made.save_and_wait(flatten(state(step)), step)
    made.finish(DEADLINE_S)
    (store.step_directory(step) / "commit.json").unlink()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_leader_that_saves_holds_the_claim_of_its_epoch_and_nothing_else_is_left(store):
    claims = [p.name for p in store.directory.glob("claims-*/*")]
    assert claims == ["epoch-000001.claim"]
    assert not list(store.directory.glob("claims-*/*/*"))


def test_claim_is_only_ever_raised(store):
    claim(store.directory, 4).hold()
    for epoch in (1, 3):
        with pytest.raises(Overtaken, match="epoch 4 has claimed"):
            claim(store.directory, epoch).hold()
    claim(store.directory, 4).hold()
    claim(store.directory, 5).hold()
    assert [p.name for p in store.directory.glob("claims-*/*")] == ["epoch-000005.claim"]


def test_claims_of_two_runs_in_one_folder_do_not_meet(store):
    claim(store.directory, 9, run="other").hold()
    assert store.under(claim(store.directory, 1)).delete(1)


def test_one_that_made_its_claim_while_a_higher_one_was_made_sees_it(store, monkeypatch):
    late, higher = claim(store.directory, 2), claim(store.directory, 3)
    seen = late._refuse_if_overtaken
    calls = []

    def racing():
        seen()
        if not calls:  # nothing higher was there; it comes before the claim is made
            calls.append(1)
            higher.hold()

    monkeypatch.setattr(late, "_refuse_if_overtaken", racing)
    with pytest.raises(Overtaken):
        late.hold()
    assert [p.name for p in store.directory.glob("claims-*/*")] == ["epoch-000003.claim"]


# -- frozen between looking and acting -----------------------------------------------------------------------------------


def test_committer_woken_after_a_higher_claim_cannot_commit(store, state, frozen):
    packed(store, state, 4, 1)
    zombie = store.under(claim(store.directory, 1))
    result = frozen(lambda: zombie.try_commit(4, 1, 1, run="run", now=1.0), "before-link")
    claim(store.directory, 2).hold()
    assert isinstance(result(), Overtaken)
    assert list(store.committed_steps()) == [1, 2, 3]
    assert not [p for p in store.step_directory(4).iterdir() if p.name.endswith(".tmp")]


def test_committer_woken_after_another_epoch_committed_changes_nothing(store, state, frozen):
    packed(store, state, 4, 1)
    zombie = store.under(claim(store.directory, 1))
    result = frozen(lambda: zombie.try_commit(4, 1, 1, run="run", now=1.0), "before-link")
    leader = store.under(claim(store.directory, 2))
    assert isinstance(leader.try_commit(4, 1, 1, run="run", now=2.0), Commit)
    assert isinstance(result(), Overtaken)
    assert store.record(4).at == 2.0


def test_deleter_woken_after_a_higher_claim_cannot_delete(store, frozen):
    zombie = store.under(claim(store.directory, 1))
    result = frozen(lambda: retain(zombie, run="run", keep=Retention(last=1), newest=3, now=0.0), "before-removal")
    claim(store.directory, 2).hold()
    assert isinstance(result(), Overtaken)
    assert list(store.committed_steps()) == [1, 2, 3]
    assert all(store.verify(step).ok for step in (1, 2, 3))


def test_deleter_frozen_in_the_middle_deletes_no_further_step(store, frozen):
    zombie = store.under(claim(store.directory, 1))
    result = frozen(
        lambda: retain(zombie, run="run", keep=Retention(last=1), newest=3, now=0.0), "before-removal", skip=1
    )
    assert list(store.committed_steps()) == [2, 3]
    claim(store.directory, 2).hold()
    assert isinstance(result(), Overtaken)
    assert list(store.committed_steps()) == [2, 3]


def test_sweeper_woken_after_a_higher_claim_leaves_what_it_would_have_swept(store, state, frozen):
    packed(store, state, 4, 1)
    zombie = store.under(claim(store.directory, 1))
    result = frozen(lambda: zombie.sweep(4, "run"), "before-removal")
    leader = store.under(claim(store.directory, 2))
    assert isinstance(leader.try_commit(4, 1, 1, run="run", now=2.0), Commit)
    assert isinstance(result(), Overtaken)
    assert store.verify(4).ok


# -- killed in the middle ------------------------------------------------------------------------------------------------


def test_step_on_its_way_to_be_set_aside_is_put_there_by_the_next_epoch(store, frozen):
    zombie = store.under(claim(store.directory, 1))
    files = {p.name for p in store.step_directory(2).iterdir()}
    result = frozen(lambda: zombie.set_aside(2), "after-removal")
    claim(store.directory, 2).hold()
    assert result() is None
    (aside,) = store.directory.glob("damaged-step-00000002-*")
    assert {p.name for p in aside.iterdir()} == files
    assert list(store.committed_steps()) == [1, 3]
    assert not list(store.directory.glob("claims-*/*/*"))


def left_by_killed(store):
    """What deletions that were cut off leave, in a claim that was ended and in the one that stands, and a step."""
    (claims,) = store.directory.glob("claims-*")
    for place in (
        "over-000000.ab",
        "epoch-000001.claim/gone-step-00000001.cd",
        "over-000000.ef/damaged-step-00000007-1",
    ):
        (claims / place).mkdir(parents=True)
        (claims / place / "e1-r0of1-00000000.safetensors").write_bytes(b"12345")
    return claims


def test_claim_clears_what_killed_processes_left_and_keeps_what_they_set_aside(store):
    claims = left_by_killed(store)
    claim(store.directory, 1).hold()
    assert [p.name for p in claims.rglob("*")] == ["epoch-000001.claim"]
    assert (store.directory / "damaged-step-00000007-1" / "e1-r0of1-00000000.safetensors").read_bytes() == b"12345"


def test_garbage_that_killed_processes_left_is_listed_and_cleared_and_damaged_steps_where_asked(store):
    claims = left_by_killed(store)
    assert left(store, "other") == []
    found = left(store)
    assert sorted(one.bytes for one in found) == [5, 5, 5]
    clear(store, found)
    assert [p.name for p in claims.rglob("*")] == ["epoch-000001.claim"]
    assert left(store) == []
    (aside,) = left(store, damaged=True)
    assert (aside.aside, aside.path.name, aside.bytes) == (True, "damaged-step-00000007-1", 5)
    assert left(store, "run", damaged=True) == []
    clear(store, [aside])
    assert left(store, damaged=True) == []
    assert list(store.committed_steps()) == [1, 2, 3]


# Not those before the state is copied, which hold training up, and not those that only others' losses lead to.
PASSED = [
    p
    for p in CHECKPOINT_FAILPOINTS
    if p not in {"save-begun", "before-layout", "before-staging", "in-staging", "after-staging"}
    and p not in {"before-claim", "after-claim", "before-edges", "before-request", "after-request", "before-rescue"}
]


@pytest.mark.parametrize("place", PASSED)
def test_writer_frozen_anywhere_in_a_save_and_woken_after_the_next_epoch_saved_leaves_that_as_it_is(
    tmp_path, state, place
):
    """The whole writer, by its own threads: keep=1, so each save also deletes the one before."""
    zombie = Crew(1, directory=tmp_path, keep=1)
    zombie.save_and_wait(flatten(state(1.0)), 1)
    freezer = Freezer(place)
    zombie.save(flatten(state(2.0)), 2)
    freezer.frozen()

    leader = Crew(1, directory=tmp_path, keep=2, epoch=2)
    leader.save_and_wait(flatten(state(3.0)), 3)
    leader.finish(DEADLINE_S)
    store = Store(tmp_path)
    before = list(store.committed_steps())
    assert 3 in before

    freezer.wake()
    zombie.finish(DEADLINE_S)
    assert list(store.committed_steps()) == before
    assert all(store.verify(step).ok for step in before)
    assert digest(store.open(3)) == digest(flatten(state(3.0)))
    committed = [f.step for f in zombie.told if isinstance(f, CheckpointCommitted)]
    assert committed in ([1], [1, 2])
    assert set(committed) - {1} <= set(before)


def test_step_is_set_aside_by_nobody_whose_epoch_is_over(tmp_path, state):
    crew = Crew(1, directory=tmp_path)
    crew.save_and_wait(flatten(state()), 1)
    crew.finish(DEADLINE_S)
    stale = claim(tmp_path, 2)
    freezer, ended = Freezer("before-removal"), []

    def run():
        try:
            Store(tmp_path).under(stale).set_aside(1)
        except Overtaken:
            ended.append("overtaken")

    thread = threading.Thread(target=run)
    thread.start()
    freezer.frozen()
    claim(tmp_path, 3).hold()
    freezer.wake()
    thread.join(DEADLINE_S)
    assert (ended, Store(tmp_path).committed_steps()) == (["overtaken"], [1])


def test_files_beside_a_step_are_those_of_the_run_whose_record_it_is(tmp_path, state):
    slow, fast = (Crew(1, directory=tmp_path, run=run) for run in ("slow", "fast"))
    freezer = Freezer("before-record")
    (handle,) = slow.save(flatten(state()), 5, weights="model")
    freezer.frozen()
    fast.save_and_wait(flatten(state(2.0)), 5, weights="model")
    freezer.wake()
    assert handle.ended.wait(DEADLINE_S)
    assert (handle.committed, Store(tmp_path).verify(5).ok) == (False, True)
    for crew in (slow, fast):
        crew.finish(DEADLINE_S)


def test_files_beside_a_record_whose_writer_ended_after_it_are_made_up_for(tmp_path, state):
    crew = Crew(1, directory=tmp_path)
    crew.save_and_wait(flatten(state()), 5, weights="model")
    crew.finish(DEADLINE_S)
    store = Store(tmp_path)
    for name in store.record(5).beside:
        (store.step_directory(5) / name).unlink()
    assert not store.verify(5).ok
    store.complete("run", now=1.0)
    assert store.verify(5).ok
