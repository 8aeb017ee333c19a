"""What this machine offers: its processor, and the memory that is free on it.

In a container, a process may take less memory than the machine has free. Therefore the limits of Linux' control groups
count: the limit of the process's own group, and the limits of all groups above it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from pathlib import Path


def processor() -> str:
    """Return the system's name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_SETS = {
    "sse4_1": "SSE4.1",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
"""Flags of Linux, of x86 and then of ARM, and the instruction sets that they say."""


def instruction_sets() -> list[str]:
    """Return the SIMD instruction sets of the processor, as far as the system tells them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                return [name for flag, name in _SETS.items() if flag in flags]
    return []


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_resident_memory() -> int:
    """Return the most bytes of memory that this process has had so far.

    Linux keeps it for each program. What getrusage says also counts the program that started this one, if it was larger
    (getrusage(2), ru_maxrss, is not reset by execve).
    """
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def allowed_memory() -> int:
    """Return the bytes that this process may have: what it has and what is free, or a lower limit (ulimit -v)."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = free_host_memory() + peak_resident_memory()
    return allowed if limit == resource.RLIM_INFINITY else min(limit, allowed)


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process can still take, from the files in `root`/proc and `root`/sys.

    On other systems than Linux it is the size of the physical memory.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return max(min([free, *_left_in_groups(root)]), 0)


def _left_in_groups(root: Path) -> list[int]:
    """Return the bytes that are left in each limited control group of this process.

    These are the groups of version 2, or of the memory controller of version 1.
    """
    left = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        own = top / name.lstrip("/")
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
            most, taken = _read(group / limit).strip(), _read(group / used).strip()
            if most.isdigit() and taken.isdigit():
                stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                left.append(int(most) - int(taken) + int(stat.get("inactive_file", 0)))
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
