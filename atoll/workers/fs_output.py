"""What a trainer writes for people, on a disk that may be full: nothing of it may end a run.

A program's `print` raises where its log cannot grow, which would be the program's failure on every rank at once. Here
such output is dropped and counted, and the log says so as soon as it can be written again. A line of the sample account
is proof, so it is kept in memory instead and written then.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TextIO

# The disk, the user's quota, the process's or file system's limit of a file.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether the disk takes no more, rather than being broken."""
    return error.errno in FULL


def log_stream(fd: int) -> TextIO:
    """Text to `fd`, line by line, that never raises for a full disk. `fd` stays open."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(fd, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class _Patient(io.FileIO):
    """A file that drops what finds no room, and says how much it was once there is some."""

    _lost = 0

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            if self._lost:
                super().write(f"\natoll: {self._lost} bytes of output were lost, the disk was full\n".encode())
                self._lost = 0
            return super().write(view)
        except OSError as error:
            if not is_full(error):
                raise
            self._lost += view.nbytes
            return view.nbytes


class PatientLines:
    """Appends whole lines to `path`; those that find no room wait in memory, in order."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = b""

    @property
    def waiting_bytes(self) -> int:
        """What is not in the file yet."""
        return len(self._waiting)

    def write(self, line: bytes) -> bool:
        """Append `line`, and what waited before it. False where some had to be kept. Raises `OSError` of a broken disk."""
        self._waiting += line
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        except OSError as error:
            if not is_full(error):
                raise
        return not self._waiting
