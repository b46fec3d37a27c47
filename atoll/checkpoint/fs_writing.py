"""Writing runs of a slab to their files: whole pages directly, each block hashed while others are on their way.

Two threads share the work: one writes, the other hashes, and does what else needs no disk that is free; both give up the
interpreter's lock for as long as a block takes. All is synced when all is written, and at once, so that no write waits
for a sync. Whole pages bypass the page cache where the file system allows it, edges of a run that fills part of a
shared file go through it. What an exclusive file had got when something failed is removed; ranges of a shared file stay,
no record names them.

A slab's pages lie anywhere in memory, and a disk takes only so many pieces in one request: a block straight from there is
several requests, and a disk with a limit on requests slows down. So each block goes by way of one that is in one piece;
that copy is a tenth of what the disk takes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from atoll.checkpoint.fs_files import disk, sync_all, write_at
from atoll.checkpoint.image import PAGE, Run
from atoll.checkpoint.manifest import BLOCK_BYTES
from atoll.fault.inject import failpoint

_DIRECT = getattr(os, "O_DIRECT", 0)
# Pages of this size come in one piece where the kernel has any.
_HUGE = 2 << 20
# The thread that hashes gives way to the one that writes: a disk that waits for its next block is time lost for good.
_NICE = 10

# Gets the checksums of the blocks of each run; gives handles of what is to be made durable with the files.
Beside = Callable[[list[list[int]]], Sequence[int]]


def write_runs(directory: Path, runs: Sequence[Run], slab: memoryview, beside: Beside = lambda _: ()) -> None:
    """Write `runs` durably, names included. `beside` runs meanwhile, when all is hashed."""
    hashing, block = _Hashing(runs, slab, beside), _in_one_piece()
    opened: list[tuple[int, list[Run]]] = []
    made: list[Path] = []
    try:
        for file in dict.fromkeys(run.file for run in runs):
            mine = [run for run in runs if run.file == file]
            handle = _opened(directory / file, exclusive=mine[0].exclusive)
            opened.append((handle, mine))
            if mine[0].exclusive:
                made.append(directory / file)
            else:
                for run in mine:
                    disk().reserve(handle, run.begin, run.bytes)
            failpoint("file-opened")
        hashing.start()
        try:
            for handle, mine in opened:
                _write_file(handle, mine, slab, block)
        finally:
            hashing.join()
        more = hashing.result()
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            failpoint("before-pack-sync")
            sync_all([*(handle for handle, _ in opened), *more, folder])
            failpoint("after-pack-sync")
        finally:
            os.close(folder)
    except BaseException:
        for path in made:
            with suppress(OSError):  # gone already, or the disk is: no record will name it
                path.unlink()
        raise
    finally:
        # Also what was made beside runs that could not be written.
        for handle in (*(handle for handle, _ in opened), *hashing.made):
            os.close(handle)


def block_sums(data: memoryview) -> list[int]:
    """xxh3_64 of each block of `BLOCK_BYTES`."""
    return [xxhash.xxh3_64_intdigest(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]


class _Hashing(threading.Thread):
    def __init__(self, runs: Sequence[Run], slab: memoryview, beside: Beside) -> None:
        super().__init__(name="atoll-checkpoint-hash", daemon=True)
        self._runs, self._slab, self._beside = runs, slab, beside
        self.made: Sequence[int] = ()
        self._failed: BaseException | None = None

    def run(self) -> None:
        """Until all is hashed, and what is done beside."""
        try:
            with suppress(OSError):  # a system where threads have no priorities of their own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            self.made = self._beside([block_sums(self._slab[run.at : run.at + run.bytes]) for run in self._runs])
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self._failed = error

    def result(self) -> Sequence[int]:
        """What was made beside. Raises what went wrong."""
        if self._failed is not None:
            raise self._failed
        return self.made


def _in_one_piece() -> memoryview:
    """Memory for a block, in one physical piece where the kernel has one; page-aligned in any case."""
    memory = mmap.mmap(-1, BLOCK_BYTES + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel or a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE
    return memoryview(memory)[begin : begin + BLOCK_BYTES]


def _write_file(handle: int, runs: Sequence[Run], slab: memoryview, block: memoryview) -> None:
    for run in runs:
        _write_run(handle, run, slab, block)
    failpoint("after-blocks")
    # A pack is written up to a whole page; a shared file has its length from whoever comes first.
    os.ftruncate(handle, runs[0].total)


def _opened(path: Path, *, exclusive: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | (os.O_EXCL if exclusive else 0)
    if exclusive:
        path.unlink(missing_ok=True)  # left by a try that never left its word: no record can name it
    try:
        return disk().open(path, flags | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        with suppress(FileNotFoundError):  # some systems make the file before they refuse the flag
            if exclusive:
                path.unlink()
        return disk().open(path, flags)  # this file system takes no direct writes


def _write_run(handle: int, run: Run, slab: memoryview, block: memoryview) -> None:
    """Whole pages directly. Edges, where others write beside them, through the cache."""
    begin, end = run.begin, run.begin + run.bytes
    first = -(-begin // PAGE) * PAGE
    last = -(-end // PAGE) * PAGE if run.exclusive else end // PAGE * PAGE
    shift = run.at - run.begin
    for at in range(first, last, BLOCK_BYTES):
        stop = min(at + BLOCK_BYTES, last)
        pages = slab[at + shift : stop + shift]
        if _is_direct(handle):
            block[: len(pages)] = pages
            pages = block[: len(pages)]
        _write_pages(handle, pages, at)
        failpoint("in-blocks")
    edges = [(begin, min(first, end)), (max(last, first), end)] if first <= last else [(begin, end)]
    edges = [(a, b) for a, b in edges if a < b]
    if edges:
        failpoint("before-edges")
        _leave_direct(handle)
        for a, b in edges:
            write_at(handle, slab[a + shift : b + shift], a)
        _enter_direct(handle)


def _write_pages(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        try:
            count = disk().write(handle, data[done:], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not _is_direct(handle):
                raise
            _leave_direct(handle)  # it opened for direct writes but does not take these
            continue
        if count <= 0:
            raise OSError(errno.EIO, "the disk takes nothing and says no reason")
        done += count
        if done % PAGE:  # a short write that lost alignment: the rest of the block goes through the cache
            _leave_direct(handle)
            write_at(handle, data[done:], offset + done)
            _enter_direct(handle)
            return


def _is_direct(handle: int) -> bool:
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & _DIRECT)


def _leave_direct(handle: int) -> None:
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT)


def _enter_direct(handle: int) -> None:
    with suppress(OSError):  # it does not take direct writes at all
        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | _DIRECT)
