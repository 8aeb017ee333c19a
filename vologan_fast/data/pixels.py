"""The definition of one RGB-D image from its two files, in readable NumPy and Pillow.

The native loader (csrc/batch, csrc/depth/pixels.h) gives the same bits. The DALI operators give the same bits too,
with two exceptions:

- Resized colour may differ by 1/255. Pillow rounds to 8 bits between its two passes, and DALI only at the end. Both
  results are within one level of the exact value, and so they are within one level of each other once rounded.
- 16-bit colour may differ by 1/255. Pillow keeps the high byte, and DALI rounds.

Geometry: the centre square of the colour image is resized to S × S by an antialiased triangle filter, which repeats
the border. Depth is taken from the same square by nearest neighbour. A mean of measured and missing depth, or a mean
across an edge, would be a surface that does not exist. EXIF orientation is not applied, because depth files have none.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vologan_fast import depth as depth_files
from vologan_fast.config import DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Record, Source, read
from vologan_fast.data.sampling import Draw

MISSING = 0.0
"""The normalised depth of a pixel that was not measured. Its colour is kept."""
BACKGROUND = -1.0
"""The normalised depth of a background pixel. `pack` sets both its depth and its colour to 0."""
NEAREST = 1 / 1024
"""The least valid normalised depth. It is above 0, so that near is never mistaken for missing."""

ASPECT_TOLERANCE = 0.02
"""The largest relative difference between the aspect ratios of colour and depth.

Small depth images need this tolerance, because their sizes are rounded to whole pixels.
"""

_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "normalized": 1.0}

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def is_normalized(spec: DepthSpec) -> bool:
    """Return whether the spec means normalised depth, not metres. Its unit must not be `auto`."""
    return spec.unit == "normalized" and spec.scale is None


def metres_per_unit(spec: DepthSpec) -> float:
    """Return the metres per file unit of a spec. `normalized` counts as metres.

    The unit must not be `auto`, unless the scale is set.
    """
    return spec.scale if spec.scale is not None else _METRES[spec.unit]


class DepthRule(NamedTuple):
    """The arithmetic of a resolved DepthSpec: valid d becomes clamp(d · gain + offset, NEAREST, 1), in float32.

    The fields have the order of the native code's arguments.
    """

    gain: float
    offset: float
    background: float
    """The file value of background. NaN if there is none."""
    floor: float
    """0 in a metric unit: a value with d · gain ≤ 0 is missing, because no camera measures a distance of 0 or less.
    NaN for normalised depth, where any value can be depth."""
    invalid: tuple[float, ...]
    """The other file values that mean "not measured"."""

    @staticmethod
    def of(spec: DepthSpec) -> DepthRule:
        assert spec.near is not None and spec.far is not None and spec.invalid is not None  # resolved
        span = spec.far - spec.near
        return DepthRule(
            gain=float(np.float32(metres_per_unit(spec) / span)),
            offset=float(np.float32(-spec.near / span)),
            background=float(np.float32(math.nan if spec.background is None else spec.background)),
            floor=math.nan if is_normalized(spec) else 0.0,
            invalid=tuple(float(np.float32(value)) for value in spec.invalid),
        )


def normalize_depth(depth: Floats, rule: DepthRule) -> Floats:
    """Convert file values to normalised depth: MISSING, BACKGROUND or a value in [NEAREST, 1].

    The background value of the rule has priority: it stays background even if it is infinite, negative or also invalid.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = depth * np.float32(rule.gain)
        normalized = np.clip(scaled + np.float32(rule.offset), np.float32(NEAREST), np.float32(1))
    normalized[~np.isfinite(depth) | (scaled <= np.float32(rule.floor))] = MISSING
    for value in rule.invalid:
        normalized[depth == np.float32(value)] = MISSING
    normalized[depth == np.float32(rule.background)] = BACKGROUND
    return normalized


def depth_indices(size: int, side: int, color_length: int, depth_length: int) -> npt.NDArray[np.int64]:
    """Return the index of the depth pixel for each of `size` output pixels along one axis: (size,).

    The index is floor((i + 0.5) · scale + offset). It is computed in integers, so that all platforms give the same
    index. The output shows the middle `side` of the colour's `color_length` pixels. Depth has `depth_length` pixels
    along the same field of view as the whole colour image.
    """
    i = np.arange(size, dtype=np.int64)
    return ((2 * i + 1) * side + (color_length - side) * size) * depth_length // (2 * color_length * size)


def square_depth(depth: Floats, color_shape: tuple[int, ...], size: int) -> Floats:
    """Resample depth (h, w) to the centre square of a colour image of shape (H, W, …), by nearest neighbour.

    Returns (size, size).
    """
    height, width = color_shape[:2]
    if depth.shape == (size, size) and height == width:
        return depth
    side = min(height, width)
    rows = depth_indices(size, side, height, depth.shape[0])
    columns = depth_indices(size, side, width, depth.shape[1])
    return depth[rows[:, None], columns]


