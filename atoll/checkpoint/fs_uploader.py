"""Copies of durable checkpoints to a remote store, beside everything else, by the rank that commits.

One at a time and the newest first: while one is under way, a newer one takes the place of whichever waits. Files go up
with every block compared with its checksum, so that what has rotted here does not spread; then the decision is made, and
then the record written. What is there already is compared and not sent again, so an upload that was cut off goes on
where it was, in whoever leads next. Failures are tried again with growing waits; what fails for good is told and left.

Nothing that training waits for ever waits for this: a store that hangs costs one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import xxhash

from atoll.checkpoint.arrow_remote import Remote, RemoteCopy, RemoteError, RemoteRecord
from atoll.checkpoint.fs_claims import Claim, Overtaken
from atoll.checkpoint.fs_decisions import Decisions, counting
from atoll.checkpoint.fs_files import read_at, reading
from atoll.checkpoint.fs_futures import Future
from atoll.checkpoint.fs_read import all_blocks, check_block, opened, read_block
from atoll.checkpoint.fs_retrying import Backoff
from atoll.checkpoint.fs_sources import Unasked
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.manifest import BLOCK_BYTES, CommitRecord, unseal_commit
from atoll.checkpoint.retention import Retention
from atoll.clock import Clock
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint
from atoll.schema.checkpoints import Tier, TierState
from atoll.schema.ids import Step, TrainerId
from atoll.schema.messages import CheckpointCopied, CheckpointFailed, TrainerFact

# How far an upload got is told this often: for people, who look now and then.
_TELL_EVERY_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where copies go, who decides which count there, and which stay."""

    remote: Remote
    decisions: Decisions
    keep: Retention
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(slots=True)
class _Progress:
    """Bytes of one upload. What is sent again counts once."""

    total: int
    before: int = 0
    file: int = 0

    def words(self) -> str:
        return f"{(self.before + self.file) / max(1, self.total):.0%} of {self.total / 1e6:.1f} MB"


