"""The C library's memory, kept by the process between steps."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse what is freed instead of giving it back; returns whether this system does.

    A tensor of more than 32 MiB is otherwise mapped anew whenever it is made, and the top of the heap returned whenever
    it is free: the next step waits for the system to clear every page again, a quarter of an update on a CPU. The peak
    stays what it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_MAX, 0))
