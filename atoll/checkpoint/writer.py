"""Saves of one trainer, beside its training.

`save` takes references and returns; one thread copies this rank's share into a slab while the next step computes
(`before_update` waits only for what is not yet copied), another writes the slab, its checksums and sidecar, and, on the
lowest rank, makes the commit record once all packs of the save are on storage. A save that fails is a fact told to the
control plane; training goes on. At most two saves are in memory: a third waits for the disk.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from atoll.checkpoint.commit import Commit, Refuse, Wait
from atoll.checkpoint.fs_files import publish, sync_directory, write_large
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.layout import shares
from atoll.checkpoint.manifest import BLOCK_BYTES, PackRecord, canonical, seal
from atoll.checkpoint.torch_state import Flat, size_of
from atoll.clock import Clock, SystemClock
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint
from atoll.schema.ids import RunId, Step, TrainerId
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed, TrainerFact

_POLL_S = 0.1
# A member that has not written its pack by then is gone or its disk is; the next save is not held up by it.
_COMMIT_WITHIN_S = 60.0
_SLABS = 2
# Two saves in memory and a disk that took neither within this time: the third is given up, training goes on.
_SLAB_WITHIN_S = 60.0


@dataclass(slots=True, eq=False)
class Handle:
    """One save under way. `problem` is set when it failed."""

    step: int
    epoch: int
    rank: int
    size: int
    began: float
    staged: threading.Event = field(default_factory=threading.Event)
    local: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    problem: str = ""


@dataclass(slots=True)
class _Job:
    handle: Handle
    flat: Flat
    slab: Slab


class Writer:
    """One per trainer; writes this rank's share of each save."""

    def __init__(
        self,
        directory: Path,
        *,
        run: RunId,
        trainer: TrainerId,
        tell: Callable[[TrainerFact], None],
        keep: int,
        clock: Clock | None = None,
    ) -> None:
        self._store, self._run, self._trainer = Store(directory), run, trainer
        self._tell, self._keep, self._clock = tell, keep, clock or SystemClock()
        self._slabs: queue.Queue[Slab] = queue.Queue()
        for _ in range(_SLABS):
            self._slabs.put(Slab())
        self._to_stage: queue.Queue[_Job | None] = queue.Queue()
        self._to_write: queue.Queue[_Job | None] = queue.Queue()
        self._unstaged: Handle | None = None
        self._pending: list[Handle] = []
        self._rank = 0
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._stage_loop, name="atoll-checkpoint-stage", daemon=True),
            threading.Thread(target=self._write_loop, name="atoll-checkpoint-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- called by the session ---------------------------------------------------------------------------------------

    def save(self, flat: Flat, *, step: int, epoch: int, rank: int, size: int) -> Handle:
        """Begin a save of `flat`, whose tensors must not change before `before_update` has returned."""
        handle = Handle(step=step, epoch=epoch, rank=rank, size=size, began=self._clock.monotonic())
        self._rank = rank
        self.before_update()
        try:
            slab = self._slabs.get(timeout=_SLAB_WITHIN_S)
        except queue.Empty:
            self._fail(handle, f"the disk took neither of the last {_SLABS} saves within {_SLAB_WITHIN_S:.0f} s")
            return handle
        self._unstaged = handle
        self._to_stage.put(_Job(handle, flat, slab))
        return handle

    def before_update(self) -> None:
        """The state is about to change: wait until it is copied."""
        handle, self._unstaged = self._unstaged, None
        if handle is not None:
            handle.staged.wait(_SLAB_WITHIN_S)

    def regrouped(self, *, epoch: int, rank: int, size: int) -> None:
        """The members changed; whoever has rank 0 now commits what was begun before, too."""
        del epoch, size
        self._rank = rank

    def finish(self, timeout_s: float) -> None:
        """Wait until this rank's packs are durable and, on rank 0, every save is committed or refused; then close."""
        deadline = time.monotonic() + timeout_s
        self._to_stage.put(None)
        if timeout_s <= 0:
            self._stopping.set()
        for thread in self._threads:
            thread.join(max(0.5, deadline - time.monotonic()))
        self._stopping.set()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _stage_loop(self) -> None:
        while (job := self._to_stage.get()) is not None:
            try:
                self._stage(job)
            except (CheckpointError, OSError, RuntimeError, MemoryError) as error:
                self._fail(job.handle, f"staging: {error}")
            job.handle.staged.set()
            self._to_write.put(job)
        self._to_write.put(None)

    def _stage(self, job: _Job) -> None:
        flat, handle = job.flat, job.handle
        names = shares({n: size_of(t) for n, t in flat.tensors.items()}, handle.size)[handle.rank]
        mine = {name: flat.tensors[name] for name in names}
        job.slab.lay_out(mine)
        for name, tensor in mine.items():
            job.slab.stage(name, tensor)
        job.flat = Flat(tensors=mine, meta=flat.meta)

    def _write_loop(self) -> None:
        closing = False
        while not closing or (self._pending and not self._stopping.is_set()):
            try:
                job = self._to_write.get(timeout=_POLL_S)
            except queue.Empty:
                self._commit_pending()
                continue
            if job is None:
                closing = True
            else:
                self._write_job(job)
            self._commit_pending()
            if closing and self._rank != 0:
                return

    def _write_job(self, job: _Job) -> None:
        handle = job.handle
        try:
            if not handle.problem:
                self._write(job)
                self._pending.append(handle)
        except (CheckpointError, OSError) as error:
            self._fail(handle, f"writing under {self._store.directory}: {error}")
        finally:
            handle.local.set()
            # The tensors are let go with the job; the slab is used again.
            self._slabs.put(job.slab)

    def _write(self, job: _Job) -> None:
        handle, slab = job.handle, job.slab
        directory = self._store.step_directory(handle.step)
        directory.mkdir(parents=True, exist_ok=True)
        stem = f"e{handle.epoch}-r{handle.rank}of{handle.size}"
        write_large(directory / f"{stem}.safetensors", slab.view(), slab.length)
        failpoint("between-pack-and-sidecar")
        record = PackRecord(
            file=f"{stem}.safetensors",
            run=self._run,
            step=handle.step,
            epoch=handle.epoch,
            rank=handle.rank,
            size=handle.size,
            bytes=slab.length,
            block_bytes=BLOCK_BYTES,
            blocks=slab.blocks(),
            tensors=tuple(sorted(job.flat.tensors)),
            tree=job.flat.meta if handle.rank == 0 else None,
        )
        publish(directory / f"{stem}.json", seal(record, xxhash.xxh3_64_hexdigest(canonical(record))))
        sync_directory(self._store.directory)

    def _commit_pending(self) -> None:
        for handle in list(self._pending):
            if self._rank != 0:
                # Remembered in case rank 0 is lost; forgotten once it is committed or too old.
                done = (self._store.step_directory(handle.step) / "commit.json").exists()
                if done or self._clock.monotonic() - handle.began > _COMMIT_WITHIN_S:
                    self._end(handle)
                continue
            try:
                self._try_commit(handle)
            except (CheckpointError, OSError) as error:
                self._end(handle)
                self._fail(handle, f"committing: {error}")

    def _try_commit(self, handle: Handle) -> None:
        judgement = self._store.try_commit(handle.step, handle.epoch, handle.size, now=self._clock.now())
        match judgement:
            case Commit(record=record):
                self._end(handle)
                self._committed(handle, record.size_bytes())
            case Refuse(reason=reason):
                self._end(handle)
                self._fail(handle, reason)
            case Wait(missing=missing):
                if self._clock.monotonic() - handle.began > _COMMIT_WITHIN_S:
                    self._end(handle)
                    self._fail(handle, f"ranks {missing} of epoch {handle.epoch} wrote nothing; the next save goes on")

    def _committed(self, handle: Handle, size_bytes: int) -> None:
        self._tell(
            CheckpointCommitted(
                trainer=self._trainer,
                step=Step(handle.step),
                path=str(self._store.step_directory(handle.step)),
                bytes=size_bytes,
                seconds=self._clock.monotonic() - handle.began,
            )
        )
        self._retain(handle.step)

    def _retain(self, newest: int) -> None:
        """Delete what is older than the last `keep`, once the newest was read back and verified."""
        steps = self._store.committed_steps()
        surplus = [s for s in steps if s <= newest][: -self._keep]
        leftovers = [s for s in self._store.uncommitted_steps() if s < newest and not self._is_pending(s)]
        if (surplus or leftovers) and self._store.verify(newest).ok:
            for step in [*surplus, *leftovers]:
                self._store.delete(step)

    def _is_pending(self, step: int) -> bool:
        return any(h.step == step for h in self._pending)

    def _end(self, handle: Handle) -> None:
        self._pending.remove(handle)
        handle.ended.set()

    def _fail(self, handle: Handle, problem: str) -> None:
        handle.problem = problem
        handle.ended.set()
        self._tell(CheckpointFailed(trainer=self._trainer, step=Step(handle.step), problem=problem))
