"""Read HAMMER: table tops, seen by one colour camera, with the depth of three sensors and rendered truth.

    scene2_traj1_1/polarization/rgb/000000.png           colour
    scene2_traj1_1/polarization/_gt/000000.png           rendered depth
    scene2_traj1_1/polarization/depth_tof/000000.png     depth of the Lucid Helios (indirect time of flight)
    scene2_traj1_1/polarization/depth_d435/000000.png    depth of the RealSense D435 (active stereo)
    scene2_traj1_1/polarization/depth_l515/000000.png    depth of the RealSense L515 (direct time of flight)

Depth is 16-bit PNG in millimetres, with 0 for "not measured". The authors have warped the sensors' depth into the view
of the colour camera, so all images of a frame show the same view. The files are copied unchanged. Scenes 12 to 14 are
the authors' test scenes. They go into the paired test only, and the other scenes into the domains only.

Format: https://github.com/Junggy/HAMMER-dataset. Its README describes scenes, sensors and warping. It does not list the
folders. Their names and the unit are those that published loaders of this data set use.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path, PurePath

from vologan_fast import depth as depth_files
from vologan_fast.data.convert.writer import (
    LIMITS,
    File,
    Frame,
    Recording,
    color_file,
    integer_depth_file,
    read_bytes,
    require_depth,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import find_all, is_added_by_system

EXPECTED = "a folder with polarization/rgb in it, such as scene2_traj1_1"
TRUTH = "_gt"
TEST_SCENES = (12, 13, 14)
_FARTHEST_MEDIAN = 10.0  # metres; the scenes are table tops


def find(source: Path) -> list[Path]:
    return [path.parents[1] for path in find_all(source, "rgb") if path.parent.name == "polarization" and path.is_dir()]


def is_test(path: Path) -> bool:
    """Return whether a sequence is of one of the test scenes."""
    match = re.match(r"scene([0-9]+)_", path.name)
    return match is not None and int(match[1]) in TEST_SCENES


def read(path: Path, name: str, depth: str) -> Recording:
    """Open a sequence with the depth of a subfolder, such as "depth_tof" or TRUTH. Raises DataError."""
    colors, depths = (_images(path / "polarization" / folder) for folder in ("rgb", depth))
    both = sorted(colors.keys() & depths.keys())
    if not both:
        raise DataError(
            f"{path}: expected images of the same names in polarization/rgb and polarization/{depth}, found none among "
            f"{len(colors)} and {len(depths)}"
        )
    alone = len(colors.keys() ^ depths.keys())
    note = f"{path}: {alone} images of rgb or {depth} have no partner" if alone else ""
    frames = [Frame(f"{name}-{stem}", functools.partial(_read_frame, colors[stem], depths[stem])) for stem in both]
    return Recording(path / "polarization" / depth, name, frames, {}, note=note)  # each sensor is a recording


def _images(folder: Path) -> dict[str, Path]:
    files = folder.iterdir() if folder.is_dir() else []
    return {
        path.stem: path
        for path in files
        if path.suffix.lower() == ".png" and not is_added_by_system(PurePath(path.name))
    }


def _read_frame(color_path: Path, depth_path: Path) -> tuple[File, File]:
    color, size = color_file(read_bytes(color_path), str(color_path))
    depth = integer_depth_file(depth_path)
    millimetres = depth_files.decode(depth.content, limits=LIMITS)
    if millimetres.shape != size:
        height, width = millimetres.shape
        raise DataError(f"{depth_path}: depth of {width} × {height}; expected {size[1]} × {size[0]}, as the colour's")
    require_depth(millimetres[millimetres > 0] / 1000, "millimetres", _FARTHEST_MEDIAN, str(depth_path))
    return color, depth
