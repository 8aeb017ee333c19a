"""Small trained runs for the tests of reports."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from vologan_fast import train

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --train.log-every 1 --generator.width 4
    --generator.max-width 8 --generator.levels 2 --generator.spectral-norm --discriminator.widths 4 4 8
    --discriminator.down-widths 4 4 8 --data.held-out 0.5 --train.validate-every 1
""")
EVIL = "</script><script>window.hacked=1;<img src=x onerror=hacked=1>\"'&amp;%{x}\x1b[31m"
"""Ends a script element, starts another, breaks an attribute, and turns a terminal red. Its slash makes two folders."""


def trained(run: Path, data: Path, *options: str) -> Path:
    torch.set_num_threads(1)
    assert train.main([*TINY, "--run-dir", str(run), "--data", str(data), *options]) == 0
    return run
