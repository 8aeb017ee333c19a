"""TUM RGB-D sequences (and ICL-NUIM in their layout): a folder with `rgb.txt` and `depth.txt`.

Each line is a time in seconds and a file's path in the folder; # begins a comment. The colour and depth images were not
taken at the same moments: the nearest ones are paired, at most 0.02 s apart, as the data set's own tool does. Both are
PNG (or JPEG) and are copied as they are; depth is 16-bit with 5000 units per metre, 0 where nothing was measured.
Format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats and …/tools (associate.py).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from vologan_fast.data.convert.timestamps import paired_frames
from vologan_fast.data.convert.writer import (
    Recording,
    read_bytes,
)
from vologan_fast.data.errors import DataError

EXPECTED = "a folder with rgb.txt and depth.txt, or one with such folders in it"
WITHIN = 0.02
"""Seconds."""
UNITS_PER_METRE = 5000


def find(source: Path) -> list[Path]:
    return sorted(path.parent for path in source.rglob("rgb.txt") if path.with_name("depth.txt").is_file())


def read(path: Path, name: str) -> Recording:
    """Raises DataError."""
    frames = paired_frames(path, name, _read_list(path / "rgb.txt"), _read_list(path / "depth.txt"), WITHIN)
    return Recording(path, name, frames, {"scale": f"{1 / UNITS_PER_METRE:g}"})


def _read_list(path: Path) -> list[tuple[float, Path]]:
    """Times and files; refuses files outside the folder."""
    entries = []
    for number, line in enumerate(read_bytes(path).decode(errors="replace").splitlines(), 1):
        words = line.split("#")[0].split(maxsplit=1)
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            time = math.nan
        if len(words) != 2 or not math.isfinite(time) or "\0" in words[1]:
            raise DataError(f'{path}: line {number}: expected "SECONDS FILE", found {line[:60]!r}')
        file = Path(os.path.normpath(path.parent / words[1].strip()))
        if not file.is_relative_to(os.path.normpath(path.parent)):
            raise DataError(f"{path}: line {number}: {words[1]!r} points outside the folder")
        entries.append((time, file))
    return entries
