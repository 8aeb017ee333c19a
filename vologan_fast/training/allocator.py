"""Memory that the host's allocator keeps, for steps that run on the CPU.

A step allocates its activations and frees them, and the next step allocates the same sizes again. By default, glibc's
`malloc` gives large pieces back to the kernel at once, and the kernel clears each page that it hands out again. Kept
pieces need no clearing. docs/log.md has measurements.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_TRIM_ABOVE = 2**31 - 1
"""Free bytes at the end of the heap from which on `free` returns them to the kernel: the largest int."""
_MAP_ABOVE = 2**30
"""Bytes from which on a piece is a mapping of its own, which `free` returns at once. Larger tensors are rare."""


def keep_freed_memory() -> bool:
    """Let `malloc` keep freed memory in this process. Returns whether it does: only glibc has this setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAP_ABOVE) and mallopt(_M_TRIM_THRESHOLD, _TRIM_ABOVE))
