"""A directory of checkpoints.

    step-00000100/                              one step
        e3-r0of4-1f0c2a9b.safetensors           pack of rank 0 of the 4 members of epoch 3 of one run
        e3-r0of4-1f0c2a9b.arrow                 where its boxes lie, in the pack and in the shared file of weights
        e3-r0of4-1f0c2a9b.json                  its word: checksums of its blocks, digests of what it wrote and holds
        e3-r2of4-1f0c2a9b-by0.*                 what rank 0 wrote in the place of rank 2
        e3-r2of4-1f0c2a9b.request               the leader's request for it
        model-e3-1f0c2a9b-72347b00.safetensors  the weights, filled by all ranks
        model.safetensors.index.json            what makes the folder one for Hugging Face's readers; with config.json
        commit.json                             the commit record: there, whole, or the step does not count
    claims-1f0c2a9b/                            which epoch of a run may commit and delete here (`fs_claims`)

Reading verifies every block. What has no commit record is a save under way or a leftover, and is never read. Files that
a commit record names are never written again: a step of another run in the same folder is refused, not replaced. Steps
of format 1 are read as they are (`fs_pack_read`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.checkpoint import format1
from atoll.checkpoint.fs_claims import Claim, aside_for
from atoll.checkpoint.fs_files import claim_for_deletion, create, publish, reading, sync_directory
from atoll.checkpoint.fs_sources import Unasked, failed
from atoll.checkpoint.hf_index import BESIDE
from atoll.checkpoint.manifest import CommitRecord, NewerFormat, Request, Word, run_tag, seal, unseal, unseal_commit
from atoll.checkpoint.names import WORD, epoch_of, is_passing, step_of
from atoll.checkpoint.report import Report
from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint

# What needs torch or Arrow is imported where it is used: the I/O process has neither until it has to read.
if TYPE_CHECKING:
    from atoll.checkpoint.commit import Judgement, Told
    from atoll.checkpoint.torch_read import Take
    from atoll.checkpoint.torch_state import Flat

__all__ = ["COMMIT", "Report", "Store", "StoredCheckpoint"]

COMMIT = "commit.json"

AnyRecord = CommitRecord | format1.CommitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """A committed step as it lies on storage. `at` is Unix seconds."""

    step: int
    path: Path
    run: str
    epoch: int
    bytes: int
    at: float


class Store:
    """The checkpoints under `directory`, which need not exist yet.

    With a `claim` nothing is committed or deleted once a higher epoch claimed the directory: `Overtaken` is raised.
    """

    def __init__(self, directory: Path, claim: Claim | None = None) -> None:
        self.directory = directory
        self._claim = claim

    def under(self, claim: Claim) -> Store:
        """The same checkpoints, committed and deleted under `claim`."""
        return Store(self.directory, claim)

    def step_directory(self, step: int) -> Path:
        """Where a step's files lie."""
        return self.directory / f"step-{step:08d}"

    # -- what is there -----------------------------------------------------------------------------------------------

    def list(self) -> list[StoredCheckpoint]:
        """Committed steps, oldest first. A record that cannot be read is left out; `verify` names it."""
        found = []
        for step in self.committed_steps():
            with suppress(CheckpointError):
                found.append(self._stored(self._record(step)))
        return found

    def _stored(self, record: AnyRecord) -> StoredCheckpoint:
        return StoredCheckpoint(
            step=record.step,
            path=self.step_directory(record.step),
            run=record.run,
            epoch=record.epoch,
            bytes=record.size_bytes(),
            at=record.at,
        )

    def committed_steps(self) -> Sequence[int]:
        """Steps with a commit record, readable or not, oldest first. Raises `Unasked`."""
        return [step for step, committed in self._steps() if committed]

    def uncommitted_steps(self) -> Sequence[int]:
        """Steps without one: under way, or left over. Raises `Unasked`."""
        return [step for step, committed in self._steps() if not committed]

    def _steps(self) -> Sequence[tuple[int, bool]]:
        """Each step, and whether it has a commit record. A folder that cannot be listed is not an empty one."""
        try:
            with os.scandir(self.directory) as entries:
                named = [(step_of(e.name), e) for e in entries]
                found = [(step, (Path(e.path) / COMMIT).exists()) for step, e in named if step >= 0 and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise Unasked(f"{self.directory}: {error.strerror or error}") from None
        return sorted(found)

    def is_committed(self, step: int) -> bool:
        """Whether `step` has a commit record."""
        return (self.step_directory(step) / COMMIT).exists()

    def latest(self) -> StoredCheckpoint | None:
        """The newest committed step."""
        found = self.list()
        return found[-1] if found else None

    def record(self, step: int) -> AnyRecord:
        """The commit record of `step`. Raises `CheckpointError`; `Unasked` and `NewerFormat` are no damage."""
        try:
            return self._record(step)
        except (Unasked, NewerFormat):
            raise
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._instead(step)}") from None

    def _record(self, step: int) -> AnyRecord:
        path = self.step_directory(step) / COMMIT
        try:
            record = unseal_commit(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        except OSError as error:
            raise failed(path, error) from None
        if record.step != step:
            raise CheckpointError(f"{path} is the record of step {record.step}: give the folder its name back")
        return record

    # -- reading -----------------------------------------------------------------------------------------------------

    def open(self, step: int | None = None, take: Take | None = None) -> Flat:
        """The state of `step`, by default of the newest; every block is verified. Raises `CheckpointError`.

        `take` is used on a step of this format in place of reading all of it.
        """
        if step is None:
            steps = self.committed_steps()
            if not steps:
                raise CheckpointError(f"no committed checkpoint under {self.directory}; give a folder that holds one")
            step = steps[-1]
        record = self.record(step)
        try:
            with reading(self.step_directory(step) / COMMIT):
                return self._read(record, take)
        except OSError as error:
            raise CheckpointError(f"step {step}: {error}; {self._instead(step)}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._instead(step)}") from None

    def _read(self, record: AnyRecord, take: Take | None) -> Flat:
        from atoll.checkpoint.fs_read import opened  # noqa: PLC0415 - Arrow, as below
        from atoll.checkpoint.torch_read import read_state_1, read_whole  # noqa: PLC0415 - torch, as above

        directory = self.step_directory(record.step)
        if isinstance(record, CommitRecord):
            return (take or read_whole)(opened(directory, record))
        return read_state_1(directory, record)

    def verify(self, step: int, told: Callable[[int], None] = lambda _: None) -> Report:
        """Read every block of `step` and say what is wrong, by file and block. `told` gets the bytes of each."""
        from atoll.checkpoint.fs_check import check_step  # noqa: PLC0415 - Arrow, as above
        from atoll.checkpoint.fs_check_1 import check_pack  # noqa: PLC0415 - likewise

        directory = self.step_directory(step)
        try:
            record = self.record(step)
        except CheckpointError as error:
            newer = isinstance(error, NewerFormat)
            return Report(step=step, path=directory, bytes=0, problem=str(error), newer=newer)
        if isinstance(record, CommitRecord):
            packs = tuple(check_step(directory, record, told))
        else:
            packs = tuple(check_pack(directory / pack.file, pack) for pack in record.packs)
        return Report(step=step, path=directory, bytes=record.size_bytes(), packs=packs)

    # -- committing --------------------------------------------------------------------------------------------------

    def words(self, step: int, epoch: int, run: str) -> Sequence[Told]:
        """What the ranks of one save said so far, each with its table; unreadable words are left out."""
        from atoll.checkpoint.commit import Told  # noqa: PLC0415 - Arrow, as above
        from atoll.checkpoint.fs_read import read_table  # noqa: PLC0415 - likewise

        directory, found = self.step_directory(step), []
        for path in sorted(directory.glob(f"e{epoch}-r*of*-{run_tag(run)}*.json")):
            with suppress(OSError, CheckpointError):
                word, extents = unseal(Word, path.read_bytes(), str(path)), None
                with suppress(CheckpointError):
                    extents = read_table(directory, word.table) if word.table is not None else None
                found.append(Told(word, extents))
        return found

    def request(self, step: int, stem: str) -> Request | None:
        """What the leader asks of those who stand by for one part of a save."""
        path = self.step_directory(step) / f"{stem}.request"
        with suppress(OSError, CheckpointError):
            return unseal(Request, path.read_bytes(), str(path))
        return None

    def ask(self, stem: str, request: Request) -> None:
        """Leave a request; one of an earlier leader, which nobody hears any more, is replaced. Raises `Overtaken`."""
        path = self.step_directory(request.step) / f"{stem}.request"
        there = self.request(request.step, stem)
        if there is not None and there.lead >= request.lead:
            return
        failpoint("before-request")
        self._put(path, seal(request))
        failpoint("after-request")

    def try_commit(
        self, step: int, epoch: int, size: int, *, run: str, now: float, gone: frozenset[int] = frozenset()
    ) -> Judgement:
        """Judge what lies there, and make the commit record where it is whole. One made by another counts as ours.

        What ranks in `gone` have not written will not come.
        """
        from atoll.checkpoint.commit import Commit, judge  # noqa: PLC0415 - Arrow, as above

        if self.is_committed(step):
            return self._committed(step, run)
        told = self.words(step, epoch, run)
        failpoint("before-judging")
        judgement = judge(told, size=size, held=self._held(step, told), now=now, gone=gone)
        if isinstance(judgement, Commit) and isinstance(judgement.record, CommitRecord):
            # Before the record, so that no step counts without them.
            self._put_beside(judgement.record)
            failpoint("before-record")
            if not self._publish(self.step_directory(step) / COMMIT, seal(judgement.record)):
                # Whose record it is, theirs are the files, and another run was faster.
                self._put_beside(self.record(step))
                return self._committed(step, run)
            failpoint("after-record")
        return judgement

    def _put_beside(self, record: AnyRecord) -> None:
        """The small files for other programs' readers; the record has them, so whoever comes next can make up for them."""
        directory = self.step_directory(record.step)
        for name, text in record.beside.items() if isinstance(record, CommitRecord) else ():
            data, there = text.encode(), b""
            with suppress(FileNotFoundError):
                there = (directory / name).read_bytes()
            if there != data:
                self._put(directory / name, data)

    def _put(self, path: Path, data: bytes) -> None:
        """Have `path` hold `data`, whatever it held before."""
        if self._claim is not None:
            self._claim.replace(path, data)
            return
        temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}.tmp"
        create(temporary, data)
        temporary.replace(path)
        sync_directory(path.parent)

    def _publish(self, path: Path, data: bytes) -> bool:
        return publish(path, data) if self._claim is None else self._claim.publish(path, data)

    def complete(self, run: str, *, now: float) -> Sequence[int]:
        """Commit the saves of `run` whose parts are all there but whose writers ended before the record was made."""
        for step in self.committed_steps():
            # A writer that was not the first may have ended before it put the files of the first one back.
            with suppress(OSError, CheckpointError):
                record = self._record(step)
                if record.run == run:
                    self._make_durable(step)
                    self._put_beside(record)
        done = []
        for step in self.uncommitted_steps():
            # A step that fails here is no checkpoint; it keeps nobody from those that are.
            with suppress(OSError):
                done += [step] if self._completed(step, run, now) else []
        return done

    def _completed(self, step: int, run: str, now: float) -> bool:
        from atoll.checkpoint.commit import Commit  # noqa: PLC0415 - Arrow, as above

        names = [WORD.fullmatch(p.name) for p in self.step_directory(step).iterdir()]
        saves = {(int(m[1]), int(m[2])) for m in names if m and m[3] == run_tag(run)}
        # The newest epoch first: what it wrote is what the run went on from. Nobody writes any more: what is not
        # there will not come, but others may have written it.
        judged = (
            self.try_commit(step, epoch, size, run=run, now=now, gone=frozenset(range(size)))
            for epoch, size in sorted(saves)[::-1]
        )
        return any(isinstance(j, Commit) for j in judged)

    def _committed(self, step: int, run: str) -> Judgement:
        from atoll.checkpoint.commit import Commit, Refusal, Refuse  # noqa: PLC0415 - Arrow, as above

        record = self.record(step)
        if record.run == run:
            self._make_durable(step)
            return Commit(record=record)
        detail = (
            f"step {step} of run {record.run} lies in {self.directory} already; give each run its own checkpoint_dir"
        )
        return Refuse(why=Refusal.OTHER_RUN, detail=detail)

    def _make_durable(self, step: int) -> None:
        """Whoever made the record may have ended after it had its name and before that was durable."""
        sync_directory(self.step_directory(step))
        sync_directory(self.directory)

    def _held(self, step: int, told: Sequence[Told]) -> Mapping[str, int]:
        held = {}
        for file in {s.file for t in told for s in t.word.segments}:
            with suppress(OSError):
                held[file] = (self.step_directory(step) / file).stat().st_size
        return held

    # -- deleting ----------------------------------------------------------------------------------------------------

    def delete(self, step: int) -> bool:
        """Remove `step`, unless someone is reading it: then False.

        The commit record goes first, and durably, so that half a deletion is a leftover and not a checkpoint.
        """
        directory = self.step_directory(step)
        with claim_for_deletion(directory / COMMIT) as free:
            if free and directory.exists():
                self._remove(directory)
            return free

    def _remove(self, directory: Path) -> None:
        if self._claim is not None:
            self._claim.remove(directory)
            return
        (directory / COMMIT).unlink(missing_ok=True)
        sync_directory(directory)
        shutil.rmtree(directory, ignore_errors=True)

    def set_aside(self, step: int) -> None:
        """Have `step` count no more without deleting what is left of it: it cannot be read whole."""
        directory = self.step_directory(step)
        if self._claim is not None:
            self._claim.set_aside(directory)
            return
        with suppress(FileNotFoundError):
            directory.rename(aside_for(directory))
            sync_directory(self.directory)

    def strays(self, step: int, run: str, *, until: int | None = None) -> Sequence[Path]:
        """Files that saves of `run`, of epochs up to `until`, left at `step` and that no commit record names."""
        directory = self.step_directory(step)
        named = set(self.record(step).files) if self.is_committed(step) else set()
        found = [p for p in directory.glob(f"*-{run_tag(run)}*") if p.name not in named]
        return [p for p in found if until is None or epoch_of(p.name) <= until]

    def is_saved_anew(self, step: int, run: str, *, after: int) -> bool:
        """Whether a later epoch of `run` than `after` has begun to save `step`."""
        return any(epoch_of(path.name) > after for path in self.strays(step, run))

    def sweep(self, step: int, run: str, *, until: int | None = None) -> None:
        """Remove the strays of `run` at `step`, and the folder when no run's files are in it. Not while it is written."""
        directory = self.step_directory(step)
        for path in self.strays(step, run, until=until):
            if self._claim is None:
                path.unlink(missing_ok=True)
            else:
                self._claim.remove(path)
        try:
            rest = {p.name for p in directory.iterdir() if not is_passing(p.name, until)}
        except FileNotFoundError:
            return  # another did it
        if not self.is_committed(step) and rest <= BESIDE:
            self._remove(directory)

    def _instead(self, step: int) -> str:
        others = [s.step for s in self.list() if s.step != step]
        older = [s for s in others if s < step] or others
        return f"use step {older[-1]} instead" if older else f"no other checkpoint lies under {self.directory}"
