"""Which processes belong to a lab: those whose mounts carry its mark, and no others.

A mark is the source of a tmpfs in a host's namespace of mounts, `atoll-ID-HOST`, and every process in that namespace
shows it in /proc/PID/mountinfo. Unlike a pid or the number of a namespace it is never given out again, it needs no file
to have survived, and a process cannot be in a host without it. Processes that the caller may not look into are not his.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import LabError

SWITCHES = "+switches"
_POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process by pid and start time, in clock ticks since the machine started."""

    pid: int
    start: int


def named(pid: int) -> Process | None:
    """This process as it can be found again, or None where it has ended."""
    fields = _stat(pid)
    return Process(pid=pid, start=int(fields[19])) if fields and fields[0] not in "ZX" else None


def end(process: Process, *, deadline_s: float = 5.0) -> None:
    """SIGKILL a process that may have no mark yet, and wait until it has ended."""
    until = time.monotonic() + deadline_s
    while named(process.pid) == process:
        if time.monotonic() > until:
            raise LabError(f"process {process.pid} did not end within {deadline_s:g} s")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(process.pid)
            try:
                if named(process.pid) == process:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
        time.sleep(_POLL_S)


def mark(lab_id: str, host: str) -> str:
    """The mark of one host; `SWITCHES` is the namespace of the bridges."""
    return f"atoll-{lab_id}-{host}"


def host_of(pid: int | str, lab_id: str) -> str | None:
    """The host of the lab that a process is in, or None."""
    try:
        text = Path(f"/proc/{pid}/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    # A host's mounts began as a copy of the switches': the last mark is its own.
    found = re.findall(rf" atoll-{re.escape(lab_id)}-(\S+) ", text)
    return found[-1] if found else None


def members(lab_id: str, host: str | None = None) -> dict[int, str]:
    """Pid -> host of everything that runs in the lab, or in one host of it, those that hold namespaces included."""
    by_mounts: dict[str, str | None] = {}
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a thousand Path objects for nothing
        if not name.isdigit():
            continue
        try:
            mounts = os.readlink(f"/proc/{name}/ns/mnt")  # noqa: PTH115 - likewise
        except OSError:
            continue
        if mounts not in by_mounts:
            by_mounts[mounts] = host_of(name, lab_id)
        its = by_mounts[mounts]
        if its is not None and host in (None, its):
            found[int(name)] = its
    return found


def send(pid: int, lab_id: str, signum: int) -> None:
    """Signal a process if it still is one of the lab's: its pid is held while that is looked up."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(pid)
        try:
            if host_of(pid, lab_id) is not None:
                signal.pidfd_send_signal(handle, signum)
        finally:
            os.close(handle)


def end_all(lab_id: str, host: str | None = None, *, deadline_s: float = 10.0) -> int:
    """SIGKILL everything in the lab, or in one host of it, until nothing is left. Returns how many there were."""
    until, seen = time.monotonic() + deadline_s, set[int]()
    while found := members(lab_id, host):
        if os.getpid() in found:
            raise LabError(f"this command runs inside the lab ({found[os.getpid()]}); run it from outside")
        if time.monotonic() > until:
            raise LabError(
                f"{len(found)} processes of the lab did not end within {deadline_s:g} s: {sorted(found)[:8]}"
            )
        for pid in found:
            send(pid, lab_id, signal.SIGKILL)
        seen |= found.keys()
        time.sleep(_POLL_S)
    return len(seen)


def stop_all(lab_id: str, host: str, holder: int, *, deadline_s: float = 5.0) -> None:
    """SIGSTOP every process of a host until all stand still; those that are forked meanwhile are seen the next time."""
    until = time.monotonic() + deadline_s
    while moving := [p for p in members(lab_id, host) if p != holder and _state(p) not in "TtZX"]:
        if time.monotonic() > until:
            raise LabError(f"host {host!r}: processes {moving[:8]} did not stop within {deadline_s:g} s")
        for pid in moving:
            send(pid, lab_id, signal.SIGSTOP)
        time.sleep(_POLL_S)


def continue_all(lab_id: str, host: str) -> None:
    """SIGCONT every process of a host."""
    for pid in members(lab_id, host):
        send(pid, lab_id, signal.SIGCONT)


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else "X"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
