"""Saves of one trainer, beside its training.

`save` takes references and returns; one thread copies this rank's part, and those that it stands by for, into a slab of
shared memory while the next step computes (`before_update` waits only for what is about to change and is not yet
copied). Another thread hands the slab to the I/O process, which writes it and leaves this rank's word, and follows the
save until it counts: rank 0 makes the commit record once the words of all are on storage.

No disk ever holds training up. One slab is the memory that saves take, a second where a save begins before the last has
let go of its own; while both are in use, a newer save is skipped. A slab that holds what others may need is in use until its save is decided. A rank that skips or fails leaves
its word on storage in place of its part, so that rank 0 learns it at once and says why.
"""

from __future__ import annotations

import base64
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_committer import Committer, Handle
from atoll.checkpoint.fs_extents import extents_bytes
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_rehearsal import rehearse
from atoll.checkpoint.fs_sources import SlabCopy, Source
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination, Uploader
from atoll.checkpoint.fs_writer_client import IoProcess, Start, spawned
from atoll.checkpoint.fs_writer_process import Job, Summed
from atoll.checkpoint.image import Duty, Image, Place, extents
from atoll.checkpoint.logical import RankLayout
from atoll.checkpoint.manifest import Request, Word, seal, unseal
from atoll.checkpoint.retention import Retention
from atoll.checkpoint.sharing import Save, Sharing
from atoll.checkpoint.torch_staging import Staging
from atoll.clock import Clock, SystemClock
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint
from atoll.schema.ids import RunId, TrainerId
from atoll.schema.messages import TrainerFact

__all__ = ["Handle", "State", "Writer"]

# How often storage is asked while a save is undecided: by the rank that decides, by others; and while none is.
_LEAD_S = 0.01
_POLL_S = 0.05
_IDLE_S = 5.0
_SLABS = 2
# So long a rank that may be asked to stand in waits for the decision when it ends. Longer than a decision takes once all
# words are there; whoever waits for a slow disk has the others' words already.
_LINGER_S = 3.0
# Copying within one host takes milliseconds to seconds; what takes longer is stuck, and the save is thrown away.
_STAGE_WITHIN_S = 60.0


class State(Protocol):
    """What one rank holds: `views` are its boxes as tensors over live memory, `tree` is the JSON part."""

    @property
    def tree(self) -> dict[str, Any]:
        """The state without its tensors."""

    @property
    def layout(self) -> RankLayout:
        """What this rank holds of which tensors."""

    @property
    def views(self) -> Mapping[tuple[str, Box], torch.Tensor]:
        """The values, by tensor and box of `layout`."""


@dataclass(slots=True, eq=False)
class _Job:
    """A save on its way through the threads."""

    handle: Handle
    save: Save
    sharing: Sharing | None = None
    staging: Staging | None = None
    slab: Slab | None = None
    image: Image | None = None
    tree: dict[str, Any] | None = None
    config: str = ""
    problem: str = ""


