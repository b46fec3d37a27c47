"""A step written by whoever is no trainer: one tensor after the other, in the memory of the largest of them.

For imports and for `torch.distributed.checkpoint`, whose callers wait. The files are those of any step: parts are drawn
as a slab's image would be, but go to disk as they come, hashed and digested on the way. Packs and tables are durable
before the words, and the words before the record; the judgement that makes the record is the one that every save passes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.commit import Commit, Refuse
from atoll.checkpoint.digests import digest_bytes
from atoll.checkpoint.fs_extents import extents_bytes
from atoll.checkpoint.fs_files import create, disk, make_directory, publish, sync_directory, write_at
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.image import Duty, Image, Piece, Run, Weights, draw, extents
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import (
    BLOCK_BYTES,
    CommitRecord,
    Segment,
    Table,
    Word,
    pack_stem,
    packed_sums,
    run_tag,
    seal,
    state_sum,
)
from atoll.errors import CheckpointError

# The bytes of a box's elements in row-major order.
Fetch = Callable[[Logical, Box], memoryview]
# Gets the bytes that were written since it was last called.
Told = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What `rank` wrote: durable, and not yet part of anything."""

    rank: int
    segments: tuple[Segment, ...]
    table: Table
    logicals: tuple[Logical, ...]
    wrote: dict[str, str]


