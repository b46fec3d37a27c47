"""Short turns on a processor, soon: for processes that do little, and whose lateness others would take for silence.

Linux's scheduler for ordinary threads (EEVDF; Stoica and Abdel-Wahab 1995, in Linux since 6.6) runs first whoever's turn
would end first. A thread that asks for short turns gets no more of the processor than its share, but gets it earlier: with
four times more busy threads than cores an agent woke 3 ms late at worst in a typical second, against 18 ms. Any user may
ask, since Linux 6.12; older kernels take no notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading
from pathlib import Path

# More than such a thread needs for one of its turns, less than a tenth of what others get at a time.
TURN_NS = 200_000
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
# size, policy, flags, nice, priority, runtime, deadline, period, two clamps: `struct sched_attr` of linux/sched/types.h
_ATTRIBUTES = struct.Struct("<IIQiIQQQII")
_RESET_ON_FORK = 0x01


def take_short_turns() -> bool:
    """Ask for them for the calling thread; what it starts does not inherit them. False where the system refuses."""
    call = _SCHED_SETATTR.get(platform.machine())
    if call is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False  # another policy is somebody's wish
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    wish = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, TURN_NS, 0, 0, 0, 0)
    return bool(ctypes.CDLL(None, use_errno=True).syscall(call, 0, wish, 0) == 0)


def usual_niceness() -> int:
    """Take all threads of this process back to niceness 0; returns what it had.

    Ray starts its workers at 15, and what they start is as nice: in one cgroup with busy processes of others that is a
    thirtieth of what each of them gets, and such a control plane hears nobody. Without the right to it (CAP_SYS_NICE,
    which root in a container often lacks) nothing changes.
    """
    had = os.getpriority(os.PRIO_PROCESS, 0)
    if had > 0:
        # On Linux niceness is each thread's own; a thread that begins gets that of the one that began it.
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)
    return had
