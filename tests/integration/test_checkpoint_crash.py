"""Writers that are killed at every place where a death would hurt, in processes of their own.

Whatever the moment, storage then holds the old step or the new one, whole, and never a mix of both.
"""

import os
import random
import resource
import select
import signal
import traceback

import pytest
import torch

from atoll.checkpoint.fs_inspect import verify
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.torch_state import digest, flatten
from atoll.checkpoint.writer import Writer
from atoll.fault.inject import arm
from atoll.schema.messages import CheckpointCommitted

DEADLINE_S = 30
RANKS = 2
# Failpoint, passes before it kills, what storage holds then, and whether another process can complete the new step. A
# save of two ranks by one process passes each pack place twice and links two sidecars, then the commit record.
PLACES = [
    ("before-pack-sync", 0, [1], False),
    ("before-pack-sync", 1, [1], False),
    ("between-pack-and-sidecar", 0, [1], False),
    ("between-pack-and-sidecar", 1, [1], False),
    ("before-link", 0, [1], False),
    ("after-link", 0, [1], False),
    ("before-link", 1, [1], False),
    ("after-link", 1, [1], True),
    ("before-link", 2, [1], True),
    ("after-link", 2, [1, 2], False),
]


def state(step):
    """A state whose every tensor tells the step."""
    return flatten({"model": {f"w{i}": torch.full((1000 + i,), float(step)) for i in range(6)}, "step": step})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def child():
    """`child(body)` forks a process that runs `body(say)` and ends; gives (pid, readable end). None outlives the test."""
    begun = []

    def fork(body):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_child(body, writes)
        os.close(writes)
        begun.append((pid, reads))
        return pid, reads

    yield fork
    for pid, reads in begun:
        os.close(reads)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run_child(body, writes):
    status = 1
    try:
        signal.alarm(2 * DEADLINE_S)
        torch.set_num_threads(1)
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


def save_all(directory, *steps, epoch=1, ranks=RANKS, before_last=lambda: None):
    """Save `steps` one after the other as all ranks; rank 1 and up first, so that their packs are there for rank 0."""
    writers = [Writer(directory, run="run", trainer=f"t{r}", tell=lambda fact: None, keep=5) for r in range(ranks)]
    for step in steps:
        if step == steps[-1]:
            before_last()
        for rank in reversed(range(ranks)):
            handle = writers[rank].save(state(step), step=step, epoch=epoch, rank=rank, size=ranks)
            writers[rank].before_update()
            assert handle.local.wait(DEADLINE_S)
        assert handle.ended.wait(DEADLINE_S)
        assert handle.committed, handle.problem
    for writer in writers:
        writer.finish(DEADLINE_S)


def assert_whole(store, steps):
    assert [c.step for c in store.list()] == steps
    assert all(r.ok for r in verify(store.directory))
    for step in steps:
        assert digest(store.open(step)) == digest(state(step))
    assert digest(store.open()) == digest(state(steps[-1]))


@pytest.mark.parametrize(("place", "skip", "steps", "completable"), PLACES)
def test_writer_killed_at_any_place_leaves_the_old_or_the_new_step_whole(
    child, tmp_path, place, skip, steps, completable
):
    directory = tmp_path / "checkpoints"
    pid, reads = child(
        lambda _: save_all(directory, 1, 2, before_last=lambda: arm(place, die, skip=skip)),
    )
    assert end_of(pid, reads) == -signal.SIGKILL
    store = Store(directory)
    assert_whole(store, steps)
    assert list(store.complete("run", now=1.0)) == ([2] if completable else [])
    held = [1, 2] if completable else steps
    assert_whole(store, held)
    # Others train on, in a later epoch and in another number: what was left is neither used nor in the way.
    save_all(directory, 2, 3, epoch=2, ranks=3)
    assert_whole(store, [1, 2, 3])
    left = [p.name for step in (1, 2) for p in store.step_directory(step).iterdir()]
    named = [p.file for step in (1, 2) for p in store.record(step).packs]
    assert sorted(n for n in left if n.endswith(".safetensors")) == sorted(named)


def test_survivor_commits_the_step_whose_rank_0_was_killed_before_the_record(child, tmp_path):
    directory = tmp_path / "checkpoints"

    def survive(say):
        writer = Writer(directory, run="run", trainer="t1", tell=lambda f: say(type(f).__name__), keep=5)
        handle = writer.save(state(1), step=1, epoch=1, rank=1, size=2)
        writer.before_update()
        assert handle.local.wait(DEADLINE_S)
        say("saved")
        while not (directory / "killed").exists():
            assert not handle.ended.wait(0.02)
        writer.regrouped(rank=0)
        writer.finish(DEADLINE_S)

    def lead(_):
        arm("before-link", die, skip=1)
        writer = Writer(directory, run="run", trainer="t0", tell=lambda _: None, keep=5)
        writer.save(state(1), step=1, epoch=1, rank=0, size=2)
        writer.finish(DEADLINE_S)

    survivor, hears = child(survive)
    assert hear(hears) == "saved"
    assert end_of(*child(lead)) == -signal.SIGKILL
    assert Store(directory).list() == []
    (directory / "killed").touch()
    assert hear(hears) == CheckpointCommitted.__name__
    assert end_of(survivor, hears) == 0
    assert_whole(Store(directory), [1])


def test_writer_killed_at_a_random_moment_loses_at_most_the_step_in_hand(child, tmp_path):
    chance = random.Random(11)
    store = Store(tmp_path / "checkpoints")
    for attempt in range(6):
        first = store.latest().step + 1 if store.latest() else 1

        def save_on(say, first=first, epoch=attempt + 1):
            writer = Writer(
                store.directory, run="run", trainer="t", keep=2, tell=lambda f: say(f"{type(f).__name__} {f.step}")
            )
            for step in range(first, first + 10_000):
                handle = writer.save(state(step), step=step, epoch=epoch, rank=0, size=1)
                writer.before_update()
                assert handle.ended.wait(DEADLINE_S)

        pid, reads = child(save_on)
        assert hear(reads) == f"CheckpointCommitted {first}"
        select.select([], [], [], chance.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        told = first
        while word := hear(reads):
            assert word.startswith("CheckpointCommitted "), word
            told = int(word.split()[1])
        newest = store.latest().step
        assert newest in {told, told + 1}
        assert digest(store.open()) == digest(state(newest))
        assert all(r.ok for r in verify(store.directory))


def test_disk_that_takes_no_more_fails_the_save_and_the_next_one_counts(child, tmp_path):
    directory = tmp_path / "checkpoints"

    def save_twice(say):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        writer = Writer(directory, run="run", trainer="t", keep=2, tell=lambda f: say(getattr(f, "problem", "durable")))
        big = flatten({"w": torch.ones(1 << 20)})
        for step, limit in ((1, 1 << 20), (2, hard)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            handle = writer.save(big, step=step, epoch=1, rank=0, size=1)
            writer.before_update()
            assert handle.ended.wait(DEADLINE_S)
        writer.finish(DEADLINE_S)

    pid, reads = child(save_twice)
    assert "File too large; the next save tries again" in hear(reads)
    assert hear(reads) == "durable"
    assert end_of(pid, reads) == 0
    assert [p.name for p in directory.glob("step-*")] == ["step-00000002"]
    assert all(r.ok for r in verify(directory))