class Uploader:
    """The remote copies of one run. Its thread begins with the first step that is put."""

    def __init__(
        self,
        store: Store,
        to: Destination,
        *,
        run: str,
        trainer: TrainerId,
        tell: Callable[[TrainerFact], None],
        clock: Clock,
    ) -> None:
        self._store, self._remote, self._decisions = store, to.remote, to.decisions
        self._keep, self._backoff = to.keep, to.backoff
        self._run, self._trainer, self._tell, self._clock = run, trainer, tell, clock
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._waiting: tuple[int, Future] | None = None
        self._busy = self._closing = False
        self._thread: threading.Thread | None = None
        self._told_at = 0.0
        self._claim: Claim | None = None

    # -- called by others ----------------------------------------------------------------------------------------------

    def put(self, step: int, future: Future) -> None:
        """Copy a committed step; `future` ends with it. Never waits."""
        with self._changed:
            if self._waiting is not None:
                self._waiting[1].set(f"skipped: the copy of an older step was under way when step {step} came")
            self._waiting = step, future
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="atoll-checkpoint-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def resume(self, claim: Claim | None = None) -> None:
        """This rank leads from now on: the newest step may have been cut off on its way up. Never waits.

        Once a higher epoch than that of `claim` leads, nothing is decided or deleted here any more.
        """
        self._claim = claim
        steps = self._store.committed_steps()
        if steps:
            with self._changed:
                idle = self._waiting is None and not self._busy
            if idle:
                self.put(steps[-1], Future())

    def finish(self, timeout_s: float) -> None:
        """Wait until all is copied or given up, so long at most; then nothing more is begun."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout_s)
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0 if timeout_s > 0 else 0.1)

    # -- the uploading thread ------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                if self._waiting is None or self._stopping.is_set():
                    return
                (step, future), self._waiting, self._busy = self._waiting, None, True
            try:
                self._copy(step)
            except Overtaken as error:
                # No fact: the copy is in the hands of whoever overtook this one.
                future.set(str(error))
            except Exception as error:  # noqa: BLE001 - the thread's outer edge: a failed copy is a fact
                future.set(str(error))
                self._say(step, TierState.FAILED, str(error))
            else:
                future.set()
                self._clean(step)

    def _copy(self, step: int) -> None:
        directory = self._store.step_directory(step)
        try:
            # Not deleted meanwhile, however slow the store is.
            with reading(directory / COMMIT):
                self._upload(step, directory)
        except OSError as error:
            raise CheckpointError(f"{directory}: {error.strerror or error}") from None

    def _upload(self, step: int, directory: Path) -> None:
        sealed = (directory / COMMIT).read_bytes()
        record = unseal_commit(sealed, str(directory / COMMIT))
        if not isinstance(record, CommitRecord) or record.run != self._run:
            return
        name = record_name(record, sealed).name
        if self._decisions.decided(step) == name and self._again(lambda: self._remote.size(step, name)) == len(sealed):
            return  # another leader copied it
        failpoint("before-upload")
        sizes = {file: (directory / file).stat().st_size for file in record.files}
        progress = _Progress(total=sum(sizes.values()))
        self._say(step, TierState.COPYING, progress.words())
        for file, size in sizes.items():
            self._send(step, file, size, pieces(directory, record, file), progress)
            progress.before, progress.file = progress.before + size, 0
        failpoint("before-decision")
        self._still_lead()
        chosen = self._decisions.decide(step, name)
        if chosen != name:
            raise CheckpointError(f"{chosen or 'nothing'} was decided on for step {step}, and not {name}")
        failpoint("after-decision")
        self._again(lambda: self._remote.write(step, name, [sealed], lambda _: None))
        failpoint("after-upload")
        self._say(step, TierState.WHOLE, self._remote.where(step))

    def _still_lead(self) -> None:
        if self._claim is not None:
            self._claim.hold()

    def _send(
        self, step: int, file: str, size: int, made: Callable[[], Iterator[memoryview]], progress: _Progress
    ) -> None:
        def done(count: int) -> None:
            failpoint("in-upload")
            progress.file += count
            if self._stopping.is_set():
                raise CheckpointError("the trainer ended before it was copied; whoever leads next goes on")
            if self._clock.monotonic() - self._told_at >= _TELL_EVERY_S:
                self._say(step, TierState.COPYING, progress.words())

        def send() -> None:
            progress.file = 0
            if self._remote.size(step, file) != size or not self._same(step, file, made()):
                self._remote.write(step, file, made(), done)

        self._again(send)

    def _same(self, step: int, file: str, made: Iterator[memoryview]) -> bool:
        """Whether a file that is there already is ours: its size alone does not say what its bytes are."""
        at = 0
        for piece in made:
            if self._remote.read_at(step, file, at, len(piece)) != piece:
                return False
            at += len(piece)
        return True

    def _again(self, act: Callable[[], T]) -> T:
        return self._backoff.again(act, RemoteError, self._stopping)

    # -- old copies ----------------------------------------------------------------------------------------------------

    def _clean(self, newest: int) -> None:
        try:
            self._delete_older(newest)
        except Overtaken:
            return  # as in the loop
        except Unasked as error:
            self._tell_failed(newest, f"copied, but older copies stay until the next one: {error}")
        except CheckpointError as error:
            self._say(newest, TierState.DAMAGED, f"{error}; older copies stay")
        except Exception as error:  # noqa: BLE001 - as in the loop
            self._tell_failed(newest, f"copied, but older copies stay: {error}")

    def _tell_failed(self, step: int, problem: str) -> None:
        self._tell(CheckpointFailed(trainer=self._trainer, step=Step(step), problem=problem))

    def _delete_older(self, newest: int) -> None:
        """Behind a copy that was read back from the store, and only then."""
        found = {step: self._counting(step) for step in self._remote.steps() if step <= newest}
        there = {step: name for step, (name, _) in found.items() if name}
        # Uploads that were cut off and deletions that were: what nobody can tell apart stays.
        littered = [step for step, (name, problem) in found.items() if not name and not problem and step != newest]
        made = [(step, float(record.at)) for step in there for record in self._records(step, there[step])]
        surplus = self._keep.surplus(made, self._clock.now())
        if not (surplus or littered) or newest not in there:
            return
        for record in self._records(newest, there[newest]):
            self._again(lambda found=record: read_back(self._remote, found))  # type: ignore[misc]
        for step in (*surplus, *littered):
            failpoint("before-remote-removal")
            # What lies there now and no more: a later epoch may save the step anew while this one deletes.
            files = step, self._again(lambda gone=step: self._remote.files(gone))  # type: ignore[misc]
            self._still_lead()
            if step in there:
                self._decisions.withdraw(step, there[step])
            failpoint("after-withdrawal")
            self._again(lambda gone=files: self._remote.delete(*gone))  # type: ignore[misc]
            self._say(step, TierState.GONE, "")

    def _counting(self, step: int) -> tuple[str, str]:
        return counting(self._decisions, step, [r.name for r in self._remote.records(step)])

    def _records(self, step: int, name: str) -> list[RemoteRecord]:
        return [record for record in self._remote.records(step) if record.name == name]

    def _say(self, step: int, state: TierState, detail: str) -> None:
        self._told_at = self._clock.monotonic()
        self._tell(
            CheckpointCopied(trainer=self._trainer, step=Step(step), tier=Tier.REMOTE, state=state, detail=detail)
        )


def record_name(record: CommitRecord, sealed: bytes) -> RemoteRecord:
    """What a record is called in the store."""
    digest = xxhash.xxh3_64_hexdigest(sealed)
    # A name has no sign: a clock that is set to before 1970 must not make a record that nobody finds.
    return RemoteRecord(step=record.step, epoch=record.epoch, at=max(0, int(record.at)), digest=digest)


def read_back(remote: Remote, named: RemoteRecord) -> None:
    """Read every block of a step from the store. Raises `CheckpointError` for the first that is not as written."""
    record = remote.record(named)
    there = opened(Path(remote.where(named.step)), record, [RemoteCopy(remote, named.step)])
    there.read({}, lambda *_: None, all_blocks(there))


def pieces(directory: Path, record: CommitRecord, file: str) -> Callable[[], Iterator[memoryview]]:
    """The bytes of a file of a step in order, a block at a time, each verified where it has a checksum."""

    def made() -> Iterator[memoryview]:
        at = 0
        for segment in sorted((s for s in record.segments if s.file == file), key=lambda s: s.begin):
            yield from _plain(directory / file, at, segment.begin)
            for index in range(len(segment.blocks())):
                data = read_block(directory, segment, index)
                found = check_block(segment, index, data)
                if found is not None:
                    raise CheckpointError(f"{directory / file}, written by rank {segment.rank}: {found.line()}")
                yield data
            at = segment.begin + segment.bytes
        yield from _plain(directory / file, at, (directory / file).stat().st_size)

    return made


def _plain(path: Path, begin: int, end: int) -> Iterator[memoryview]:
    while begin < end:
        data = memoryview(bytearray(min(BLOCK_BYTES, end - begin)))
        if read_at(path, data, begin) != len(data):
            raise CheckpointError(f"{path} ended early, at byte {begin}")
        yield data
        begin += len(data)
