"""Reading packs of format 1 back without torch: what is wrong with their bytes, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import xxhash

from atoll.checkpoint.format1 import PackRecord
from atoll.checkpoint.report import BlockFinding, PackReport


def check_pack(path: Path, record: PackRecord) -> PackReport:
    """What is wrong with a pack's bytes, block by block."""
    problem = size_problem(path, record)
    findings: list[BlockFinding] = []
    try:
        if not problem:
            with path.open("rb", buffering=0) as file:
                findings = _bad_blocks(file, record)
    except OSError as error:
        problem = error.strerror or str(error)
    checked = 0 if problem else len(record.blocks)
    return PackReport(file=record.file, bytes=record.bytes, checked=checked, problem=problem, findings=tuple(findings))


def size_problem(path: Path, record: PackRecord) -> str:
    """Why the file cannot be that pack."""
    try:
        there = path.stat().st_size
    except OSError as error:
        return error.strerror or str(error)
    return "" if there == record.bytes else f"{there} bytes are there, {record.bytes} were written"


def _bad_blocks(file: BinaryIO, record: PackRecord) -> list[BlockFinding]:
    buffer = memoryview(bytearray(min(record.block_bytes, record.bytes)))
    found = []
    for index in range(len(record.blocks)):
        size = min(record.block_bytes, record.bytes - index * record.block_bytes)
        read_into(file, buffer[:size])
        finding = compare(record, index, xxhash.xxh3_64_hexdigest(buffer[:size]))
        found += [finding] if finding else []
    return found


def compare(record: PackRecord, index: int, found: str) -> BlockFinding | None:
    """What is wrong with a block of this checksum."""
    if found == record.blocks[index]:
        return None
    begin = index * record.block_bytes
    end = min(begin + record.block_bytes, record.bytes)
    return BlockFinding(block=index, begin=begin, end=end, expected=record.blocks[index], found=found)


def read_into(file: BinaryIO, target: memoryview) -> None:
    """Fill `target` with the next bytes. Raises `OSError` where the file ends before."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"ended {len(target) - done} bytes early while it was read")
        done += count
