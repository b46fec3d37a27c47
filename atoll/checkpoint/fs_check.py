"""Whether a committed step reads back as it was written: every block, every table, every small file, every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atoll.checkpoint.coverage import coverage_problem
from atoll.checkpoint.extents import merged
from atoll.checkpoint.fs_read import Reading, check_block, opened, read_block
from atoll.checkpoint.manifest import CommitRecord, Word, unseal
from atoll.checkpoint.report import BlockFinding, PackReport
from atoll.errors import CheckpointError


def check_step(directory: Path, record: CommitRecord, told: Callable[[int], None] = lambda _: None) -> list[PackReport]:
    """One report for each file that `record` names; `told` gets the bytes of each block that was read."""
    try:
        reading = opened(directory, record)
    except CheckpointError as error:
        return [PackReport(file="the tables of extents", bytes=0, checked=0, problem=str(error))]
    whole = [t.logical for t in record.tensors]
    told_of = merged((reading.lying.extents,), whole)
    strange = [one.name for one in told_of.logicals[len(whole) :]]
    lacks = f"tensor {strange[0]!r} is no tensor of the step" if strange else coverage_problem(whole, told_of.boxes)
    if lacks:
        return [PackReport(file="the tables of extents", bytes=0, checked=0, problem=lacks)]
    files = [_check_file(reading, file, told) for file in dict.fromkeys(s.file for s in record.segments)]
    tables = [PackReport(file=t.file, bytes=t.bytes, checked=0) for t in record.tables]
    words = [_check_word(directory / name, record) for name in record.words]
    beside = [_check_beside(directory / name, text) for name, text in record.beside.items()]
    return [*files, *tables, *words, *beside]


def _check_file(reading: Reading, file: str, told: Callable[[int], None]) -> PackReport:
    segments = [segment for _, segment in reading.segments[file]]
    size = max(s.begin + s.bytes for s in segments)
    findings: list[BlockFinding] = []
    checked = 0
    problem = ""
    try:
        there = (reading.directory / file).stat().st_size
        if there < size or (there > size and not _goes_on(reading.record, file)):
            ranks = ", ".join(map(str, sorted({s.rank for s in segments})))
            problem = f"{there} bytes are there, {size} were written by rank {ranks}: {_held(reading, file, there)}"
        for segment in segments if not problem else ():
            for index in range(len(segment.blocks())):
                data = read_block(reading.directory, segment, index)
                finding = check_block(segment, index, data)
                told(len(data))
                checked += 1
                findings += [reading.named(segment, finding)] if finding is not None else []
    except OSError as error:
        ranks = ", ".join(map(str, sorted({s.rank for s in segments})))
        problem = f"{error.strerror or error}; written by rank {ranks}: {_held(reading, file, 0)}"
    except CheckpointError as error:
        problem = str(error)
    return PackReport(file=file, bytes=size, checked=checked, problem=problem, findings=tuple(findings))


def _goes_on(record: CommitRecord, file: str) -> bool:
    """Whether the file may have more than the record names: ranges of a rank whose part another wrote elsewhere."""
    packs = {f"{word.removesuffix('.json')}.safetensors" for word in record.words}
    return bool(record.export) and file not in packs


def _held(reading: Reading, file: str, there: int) -> str:
    names = [e.tensor for e in reading.lying.within(file, there)]
    if not names:
        return "no tensor's bytes are gone"
    return f"tensor {names[0]!r}" + (f" and {len(names) - 1} more are gone" if len(names) > 1 else " is gone")


def _check_word(path: Path, record: CommitRecord) -> PackReport:
    try:
        data = path.read_bytes()
        word = unseal(Word, data, path.name)
    except OSError as error:
        return PackReport(file=path.name, bytes=0, checked=0, problem=error.strerror or str(error))
    except CheckpointError as error:
        return PackReport(file=path.name, bytes=0, checked=0, problem=str(error))
    other = (word.run, word.step, word.epoch) != (record.run, record.step, record.epoch)
    problem = f"is the word of step {word.step} of epoch {word.epoch} of run {word.run}" if other else ""
    return PackReport(file=path.name, bytes=len(data), checked=0, problem=problem)


def _check_beside(path: Path, text: str) -> PackReport:
    try:
        there = path.read_bytes()
    except OSError as error:
        return PackReport(file=path.name, bytes=0, checked=0, problem=error.strerror or str(error))
    problem = "" if there == text.encode() else "was changed after it was written"
    return PackReport(file=path.name, bytes=len(text), checked=0, problem=problem)
