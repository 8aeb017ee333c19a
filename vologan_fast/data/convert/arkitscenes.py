"""Read ARKitScenes, the raw and the 3DOD set: folders that contain `lowres_wide` and `lowres_depth`.

Both subfolders hold PNGs of 256 × 192 with names VIDEO_SECONDS.png. `lowres_wide` holds the colour. `lowres_depth`
holds the LiDAR's depth in millimetres, 16-bit, with 0 for "not measured". The files are copied unchanged. Either image
of a moment may be absent. Therefore the images are paired by time. A pair is at most 1/120 s apart, which is half a
frame at 60 frames a second.

Format: https://github.com/apple/ARKitScenes (DATA.md, raw/README.md).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from vologan_fast.data.convert.timestamps import paired_frames
from vologan_fast.data.convert.writer import Recording
from vologan_fast.data.names import find_all, is_added_by_system

EXPECTED = "a folder with lowres_wide and lowres_depth, or one with such folders in it"
WITHIN = 1 / 120
"""The largest time between colour and depth, in seconds."""


def find(source: Path) -> list[Path]:
    return [path.parent for path in find_all(source, "lowres_wide") if path.with_name("lowres_depth").is_dir()]


def read(path: Path, name: str) -> Recording:
    """Open a recording. Raises DataError."""
    frames = paired_frames(path, name, _images(path / "lowres_wide"), _images(path / "lowres_depth"), WITHIN)
    return Recording(path, name, frames, {})


def _images(folder: Path) -> list[tuple[float, Path]]:
    """Return (time in seconds, file) of all images in a folder, in the order of time."""
    files = (path for path in folder.iterdir() if not is_added_by_system(PurePath(path.name)))
    matches = ((re.fullmatch(r".*_([0-9]+\.[0-9]+)\.png", path.name, re.IGNORECASE), path) for path in files)
    return sorted((float(match[1]), path) for match, path in matches if match)
