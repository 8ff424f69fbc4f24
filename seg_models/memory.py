"""Let a process keep the memory that it frees."""

from __future__ import annotations

import ctypes
import sys

# Names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_PAD_BYTES = 64 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed memory back to the system; returns whether it took notice.

    Torch frees and allocates every activation in every pass. glibc returns large ones to the system each time, and the
    next pass waits for fresh pages, which costs small networks on a CPU a good part of their time. It holds for the
    whole process; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wishes = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _PAD_BYTES, _M_ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in wishes.items())
