"""ARKitScenes, the raw and the 3DOD set: folders with `lowres_wide` and `lowres_depth` in them.

Both hold PNGs of 256 × 192 called VIDEO_SECONDS.png, colour and the LiDAR's depth in millimetres (16-bit, 0 where
nothing was measured); they are copied as they are. A time may lack either image, so they are paired by time, at most
half a frame of the 60 a second apart. Format: https://github.com/apple/ARKitScenes (DATA.md, raw/README.md).
"""

from __future__ import annotations

import re
from pathlib import Path

from vologan_fast.data.convert.timestamps import paired_frames
from vologan_fast.data.convert.writer import Recording

EXPECTED = "a folder with lowres_wide and lowres_depth, or one with such folders in it"
WITHIN = 1 / 120
"""Seconds."""


def find(source: Path) -> list[Path]:
    return sorted(path.parent for path in source.rglob("lowres_wide") if path.with_name("lowres_depth").is_dir())


def read(path: Path, name: str) -> Recording:
    """Raises DataError."""
    frames = paired_frames(path, name, _images(path / "lowres_wide"), _images(path / "lowres_depth"), WITHIN)
    return Recording(path, name, frames, {})


def _images(folder: Path) -> list[tuple[float, Path]]:
    """Times and files, in the order of time."""
    matches = ((re.fullmatch(r".*_([0-9]+\.[0-9]+)\.png", path.name), path) for path in folder.iterdir())
    return sorted((float(match[1]), path) for match, path in matches if match)
