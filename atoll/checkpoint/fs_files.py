"""Durable files: created whole or not at all, never replaced, and not deleted under a reader.

`publish` writes to a temporary name, syncs, and links the final name, which fails where it exists: of two that try,
one wins (law 8). `write_large` bypasses the page cache where the file system allows. `reading` and `claim_for_deletion`
hold the two sides of an advisory lock on one small file, which the kernel drops with its process.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint

_ALIGN = mmap.PAGESIZE
_DIRECT = getattr(os, "O_DIRECT", 0)
# The kernel takes up to 2 GB at once; less keeps a cancelled process from hanging long in one call.
_WRITE_BYTES = 64 << 20


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Create `path` and what is missing above it, all durable."""
    made = []
    at = path
    while not at.exists():
        made.append(at)
        at = at.parent
    path.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync_directory(each.parent)


def publish(path: Path, data: bytes, *, by_way_of: Path | None = None) -> bool:
    """Create `path` with `data`, durable and exclusive. False where it exists already.

    The temporary file lies in `by_way_of`, else beside `path`. Raises `FileNotFoundError` once that folder is gone.
    """
    # Several hosts may write into one folder, so a process id alone is not enough.
    temporary = (by_way_of or path.parent) / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        failpoint("before-link")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        failpoint("after-link")
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)
    return True


def write_large(path: Path, slab: memoryview, length: int) -> None:
    """Write the first `length` bytes of `slab` (page-aligned, whole pages) to a durable file; nothing stays of half."""
    try:
        _write_large(path, slab, length)
    except BaseException:
        with suppress(OSError):  # a full disk gets its space back at once
            path.unlink()
        raise


def _write_large(path: Path, slab: memoryview, length: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        handle = os.open(path, flags | _DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        handle = os.open(path, flags, 0o644)  # this file system takes no direct writes
    try:
        _write_all(handle, slab[: -(-length // _ALIGN) * _ALIGN])
        os.ftruncate(handle, length)
        failpoint("before-pack-sync")
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: memoryview) -> None:
    done, direct = 0, True
    while done < len(data):
        try:
            done += os.write(handle, data[done : done + _WRITE_BYTES])
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            # It opened for direct writes but does not take these.
            direct = _leave_direct(handle)
        if done % _ALIGN and direct:  # a short write that lost alignment: the rest goes through the cache
            direct = _leave_direct(handle)


def _leave_direct(handle: int) -> bool:
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT)
    return False


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Hold `path` against deletion. Raises `CheckpointError` where it is being deleted, `OSError` where it is gone."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not _lock(handle, fcntl.LOCK_SH) or os.fstat(handle).st_nlink == 0:
            raise CheckpointError(f"{path.parent} is being deleted; use a newer checkpoint")
        yield
    finally:
        os.close(handle)


@contextmanager
def claim_for_deletion(path: Path) -> Iterator[bool]:
    """True where nobody reads `path`; no reader begins until the end of the block. A missing file is nobody's."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: readers there are not protected, but nothing else changes.
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF}:
            raise
    return True
