"""Short turns are asked of the kernel that runs this test."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atoll.workers import proc_turns
from atoll.workers.proc_turns import _ATTRIBUTES, TURN_NS, take_short_turns

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
pytestmark = [
    pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="the number of the system call is not known"),
]


def attributes():
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    size = ctypes.c_uint(_ATTRIBUTES.size)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], 0, buffer, size, 0) == 0
    return _ATTRIBUTES.unpack(buffer.raw)


def in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), name="atoll-test")
    thread.start()
    thread.join(10)
    return found[0]


def after_asking():
    assert take_short_turns()
    return attributes(), in_a_thread(attributes)


def test_thread_keeps_its_policy_and_niceness_and_passes_nothing_on():
    before = attributes()
    mine, childs = in_a_thread(after_asking)
    assert (mine[1], mine[3]) == (before[1], before[3])
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
        assert mine[5] == TURN_NS
        assert childs[5] != TURN_NS
    assert attributes() == before


def test_unknown_machine_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(proc_turns.platform, "machine", lambda: "pdp11")
    assert not take_short_turns()


NICE = """
import os, threading
from atoll.workers.proc_turns import usual_niceness
go, told = threading.Event(), []
def other():
    go.wait(30)
    told.append(os.getpriority(os.PRIO_PROCESS, 0))
os.setpriority(os.PRIO_PROCESS, 0, 7)
thread = threading.Thread(target=other)
thread.start()
had = usual_niceness()
go.set()
thread.join(30)
print(had, os.getpriority(os.PRIO_PROCESS, 0), *told)
"""


def test_niceness_of_a_ray_worker_is_left_behind_where_that_is_allowed():
    answer = subprocess.run([sys.executable, "-c", NICE], capture_output=True, text=True, timeout=60, check=True)
    effective = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    # Without CAP_SYS_NICE all may stay, and nothing fails.
    assert answer.stdout in ({"7 0 0\n"} if effective >> 23 & 1 else {"7 0 0\n", "7 7 7\n"})
