"""Saves of one trainer, beside its training.

`save` takes references and returns; one thread copies this rank's part, and those that it stands by for, into a slab of
shared memory while the next step computes (`before_update` waits only for what is about to change and is not yet
copied). Another thread hands the slab to the I/O process, which writes it and leaves this rank's word, and follows the
save until it counts: rank 0 makes the commit record once the words of all are on storage.

No disk ever holds training up. One slab is the memory that saves take, a second where a save begins before the last has
let go of its own; while both are in use, a newer save is skipped. A slab that holds what others may need is in use until its save is decided. A rank that skips or fails leaves
its word on storage in place of its part, so that rank 0 learns it at once and says why. Where storage itself hangs, the
staging thread, which touches none, sees it and tells it for rank 0.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.fs_committer import Committer, Handle
from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_part import Part
from atoll.checkpoint.fs_rehearsal import rehearse
from atoll.checkpoint.fs_sources import SlabCopy, Source
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Destination, Uploader
from atoll.checkpoint.fs_writer_client import IoProcess, Start, spawned
from atoll.checkpoint.hanging import Watch
from atoll.checkpoint.image import Duty, Image
from atoll.checkpoint.logical import RankLayout
from atoll.checkpoint.manifest import seal
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
# How often it is looked whether the writing thread hangs in storage.
_WATCH_S = 1.0


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
        self._to_stage: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._unstaged: list[Part] = []
        self._open: list[Handle] = []
        self._kept: list[Part] = []
        self._followed: list[Part] = []
        self._sharing: tuple[object, str, int, Sharing] | None = None
        # One value, so that the writing thread never takes a rank 0 for one of an epoch that it did not lead. Before the
        # first save or regroup this is no rank at all: a writer that nobody has placed claims nothing.
        self._place = (-1, 0)
        self._watch, self._step_bytes = Watch(_WATCH_S), 0
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
        part = self._begun(step, epoch, rank, len(layouts))
        failpoint("save-begun")
        if epoch >= self._place[1]:  # else a regroup decided the step, and has given this rank its place since
            self._place = (rank, epoch)
        try:
            slab = self._slabs.get_nowait()
        except queue.Empty:
            problem = f"skipped: {_SLABS} earlier saves are still being written; save less often, or to a faster disk"
            return self._unwritten(part, problem)
        self._held.pop(slab.number, None)
        part.slab, part.tree, part.config = slab, state.tree, config

        def image() -> Image:
            part.sharing = self._shared(layouts, weights, redundancy)
            return part.sharing.image(part.save, rank)

        part.staging = Staging(slab, image, state.views)
        part.staging.begin()
        self._unstaged.append(part)
        self._to_stage.put(part)
        return part.handle

    def skip(self, *, step: int, epoch: int, rank: int, size: int, problem: str) -> Handle:
        """This rank has nothing to write for a save that the others may have begun: leave word, so that nobody waits."""
        return self._unwritten(self._begun(step, epoch, rank, size), problem)

    def _unwritten(self, part: Part, problem: str) -> Handle:
        part.problem = problem
        part.handle.staged.set(problem)
        self._to_stage.put(part)
        return part.handle

    def before_update(self, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """These tensors (None: all of the state) are about to change: wait until they are copied."""
        changing = None if tensors is None else list(tensors)
        given_up = []
        for part in self._unstaged:
            if part.staging is None:
                continue
            if not part.staging.wait(changing, _STAGE_WITHIN_S):
                given_up.append(part)  # thrown away: no later update waits for it again
            elif changing is None:
                part.handle.staged.wait(_STAGE_WITHIN_S)
        self._unstaged = [part for part in self._unstaged if part not in given_up and not part.handle.staged.is_set()]

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

    def _begun(self, step: int, epoch: int, rank: int, size: int) -> Part:
        handle = Handle(step=step, epoch=epoch, rank=rank, size=size, began=self._clock.monotonic())
        self._open = [*(h for h in self._open if not h.ended.is_set()), handle]
        return Part(handle, Save(run=self._run, step=step, epoch=epoch, size=size))

    def _shared(self, layouts: Sequence[RankLayout], weights: str, redundancy: int) -> Sharing:
        """The division of these layouts: made anew only where they are others than at the last save."""
        known = self._sharing
        if known is None or known[1:3] != (weights, redundancy) or known[0] != tuple(layouts):
            made = Sharing(layouts, weights=weights, redundancy=redundancy)
            self._sharing = known = (made.layouts, weights, redundancy, made)
        return known[3]

    # -- the staging thread ------------------------------------------------------------------------------------------

    def _stage_loop(self) -> None:
        while (part := self._next_to_stage()) is not None:
            if part.staging is not None:
                part.image = part.staging.run()
                part.problem = part.problem or part.staging.problem
            part.handle.staged.set(part.problem)
            self._to_write.put(part)
            del part
        self._to_write.put(None)

    def _next_to_stage(self) -> Part | None:
        """The next save, None at the end. Until it comes, saves that wait for storage that hangs are given up."""
        while True:
            with suppress(queue.Empty):
                return self._to_stage.get(timeout=self._watch.every_s)
            hangs_s = self._watch.look(self._clock.monotonic())
            if hangs_s and self._place[0] == 0:  # of other ranks, whoever has rank 0 sees that their words do not come
                self._give_up_open(f"{self._store.directory} has not answered for {hangs_s:.0f} s; see to its storage")

    def _give_up_open(self, problem: str) -> None:
        for handle in self._open:
            with suppress(Exception):  # whom nobody can be told of keeps neither thread from the others
                self._committer.fail(handle, problem)

    # -- the writing thread ------------------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        with suppress(Exception):  # what is wrong here fails the first save, which says so
            rehearse()
        self.rehearsed.set()
        closing, until = False, 0.0
        while not (closing and self._may_leave(until)):
            try:
                waits = _LEAD_S if self._place[0] == 0 else _POLL_S
                part = self._to_write.get(timeout=waits if self._committer.pending else _IDLE_S)
            except queue.Empty:
                part = None
            else:
                if part is None and not closing:
                    closing, until = True, self._clock.monotonic() + _LINGER_S
            try:
                self._turn(part)
            except Exception as error:  # noqa: BLE001 - the thread's outer edge: what it cannot do fails saves, not it
                self._give_up_open(f"{type(error).__name__}: {error}; the next save tries again")
            self._watch.end()
            del part
        self._committer.give_up(leading=self._place[0] == 0, problem="the trainer ended before it was decided")
        self._io.close()

    def _turn(self, part: Part | None) -> None:
        """All that is to do now."""
        if part is not None:
            self._watch.begin(part.slab.length if part.slab is not None else 0)
            self._write_part(part)
            if part.sharing is not None:
                self._step_bytes = sum(one.size_bytes for one in part.sharing.logicals.values())
        # To read a step back is to read what all ranks wrote.
        self._watch.begin(self._step_bytes)
        rank, epoch = self._place
        if rank == 0:
            self._committer.lead(epoch)
        self._stand_in(epoch)
        self._committer.poll(leading=rank == 0, memory_free=not self._slabs.empty())
        self._let_go()

    def _may_leave(self, until: float) -> bool:
        if self._stopping.is_set() or not self._committer.pending:
            return True
        return self._place[0] != 0 and (not self._kept or self._clock.monotonic() >= until)

    def _write_part(self, part: Part) -> None:
        handle = part.handle
        if self._stopping.is_set():
            part.problem = part.problem or "the trainer ended"
        elif handle.ended.is_set():  # given up while it waited
            part.problem = part.problem or handle.problem
        try:
            if not part.problem:
                self._hand_over(part)
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed save is a fact
            part.problem = f"writing under {self._store.directory}: {error}; the next save tries again"
        # Before anything else can fail: the slab of what is not in these lists is never given back.
        self._kept.append(part)
        self._followed.append(part)
        try:
            if part.problem:
                self._publish_problem(part, handle.rank, part.problem)
            elif not handle.ended.is_set():
                self._committer.add(handle)
        finally:
            handle.local.set(part.problem)
        self._let_go()

    def _let_go(self) -> None:
        """Give back the slabs that nobody can need any more."""
        for part in [j for j in self._followed if j.handle.ended.is_set()]:
            self._followed.remove(part)
            if part.handle.committed:
                part.handle.replicated.set(part.lacking(self._store.step_directory(part.handle.step)))
        for part in list(self._kept):
            if part.handle.ended.is_set() or not part.stands_by:
                self._kept.remove(part)
                if part.image is not None and part.slab is not None and not part.problem:
                    self._held[part.slab.number] = (part.handle, part.image, part.slab)
                if part.slab is not None:
                    self._slabs.put(part.slab)

    def _hand_over(self, part: Part) -> None:
        if self._store.is_committed(part.handle.step):
            # What stands there is never written again. Word of it is left all the same: it may be deleted before the
            # leader looks, who would wait for this rank then.
            part.problem = self._committer.not_ours(part.handle, self._store.record(part.handle.step))
            return
        asked = part.job(self._store.step_directory(part.handle.step))
        failpoint("before-handover")
        self._io.write(*asked)
        failpoint("after-handover")

    def _publish_problem(self, part: Part, rank: int, problem: str) -> None:
        """Say on storage that this rank writes nothing for `rank`; rank 0 goes by it. Else tell it from here."""
        handle = part.handle
        try:
            directory = self._store.step_directory(handle.step)
            self._io.leave_word(directory, part.word_name(rank), seal(part.refusal(rank, problem)))
        except (CheckpointError, OSError):
            self._committer.fail(handle, problem)
        else:
            if rank == handle.rank and not handle.ended.is_set():
                self._committer.add(handle)

    # -- standing in -------------------------------------------------------------------------------------------------

    def _stand_in(self, epoch: int) -> None:
        """Write what a leader asks for in the place of others. A leader of an epoch that is over is not heard."""
        for part in self._kept:
            if part.image is None or part.handle.ended.is_set():
                continue
            for duty in part.image.duties[1:]:
                request = self._store.request(part.handle.step, part.save.stem(duty.rank))
                if request is not None and request.lead >= epoch and request.rank == duty.rank:
                    self._write_for(part, duty)

    def _write_for(self, part: Part, duty: Duty) -> None:
        directory = self._store.step_directory(part.handle.step)
        try:
            if (directory / part.word_name(duty.rank)).exists():
                return
            failpoint("before-rescue")
            self._io.write(*part.job(directory, duty))
        except (CheckpointError, OSError) as error:
            self._publish_problem(part, duty.rank, f"in its place rank {part.handle.rank}: {error}")
