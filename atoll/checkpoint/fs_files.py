"""Durable files: created whole or not at all, and never replaced.

`publish` writes to a temporary name, syncs, and links the final name, which fails where it exists: of two that try,
one wins (law 8). `write_large` bypasses the page cache where the file system allows.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

from atoll.fault.inject import failpoint

_ALIGN = mmap.PAGESIZE
_DIRECT = getattr(os, "O_DIRECT", 0)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(path: Path, data: bytes) -> bool:
    """Create `path` with `data`, durable and exclusive. False where it exists already."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        failpoint("before-link")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)
    failpoint("after-link")
    return True


def write_large(path: Path, slab: memoryview, length: int) -> None:
    """Write the first `length` bytes of `slab` (page-aligned memory, a multiple of pages long) to a new durable file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        handle = os.open(path, flags | _DIRECT, 0o644)
    except OSError:  # this file system takes no direct writes (tmpfs, overlay)
        handle = os.open(path, flags, 0o644)
    try:
        _write_all(handle, slab[: -(-length // _ALIGN) * _ALIGN])
        os.ftruncate(handle, length)
        failpoint("before-pack-sync")
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        count = os.write(handle, data[done : done + (64 << 20)])
        done += count
        if count % _ALIGN:  # a short direct write that lost alignment: the rest goes through the cache
            _leave_direct(handle)


def _leave_direct(handle: int) -> None:
    import fcntl  # noqa: PLC0415 - a corner that few file systems reach

    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT)