def square_color(color: Bytes, size: int) -> Bytes:
    """Return the centre square of colour (H, W, 3), resized to (size, size, 3).

    Colour that has this size already is returned unchanged.
    """
    height, width = color.shape[:2]
    if height == width == size:
        return color
    side = min(height, width)
    margin = math.ceil(side / size) + 1  # the reach of the filter; the border is repeated there, as in DALI
    padded = np.pad(color, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top, left = margin + (height - side) / 2, margin + (width - side) / 2
    image = Image.fromarray(padded)
    # Resize across, then down. In one call, Pillow 13 and newer may take either first, and each pass rounds to 8 bits.
    across = (left, 0, left + side, image.height)
    image = image.resize((size, image.height), Image.Resampling.BILINEAR, box=across)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(0, top, size, top + side)))


def pack(color: Bytes, depth: Floats, draw: Draw | None, out: Floats) -> None:
    """Flip, shift, scale and join colour (H, W, 3) and normalised depth (H, W) into `out`, (H, W, 4) in [0, 1].

    Without `draw` there is no flip and no shift.
    """
    height, width = depth.shape
    top, left = (draw.top, draw.left) if draw else (0, 0)
    if draw and draw.flip:
        color, depth = color[:, ::-1], depth[:, ::-1]
    color, depth = color[top:, left:], depth[top:, left:]
    out[height - top :] = 0
    out[:, width - left :] = 0
    inside = out[: height - top, : width - left]
    seen = (depth != BACKGROUND)[..., None]
    np.divide(color * seen, np.float32(255), out=inside[..., :3], dtype=np.float32)
    np.maximum(depth, 0, out=inside[..., 3])


def read_color(source: Source, data: bytes | None = None) -> Bytes:
    """Read a JPEG or PNG as 8-bit RGB (H, W, 3). `data` are its bytes, if they were read before. Raises DataError.

    Grey, palette and CMYK images are converted. Alpha is dropped. 16-bit values are rounded down to 8 bits.
    """
    with open_color(source, data) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert() would clip
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_color_shape(source: Source) -> tuple[int, int]:
    """Return the size (H, W) of a JPEG or PNG, from its header. Raises DataError."""
    with open_color(source) as image:
        return image.height, image.width


@contextmanager
def open_color(source: Source, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open a JPEG or PNG. An error then or while the image is used becomes a DataError, which names the file."""
    if data is None:
        data = read(source)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            yield image
    except UnidentifiedImageError:
        raise DataError(f"{source}: not a JPEG or PNG image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source}: the colour image cannot be decoded: {error}") from None


def read_depth(source: Source, channel: str | None, data: bytes | None = None) -> Floats:
    """Read depth (h, w) in the file's own units. `data` are its bytes, if they were read before. Raises DataError."""
    try:
        return depth_files.decode(read(source) if data is None else data, channel, name=str(source))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None


def check_aspect(source: Source, depth_shape: tuple[int, ...], color_shape: tuple[int, ...]) -> None:
    """Raise DataError, which names the depth file, unless depth and colour have the same aspect ratio.

    Images of the same aspect ratio are assumed to show the same field of view. The tolerance is ASPECT_TOLERANCE.
    """
    (h, w), (height, width) = depth_shape[:2], color_shape[:2]
    if abs(width * h - w * height) > ASPECT_TOLERANCE * max(width * h, w * height):
        raise DataError(
            f"{source}: depth of {w} × {h} pixels does not fit the colour of {width} × {height}; "
            "expected the same aspect ratio"
        )


def probe_depth(source: Source, data: bytes | None = None) -> depth_files.Info:
    """Return the description of a depth file from its headers. `data` are its bytes, if they were read before.

    Raises DataError.
    """
    try:
        return depth_files.probe(read(source) if data is None else data, name=str(source))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None


def read_square(record: Record, spec: DepthSpec, size: int) -> tuple[Bytes, Floats]:
    """Read colour (S, S, 3) and normalised depth (S, S) of one record. Raises DataError."""
    color = read_color(record.color)
    depth = read_square_depth(record, spec, size, color.shape)
    normalized = normalize_depth(depth, DepthRule.of(spec))
    check_valid(record.depth, normalized)
    return square_color(color, size), normalized


def read_square_depth(record: Record, spec: DepthSpec, size: int, color_shape: tuple[int, ...]) -> Floats:
    """Read depth (S, S) in the file's own units. Raises DataError.

    `color_shape` is the shape (H, W, …) of the record's colour file. It places the square.
    """
    depth = read_depth(record.depth, spec.channel)
    check_aspect(record.depth, depth.shape, color_shape)
    return square_depth(depth, color_shape, size)


def check_valid(source: Source, normalized: Floats) -> None:
    """Raise DataError, which names the depth file, if no normalised depth is valid."""
    if not (normalized > 0).any():
        raise DataError(f"{source}: no valid depth; all of it is missing or background")
