"""The free memory for kept images, and the choice of the place that they fit into.

In a container, a process may take less memory than the machine has free. Therefore the limits of Linux' control groups
count: the limit of the process's own group, and the limits of all groups above it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vologan_fast.config import ConfigError

HOST_SHARE, DEVICE_SHARE = 1 / 2, 1 / 4
"""The fractions of free memory that `auto` may use. The rest is for training, which has not begun yet."""


def choose_place(wanted: str, needed: int, host: int, device: int | None, processes: int = 1) -> tuple[str, str]:
    """Choose the place for images of `needed` bytes. `wanted` is the value of `data.cache`: "auto", "device" or "host".

    Returns (place, reason). The place is "device", "host" or "none". `host` and `device` are free bytes. `device` is
    None without a GPU. Each of the `processes` on this machine keeps all images. Raises ConfigError if the images do
    not fit into the wanted place.
    """
    size = f"{in_words(needed)} of images"
    host //= processes
    free = f"the {in_words(host)} of free memory" + (" that each process may use" if processes > 1 else "")
    on_gpu = f"the {in_words(device or 0)} of free GPU memory"
    if wanted == "auto":
        if device is not None and needed <= device * DEVICE_SHARE:
            return "device", f"auto: fits into a quarter of {on_gpu}"
        if needed <= host * HOST_SHARE:
            return "host", f"auto: fits into half of {free}"
        return "none", f"not kept decoded; auto: {size} do not fit into half of {free}; --data.cache disk may help"
    if wanted == "device" and device is None:
        raise ConfigError("--data.cache is device: expected a GPU to train on, or host, disk, none")
    if wanted == "device" and needed > (device or 0):
        raise ConfigError(f"--data.cache is device: {size} do not fit into {on_gpu}; expected host, disk or none")
    if wanted == "host" and needed > host:
        raise ConfigError(f"--data.cache is host: {size} do not fit into {free}; expected disk or none")
    return wanted, "as asked for"


def in_words(count: int) -> str:
    """Return a number of bytes in words, as "1.31 MB" or "5.37 GB"."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


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