def write_part(
    directory: Path,
    stem: str,
    pieces: Sequence[Piece],
    fetch: Fetch,
    *,
    rank: int = 0,
    weights: Weights | None = None,
    told: Told = lambda _: None,
) -> Part:
    """Write `pieces` into a pack called `stem`, and into the file of `weights` what it takes. Removes what fails."""
    make_directory(directory)
    image = draw([(rank, f"{stem}.safetensors", [p for p in pieces if p[1].count])], weights)
    duty, made = image.duties[0], list[Path]()
    stream = _Stream(directory, image, fetch, told)
    try:
        segments = []
        for file in dict.fromkeys(run.file for run in duty.runs):
            made.append(directory / file)
            segments += stream.write(file, rank)
        table = extents_bytes(extents(duty, rank))
        path = directory / f"{stem}.arrow"
        create(path, table)
        made.append(path)
        sync_directory(directory)
    except BaseException:
        for each in made:
            with suppress(OSError):  # the error that led here is the one to tell
                each.unlink()
        raise
    return Part(
        rank=rank,
        segments=tuple(segments),
        table=Table(file=path.name, bytes=len(table), xxh3=xxhash.xxh3_64_hexdigest(table)),
        logicals=tuple({logical.name: logical for logical, _ in pieces}.values()),
        wrote=stream.digests,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What a step is called, and what a record says beside its parts; `now` is when, in Unix seconds."""

    run: str
    step: int
    now: float
    export: str = ""
    weights: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)


def commit_parts(store: Store, parts: Sequence[Part], tree: Mapping[str, Any], heading: Heading) -> CommitRecord:
    """Make `parts`, those of ranks 0, 1, ... in order, a step that counts. Raises `CheckpointError`."""
    run, step, size = heading.run, heading.step, len(parts)
    directory = store.step_directory(step)
    shared = {
        "run": run,
        "step": step,
        "size": size,
        "state": state_sum(one for part in parts for one in part.logicals),
        "writers": tuple(range(size)),
        "weights": heading.weights,
        "export": heading.export,
    }
    for epoch in itertools.count():
        if any(directory.glob(f"e{epoch}-r*-{run_tag(run)}*.json")):
            continue  # words of a try that ended before its record: theirs are other files
        words = [_word(part, shared, epoch) for part in parts]
        words[0] = replace(words[0], tree=dict(tree), beside=dict(heading.beside))
        names = [f"{pack_stem(run=run, epoch=epoch, rank=part.rank, size=size)}.json" for part in parts]
        if publish(directory / names[0], seal(words[0])):
            break
    for name, word in zip(names[1:], words[1:], strict=True):
        publish(directory / name, seal(word))
    judged = store.try_commit(step, epoch, size, run=run, now=heading.now)
    if isinstance(judged, Commit) and isinstance(judged.record, CommitRecord) and judged.record.words == tuple(names):
        return judged.record
    if isinstance(judged, Refuse):
        raise CheckpointError(f"step {step} was not committed: {judged.why}: {judged.detail}")
    raise CheckpointError(f"step {step} of {store.directory} was committed by another meanwhile; take another step")


def write_plain(path: Path, pieces: Iterable[memoryview]) -> None:
    """A new file of these bytes, durable. Raises `FileExistsError`."""
    handle = disk().open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        at = 0
        for piece in pieces:
            write_at(handle, piece, at)
            at += len(piece)
        disk().sync(handle)
    finally:
        os.close(handle)


def free_step(store: Store, step: int) -> None:
    """Raises `CheckpointError` where `step` is committed: what counts is never written again."""
    if store.is_committed(step):
        raise CheckpointError(f"{store.step_directory(step)} is committed already, and never written again")


def _word(part: Part, shared: Mapping[str, Any], epoch: int) -> Word:
    return Word(
        **shared,
        epoch=epoch,
        rank=part.rank,
        by=part.rank,
        segments=part.segments,
        table=part.table,
        logicals=part.logicals,
        wrote=part.wrote,
    )


@dataclass(slots=True)
class _Stream:
    """Files of one image, written in the order of their bytes."""

    directory: Path
    image: Image
    fetch: Fetch
    told: Told
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def duty(self) -> Duty:
        return self.image.duties[0]

    def write(self, file: str, rank: int) -> list[Segment]:
        handle = disk().open(self.directory / file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            runs = [run for run in self.duty.runs if run.file == file]
            segments = [self._run(handle, run, rank) for run in runs]
            os.ftruncate(handle, runs[0].total)
            disk().sync(handle)
        finally:
            os.close(handle)
        return segments

    def _run(self, handle: int, run: Run, rank: int) -> Segment:
        sums, at = _Sums(), run.begin
        for where, text in self.image.texts:
            if where == run.at:
                at = self._put(handle, at, memoryview(text), sums)
        end = run.begin + run.bytes
        for place in self.duty.places:
            if place.file != run.file or not run.begin <= place.offset < end:
                continue
            data = self.fetch(place.logical, place.box)
            if len(data) != place.bytes or place.offset != at:
                raise CheckpointError(f"{place.logical.name}{place.box} came as {len(data)} bytes, not {place.bytes}")
            self.digests[f"{place.logical.name}{place.box}"] = f"{digest_bytes(data, place.logical, place.box):016x}"
            at = self._put(handle, at, data, sums)
        found = packed_sums(sums.all())
        return Segment(rank=rank, file=run.file, begin=run.begin, bytes=run.bytes, block_bytes=BLOCK_BYTES, sums=found)

    def _put(self, handle: int, at: int, data: memoryview, sums: _Sums) -> int:
        for begin in range(0, len(data), BLOCK_BYTES):
            piece = data[begin : begin + BLOCK_BYTES]
            write_at(handle, piece, at + begin)
            sums.add(piece)
            self.told(len(piece))
        return at + len(data)


class _Sums:
    """xxh3_64 of each block of what passes."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._block, self._length = xxhash.xxh3_64(), 0

    def add(self, data: memoryview) -> None:
        while len(data):
            piece = data[: BLOCK_BYTES - self._length]
            self._block.update(piece)
            self._length += len(piece)
            data = data[len(piece) :]
            if self._length == BLOCK_BYTES:
                self._done.append(self._block.intdigest())
                self._block, self._length = xxhash.xxh3_64(), 0

    def all(self) -> list[int]:
        return [*self._done, self._block.intdigest()] if self._length else self._done
