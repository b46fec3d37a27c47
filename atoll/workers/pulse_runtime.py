"""A trainer's pulse: a thread of its own that writes a counter and the time, for as long as the interpreter gives it turns.

Each 50 ms the thread needs the interpreter's lock for an instant. A main thread that computes gives it up now and then;
one that holds it for ever (an extension that loops), and a process that is stopped, do not: the pulse stands still while
`/proc` may still show a busy process. What the main thread does with its turns is not seen here.

The counter lies in memory that no disk is behind (a memfd), so that neither a full nor a slow disk can stop a pulse; a
link in the agent's state directory names it through `/proc`. The memory goes with its process, and so does what the link
leads to. A reading holds a check over its two numbers: one that was caught half written is read again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from atoll.schema.ids import TrainerId

EVERY_S = 0.05
SIZE = 64
_WORDS = struct.Struct("<4Q")
_MAGIC = int.from_bytes(b"atollpls", "little")
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PulseReading:
    """One look at a pulse: how often it beat, and when it did last (seconds of this host's monotonic clock)."""

    count: int
    at: float


def pulse_path(state_dir: Path, trainer: TrainerId) -> Path:
    """The link to a trainer's pulse in its agent's state directory. Its agent removes it."""
    return state_dir / f"pulse-{trainer}"


class Pulse:
    """The writer. `start` it once in the process it tells of; it never raises: a trainer runs without one, too."""

    def __init__(self, path: Path, every_s: float = EVERY_S) -> None:
        self._path = path
        self._every_s = every_s
        self._over = False
        self._memory: mmap.mmap | None = None
        self._fd = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat."""
        try:
            self._fd = os.memfd_create("atoll-pulse")
            os.ftruncate(self._fd, SIZE)
            self._memory = mmap.mmap(self._fd, SIZE)
            _beat(self._memory, 0)
            self._path.unlink(missing_ok=True)
            self._path.symlink_to(f"/proc/{os.getpid()}/fd/{self._fd}")
        except OSError as error:
            print(f"atoll: this trainer goes on without a pulse: {error}", file=sys.stderr)  # noqa: T201 - its log
            return
        self._thread = threading.Thread(target=self._run, args=[self._memory], name="atoll-pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop beating. Not needed at the end of a process."""
        self._over = True
        if self._thread is not None:
            self._thread.join(5.0)
        if self._memory is not None:
            self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self, memory: mmap.mmap) -> None:
        count = 0
        while not self._over:
            time.sleep(self._every_s)  # half the processor time of an event's wait; `close` takes this long
            count += 1
            _beat(memory, count)


def _beat(memory: mmap.mmap, count: int) -> None:
    now = time.monotonic_ns()
    _WORDS.pack_into(memory, 0, _MAGIC, count, now, _MAGIC ^ count ^ now)


def read_pulse(path: Path) -> PulseReading | None:
    """The pulse that `path` leads to; None where there is none, or where its process is gone."""
    for _ in range(_TRIES):
        try:
            # The kernel follows the link to the memory itself. Whatever else a reused pid holds there: do not wait for it.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return None
        try:
            data = os.pread(fd, _WORDS.size, 0)
        except OSError:
            return None
        finally:
            os.close(fd)
        if len(data) < _WORDS.size:
            return None
        magic, count, at, check = _WORDS.unpack(data)
        if magic == _MAGIC and check == _MAGIC ^ count ^ at:
            return PulseReading(count=count, at=at / 1e9)
    return None
