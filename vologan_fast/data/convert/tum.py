"""TUM RGB-D sequences (and ICL-NUIM in their layout): a folder with `rgb.txt` and `depth.txt`.

Each line is a time in seconds and a file's path in the folder; # begins a comment. The colour and depth images were not
taken at the same moments: the nearest ones are paired, at most 0.02 s apart, as the data set's own tool does. Both are
PNG (or JPEG) and are copied as they are; depth is 16-bit with 5000 units per metre, 0 where nothing was measured.
Format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats and …/tools (associate.py).
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

from vologan_fast.data.convert.timestamps import nearest_pairs
from vologan_fast.data.convert.writer import (
    File,
    Frame,
    Recording,
    color_file,
    integer_depth_file,
    read_bytes,
    safe_name,
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
    color, depth = _read_list(path / "rgb.txt"), _read_list(path / "depth.txt")
    pairs = nearest_pairs([time for time, _ in color], [time for time, _ in depth], WITHIN)
    if not pairs:
        raise DataError(
            f"{path}: expected colour and depth images at most {WITHIN} s apart, found none among {len(color)} and "
            f"{len(depth)}"
        )
    frames = [
        Frame(f"{name}-{safe_name(color[i][1].stem)}", functools.partial(read_pair, color[i][1], depth[j][1]))
        for i, j in pairs
    ]
    return Recording(path, name, frames, {"scale": f"{1 / UNITS_PER_METRE:g}"})


def read_pair(color: Path, depth: Path) -> tuple[File, File]:
    """Both files as they are. Raises DataError."""
    return color_file(read_bytes(color), str(color))[0], integer_depth_file(depth)


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
