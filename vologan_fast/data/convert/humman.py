"""Read HuMMan 1.0: people before ten Kinects and an iPhone, one folder per sequence, such as p000438_a000040.

    kinect_color/kinect_000/000000.png    1920 × 1080
    kinect_depth/kinect_000/000000.png    640 × 576, 16-bit, millimetres, 0 for "not measured"
    kinect_mask/kinect_000/000000.png     the person, in the view of the colour (also kinect_mask_manual)
    iphone_color/iphone/000000.png        1920 × 1440
    iphone_depth/iphone/000000.png        256 × 192, 16-bit, millimetres, 0 for "not measured"
    cameras.json                          K, R and T of kinect_color_000, kinect_depth_000, …

The iPhone's depth has the view of its colour, and is copied unchanged. The depth of a Kinect has another view. It is
registered to the colour (`registration`), and stored as float32 metres. Images are paired by their numbers.
HuMMan-Point has colour as videos, `kinect_color/kinect_000.mp4`. The video splitter of HuMMan numbers their images from
1, but depth from 0. Such images are recognised: they begin at 1 where depth begins at 0, and end one number later.

No masks of the iPhone's images are published. Your own are read from `iphone_mask/iphone/000000.png`.

Formats: humman_recon/README.md, humman_point/README.md, humman_point/tools in
https://github.com/caizhongang/humman_toolbox. The sizes of the colour and the unit of depth are those that its tools
use.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast import depth as depth_files
from vologan_fast.data.convert.people import read_mask, sampled
from vologan_fast.data.convert.registration import Camera, registered, view_size
from vologan_fast.data.convert.writer import (
    LIMITS,
    File,
    Frame,
    Recording,
    color_file,
    encoded_float_depth,
    encoded_integer_depth,
    integer_depth_file,
    read_bytes,
    require_depth,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import COLOR_SUFFIXES
from vologan_fast.data.names import find_all, is_added_by_system

EXPECTED_KINECT = "a folder with kinect_color and kinect_depth, or one with such folders in it"
EXPECTED_IPHONE = "a folder with iphone_color and iphone_depth, or one with such folders in it"
BACKGROUND = 65535
"""The value of the background in the iPhone's depth with `people`."""
_FARTHEST_MEDIAN = 10.0  # metres; the sensors measure about 5
_ASPECT = 0.02  # the largest difference, as in training
_BASELINE = 1.0  # metres; the cameras of a Kinect are 3 cm apart
_ROOM = 100.0  # metres; the largest distance of a camera from the origin
_FOCAL_LENGTHS = (0.2, 5.0)  # widths of the image; those of a Kinect are about 0.5 and 0.8
_SKEW = 1e-3  # of the focal length


def find_kinects(source: Path) -> list[Path]:
    """Return the folders with the colour of one Kinect each. They may be absent, if there is only its video."""
    return _find(source, "kinect")


def find_iphones(source: Path) -> list[Path]:
    """Return the folders with the colour of one iPhone each. They may be absent, if there is only its video."""
    return _find(source, "iphone")


def _find(source: Path, kind: str) -> list[Path]:
    found = [path for path in find_all(source, f"{kind}*") if path.parent.name == f"{kind}_color"]
    return sorted({path.with_suffix("") for path in found if path.is_dir() or path.suffix == ".mp4"})


def read_kinect(path: Path, name: str, people: bool = False) -> Recording:
    """Open the images of one Kinect. With `people`, everything except people is background. Raises DataError."""
    frames, note = _frames(path, "kinect", people)
    file = path.parents[1] / "cameras.json"
    cameras = read_cameras(file, path.name)
    name = name.replace("-kinect_color", "")
    return Recording(
        path,
        name,
        [Frame(f"{name}-{i.number:06}", functools.partial(_read_kinect_frame, i, *cameras, file)) for i in frames],
        {"unit": "m"} | ({"background": "inf"} if people else {}),
        note=note,
    )


