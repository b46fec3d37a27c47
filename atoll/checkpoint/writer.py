"""Saves of one trainer, beside its training.

`save` takes references and returns; one thread copies this rank's share into a slab of host memory while the next step
computes (`before_update` waits only for what is not yet copied), another writes the slab, its sidecar and, on rank 0,
the commit record once all packs of the save are on storage.

No disk ever holds training up. Two slabs are all the memory that saves may take: while both are still being written, a
newer save is skipped. A rank that skips or fails leaves its word on storage in place of its pack, so that rank 0
refuses the save at once and says why.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from atoll.checkpoint.fs_committer import Committer, Handle
from atoll.checkpoint.fs_files import make_directory, publish, write_large
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.layout import shares
from atoll.checkpoint.manifest import BLOCK_BYTES, PackRecord, pack_stem, seal
from atoll.checkpoint.torch_state import Flat, shape_digest, size_of
from atoll.clock import Clock, SystemClock
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import TrainerFact

__all__ = ["Handle", "Writer"]

# How often storage is asked while a save is undecided, and while none is.
_POLL_S = 0.1
_IDLE_S = 5.0
_SLABS = 2
# Copying within one host takes milliseconds to seconds; what takes longer is stuck, and the save is thrown away.
_STAGE_WITHIN_S = 60.0


@dataclass(slots=True)
class _Job:
    """A save on its way through the threads. `flat` goes once it is staged, so that no tensor outlives its use."""

    handle: Handle
    flat: Flat | None = None
    slab: Slab | None = None
    record: PackRecord | None = None
    copied: torch.cuda.Event | None = None
    problem: str = ""


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
        self._store, self._run, self._clock = Store(directory), run, clock or SystemClock()
        self._committer = Committer(self._store, run=run, trainer=trainer, tell=tell, keep=keep, clock=self._clock)
        self._slabs: queue.SimpleQueue[Slab] = queue.SimpleQueue()
        for _ in range(_SLABS):
            self._slabs.put(Slab())
        self._to_stage: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unstaged: list[_Job] = []
        self._open: list[Handle] = []
        # One value, so that the writing thread never takes a rank 0 for one of an epoch that it did not lead.
        self._place = (0, 0)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._stage_loop, name="atoll-checkpoint-stage", daemon=True),
            threading.Thread(target=self._write_loop, name="atoll-checkpoint-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- called by the session ---------------------------------------------------------------------------------------

    def save(self, flat: Flat, *, step: int, epoch: int, rank: int, size: int) -> Handle:
        """Begin a save of `flat`, whose tensors must not change before `before_update` has returned. Never waits."""
        handle = Handle(step=step, epoch=epoch, rank=rank, size=size, began=self._clock.monotonic())
        self._place = (rank, max(epoch, self._place[1]))
        self._open = [*(h for h in self._open if not h.ended.is_set()), handle]
        try:
            slab = self._slabs.get_nowait()
        except queue.Empty:
            handle.staged.set()
            problem = f"skipped: {_SLABS} earlier saves are still being written; save less often, or to a faster disk"
            self._to_stage.put(_Job(handle, problem=problem))
            return handle
        job = _Job(handle, flat, slab, copied=_after_pending_kernels(flat))
        self._unstaged.append(job)
        self._to_stage.put(job)
        return handle

    def skip(self, *, step: int, epoch: int, rank: int, size: int, problem: str) -> Handle:
        """This rank has nothing to write for a save that the others may have begun: leave word, so that nobody waits."""
        handle = Handle(step=step, epoch=epoch, rank=rank, size=size, began=self._clock.monotonic())
        self._open = [*(h for h in self._open if not h.ended.is_set()), handle]
        handle.staged.set()
        self._to_stage.put(_Job(handle, problem=problem))
        return handle

    def before_update(self) -> None:
        """The state is about to change: wait until it is copied."""
        unstaged, self._unstaged = self._unstaged, []
        for job in unstaged:
            if not job.handle.staged.wait(_STAGE_WITHIN_S):
                # The copy would mix two steps. It is thrown away, whatever becomes of it.
                job.problem = f"the state was not copied within {_STAGE_WITHIN_S:.0f} s"

    def regrouped(self, *, rank: int, epoch: int = 0, gone: Iterable[tuple[int, int]] = ()) -> None:
        """The members changed; whoever has rank 0 now commits what was begun before, too, in the name of `epoch`.

        `gone` are the (epoch, rank) of trainers that are no members any more: nobody waits for their packs.
        """
        self._committer.lost(gone)
        self._place = (rank, max(epoch, self._place[1]))

    def finish(self, timeout_s: float) -> None:
        """Wait until this rank's packs are durable and, on rank 0, every save is committed or refused; then close."""
        until = self._clock.monotonic() + timeout_s
        if timeout_s <= 0:
            self._stopping.set()
        self._to_stage.put(None)
        for thread in self._threads:
            thread.join(max(0.5, until - self._clock.monotonic()))
        self._stopping.set()
        for handle in self._open:
            if not handle.ended.is_set() and self._place[0] == 0:
                self._committer.fail(handle, f"not durable within {timeout_s:.0f} s of the end of training")

    # -- the staging thread ------------------------------------------------------------------------------------------

    def _stage_loop(self) -> None:
        while (job := self._to_stage.get()) is not None:
            try:
                if job.flat is not None and job.slab is not None:
                    job.record = self._stage(job.handle, job.flat, job.slab, job.copied)
            except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed save is a fact
                job.problem = f"copying the state: {error}"
            job.flat = None
            job.handle.staged.set()
            self._to_write.put(job)
            del job
        self._to_write.put(None)

    def _stage(self, handle: Handle, flat: Flat, slab: Slab, copied: torch.cuda.Event | None) -> PackRecord:
        names = shares({n: size_of(t) for n, t in flat.tensors.items()}, handle.size)[handle.rank]
        mine = {name: flat.tensors[name] for name in names}
        slab.lay_out(mine)
        if copied is not None:
            copied.synchronize()
        for name, tensor in mine.items():
            slab.stage(name, tensor)
        return PackRecord(
            file=f"{self._stem(handle)}.safetensors",
            run=self._run,
            step=handle.step,
            epoch=handle.epoch,
            rank=handle.rank,
            size=handle.size,
            bytes=slab.length,
            block_bytes=BLOCK_BYTES,
            blocks=(),
            tensors=tuple(sorted(mine)),
            tree=flat.meta if handle.rank == 0 else None,
            state=shape_digest(flat),
        )

    def _stem(self, handle: Handle) -> str:
        return pack_stem(run=self._run, epoch=handle.epoch, rank=handle.rank, size=handle.size)

    # -- the writing thread ------------------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        closing = False
        while not (closing and self._may_leave()):
            try:
                job = self._to_write.get(timeout=_POLL_S if self._committer.pending else _IDLE_S)
            except queue.Empty:
                job = None
            else:
                closing = closing or job is None
            if job is not None:
                self._write_job(job)
            rank, epoch = self._place
            if rank == 0:
                self._committer.lead(epoch)
            self._committer.poll(leading=rank == 0)
        self._committer.give_up(leading=self._place[0] == 0, problem="the trainer ended before it was decided")

    def _may_leave(self) -> bool:
        return self._stopping.is_set() or self._place[0] != 0 or not self._committer.pending

    def _write_job(self, job: _Job) -> None:
        handle = job.handle
        if self._stopping.is_set():
            job.problem = job.problem or "the trainer ended"
        try:
            if not job.problem:
                self._write(job)
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed save is a fact
            job.problem = f"writing under {self._store.directory}: {error}; the next save tries again"
        if job.problem:
            self._leave_word(handle, job.problem)
        elif not handle.ended.is_set():
            self._committer.add(handle)
        handle.local.set()
        if job.slab is not None:
            self._slabs.put(job.slab)

    def _write(self, job: _Job) -> None:
        handle, slab, record = job.handle, job.slab, job.record
        if slab is None or record is None:
            raise CheckpointError("nothing was staged")
        directory = self._store.step_directory(handle.step)
        make_directory(directory)
        sidecar = directory / f"{self._stem(handle)}.json"
        if self._store.is_committed(handle.step) or sidecar.exists():
            return  # what stands there is never written again; the committer finds out whose it is
        write_large(directory / record.file, slab.view(), slab.length)
        failpoint("between-pack-and-sidecar")
        publish(sidecar, seal(dataclasses.replace(record, blocks=slab.blocks())))

    def _leave_word(self, handle: Handle, problem: str) -> None:
        """Say on storage that this rank's pack will not come; rank 0 tells it then. Else tell it from here."""
        word = PackRecord(
            file="",
            run=self._run,
            step=handle.step,
            epoch=handle.epoch,
            rank=handle.rank,
            size=handle.size,
            bytes=0,
            block_bytes=BLOCK_BYTES,
            blocks=(),
            tensors=(),
            problem=problem,
        )
        try:
            directory = self._store.step_directory(handle.step)
            make_directory(directory)
            publish(directory / f"{self._stem(handle)}.json", seal(word))
            self._committer.add(handle)
        except OSError:
            self._committer.fail(handle, problem)


def _after_pending_kernels(flat: Flat) -> torch.cuda.Event | None:
    """On a GPU the step's last kernels may still be running: an event that passes once the state is as it should be."""
    on_gpu = next((t for t in flat.tensors.values() if t.is_cuda), None)
    if on_gpu is None:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(on_gpu.device))
    return event
