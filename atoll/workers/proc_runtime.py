"""Processes as `/proc` shows them: proof of life and death, and signals that cannot hit a stranger.

A process id is reused by the kernel, so a process is named by (pid, start time in clock ticks). A signal goes through a
pidfd that is opened first and compared afterwards: from then on the kernel itself keeps the name from being reused. A
zombie counts as dead: it computes nothing any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import InternalError

PR_SET_CHILD_SUBREAPER = 36
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """One process at one moment. `cpu_s`: processor seconds of all its threads, those that ended included."""

    pid: int
    state: str
    session: int
    start_ticks: int
    cpu_s: float = 0.0


def read_stat(pid: int) -> ProcessStat | None:
    """What `/proc` says about `pid`; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _parsed(pid, text)


def _parsed(pid: int, text: str) -> ProcessStat:
    # The command name stands in brackets and may hold anything, brackets too: count from the last one.
    fields = text.rpartition(")")[2].split()
    return ProcessStat(
        pid=pid,
        state=fields[0],
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_A_SECOND,
    )


class ProcessView:
    """Looks at one process again and again, through one descriptor: it can show no other process that got its number."""

    def __init__(self, pid: int, ticks: int) -> None:
        self._pid, self._ticks = pid, ticks
        try:
            self._fd: int | None = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = None

    def look(self) -> ProcessStat | None:
        """The process as it is now; None once it is gone."""
        if self._fd is None:
            return None
        try:
            text = os.pread(self._fd, 4096, 0).decode(errors="replace")
        except ProcessLookupError:
            self.close()
            return None
        stat = _parsed(self._pid, text)
        return stat if stat.start_ticks == self._ticks else None

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def start_ticks(pid: int) -> int:
    """The start time of `pid`, 0 where it is gone."""
    stat = read_stat(pid)
    return stat.start_ticks if stat else 0


def my_start_ticks() -> int:
    """The start time of this process."""
    return start_ticks(os.getpid())


def lives(pid: int, ticks: int) -> bool:
    """True while the process that started at `ticks` exists and is no zombie."""
    stat = read_stat(pid) if pid > 0 else None
    return stat is not None and stat.start_ticks == ticks and stat.state not in {"Z", "X"}


def open_pidfd(pid: int, ticks: int) -> int | None:
    """A pidfd of exactly this process, or None where it is gone. Readable once it ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_ticks(pid) == ticks:
        return fd
    os.close(fd)
    return None


def send_signal(pid: int, ticks: int, number: signal.Signals) -> bool:
    """Signal exactly this process. False where it is gone."""
    fd = open_pidfd(pid, ticks) if pid > 0 else None
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def fence(pid: int, ticks: int) -> bool:
    """SIGKILL exactly this process and what it started in its own session. False where it was gone already."""
    done = send_signal(pid, ticks, signal.SIGKILL)
    end_session(pid, ticks)
    return done


def end_session(session: int, ticks: int) -> None:
    """SIGKILL what a session leader left behind, such as loader processes of a trainer that was killed.

    The leader itself is left out. Members are younger than the leader (`ticks`): an older process with this session
    number belongs to somebody else.
    """
    for stat in all_stats():
        if stat.session == session and stat.pid != session and stat.start_ticks >= ticks:
            send_signal(stat.pid, stat.start_ticks, signal.SIGKILL)


def all_stats() -> list[ProcessStat]:
    """Every process of this machine."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names alone
    return [stat for pid in pids if (stat := read_stat(pid)) is not None]


def find_writer(log: Path) -> ProcessStat | None:
    """The session leader whose standard output is `log`: how a trainer is found that no record tells of."""
    for stat in all_stats():
        if stat.session != stat.pid or stat.state in {"Z", "X"}:
            continue
        with contextlib.suppress(OSError):
            if os.path.samefile(f"/proc/{stat.pid}/fd/1", log):  # noqa: PTH121 - a link that pathlib would resolve
                return stat
    return None


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, so that it learns how trainers of a dead zygote ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise InternalError(f"prctl(PR_SET_CHILD_SUBREAPER) failed with errno {ctypes.get_errno()}")


def reap() -> list[tuple[int, int]]:
    """(pid, exit status) of every child that ended since. A status is the exit code, or minus the signal number."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def spawn_module(module: str, *, config: bytes | int, log: Path) -> int:
    """Start `python -m module` in a session of its own; returns its pid. The caller reaps it with `reap`.

    `config` is what it reads from standard input (at most a pipe's 64 KiB), or an open file descriptor to use as that.
    """
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    stdin = _pipe_with(config) if isinstance(config, bytes) else config
    try:
        # -P: the working directory does not shadow installed modules.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module], stdin=stdin, stdout=fd, stderr=fd, start_new_session=True, cwd="/"
        )
    finally:
        os.close(fd)
        if isinstance(config, bytes):
            os.close(stdin)
    child.returncode = 0  # `reap` takes the status; Popen shall neither wait for it nor warn
    return child.pid


def _pipe_with(data: bytes) -> int:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        if os.write(write, data) != len(data):
            raise InternalError(f"{len(data)} bytes of configuration do not fit a pipe")
    finally:
        os.close(write)
    return read
