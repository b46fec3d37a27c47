"""Durable files: created whole or not at all, never replaced, and not deleted under a reader.

`publish` writes to a temporary name, syncs, and links the final name, which fails where it exists: of two that try,
one wins (law 8). `reading` and `claim_for_deletion` hold the two sides of an advisory lock on one small file, which the
kernel drops with its process. All writing goes through `Disk`, the one seam at which a test makes a disk fail.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.errors import CheckpointError
from atoll.fault.inject import failpoint

# Linux has it, Python does not. None elsewhere.
_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Disk:
    """What is asked of a disk when something is written. Faults are put in its place by `use`."""

    def open(self, path: Path, flags: int) -> int:
        """A handle for writing."""
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def write(self, handle: int, data: memoryview, offset: int) -> int:
        """Write some of `data` at `offset`; how much."""
        return os.pwrite(handle, data, offset)

    def reserve(self, handle: int, begin: int, length: int) -> None:
        """Have room from `begin` where that can be had: writers of one file then go side by side.

        Where blocks are still to be found, ext4 lets one write at a time. Never fails: if room is lacking, writing says so.
        """
        # os.posix_fallocate would write zeros itself where the file system cannot, over what others write meanwhile.
        if _fallocate is not None:
            _fallocate(handle, 0, begin, length)

    def sync(self, handle: int) -> None:
        """Make what was written durable."""
        os.fsync(handle)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` a second name. Raises `FileExistsError`."""
        os.link(source, target)


class _Disks:
    now = Disk()


def disk() -> Disk:
    """The disk in use."""
    return _Disks.now


def use(other: Disk) -> None:
    """Have all writing of this process go through `other`."""
    _Disks.now = other


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk().sync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file durable that another library wrote, with its name."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk().sync(handle)
    finally:
        os.close(handle)
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Create `path` and what is missing above it, all durable.

    From the top down, and each is durable before anything is made in it. So of those that are there only the last may
    have been made by a process that ended before it was durable, and its name is made so in that one's place.
    """
    missing = []
    at = path
    while not at.exists():
        missing.append(at)
        at = at.parent
    _sync_name(at)
    for each in missing[::-1]:
        each.mkdir(exist_ok=True)
        sync_directory(each.parent)


def _sync_name(path: Path) -> None:
    """Make the name of a folder durable that may be anybody's: what others own may refuse to be opened or synced."""
    try:
        sync_directory(path.parent)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}:
            raise


def publish(path: Path, data: bytes, *, by_way_of: Path | None = None) -> bool:
    """Create `path` with `data`, durable and exclusive. False where it exists already.

    The temporary file lies in `by_way_of`, else beside `path`. Raises `FileNotFoundError` once that folder is gone.
    """
    return link(prepare(path, data, by_way_of=by_way_of), path)


def temporary_for(path: Path, by_way_of: Path | None = None) -> Path:
    """A name that nobody else uses, for `link` to give its file the name `path`."""
    # Several hosts may write into one folder, so a process id alone is not enough.
    return (by_way_of or path.parent) / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"


def prepare(path: Path, data: bytes, *, by_way_of: Path | None = None) -> Path:
    """A temporary file, whose bytes are durable, for `link` to give the name `path`."""
    temporary = temporary_for(path, by_way_of)
    try:
        create(temporary, data)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def link(temporary: Path, path: Path) -> bool:
    """Give what was prepared its name, durably; the temporary one goes. False where `path` exists already.

    Durable in either case: whoever was first may have ended between its link and its sync.
    """
    made = True
    try:
        failpoint("before-link")
        try:
            disk().link(temporary, path)
        except FileExistsError:
            made = False
        else:
            failpoint("after-link")
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)
    return made


def create(path: Path, data: bytes) -> None:
    """Create `path` with `data`; its bytes are durable, its name is not. Raises `FileExistsError`."""
    handle = written(path, data)
    try:
        disk().sync(handle)
    finally:
        os.close(handle)


def written(path: Path, data: bytes) -> int:
    """A handle of a new file that has `data`, which is not durable yet. Raises `FileExistsError`."""
    handle = disk().open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_at(handle, memoryview(data), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def sync_all(handles: Sequence[int]) -> None:
    """Make files and folders durable at once: a file system then does it with one journal entry, not one for each."""
    with ThreadPoolExecutor(len(handles), thread_name_prefix="atoll-checkpoint-sync") as pool:
        for done in [pool.submit(disk().sync, handle) for handle in handles]:
            done.result()


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however little the disk takes at once."""
    done = 0
    while done < len(data):
        count = disk().write(handle, data[done:], offset + done)
        if count <= 0:
            raise OSError(errno.EIO, "the disk takes nothing and says no reason")
        done += count


def read_at(path: Path, view: memoryview, offset: int) -> int:
    """Fill `view` with what lies in `path` from `offset`; how much there was, up to its length."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(view) and (count := os.preadv(handle, [view[done:]], offset + done)):
            done += count
        return done
    finally:
        os.close(handle)


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
        handle = _opened_to_claim(path)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _opened_to_claim(path: Path) -> int:
    """For writing, where that is allowed: over NFS an exclusive lock is a lock of bytes, which wants such a handle."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EROFS}:
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: readers there are not protected, but nothing else changes.
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}:
            raise
    return True
