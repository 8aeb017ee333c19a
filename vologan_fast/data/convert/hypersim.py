"""Read Hypersim: rendered rooms, one folder per scene.

`SCENE/images/scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5` holds the *distance* from the camera's centre in
metres. The depth of this project is z = distance · f / √(u² + v² + f²). The pixel coordinates u and v begin at the
image's centre. The focal length f is width / 2 / tan 30°, which is 886.81 pixels at the usual 1024 × 768 (60°
horizontal field of view). Some scenes were rendered with other cameras (`metadata_camera_parameters.csv` of the
toolkit). For them, z is wrong towards the edges.

Colour comes from `scene_cam_XX_final_hdf5/frame.IIII.color.hdf5`, which is linear. It is converted to 8 bits by the
tone mapping of the data set's authors: it is scaled so that the 90th percentile of the brightness becomes 0.8 after a
gamma of 2.2. If these files are absent, the JPEG `scene_cam_XX_final_preview/frame.IIII.tonemap.jpg` is copied
unchanged.

Formats, formula and tone mapping: https://github.com/apple/ml-hypersim (README,
code/python/tools/scene_generate_images_tonemap.py, issue 9).
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast.data.convert.writer import (
    MAX_PIXELS,
    File,
    Frame,
    Recording,
    color_file,
    encoded_color,
    encoded_float_depth,
    missing_library,
    read_bytes,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import find_all

EXPECTED = "a folder with scene_cam_XX_geometry_hdf5 in it"
_GEOMETRY, _DEPTH = "_geometry_hdf5", ".depth_meters.hdf5"
HALF_VIEW = math.radians(30)
"""Half the horizontal field of view, in radians."""

Floats = npt.NDArray[np.float32]


def find(source: Path) -> list[Path]:
    folders = [source, *find_all(source, f"scene_cam_*{_GEOMETRY}")]
    return sorted(path for path in folders if path.name.endswith(_GEOMETRY) and path.is_dir())


def read(path: Path, name: str) -> Recording:
    """Open the recording of one camera of a scene. Raises DataError."""
    files = sorted(path.glob(f"frame.*{_DEPTH}"))
    if not files:
        raise DataError(f"{path}: expected frame.IIII{_DEPTH}, found no file of such a name")
    stem = name.removesuffix(_GEOMETRY)
    frames = [Frame(f"{stem}-{file.name.split('.')[1]}", functools.partial(_read_frame, file)) for file in files]
    return Recording(path, name, frames, {"unit": "m"})


def _read_frame(path: Path) -> tuple[File, File]:
    distance = _dataset(path, 2)
    stem = path.name.removesuffix(_DEPTH)
    camera = path.parent.name.removesuffix(_GEOMETRY)
    linear = path.parent.with_name(f"{camera}_final_hdf5") / f"{stem}.color.hdf5"
    preview = path.parent.with_name(f"{camera}_final_preview") / f"{stem}.tonemap.jpg"
    if linear.exists():
        color = encoded_color(tone_mapped(_dataset(linear, 3), np.isfinite(distance), linear))
    elif preview.exists():
        color, _ = color_file(read_bytes(preview), str(preview))
    else:
        raise DataError(f"{path}: expected colour in {linear} or {preview}, found neither")
    return color, encoded_float_depth(planar_depth(distance))


def planar_depth(distance: Floats) -> Floats:
    """Return z for each pixel, from the `distance` (h, w) to the camera's centre, in the same unit."""
    height, width = distance.shape
    focal = width / 2 / math.tan(HALF_VIEW)
    u = np.arange(width) - (width - 1) / 2
    v = np.arange(height)[:, None] - (height - 1) / 2
    return (distance * (focal / np.sqrt(u**2 + v**2 + focal**2))).astype(np.float32)


def tone_mapped(linear: Floats, there: npt.NDArray[np.bool_], path: Path) -> npt.NDArray[np.uint8]:
    """Convert linear colour (h, w, 3) to 8 bits. Raises DataError, which names `path`, for another shape.

    Only the pixels in the mask `there` (h, w) enter the percentile of the brightness.
    """
    if linear.shape != (*there.shape, 3):
        raise DataError(f"{path}: colour of shape {linear.shape}; expected {(*there.shape, 3)}, as the depth's")
    linear = np.nan_to_num(linear, nan=0, posinf=0, neginf=0)
    brightness = (linear @ np.array([0.3, 0.59, 0.11], np.float32))[there]
    bright = float(np.percentile(brightness, 90)) if brightness.size else 0.0
    scale = 0.8**2.2 / bright if bright >= 1e-4 else 0.0 if brightness.size else 1.0
    mapped = np.clip(linear * scale, 0, None) ** (1 / 2.2)
    return (np.clip(mapped, 0, 1) * 255 + 0.5).astype(np.uint8)


def _dataset(path: Path, dimensions: int) -> Floats:
    """Read the array "dataset" of an HDF5 file. Links to other files are refused. Raises DataError."""
    try:
        import h5py
    except ImportError:
        raise missing_library("Hypersim", "h5py") from None
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("dataset", getlink=True), h5py.HardLink):  # other links may lead to other files
                raise DataError(f'{path}: expected an array called "dataset", found none in this file')
            array: Any = file["dataset"]
            if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual or array.dtype.kind != "f":
                raise DataError(f'{path}: expected "dataset" to be an array of floats in this file, found another kind')
            shape = array.shape
            if (
                shape is None
                or len(shape) != dimensions
                or not 1 <= math.prod(shape[:2]) <= MAX_PIXELS
                or shape[2:] > (3,)
            ):
                raise DataError(
                    f"{path}: expected {dimensions} dimensions and at most {MAX_PIXELS} pixels, found {shape}"
                )
            return np.asarray(array[()], np.float32)
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected an HDF5 file, found one that cannot be read: {error}") from None
