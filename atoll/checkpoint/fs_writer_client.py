"""The trainer's end of its I/O process: starts it, asks it, and starts another where it died.

A process that ends, whatever the reason, is a failed request and nothing more: the next one finds a new process. Slabs
are handed over by descriptor, once for each growth of their memory and process.
"""

from __future__ import annotations

import base64
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from atoll.checkpoint.fs_pack import Slab
from atoll.checkpoint.fs_writer_process import Job, plain_job, receive, send
from atoll.errors import CheckpointError
from atoll.fault.inject import handed_on
from atoll.fault.places import IO_FAILPOINTS

_ROOT = str(Path(__file__).resolve().parents[2])
_MAIN = "import sys; sys.path.insert(0, {root!r}); from atoll.checkpoint.fs_writer_process import main; main({fd})"
# How often a waiting thread looks whether the trainer ends.
_LOOK_S = 0.2
_LEAVE_S = 2.0


class Process(Protocol):
    """What was started: a process, or what a test has in its place."""

    def wait(self, timeout: float) -> Any:
        """Until it ended. Raises an exception after `timeout` seconds."""

    def kill(self) -> None:
        """End it now."""


# Starts a process that serves this end of a socketpair, and takes the end over.
Start = Callable[[socket.socket], Process]


def spawned(end: socket.socket) -> Process:
    """A fresh interpreter without torch; the program's folder is not searched for modules."""
    code = _MAIN.format(root=_ROOT, fd=end.fileno())
    with end:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", code], pass_fds=[end.fileno()], stdin=subprocess.DEVNULL, close_fds=True
        )


class Gone(CheckpointError):
    """The I/O process ended before it answered, or could not be started."""


def _unstarted(error: OSError) -> Gone:
    return Gone(f"the I/O process could not be started: {error}")


class IoProcess:
    """One at a time, for one thread."""

    def __init__(self, stopping: threading.Event, start: Start = spawned) -> None:
        self._stopping, self._start = stopping, start
        self._connection: socket.socket | None = None
        self._process: Process | None = None
        self._handed: dict[int, int] = {}

    def write(self, job: Job, slab: Slab) -> dict[str, Any]:
        """Have a part of a save written. Raises `CheckpointError`."""
        handles: tuple[int, ...] = ()
        connection = self._connected()
        if self._handed.get(slab.number) != slab.capacity:
            handles = (slab.descriptor,)
        request = {"do": "write", "slab": slab.number, "length": slab.capacity, "job": plain_job(job)}
        request["deaths"] = handed_on(IO_FAILPOINTS)
        answer = self._ask(connection, request, handles)
        self._handed[slab.number] = slab.capacity
        return answer

    def leave_word(self, directory: Path, name: str, data: bytes) -> None:
        """Have a small file published. Raises `CheckpointError`."""
        request = {"do": "word", "directory": str(directory), "name": name, "data": base64.b64encode(data).decode()}
        self._ask(self._connected(), request)

    def verify(self, directory: Path, step: int) -> str:
        """What is wrong with a committed step: one line, or nothing."""
        try:
            problems = self._ask(self._connected(), {"do": "verify", "directory": str(directory), "step": step})
        except CheckpointError as error:
            return str(error)
        return str(problems["problems"][0]) if problems["problems"] else ""

    def close(self) -> None:
        """End it: it has answered all, or nobody waits for it any longer."""
        connection, self._connection = self._connection, None
        process, self._process = self._process, None
        self._handed.clear()
        if connection is not None:
            connection.close()
        if process is None:
            return
        with suppress(Exception):
            process.wait(timeout=_LEAVE_S)
            return
        process.kill()
        with suppress(Exception):  # it hangs in the kernel: nothing ends it before its disk answers
            process.wait(timeout=_LEAVE_S)

    def _connected(self) -> socket.socket:
        """Raises `Gone` where none can be started, as with a host that has no memory or descriptors left."""
        if self._connection is None:
            self._handed.clear()
            try:
                mine, theirs = socket.socketpair()
            except OSError as error:
                raise _unstarted(error) from None
            try:
                self._process = self._start(theirs)
            except OSError as error:
                mine.close()
                theirs.close()
                raise _unstarted(error) from None
            self._connection = mine
        return self._connection

    def _ask(self, connection: socket.socket, request: dict[str, Any], handles: tuple[int, ...] = ()) -> dict[str, Any]:
        try:
            send(connection, request, handles)
            while not select.select([connection], [], [], _LOOK_S)[0]:
                if self._stopping.is_set():
                    raise CheckpointError("the trainer ended")
            found = receive(connection)
        except OSError as error:
            raise self._gone(str(error)) from None
        if found is None:
            raise self._gone("")
        answer = found[0]
        if answer["problem"]:
            raise CheckpointError(answer["problem"])
        return answer

    def _gone(self, detail: str) -> Gone:
        status = None
        process = self._process
        with suppress(Exception):
            status = process.wait(timeout=_LEAVE_S) if process is not None else None
        self.close()
        how = (
            f"by {signal.Signals(-status).name}" if isinstance(status, int) and status < 0 else f"with status {status}"
        )
        return Gone(f"the I/O process ended {how}{': ' if detail else ''}{detail}; the next save starts another")
