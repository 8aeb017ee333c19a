"""Read TUM RGB-D sequences (and ICL-NUIM in their layout): folders with `rgb.txt` and `depth.txt`.

Each line of these files holds a time in seconds and the path of an image in the folder. The sign # begins a comment.
The colour and depth images were not taken at the same moments. As in the data set's own tool, the nearest images are
paired, at most 0.02 s apart. All files are copied unchanged. Colour is PNG or JPEG. Depth is 16-bit PNG with 5000 units
per metre, and 0 means "not measured". Recordings of others in this layout may hold millimetres instead. `_unit` tells
them apart where that is certain.

Format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats and …/tools (associate.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vologan_fast import depth as depth_files
from vologan_fast.data.convert.timestamps import paired_frames
from vologan_fast.data.convert.writer import LIMITS, Recording, read_bytes
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import Folder, decoded, find_all

EXPECTED = "a folder with rgb.txt and depth.txt, or one with such folders in it"
WITHIN = 0.02
"""The largest time between colour and depth, in seconds."""
UNITS_PER_METRE = 5000
NEAREST, FAR = 0.35, 2.0
"""Metres. No camera of the data set measures nearer than `NEAREST`. Most rooms are deeper than `FAR`."""
_SAMPLE = 8  # depth files that are read to find the unit


def find(source: Path) -> list[Path]:
    folders = [path.parent for path in find_all(source, "rgb.txt")]
    return [folder for folder in folders if _list_path(folder, "depth.txt").is_file()]


def read(path: Path, name: str) -> Recording:
    """Open a recording. Raises DataError."""
    color, depth = (_read_list(_list_path(path, file)) for file in ("rgb.txt", "depth.txt"))
    frames = paired_frames(path, name, color, depth, WITHIN)
    settings, note = _unit([file for _, file in depth])
    return Recording(path, name, frames, settings, note=note and f"{path}: {note}")


def _list_path(folder: Path, name: str) -> Path:
    return Folder(folder).find(name, str(folder))


def _unit(files: Sequence[Path]) -> tuple[dict[str, str], str]:
    """Return the settings for the unit of depth files, and a sentence about them if they may be wrong.

    By 5000 units a metre, depth that begins nearer than NEAREST and ends nearer than FAR is impossible for the cameras
    of the data set. Then the files hold millimetres. Depth of which only one is true may be either.
    """
    tum = {"scale": f"{1 / UNITS_PER_METRE:g}"}
    values = []
    for file in files[:: -(-len(files) // _SAMPLE)]:
        try:
            depth = depth_files.decode(file, limits=LIMITS)
        except (OSError, depth_files.DecodeError):
            continue  # reading the frame will report it
        values.append(depth[depth > 0][::16])
    found = np.concatenate([*values, np.empty(0, np.float32)])
    if not found.size:
        return tum, ""
    near, far = np.percentile(found, (1, 99))
    by_tum = f"{near / UNITS_PER_METRE:.3g} to {far / UNITS_PER_METRE:.3g} m"
    by_millimetres = f"{near / 1000:.3g} to {far / 1000:.3g} m"
    too_near, ends_near = near < NEAREST * UNITS_PER_METRE, far < FAR * UNITS_PER_METRE
    if not too_near and not ends_near:
        return tum, ""
    if too_near and ends_near:
        return {}, (
            f"depth is taken for millimetres ({by_millimetres}), as by TUM's 5000 units a metre it would be {by_tum}; "
            f"if that is right, add scale {tum['scale']}"
        )
    return tum, f"depth is {by_tum} by TUM's 5000 units a metre; if it is millimetres ({by_millimetres}), omit scale"


def _read_list(path: Path) -> list[tuple[float, Path]]:
    """Return the times and files in a list. Raises DataError for a file outside the folder."""
    entries = []
    folder = Folder(path.parent)
    try:
        lines = decoded(read_bytes(path)).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a text in UTF-8 or UTF-16, found {error}") from None
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split(maxsplit=1)
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            time = math.nan
        if len(words) != 2 or not math.isfinite(time) or "\0" in words[1]:
            raise DataError(f'{path}: line {number}: expected "SECONDS FILE", found {line[:60]!r}')
        file = folder.find(words[1].strip(), f"{path}: line {number}: the file")
        entries.append((time, file))
    return entries
