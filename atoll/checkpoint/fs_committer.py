"""From packs on storage to checkpoints: the part of a writer that follows a save until it counts or is given up.

Every rank keeps its saves in mind, since whoever has rank 0 after a loss commits what was begun before. Storage is what
they agree by: no rank asks another. Each save ends once, with one fact of rank 0, or with one of a rank that could not
leave its word on storage. Whoever leads commits and deletes under the claim of the epoch in which it leads, which may be
a later one than the save's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from atoll.checkpoint import format1
from atoll.checkpoint.commit import Ask, Commit, Refuse, Wait
from atoll.checkpoint.fs_claims import Claim, Overtaken
from atoll.checkpoint.fs_futures import Future
from atoll.checkpoint.fs_retention import retain
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_uploader import Uploader
from atoll.checkpoint.manifest import CommitRecord, Request, pack_stem
from atoll.checkpoint.retention import Retention
from atoll.clock import Clock
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint
from atoll.schema.ids import Epoch, RunId, Step, TrainerId
from atoll.schema.messages import CheckpointCommitted, CheckpointFailed, TrainerFact

# A member whose pack is not there a minute after ours, and three times what ours took, is gone or its disk is.
_WITHIN_S = 60.0
_WITHIN_TIMES = 3.0
# So many times longer than the leader waits before it asks, others keep what it may ask for: it may have begun to wait later.
# Where a later save was committed, it has decided on this one.
_ASKED_TIMES = 2.0
# A save is judged when names are new, and so often all the same: a network file system may show a name before its bytes.
_JUDGE_AGAIN_S = 0.5


@dataclass(slots=True, eq=False)
class Handle:
    """One save under way: each tier as a future, and `ended`: committed or given up (`problem` says why).

    `staged`: copied out of live memory. `replicated`: other ranks stand by with copies of all of this rank's part, and say
    so on storage. `local`: this rank's part is durable. `remote`: a copy of all of it counts in the remote store (asked for
    by the rank that commits). `verified`: it was read back whole, which is done where older steps are to be deleted.
    `took`: seconds from its begin to its end.
    """

    step: int
    epoch: int
    rank: int
    size: int
    began: float
    staged: Future = field(default_factory=Future)
    replicated: Future = field(default_factory=Future)
    local: Future = field(default_factory=Future)
    remote: Future = field(default_factory=Future)
    verified: Future = field(default_factory=Future)
    ended: threading.Event = field(default_factory=threading.Event)
    committed: bool = False
    problem: str = ""
    took: float = 0.0
    give_up_at: float = 0.0
    patience_s: float = 0.0
    missed: frozenset[int] = frozenset()  # ranks that said nothing in time
    asked_by: int = -1  # the epoch in whose name others were last asked for what is missing
    seen: tuple[object, ...] = ()  # what storage and this rank knew when the save was last judged


class Committer:
    """The saves of one trainer whose packs are durable here and that are not decided yet."""

    def __init__(
        self,
        store: Store,
        *,
        run: RunId,
        trainer: TrainerId,
        tell: Callable[[TrainerFact], None],
        keep: Retention,
        clock: Clock,
        verify: Callable[[Path, int], str],
        uploader: Uploader | None = None,
    ) -> None:
        self._verify, self._uploader = verify, uploader
        self._base, self._store, self._run, self._trainer = store, store, run, trainer
        self._led = self._newest = -1
        self._claim: Claim | None = None
        self._tell, self._keep, self._clock = tell, keep, clock
        self._pending: list[Handle] = []
        self._gone: frozenset[tuple[int, int]] = frozenset()
        self._ending = threading.Lock()

    @property
    def pending(self) -> bool:
        """True while a save is not decided."""
        return bool(self._pending)

    def add(self, handle: Handle) -> None:
        """This rank's word about `handle` is on storage: follow it to its end."""
        self._allow(handle)
        self._pending.append(handle)

    def lost(self, gone: Iterable[tuple[int, int]]) -> None:
        """These (epoch, rank) are no more: what they have not written will not come. From any thread."""
        self._gone |= frozenset(gone)

    def lead(self, epoch: int) -> None:
        """This rank leads in `epoch`: have whoever led in a lower one stopped, however late it wakes.

        Where storage does not say whether there is anything to lead, the saves in hand fail: without a claim none commits.
        """
        if self._led == epoch:
            return
        try:
            there = self._base.directory.exists()
        except OSError as error:
            self.give_up(leading=True, problem=f"committing: {error}; the next save tries again")
            return
        if not there:
            return
        self._led = epoch
        claim = Claim(self._base.directory, run=self._run, epoch=epoch)
        self._claim, self._store = claim, self._base.under(claim)
        with suppress(Overtaken, OSError):  # asked again, and told, with each commit
            claim.hold()
        if self._uploader is not None:
            with suppress(CheckpointError, OSError):  # the next step that is committed is copied all the same
                self._uploader.resume(claim)

    def _claim_again(self) -> None:
        """Whoever waits may wait for what another epoch has swept: `Overtaken` is raised then."""
        if self._claim is not None:
            self._claim.hold()

    def poll(self, *, leading: bool, memory_free: bool = True) -> None:
        """Look at storage once; `leading` commits, the others only notice.

        Where no memory is free for the next save, nobody waits for a leader's request longer than a part may take.
        """
        for handle in list(self._pending):
            try:
                if not handle.ended.is_set():  # else another thread gave it up
                    self._look(handle, leading=leading, patient=memory_free)
            except Overtaken as error:
                # No fact: the save is in the hands of whoever overtook this one.
                self._end(handle, problem=str(error))
            except Exception as error:  # noqa: BLE001 - the save's outer edge: its failure is a fact, training goes on
                self.fail(handle, f"committing: {error}")
            if handle.ended.is_set():
                self._pending.remove(handle)

    def _look(self, handle: Handle, *, leading: bool, patient: bool) -> None:
        overdue = self._clock.monotonic() > handle.give_up_at
        if leading:
            self._decide(handle, overdue=overdue)
        elif self._store.is_committed(handle.step):
            self._notice(handle, overdue=overdue)
        elif overdue and not (patient and self._may_be_asked(handle)):
            self._end(handle, problem="never committed by rank 0")

    def _may_be_asked(self, handle: Handle) -> bool:
        """Whoever leads asks for what did not come only when it is overdue there."""
        asks_until = handle.give_up_at + _ASKED_TIMES * handle.patience_s
        return self._newest <= handle.step and self._clock.monotonic() <= asks_until

    def _notice(self, handle: Handle, *, overdue: bool) -> None:
        try:
            other = self.not_ours(handle, self._store.record(handle.step))
        except CheckpointError as error:  # a disk that does not answer now may do so at the next look
            if overdue:
                self._end(handle, problem=str(error))
            return
        self._newest = max(self._newest, handle.step)
        if self._end(handle, committed=not other, problem=other) and not other:
            handle.remote.set("the rank that commits sees to it")

    def not_ours(self, handle: Handle, record: CommitRecord | format1.CommitRecord) -> str:
        """Empty where the record is of this very save: the same step of another epoch may differ in its last bits."""
        if (record.run, record.epoch) == (self._run, handle.epoch):
            return ""
        return (
            f"step {handle.step} stands as epoch {record.epoch} of run {record.run} saved it; this save of epoch "
            f"{handle.epoch} is not kept"
        )

    def _decide(self, handle: Handle, *, overdue: bool) -> None:
        # Asked before storage is: whoever was gone by then had written all that it ever will.
        now, lost = self._clock.now(), self._gone
        if overdue:
            handle.missed |= self._silent(handle)
        gone = handle.missed | {r for e, r in lost if e == handle.epoch}
        seen = (self._written(handle), gone, self._led, int(self._clock.monotonic() / _JUDGE_AGAIN_S))
        if handle.seen == seen:
            self._claim_again()
            return
        handle.seen = seen
        match self._store.try_commit(handle.step, handle.epoch, handle.size, run=self._run, now=now, gone=gone):
            case Commit(record=record) if other := self.not_ours(handle, record):
                self.fail(handle, other)
            case Commit(record=record, odd=odd):
                self._committed(handle, record, odd)
            case Refuse(why=why, detail=detail):
                self.fail(handle, f"{why}: {detail}")
            case Ask(parts=parts) if handle.asked_by < self._led:
                self._ask(handle, parts)
            case Ask(parts=parts) if overdue:
                ranks = [rank for rank, _ in parts]
                self.fail(
                    handle, f"the parts of ranks {ranks} were asked of others and did not come; the next save goes on"
                )
            case Ask() | Wait():
                self._claim_again()

    def _silent(self, handle: Handle) -> frozenset[int]:
        """Ranks that have not said a word of their own: they may live, and hang. What comes of them yet counts."""
        words = [told.word for told in self._store.words(handle.step, handle.epoch, self._run)]
        return frozenset(range(handle.size)) - {word.rank for word in words if word.by == word.rank}

    def _written(self, handle: Handle) -> frozenset[str]:
        """Names of what is there. Parts are never changed, so where no name is new, a judgement would be the same."""
        with suppress(OSError):
            return frozenset(p.name for p in self._store.step_directory(handle.step).iterdir())
        return frozenset()

    def _ask(self, handle: Handle, parts: Sequence[tuple[int, str]]) -> None:
        """What these ranks did not write others hold: ask them on storage, and give them as long again."""
        for rank, why in parts:
            stem = pack_stem(run=self._run, epoch=handle.epoch, rank=rank, size=handle.size)
            request = Request(
                run=self._run,
                step=handle.step,
                epoch=handle.epoch,
                rank=rank,
                size=handle.size,
                lead=max(self._led, 0),
                why=why,
            )
            self._store.ask(stem, request)
        handle.asked_by = self._led
        self._allow(handle)

    def _allow(self, handle: Handle) -> None:
        now = self._clock.monotonic()
        handle.patience_s = max(_WITHIN_S, _WITHIN_TIMES * (now - handle.began))
        handle.give_up_at = now + handle.patience_s

    def _committed(self, handle: Handle, record: CommitRecord | format1.CommitRecord, odd: str) -> None:
        # Durable before anyone is told (law 8): the record's own directory was synced before this.
        failpoint("before-telling")
        if not self._end(handle, committed=True):
            return
        self._tell(
            CheckpointCommitted(
                trainer=self._trainer,
                step=Step(handle.step),
                path=str(self._store.step_directory(handle.step)),
                bytes=record.size_bytes(),
                seconds=self._clock.monotonic() - handle.began,
                epoch=Epoch(record.epoch),
            )
        )
        if odd:
            self._tell_failed(handle, f"committed, but not all hold what was written: {odd}")
        if self._uploader is not None:
            self._uploader.put(handle.step, handle.remote)
        failpoint("before-retention")
        try:
            self._retain(handle)
        except Overtaken as error:
            handle.verified.set(str(error))  # no fact, as above: whoever overtook this one deletes
        except Exception as error:  # noqa: BLE001 - the save stands: what failed behind it is a fact of its own
            handle.verified.set(f"older steps could not be deleted: {error}")
            self._tell_failed(handle, f"committed, but older steps stay until the next one: {error}")

    def _retain(self, handle: Handle) -> None:
        def verify(step: int) -> str:
            found = self._verify(self._store.directory, step)
            handle.verified.set(found)
            return found

        damage = retain(
            self._store,
            run=self._run,
            keep=self._keep,
            newest=handle.step,
            now=self._clock.now(),
            verify=verify,
            pending={other.step for other in self._pending if not other.ended.is_set()},
        )
        if damage:
            self._tell_failed(handle, f"committed, but it does not read back: {damage}; older steps are kept")

    def fail(self, handle: Handle, problem: str) -> None:
        """Give a save up and say so, once."""
        if self._end(handle, problem=problem):
            self._tell_failed(handle, problem)

    def give_up(self, *, leading: bool, problem: str) -> None:
        """The trainer ends: nothing more will be committed by it."""
        for handle in list(self._pending):
            if leading:
                self.fail(handle, problem)
            else:
                self._end(handle, problem=problem)
        self._pending.clear()

    def _tell_failed(self, handle: Handle, problem: str) -> None:
        self._tell(CheckpointFailed(trainer=self._trainer, step=Step(handle.step), problem=problem))

    def _end(self, handle: Handle, *, committed: bool = False, problem: str = "") -> bool:
        with self._ending:
            if handle.ended.is_set():
                return False
            handle.committed, handle.problem = committed, problem
            handle.took = self._clock.monotonic() - handle.began
            handle.ended.set()
        if not committed:
            for future in (handle.replicated, handle.remote, handle.verified):
                future.set(problem)
        elif self._uploader is None:
            handle.remote.set("no remote store is set")
        return True
