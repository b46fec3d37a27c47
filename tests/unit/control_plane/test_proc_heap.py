"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

HOLES = """
import ctypes
from pathlib import Path
from atoll.control_plane.proc_heap import trim

libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_trim"):
    print("without")
    raise SystemExit
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [libc.malloc(64 << 10) for _ in range(1024)]
for block in blocks:
    ctypes.memset(block, 1, 64 << 10)
for block in blocks[:-1]:  # the last one holds what lies below it
    libc.free(block)
before = resident()
assert trim()
print(before - resident())
"""


def test_what_lies_below_a_block_that_stays_is_given_back():
    told = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=60, check=True)
    if told.stdout.strip() == "without":
        pytest.skip("the C library has no malloc_trim")
    assert int(told.stdout) > 32 << 20
