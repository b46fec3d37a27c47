"""Ranks that are killed at every place where a death would hurt, in processes of their own, with their I/O processes.

Whatever the moment: the last committed step restores bit for bit, what was told to be committed is, and with one rank
dead the others still commit the step, since they hold the same and staged it.
"""

import atexit
import functools
import mmap
import os
import random
import select
import shutil
import signal
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch
from checkpoint_crews import Crew, IoFork, leaked

from atoll.checkpoint import fs_writer_client
from atoll.checkpoint import writer as writer_module
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_writer_client import spawned
from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.torch_state import digest, flatten
from atoll.checkpoint.writer import Writer
from atoll.fault.inject import arm, arm_death
from atoll.fault.places import CHECKPOINT_FAILPOINTS, IO_FAILPOINTS
from atoll.schema.messages import CheckpointCommitted

DEADLINE_S = 30
RANKS = 3
VICTIMS = {"writer": (1,), "coordinator": (0,), "both": (0, 1)}
# Only a loss leads there: a fourth rank is lost from the beginning, and everybody stands by for everybody.
AFTER_A_LOSS = ("before-request", "after-request", "before-rescue")
STEP, EPOCH = 2, 2


@functools.cache
def state(step, poison=0.0):
    """A state whose every tensor tells the step."""
    tensors = {f"w{i}": torch.full((500 + i, 2), step + poison) for i in range(6)}
    return flatten({"model": tensors, "step": step})


