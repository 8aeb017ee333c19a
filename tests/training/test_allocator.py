"""Freed memory stays in the process, so a second step gets no new pages from the kernel."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from vologan_fast.training.allocator import keep_freed_memory

torch.set_num_threads(1)
if {keep} and not keep_freed_memory():
    print("other allocator")
    raise SystemExit
for number in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    images = [torch.ones(size, 2**20) for size in (64, 16, 64)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del images
print(faults)
"""
MEBIBYTES = 4 * (64 + 16 + 64)


def faults_of_a_later_step(keep: bool) -> int:
    """Return the page faults of the last of six steps, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if printed == "other allocator":
        pytest.skip("the C library is not glibc")
    return int(printed)


def test_a_later_step_gets_no_new_pages():
    """With glibc's defaults, all pages are new. A page has 4 KiB on most machines, and up to 64 KiB on others."""
    pages = MEBIBYTES * 2**20 // 65536
    assert faults_of_a_later_step(keep=False) > 0.9 * pages
    assert faults_of_a_later_step(keep=True) < 0.01 * pages
