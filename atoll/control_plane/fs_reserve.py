"""Disk space that a file has before it needs it, so that a full disk stops neither journal nor history at once.

SQLite's write-ahead log is written from its start again after each checkpoint and is never cut: space once given to it
stays its own, and a tail of zeros is no record. While the disk is full a checkpoint may fail, which no writer sees; the
log then goes on into that space.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def log_of(database: Path) -> Path:
    """The write-ahead log beside a SQLite file."""
    return database.with_name(f"{database.name}-wal")


def widen(file: Path, size_bytes: int) -> bool:
    """Give `file` this much space, what it holds included. False where the disk has not so much; nothing is changed then."""
    before = file.stat().st_size if file.exists() else 0
    if before >= size_bytes:
        return True
    handle = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(handle, before, size_bytes - before)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, before)
        return False
    finally:
        os.close(handle)
    return True
