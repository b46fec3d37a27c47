"""The process that owns the disk: it writes, hashes and reads back for one trainer, without torch and without its lock.

The trainer hands over its slab as a file of shared memory, by descriptor over a socketpair, and a job that names runs of
it. The job also holds the word of the rank, to which only checksums and digests are lacking: once pack, ranges and table
are durable, this process leaves the word on storage itself. So what was handed over is finished even if the trainer ends
meanwhile; at the end of the connection the process ends.

Requests and answers are one JSON object each, with its length before it; binary payload follows where `bytes` says so.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from atoll.checkpoint.boxes import Box
from atoll.checkpoint.digests import digest_bytes
from atoll.checkpoint.fs_files import link, make_directory, publish, temporary_for, written
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_writing import write_runs
from atoll.checkpoint.image import Run
from atoll.checkpoint.logical import Logical
from atoll.checkpoint.manifest import BLOCK_BYTES, Segment, Table, Word, packed_sums, seal
from atoll.fault.inject import arm_death, failpoint
from atoll.schema.codec import from_plain, to_plain

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """A box whose digest is wanted; `at` is where it lies in the slab."""

    logical: Logical
    box: Box
    at: int

    @property
    def key(self) -> str:
        """As in a word."""
        return f"{self.logical.name}{self.box}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One part of a save: `runs` of the slab, `table` (base64) beside them, and `word` when they are durable."""

    directory: str
    stem: str
    runs: tuple[Run, ...]
    wrote: tuple[Summed, ...]
    held: tuple[Summed, ...]
    table: str
    word: Word


@dataclass(slots=True)
class _Slabs:
    """Mappings of the trainer's slabs, kept as long as their number stands for the same memory."""

    found: dict[int, tuple[int, mmap.mmap]]

    def view(self, number: int, length: int, handles: list[int]) -> memoryview:
        for handle in handles:
            with suppress(BufferError):
                self.found.pop(number, (0, None))
            self.found[number] = (length, mmap.mmap(handle, length, mmap.MAP_SHARED, mmap.PROT_READ))
            os.close(handle)
        return memoryview(self.found[number][1])


def serve(connection: socket.socket) -> None:
    """Do what the trainer asks until it is gone."""
    slabs = _Slabs({})
    with connection:
        while (found := receive(connection)) is not None:
            request, handles = found
            answer = _answered(lambda request=request, handles=handles: _obey(request, handles, slabs))  # type: ignore[misc]
            failpoint("before-answer")
            try:
                send(connection, answer)
            except OSError:
                return  # nobody listens any more


def _obey(request: dict[str, Any], handles: list[int], slabs: _Slabs) -> dict[str, Any]:
    match request["do"]:
        case "write":
            for place in request["deaths"]:
                arm_death(place)
            slab = slabs.view(request["slab"], request["length"], handles)
            return write_part(from_plain(Job, request["job"]), slab)
        case "word":
            _leave_word(Path(request["directory"]), request["name"], base64.b64decode(request["data"]))
            return {}
        case "verify":
            report = Store(Path(request["directory"])).verify(request["step"])
            return {"problems": list(report.problems)}
        case other:
            raise ValueError(f"no request {other!r}")


def _answered(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"problem": "", **act()}
    except Exception as error:  # noqa: BLE001 - the process's outer edge: a failed save is an answer
        return {"problem": str(error) or type(error).__name__}


def write_part(job: Job, slab: memoryview) -> dict[str, Any]:
    """Write one part of a save and leave its word. What has a word already is never written again."""
    failpoint("job-taken")
    directory = Path(job.directory)
    word = directory / f"{job.stem}.json"
    failpoint("before-directory")
    make_directory(directory)
    failpoint("after-directory")
    if word.exists():
        return {"wrote": 0}
    prepared = temporary_for(word)

    def describe(sums: list[list[int]]) -> Sequence[int]:
        """All but the blocks themselves, while they are on their way: only a name is missing when all is durable."""
        table, handle = _write_table(job, directory)
        try:
            return handle, written(prepared, seal(_whole_word(job, slab, sums, table)))
        except BaseException:
            os.close(handle)
            raise

    try:
        write_runs(directory, job.runs, slab, describe)
        failpoint("files-durable")
        failpoint("between-pack-and-sidecar")
        link(prepared, word)
    finally:
        prepared.unlink(missing_ok=True)
    failpoint("word-durable")
    return {"wrote": sum(run.bytes for run in job.runs)}


def _write_table(job: Job, directory: Path) -> tuple[Table, int]:
    """The table, and a handle of it."""
    data = base64.b64decode(job.table)
    path = directory / f"{job.stem}.arrow"
    failpoint("before-table")
    path.unlink(missing_ok=True)  # of a try that never left its word
    handle = written(path, data)
    failpoint("after-table")
    return Table(file=path.name, bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data)), handle


def _whole_word(job: Job, slab: memoryview, sums: list[list[int]], table: Table) -> Word:
    return replace(
        job.word,
        segments=tuple(_segment(job.word, run, found) for run, found in zip(job.runs, sums, strict=True)),
        table=table,
        wrote={one.key: f"{_digest(one, slab):016x}" for one in job.wrote},
        held={one.key: f"{_digest(one, slab):016x}" for one in job.held},
    )


def _leave_word(directory: Path, name: str, data: bytes) -> None:
    make_directory(directory)
    publish(directory / name, data)


def _segment(word: Word, run: Run, sums: list[int]) -> Segment:
    return Segment(
        rank=word.by,
        file=run.file,
        begin=run.begin,
        bytes=run.bytes,
        block_bytes=BLOCK_BYTES,
        sums=packed_sums(sums),
    )


def _digest(one: Summed, slab: memoryview) -> int:
    return digest_bytes(slab[one.at : one.at + one.box.count * one.logical.itemsize], one.logical, one.box)


# -- messages ----------------------------------------------------------------------------------------------------------


def send(connection: socket.socket, message: dict[str, Any], handles: tuple[int, ...] = ()) -> None:
    """One message, and descriptors with its first bytes."""
    text = json.dumps(message, separators=(",", ":")).encode()
    length = _LENGTH.pack(len(text))
    if handles:
        socket.send_fds(connection, [length], list(handles))
    else:
        connection.sendall(length)
    connection.sendall(text)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and what descriptors came with it; None at the end of the connection."""
    head, handles, _, _ = socket.recv_fds(connection, _LENGTH.size, 4)
    if not head:
        return None
    head += _exactly(connection, _LENGTH.size - len(head))
    text = _exactly(connection, _LENGTH.unpack(head)[0])
    found: dict[str, Any] = json.loads(text)
    return found, handles


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionResetError("the other end is gone in the middle of a message")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def plain_job(job: Job) -> Any:
    """As a message carries it."""
    return to_plain(job)


def main(descriptor: int) -> None:
    """The life of the process. A person's interrupt is for the trainer, whose end ends this one, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        serve(socket.socket(fileno=descriptor))
    sys.exit(0)