def die():
    """With everything that this rank has started."""
    os.killpg(0, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _brisk(monkeypatch):
    monkeypatch.setattr(writer_module, "_POLL_S", 0.01)
    # Forks hold each other's ends open, so an I/O process does not see its trainer's end: it is killed.
    monkeypatch.setattr(fs_writer_client, "_LEAVE_S", 0.05)
    torch.set_num_threads(1)
    yield
    assert leaked() == []


def memory_folder():
    """In memory where there is such a place: a death of processes loses nothing that a file system took."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="atoll-crash-", dir=where))


@pytest.fixture
def folder():
    path = memory_folder()
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Children:
    """`children(body)` forks a process that runs `body(say)` and ends; gives (pid, readable end). None outlives `close`."""

    def __init__(self):
        self._begun = []

    def __call__(self, body):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_child(body, writes)
        os.close(writes)
        self._begun.append((pid, reads))
        return pid, reads

    def ended(self):
        """How many are no more."""
        return sum(_is_over(pid) for pid, _ in self._begun)

    def close(self):
        for pid, reads in self._begun:
            os.close(reads)
            if not _is_over(pid):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _is_over(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.fixture
def child():
    children = Children()
    yield children
    children.close()


def _run_child(body, writes):
    status = 1
    try:
        os.setsid()
        signal.alarm(2 * DEADLINE_S)
        body(lambda word: os.write(writes, f"{word}\n".encode()))
        status = 0
    except BaseException:  # noqa: BLE001 - a forked test must never return into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


def hear(reads):
    """The next line of a child, or "" at its end."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([reads], [], [], DEADLINE_S)[0], "the child says nothing"
        got = os.read(reads, 1)
        if not got:
            break
        line += got
    return line.decode().strip()


def end_of(pid, reads):
    """How a child ended: minus the signal, or the exit status. It stays to be reaped by the fixture."""
    while hear(reads):
        pass
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def begin(writer, rank, *, size, redundancy):
    """This rank's save of the step that the tests are about."""
    mine, layouts = replicated(state(STEP), rank, [f"n{r}" for r in range(size)])
    handle = writer.save(mine, layouts, step=STEP, epoch=EPOCH, rank=rank, weights="model", redundancy=redundancy)
    writer.before_update()
    return handle


class Flag:
    """An event that forks share."""

    def __init__(self):
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def set(self):
        self._memory[0] = 1

    def is_set(self):
        return bool(self._memory[0])


def rank_that_dies(directory, rank, place, *, size, redundancy, alone, reached):
    """A rank that is killed at `place`, or, where it never comes there, when its save is over.

    It is over, too, when `alone` says that all other victims are dead and this one's part is durable: it would wait for
    theirs. `reached` says that it came to the place.
    """

    def die_there():
        reached.set()
        die()

    def body(_):
        arm(place, die_there)
        writer = Writer(directory, run="run", trainer=f"t{rank}", tell=lambda _: None, keep=1, start=IoFork)
        handle = begin(writer, rank, size=size, redundancy=redundancy)
        writer.regrouped(rank=rank, epoch=EPOCH, gone=[(EPOCH, r) for r in range(RANKS, size)])
        until = time.monotonic() + 2.0
        while not handle.ended.wait(0.05) and time.monotonic() < until:
            if alone.is_set() and handle.local.is_set():
                until = min(until, time.monotonic() + 0.2)  # twenty looks at storage: what it can do alone is done
        writer.finish(1.0 if handle.ended.is_set() else 0.0)
        die()

    return body


@functools.cache
def old_steps(*, repeated):
    """Step 1 is committed. If `repeated`, the step was tried before, in an epoch whose values were others.

    Made once, and copied for each trial.
    """
    directory = memory_folder()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    crew = Crew(RANKS, directory=directory / "made", keep=1)
    crew.save_and_wait(state(1), 1, weights="model")
    if repeated:
        for handle in crew.save(state(STEP, 0.5), STEP, [1, 2], weights="model"):
            assert handle.local.wait(DEADLINE_S)
    crew.finish(0.0)
    return directory / "made"


def assert_whole(store):
    """Every step that is listed reads back as it was."""
    for step in store.committed_steps():
        report = store.verify(step)
        assert report.ok, report.line()
        assert digest(store.open(step)) == digest(state(step))
    assert store.committed_steps()


@pytest.mark.parametrize("who", VICTIMS)
@pytest.mark.parametrize("place", CHECKPOINT_FAILPOINTS)
def test_rank_killed_at_any_place_loses_no_committed_step_and_alone_not_even_the_step_in_hand(
    child, folder, place, who
):
    """Of a step that is new, and of one that was tried before, side by side: the two have nothing to do with each other."""
    begun = []
    for repeated in (False, True):
        mine = folder / str(repeated)
        shutil.copytree(old_steps(repeated=repeated), mine)
        begun.append(child(lambda _, mine=mine: trial(mine, place, who)))
    assert [end_of(*each) for each in begun] == [0, 0], (
        "see the trace of the trial: a new step first, a repeated one second"
    )


def trial(folder, place, who):
    """In a process of its own. Raises `AssertionError`."""
    children, reached = Children(), Flag()
    try:
        _trial(children, folder, place, VICTIMS[who], reached)
    finally:
        children.close()
    assert leaked() == []
    if who != "writer":  # rank 0 passes all of them
        assert reached.is_set(), "nobody was killed at the place"


def _trial(children, folder, place, victims, reached):
    helped, alone = place in AFTER_A_LOSS, Flag()
    size, redundancy = (RANKS + 1, RANKS) if helped else (RANKS, 1)
    options = {"size": size, "redundancy": redundancy, "alone": alone, "reached": reached}
    begun = [children(rank_that_dies(folder, rank, place, **options)) for rank in victims]
    told, survivors = [], [r for r in range(RANKS) if r not in victims]
    writers = {r: Writer(folder, run="run", trainer=f"t{r}", tell=told.append, keep=1, start=IoFork) for r in survivors}
    handles = {r: begin(w, r, size=size, redundancy=redundancy) for r, w in writers.items()}
    assert all(h.local.wait(DEADLINE_S) for h in handles.values())
    gone = [(EPOCH, r) for r in range(size) if r >= RANKS]
    for rank, writer in writers.items():
        writer.regrouped(rank=rank, epoch=EPOCH, gone=gone)
    until = time.monotonic() + DEADLINE_S
    while children.ended() < len(victims) - 1:
        assert time.monotonic() < until, "no victim dies"
        select.select([], [], [], 0.01)
    if len(victims) > 1:
        alone.set()
    for pid, reads in begun:
        assert end_of(pid, reads) == -signal.SIGKILL
    # The next epoch: the lowest survivor leads.
    for index, writer in enumerate(writers.values()):
        writer.regrouped(rank=index, epoch=EPOCH + 1, gone=[*gone, *((EPOCH, r) for r in victims)])
    for handle in handles.values():
        assert handle.ended.wait(DEADLINE_S)
    for writer in writers.values():
        writer.finish(DEADLINE_S)
    store = Store(folder)
    assert_whole(store)
    committed = store.is_committed(STEP)
    assert not any(isinstance(f, CheckpointCommitted) for f in told) or committed
    assert all(h.committed == committed for h in handles.values())
    if len(victims) == 1 or helped:
        assert committed, [h.problem for h in handles.values()]


def test_survivor_commits_what_all_had_written_when_rank_0_was_killed_before_the_record(child, folder):
    begun = child(rank_that_dies(folder, 0, "before-record", size=2, redundancy=0, alone=Flag(), reached=Flag()))
    told = []
    writer = Writer(folder, run="run", trainer="t1", tell=told.append, keep=5, start=IoFork)
    handle = begin(writer, 1, size=2, redundancy=0)
    assert end_of(*begun) == -signal.SIGKILL
    assert not handle.ended.is_set()
    writer.regrouped(rank=0, epoch=EPOCH + 1, gone=[(EPOCH, 0)])
    assert handle.ended.wait(DEADLINE_S)
    assert handle.committed, handle.problem
    writer.finish(DEADLINE_S)
    assert [type(f) for f in told] == [CheckpointCommitted]
    assert_whole(Store(folder))


def test_writer_killed_at_a_random_moment_loses_at_most_the_step_in_hand(child, folder):
    chance = random.Random(11)
    store = Store(folder)
    for attempt in range(6):
        first = store.latest().step + 1 if store.latest() else 1

        def save_on(say, first=first, epoch=attempt + 1):
            tell = lambda f: say(f"{type(f).__name__} {f.step}")  # noqa: E731
            writer = Writer(folder, run="run", trainer="t", keep=2, tell=tell, start=IoFork)
            for step in range(first, first + 10_000):
                mine, layouts = replicated(state(step), 0, ["n"])
                handle = writer.save(mine, layouts, step=step, epoch=epoch, rank=0, weights="model")
                writer.before_update()
                assert handle.ended.wait(DEADLINE_S)

        pid, reads = child(save_on)
        assert hear(reads) == f"CheckpointCommitted {first}"
        select.select([], [], [], chance.uniform(0.0, 0.1))
        os.killpg(pid, signal.SIGKILL)
        told = first
        while word := hear(reads):
            assert word.startswith("CheckpointCommitted "), word
            told = int(word.split()[1])
        newest = store.latest().step
        assert newest in {told, told + 1}
        assert_whole(store)


@pytest.mark.parametrize("place", [*IO_FAILPOINTS[::6], "word-durable"])
def test_death_that_is_ordered_of_a_trainer_in_its_io_process_ends_that_once(folder, place, monkeypatch):
    """As a plan of faults orders it, with the real process: it is no fork, and inherits nothing that is armed."""
    monkeypatch.setattr(fs_writer_client, "_LEAVE_S", DEADLINE_S)
    crew = Crew(1, directory=folder, start=spawned, keep=9)
    crew.save_and_wait(state(1), 1, weights="model")
    arm_death(place)
    crew.save_and_wait(state(2), 2, weights="model")
    crew.save_and_wait(state(3), 3, weights="model")
    crew.finish()
    store = Store(folder)
    assert_whole(store)
    told = [f.step for f in crew.told if isinstance(f, CheckpointCommitted)]
    assert told in ([1, 3], [1, 2, 3])  # where its word is on storage, the save counts without it
    assert told == list(store.committed_steps())
    assert (len(told) == 3) == (place in {"word-durable", "before-answer"})


def test_io_process_that_dies_fails_its_save_alone_and_another_takes_its_place(folder):
    processes = []

    def start(end):
        processes.append(IoFork(end))
        return processes[-1]

    crew = Crew(1, directory=folder, start=start)
    crew.save_and_wait(state(1), 1)
    os.kill(processes[0].pid, signal.SIGKILL)
    failed = crew.save(state(2), 2)[0]
    assert failed.ended.wait(DEADLINE_S)
    assert not failed.committed
    assert "the I/O process ended by SIGKILL" in failed.problem
    crew.save_and_wait(state(3), 3)
    crew.finish()
    assert [f.step for f in crew.told if isinstance(f, CheckpointCommitted)] == [1, 3]
    assert len(processes) == 2
    assert_whole(Store(folder))