def read_iphone(path: Path, name: str, people: bool = False) -> Recording:
    """Open the images of an iPhone. With `people`, everything except people is background. Raises DataError."""
    frames, note = _frames(path, "iphone", people)
    name = name.replace("-iphone_color", "")
    return Recording(
        path,
        name,
        [Frame(f"{name}-{i.number:06}", functools.partial(_read_iphone_frame, i)) for i in frames],
        {"background": str(BACKGROUND)} if people else {},
        note=note,
    )


@dataclass(frozen=True)
class _Images:
    """The files of one frame."""

    number: int
    color: Path
    depth: Path
    mask: Path | None
    """None if everything is kept."""


def _frames(path: Path, kind: str, people: bool) -> tuple[list[_Images], str]:
    """Pair the images of one device by their numbers. Returns them, and a sentence about images that are left out.

    `path` is the folder of the colour. Raises DataError if there is no pair, and if all masks are missing.
    """
    sequence, device = path.parents[1], path.name
    folders = {part: sequence / f"{kind}_{part}" / device for part in ("depth", "mask", "mask_manual")}
    color, depth = _numbered(path), _numbered(folders["depth"])
    if not color and path.with_suffix(".mp4").is_file():
        raise DataError(
            f"{path.with_suffix('.mp4')}: expected images in {path}, found only this video: split it with "
            f"ffmpeg -i VIDEO -start_number 0 {path}/%06d.png"
        )
    shift = int(bool(color and depth) and min(color) == 1 and min(depth) == 0 and max(color) == max(depth) + 1)
    color = {number - shift: file for number, file in color.items()}
    numbers = sorted(color.keys() & depth.keys())
    if not numbers:
        raise DataError(
            f"{path}: expected images of the same numbers in {folders['depth']}, found none among {len(color)} of "
            f"colour and {len(depth)} of depth"
        )
    notes = ["colour is numbered from 1 and depth from 0, and they are paired so"] if shift else []
    if alone := len(color.keys() ^ depth.keys()):
        notes.append(f"{alone} images of colour or depth have no partner")
    masks: dict[int, Path] = {}
    if people:
        masks = _numbered(folders["mask"]) | _numbered(folders["mask_manual"])
        if not masks.keys() & numbers:
            raise DataError(f"{path}: expected masks of people in {folders['mask']}, found none")
        if without := len(set(numbers) - masks.keys()):
            notes.append(f"{without} images without a mask are left out")
        numbers = [number for number in numbers if number in masks]
    images = [_Images(number, color[number], depth[number], masks.get(number)) for number in numbers]
    return images, f"{path}: {'; '.join(notes)}" if notes else ""


def _numbered(folder: Path) -> dict[int, Path]:
    files = (
        [path for path in folder.iterdir() if not is_added_by_system(PurePath(path.name))] if folder.is_dir() else []
    )
    return {int(p.stem): p for p in files if re.fullmatch("[0-9]{1,9}", p.stem) and p.suffix.lower() in COLOR_SUFFIXES}


def read_cameras(file: Path, device: str) -> tuple[Camera, Camera]:
    """Return the colour and the depth camera of a Kinect, such as kinect_000. Raises DataError."""
    try:
        content = json.loads(read_bytes(file))
        color, depth = (_camera(content[device.replace("_", f"_{part}_", 1)]) for part in ("color", "depth"))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file}: expected K, R and T of the cameras of {device}, found {found}") from None
    apart = float(np.linalg.norm(color.rotation.T @ color.translation - depth.rotation.T @ depth.translation))
    if apart > _BASELINE:
        raise DataError(
            f"{file}: the cameras of {device} would be {apart:.3g} m apart; expected centimetres: is T not in metres?"
        )
    return color, depth


