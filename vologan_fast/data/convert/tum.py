"""Read TUM RGB-D sequences (and ICL-NUIM in their layout): folders with `rgb.txt` and `depth.txt`.

Each line of these files holds a time in seconds and the path of an image in the folder. The sign # begins a comment.
The colour and depth images were not taken at the same moments. As in the data set's own tool, the nearest images are
paired, at most 0.02 s apart. All files are copied unchanged. Colour is PNG or JPEG. Depth is 16-bit PNG with 5000 units
per metre, and 0 means "not measured".

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
"""The largest time between colour and depth, in seconds."""
UNITS_PER_METRE = 5000


def find(source: Path) -> list[Path]:
    return sorted(path.parent for path in source.rglob("rgb.txt") if path.with_name("depth.txt").is_file())


def read(path: Path, name: str) -> Recording:
    """Open a recording. Raises DataError."""
    frames = paired_frames(path, name, _read_list(path / "rgb.txt"), _read_list(path / "depth.txt"), WITHIN)
    return Recording(path, name, frames, {"scale": f"{1 / UNITS_PER_METRE:g}"})


def _read_list(path: Path) -> list[tuple[float, Path]]:
    """Return the times and files in a list. Raises DataError for a file outside the folder."""
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
