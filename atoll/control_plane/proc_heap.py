"""What this process freed goes back to the system.

glibc keeps freed memory with the thread that had asked for it, and one small block that stays holds what was freed around
it. A control plane has forty threads, of Ray and of gRPC most of them, and kept half a MiB of that kind for each run that
it ever had.
"""

from __future__ import annotations

import ctypes


def trim() -> bool:
    """Give whole pages of free memory back: a millisecond. True where there were any; False also without glibc."""
    trims = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trims(0)) if trims is not None else False