def _camera(item: dict[str, Any]) -> Camera:
    """Raises ValueError, KeyError, TypeError and OverflowError."""
    camera = Camera(*(_numbers(item[key]) for key in "KRT"))
    matrix, rotation = camera.intrinsics, camera.rotation
    if matrix.shape != (3, 3) or rotation.shape != (3, 3) or camera.translation.shape != (3,):
        raise ValueError(f"shapes {matrix.shape}, {rotation.shape} and {camera.translation.shape}")
    if not (np.isfinite(matrix).all() and np.isfinite(rotation).all() and np.isfinite(camera.translation).all()):
        raise ValueError("numbers that are not finite")
    (focal, skew, _), (zero, focal_y, _), last = matrix.tolist()
    if focal <= 0 or focal_y <= 0 or abs(skew) > _SKEW * focal or zero != 0 or last != [0, 0, 1]:
        raise ValueError(f"K = {matrix.tolist()}")
    if (
        np.abs(rotation).max() > 2  # its products could overflow
        or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        or np.linalg.det(rotation) < 0
    ):
        raise ValueError(f"R that is no rotation, {rotation.tolist()}")
    if np.abs(camera.translation).max() > _ROOM:
        raise ValueError(f"T = {camera.translation.tolist()}, more than {_ROOM:.0f} m; is T not in metres?")
    return camera


def _numbers(value: Any) -> np.ndarray:
    """Numbers from JSON. numpy would also take true, and a text that spells a number."""
    if any(isinstance(number, bool | str) for number in np.array(value, object).flat):
        raise ValueError(f"{str(value)[:100]}, which are no numbers")
    return np.array(value, np.float64)


def _read_kinect_frame(images: _Images, color_camera: Camera, depth_camera: Camera, file: Path) -> tuple[File, File]:
    color, size = color_file(read_bytes(images.color), str(images.color))
    millimetres = _read_depth(images.depth)
    require_depth(millimetres[millimetres > 0] / 1000, "millimetres", _FARTHEST_MEDIAN, str(images.depth))
    for camera, found, path in ((color_camera, size, images.color), (depth_camera, millimetres.shape, images.depth)):
        x, y = camera.intrinsics[:2, 2]
        if not (abs(x - found[1] / 2) < found[1] / 4 and abs(y - found[0] / 2) < found[0] / 4):
            raise DataError(
                f"{path}: {found[1]} × {found[0]} pixels; expected an image whose centre is near {x:.0f}, {y:.0f}, as "
                f"{file} says"
            )
        for focal in (camera.intrinsics[0, 0], camera.intrinsics[1, 1]):
            if not _FOCAL_LENGTHS[0] <= focal / found[1] <= _FOCAL_LENGTHS[1]:
                raise DataError(
                    f"{file}: a focal length of {focal:.3g} pixels; expected {_FOCAL_LENGTHS[0]} to "
                    f"{_FOCAL_LENGTHS[1]} times the width of {path}, which is {found[1]}"
                )
    view = view_size(depth_camera, color_camera, size)
    metres = registered(millimetres / 1000, depth_camera, color_camera.resized(size, view), view)
    kept = np.ones(view, bool) if images.mask is None else sampled(read_mask(images.mask, size), view)
    _require_in_the_middle(metres * kept, str(images.depth))
    return color, encoded_float_depth(metres, ~kept)


def _read_iphone_frame(images: _Images) -> tuple[File, File]:
    color, size = color_file(read_bytes(images.color), str(images.color))
    depth = integer_depth_file(images.depth)
    millimetres = _read_depth(images.depth)
    require_depth(millimetres[millimetres > 0] / 1000, "millimetres", _FARTHEST_MEDIAN, str(images.depth))
    height, width = millimetres.shape
    if abs(width * size[0] / (height * size[1]) - 1) > _ASPECT:
        raise DataError(
            f"{images.depth}: depth of {width} × {height}; expected the aspect ratio of {size[1]} × {size[0]}"
        )
    if images.mask is not None:
        person = sampled(read_mask(images.mask, size), (height, width))
        depth = encoded_integer_depth(np.where(person, millimetres, np.uint16(BACKGROUND)))
        millimetres = millimetres * person
    _require_in_the_middle(millimetres, str(images.depth))
    return color, depth


def _require_in_the_middle(depth: npt.NDArray[Any], where: str) -> None:
    """Raise DataError, which names `where`, if the square that training uses holds no depth above 0."""
    height, width = depth.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if not depth[top : top + side, left : left + side].any():
        raise DataError(f"{where}: expected depth in the middle of the image, found none that is kept")


def _read_depth(path: Path) -> npt.NDArray[np.uint16]:
    """Read 16-bit depth. Raises DataError."""
    return depth_files.decode(integer_depth_file(path).content, limits=LIMITS).astype(np.uint16)
