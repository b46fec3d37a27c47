"""A directory of checkpoints.

    step-00000100/                     one step
        e3-r0of4.safetensors           pack of rank 0 of the 4 members of epoch 3
        e3-r0of4.json                  its sidecar: checksums per block, tensor names; rank 0's holds the state's tree
        commit.json                    the commit record: there, whole, or the step does not count

Reading verifies every block. What has no commit record is a save under way or a leftover, and is never read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from atoll.checkpoint.commit import Commit, Judgement, judge
from atoll.checkpoint.fs_files import publish
from atoll.checkpoint.fs_pack import pack_problems, read_pack
from atoll.checkpoint.manifest import CommitRecord, PackRecord, canonical, open_sealed, seal
from atoll.checkpoint.torch_state import Flat
from atoll.errors import CheckpointError

COMMIT = "commit.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """A committed step as it lies on storage. `at` is Unix seconds."""

    step: int
    path: Path
    run: str
    epoch: int
    bytes: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` found; `problems` is empty where all is as it was written."""

    step: int
    path: Path
    bytes: int
    packs: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True where every block verified."""
        return not self.problems

    def line(self) -> str:
        """One line for a person, and one more for each problem."""
        state = "ok" if self.ok else "DAMAGED"
        head = f"step {self.step}: {state}, {self.packs} packs, {self.bytes / 1e6:.1f} MB, {self.path}"
        return "\n".join([head, *(f"  {p}" for p in self.problems)])


class Store:
    """The checkpoints under `directory`, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def step_directory(self, step: int) -> Path:
        """Where a step's files lie."""
        return self.directory / f"step-{step:08d}"

    def list(self) -> list[StoredCheckpoint]:
        """Committed steps, oldest first. A record that cannot be read is left out; `verify` names it."""
        found = []
        for step in self.committed_steps():
            try:
                record = self.record(step)
            except CheckpointError:
                continue
            found.append(
                StoredCheckpoint(
                    step=step,
                    path=self.step_directory(step),
                    run=record.run,
                    epoch=record.epoch,
                    bytes=record.size_bytes(),
                    at=record.at,
                )
            )
        return found

    def committed_steps(self) -> Sequence[int]:
        """Steps with a commit record, oldest first."""
        return sorted(_step_of(p.parent) for p in self.directory.glob(f"step-*/{COMMIT}") if _step_of(p.parent) >= 0)

    def uncommitted_steps(self) -> Sequence[int]:
        """Steps without one: under way, or left over."""
        steps = (_step_of(p) for p in self.directory.glob("step-*") if not (p / COMMIT).exists())
        return sorted(s for s in steps if s >= 0)

    def latest(self) -> StoredCheckpoint | None:
        """The newest committed step."""
        found = self.list()
        return found[-1] if found else None

    def record(self, step: int) -> CommitRecord:
        """The commit record of `step`. Raises `CheckpointError`."""
        path = self.step_directory(step) / COMMIT
        try:
            data = path.read_bytes()
        except OSError:
            raise CheckpointError(f"{path} does not exist: step {step} {self._instead(step)}") from None
        record, checksum = open_sealed(CommitRecord, data, str(path))
        assert isinstance(record, CommitRecord)  # noqa: S101 - for the type checker
        if xxhash.xxh3_64_hexdigest(canonical(record)) != checksum:
            raise CheckpointError(f"{path} was changed after it was written: {self._instead(step)}")
        return record

    def open(self, step: int | None = None) -> Flat:
        """The state of `step`, by default of the newest; every block is verified. Raises `CheckpointError`."""
        if step is None:
            steps = self.committed_steps()
            if not steps:
                raise CheckpointError(f"no committed checkpoint under {self.directory}; give a folder that holds one")
            step = steps[-1]
        record = self.record(step)
        tensors: dict[str, torch.Tensor] = {}
        for pack in record.packs:
            try:
                tensors |= read_pack(self.step_directory(step) / pack.file, pack)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; {self._instead(step)}") from None
        return Flat(tensors=tensors, meta=record.tree)

    def verify(self, step: int) -> Report:
        """Read every block of `step`."""
        directory = self.step_directory(step)
        try:
            record = self.record(step)
        except CheckpointError as error:
            return Report(step=step, path=directory, bytes=0, packs=0, problems=(str(error),))
        problems = [line for pack in record.packs for line in pack_problems(directory / pack.file, pack)]
        return Report(
            step=step,
            path=directory,
            bytes=record.size_bytes(),
            packs=len(record.packs),
            problems=tuple(problems),
        )

    def delete(self, step: int) -> None:
        """Remove `step`; its commit record goes first, so that half a deletion is a leftover and not a checkpoint."""
        directory = self.step_directory(step)
        (directory / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)

    # -- commit ------------------------------------------------------------------------------------------------------

    def sidecars(self, step: int, epoch: int) -> Sequence[PackRecord]:
        """The packs of one save that are durable already; unreadable sidecars are left out."""
        found = []
        for path in sorted(self.step_directory(step).glob(f"e{epoch}-r*.json")):
            try:
                record, checksum = open_sealed(PackRecord, path.read_bytes(), str(path))
            except (OSError, CheckpointError):
                continue
            if xxhash.xxh3_64_hexdigest(canonical(record)) == checksum:
                found.append(record)
        return found

    def try_commit(self, step: int, epoch: int, size: int, *, now: float) -> Judgement:
        """Judge what lies there, and write the commit record where it is whole. Another's record counts as ours."""
        judgement = judge(self.sidecars(step, epoch), size=size, now=now)
        if isinstance(judgement, Commit):
            data = seal(judgement.record, xxhash.xxh3_64_hexdigest(canonical(judgement.record)))
            publish(self.step_directory(step) / COMMIT, data)
        return judgement

    def _instead(self, step: int) -> str:
        others = [s for s in self.committed_steps() if s != step]
        return f"use step {others[-1]} instead" if others else f"no other checkpoint lies under {self.directory}"


def _step_of(directory: Path) -> int:
    number = directory.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