class Writer:
    """One per trainer; writes this rank's part of each save. `start` makes the I/O process."""

    def __init__(
        self,
        directory: Path,
        *,
        run: RunId,
        trainer: TrainerId,
        tell: Callable[[TrainerFact], None],
        keep: Retention | int,
        clock: Clock | None = None,
        start: Start = spawned,
        to: Destination | None = None,
    ) -> None:
        self._store, self._run, self._clock = Store(directory), run, clock or SystemClock()
        self._stopping = threading.Event()
        self._io = IoProcess(self._stopping, start)
        self._uploader = (
            Uploader(self._store, to, run=run, trainer=trainer, tell=tell, clock=self._clock)
            if to is not None
            else None
        )
        self._committer = Committer(
            self._store,
            run=run,
            trainer=trainer,
            tell=tell,
            keep=keep if isinstance(keep, Retention) else Retention(last=keep),
            clock=self._clock,
            verify=self._io.verify,
            uploader=self._uploader,
        )
        # What lies in a slab that was given back: it stays there until the slab is used again.
        self._held: dict[int, tuple[Handle, Image, Slab]] = {}
        # The one used last is taken first: the other has no memory before both are needed.
        self._slabs: queue.LifoQueue[Slab] = queue.LifoQueue()
        for _ in range(_SLABS):
            self._slabs.put(Slab())
        self._to_stage: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unstaged: list[_Job] = []
        self._open: list[Handle] = []
        self._kept: list[_Job] = []
        self._followed: list[_Job] = []
        self._sharing: tuple[object, str, int, Sharing] | None = None
        # One value, so that the writing thread never takes a rank 0 for one of an epoch that it did not lead. Before the
        # first save or regroup this is no rank at all: a writer that nobody has placed claims nothing.
        self._place = (-1, 0)
        self.rehearsed = threading.Event()
        self._threads = [
            threading.Thread(target=self._stage_loop, name="atoll-checkpoint-stage", daemon=True),
            threading.Thread(target=self._write_loop, name="atoll-checkpoint-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- called by the session ---------------------------------------------------------------------------------------

    def save(
        self,
        state: State,
        layouts: Sequence[RankLayout],
        *,
        step: int,
        epoch: int,
        rank: int,
        weights: str = "",
        config: str = "",
        redundancy: int = 1,
    ) -> Handle:
        """Begin a save of `state`, which must not change before `before_update` has returned. Never waits.

        `layouts` are those of all ranks of the save, in their order. `weights` is the name under which the module is
        managed whose weights go to a file for other programs, and `config` that module's configuration (JSON text).
        `redundancy` is how many ranks stand by for each box that several hold.
        """
        job = self._begun(step, epoch, rank, len(layouts))
        failpoint("save-begun")
        if epoch >= self._place[1]:  # else a regroup decided the step, and has given this rank its place since
            self._place = (rank, epoch)
        try:
            slab = self._slabs.get_nowait()
        except queue.Empty:
            job.handle.staged.set()
            job.problem = (
                f"skipped: {_SLABS} earlier saves are still being written; save less often, or to a faster disk"
            )
            self._to_stage.put(job)
            return job.handle
        self._held.pop(slab.number, None)
        job.slab, job.tree, job.config = slab, state.tree, config

        def image() -> Image:
            job.sharing = self._shared(layouts, weights, redundancy)
            return job.sharing.image(job.save, rank)

        job.staging = Staging(slab, image, state.views)
        job.staging.begin()
        self._unstaged.append(job)
        self._to_stage.put(job)
        return job.handle

    def skip(self, *, step: int, epoch: int, rank: int, size: int, problem: str) -> Handle:
        """This rank has nothing to write for a save that the others may have begun: leave word, so that nobody waits."""
        job = self._begun(step, epoch, rank, size)
        job.problem = problem
        job.handle.staged.set()
        self._to_stage.put(job)
        return job.handle

    def before_update(self, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """These tensors (None: all of the state) are about to change: wait until they are copied."""
        changing = None if tensors is None else list(tensors)
        given_up = []
        for job in self._unstaged:
            if job.staging is None:
                continue
            if not job.staging.wait(changing, _STAGE_WITHIN_S):
                given_up.append(job)  # thrown away: no later update waits for it again
            elif changing is None:
                job.handle.staged.wait(_STAGE_WITHIN_S)
        self._unstaged = [job for job in self._unstaged if job not in given_up and not job.handle.staged.is_set()]

    def regrouped(self, *, rank: int, epoch: int = 0, gone: Iterable[tuple[int, int]] = ()) -> None:
        """The members changed; whoever has rank 0 now commits what was begun before, too, in the name of `epoch`.

        `gone` are the (epoch, rank) of trainers that are no members any more: nobody waits for their parts.
        """
        # The place first: what is asked of others because of these losses is asked in the name of the new epoch.
        self._place = (rank, max(epoch, self._place[1]))
        self._committer.lost(gone)

    def memory(self) -> list[tuple[int, int, Source]]:
        """(step, epoch, source) of what this rank staged of committed steps and still holds. Good until the next save."""
        return [
            (handle.step, handle.epoch, SlabCopy(image, slab.view()))
            for handle, image, slab in list(self._held.values())  # the writing thread gives slabs back meanwhile
            if handle.committed
        ]

    def finish(self, timeout_s: float) -> None:
        """Wait until this rank's part is durable and, on rank 0, every save is committed or refused; then close."""
        until = self._clock.monotonic() + timeout_s
        if timeout_s <= 0:
            self._stopping.set()
        self._to_stage.put(None)
        for thread in self._threads:
            thread.join(max(0.5, until - self._clock.monotonic()))
        self._stopping.set()
        if self._uploader is not None:
            self._uploader.finish(max(0.0, until - self._clock.monotonic()))
        for handle in self._open:
            if not handle.ended.is_set() and self._place[0] == 0:
                self._committer.fail(handle, f"not durable within {timeout_s:.0f} s of the end of training")

    def _begun(self, step: int, epoch: int, rank: int, size: int) -> _Job:
        handle = Handle(step=step, epoch=epoch, rank=rank, size=size, began=self._clock.monotonic())
        self._open = [*(h for h in self._open if not h.ended.is_set()), handle]
        return _Job(handle, Save(run=self._run, step=step, epoch=epoch, size=size))

    def _shared(self, layouts: Sequence[RankLayout], weights: str, redundancy: int) -> Sharing:
        """The division of these layouts: made anew only where they are others than at the last save."""
        known = self._sharing
        if known is None or known[1:3] != (weights, redundancy) or known[0] != tuple(layouts):
            made = Sharing(layouts, weights=weights, redundancy=redundancy)
            self._sharing = known = (made.layouts, weights, redundancy, made)
        return known[3]

    # -- the staging thread ------------------------------------------------------------------------------------------

    def _stage_loop(self) -> None:
        while (job := self._to_stage.get()) is not None:
            if job.staging is not None:
                job.image = job.staging.run()
                job.problem = job.problem or job.staging.problem
            job.handle.staged.set()
            self._to_write.put(job)
            del job
        self._to_write.put(None)

    # -- the writing thread ------------------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        with suppress(Exception):  # what is wrong here fails the first save, which says so
            rehearse()
        self.rehearsed.set()
        closing, until = False, 0.0
        while not (closing and self._may_leave(until)):
            try:
                waits = _LEAD_S if self._place[0] == 0 else _POLL_S
                job = self._to_write.get(timeout=waits if self._committer.pending else _IDLE_S)
            except queue.Empty:
                job = None
            else:
                if job is None and not closing:
                    closing, until = True, self._clock.monotonic() + _LINGER_S
            if job is not None:
                self._write_job(job)
            rank, epoch = self._place
            if rank == 0:
                self._committer.lead(epoch)
            self._stand_in(epoch)
            self._committer.poll(leading=rank == 0)
            self._let_go()
        self._committer.give_up(leading=self._place[0] == 0, problem="the trainer ended before it was decided")
        self._io.close()

    def _may_leave(self, until: float) -> bool:
        if self._stopping.is_set() or not self._committer.pending:
            return True
        return self._place[0] != 0 and (not self._kept or self._clock.monotonic() >= until)

    def _write_job(self, job: _Job) -> None:
        handle = job.handle
        if self._stopping.is_set():
            job.problem = job.problem or "the trainer ended"
        try:
            if not job.problem:
                self._hand_over(job)
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed save is a fact
            job.problem = f"writing under {self._store.directory}: {error}; the next save tries again"
        if job.problem:
            self._leave_word(job)
        elif not handle.ended.is_set():
            self._committer.add(handle)
        handle.local.set()
        self._kept.append(job)
        self._followed.append(job)
        self._let_go()

    def _replicated(self, job: _Job) -> None:
        """Whether another rank said on storage that it can write this one's part."""
        rank = job.handle.rank
        if job.handle.replicated.is_set() or not job.handle.committed or job.sharing is None:
            return
        mine = set(job.sharing.assignment.own[rank])
        others = (
            r for r, boxes in enumerate(job.sharing.assignment.second) if r != rank and not mine.isdisjoint(boxes)
        )
        directory = self._store.step_directory(job.handle.step)
        for other in others:
            with suppress(OSError, CheckpointError):
                path = directory / f"{job.save.stem(other)}.json"
                if rank in unseal(Word, path.read_bytes(), str(path)).standby:
                    job.handle.replicated.set()
                    return
        job.handle.replicated.set("no other rank holds what this one wrote")

    def _let_go(self) -> None:
        """Give back the slabs that nobody can need any more."""
        for job in [j for j in self._followed if j.handle.ended.is_set()]:
            self._followed.remove(job)
            self._replicated(job)
        for job in list(self._kept):
            standing_by = job.image is not None and len(job.image.duties) > 1 and not job.problem
            if job.handle.ended.is_set() or not standing_by:
                self._kept.remove(job)
                if job.image is not None and job.slab is not None and not job.problem:
                    self._held[job.slab.number] = (job.handle, job.image, job.slab)
                if job.slab is not None:
                    self._slabs.put(job.slab)

    def _hand_over(self, job: _Job) -> None:
        if job.image is None or job.sharing is None or job.slab is None:
            raise CheckpointError("nothing was staged")
        if self._store.is_committed(job.handle.step):
            return  # what stands there is never written again; the committer finds out whose it is
        own, *others = job.image.duties
        word = self._word(job, job.sharing, own, standby=tuple(d.rank for d in others))
        held = tuple(_summed(p) for duty in others for p in duty.places)
        failpoint("before-handover")
        self._io.write(self._job(job, own, word, held), job.slab)
        failpoint("after-handover")

    def _job(self, job: _Job, duty: Duty, word: Word, held: tuple[Summed, ...]) -> Job:
        return Job(
            directory=str(self._store.step_directory(job.handle.step)),
            stem=job.save.stem(duty.rank, job.handle.rank),
            runs=duty.runs,
            wrote=tuple(_summed(p) for p in duty.places),
            held=held,
            table=base64.b64encode(extents_bytes(extents(duty, job.handle.rank))).decode(),
            word=word,
        )

    def _word(self, job: _Job, sharing: Sharing, duty: Duty, standby: tuple[int, ...]) -> Word:
        shared, rank = sharing.shared(job.save), job.handle.rank
        mine = {p.logical.name for d in (job.image.duties if job.image else ()) for p in d.places}
        mine |= {one.name for one in sharing.layouts[rank].logicals if not one.count}
        gives_tree = 0 in (duty.rank, rank) or sharing.layouts[rank].logicals != sharing.layouts[0].logicals
        return Word(
            run=self._run,
            step=job.handle.step,
            epoch=job.handle.epoch,
            rank=duty.rank,
            size=job.handle.size,
            by=rank,
            logicals=tuple(sharing.logicals[name] for name in sorted(mine)),
            state=sharing.state,
            writers=sharing.writers,
            standby=standby,
            tree=job.tree if gives_tree else None,
            weights=shared.file if shared is not None else "",
            export=sharing.export,
            beside=sharing.beside(job.save, job.config) if 0 in (duty.rank, rank) else {},
        )

    def _leave_word(self, job: _Job) -> None:
        """Say on storage that this rank's part will not come; rank 0 goes by it. Else tell it from here."""
        handle = job.handle
        self._publish_problem(job, handle.rank, job.problem)

    def _publish_problem(self, job: _Job, rank: int, problem: str) -> None:
        handle = job.handle
        word = Word(
            run=self._run,
            step=handle.step,
            epoch=handle.epoch,
            rank=rank,
            size=handle.size,
            by=handle.rank,
            problem=problem,
        )
        try:
            directory = self._store.step_directory(handle.step)
            self._io.leave_word(directory, f"{job.save.stem(rank, handle.rank)}.json", seal(word))
        except CheckpointError:
            self._committer.fail(handle, problem)
        else:
            if rank == handle.rank:
                self._committer.add(handle)

    # -- standing in -------------------------------------------------------------------------------------------------

    def _stand_in(self, epoch: int) -> None:
        """Write what a leader asks for in the place of others. A leader of an epoch that is over is not heard."""
        for job in self._kept:
            if job.image is None or job.sharing is None or job.handle.ended.is_set():
                continue
            for duty in job.image.duties[1:]:
                request = self._store.request(job.handle.step, job.save.stem(duty.rank))
                if request is not None and request.lead >= epoch:
                    self._write_for(job, job.sharing, duty, request)

    def _write_for(self, job: _Job, sharing: Sharing, duty: Duty, request: Request) -> None:
        word = self._store.step_directory(job.handle.step) / f"{job.save.stem(duty.rank, job.handle.rank)}.json"
        if word.exists() or job.slab is None or request.rank != duty.rank:
            return
        failpoint("before-rescue")
        try:
            self._io.write(self._job(job, duty, self._word(job, sharing, duty, standby=()), ()), job.slab)
        except CheckpointError as error:
            self._publish_problem(job, duty.rank, f"in its place rank {job.handle.rank}: {error}")


def _summed(place: Place) -> Summed:
    return Summed(logical=place.logical, box=place.box, at=place.at)
