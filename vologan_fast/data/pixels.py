"""From two files to one RGB-D image, in NumPy and Pillow: the readable definition.

The native loader (csrc/batch, csrc/depth/pixels.h) gives the same bits. So do the DALI operators, except that resized
colour may differ by 1/255 (Pillow rounds to 8 bits between its two passes, DALI only at the end: both are within one
level of the exact value, and so of each other once rounded) and 16-bit colour by 1/255 (Pillow keeps the high byte,
DALI rounds).

Geometry: the centre square of the colour image is resized to S × S by an antialiased triangle filter that
repeats the border; depth is taken from the same place by nearest neighbour, because a mean of measured and
missing depth, or across an edge, is a surface that does not exist. EXIF orientation is not applied: depth has
none.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vologan_fast import depth as depth_files
from vologan_fast.config import DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Record, Source, read
from vologan_fast.data.sampling import Draw

MISSING = 0.0
"""Normalised depth that was not measured: the colour stays."""
BACKGROUND = -1.0
"""Normalised depth where there is nothing, until `pack` makes it 0 together with the colour."""
NEAREST = 1 / 1024
"""The least valid normalised depth, so that near is never taken for missing."""

ASPECT_TOLERANCE = 0.02
"""How much the aspect ratios of colour and depth may differ: rounded sizes of small depth images need this
much."""

_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "normalized": 1.0}

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def metres_per_unit(spec: DepthSpec) -> float:
    """Of a spec whose unit is no longer `auto` or whose scale is set. `normalized` counts as metres."""
    return spec.scale if spec.scale is not None else _METRES[spec.unit]


@dataclass(frozen=True)
class DepthRule:
    """A resolved DepthSpec as arithmetic: valid d becomes clamp(d · gain + offset, NEAREST, 1), in
    float32."""

    gain: float
    offset: float
    background: float
    """NaN: none."""
    invalid: tuple[float, ...]

    @staticmethod
    def of(spec: DepthSpec) -> DepthRule:
        assert spec.near is not None and spec.far is not None and spec.invalid is not None  # resolved
        span = spec.far - spec.near
        return DepthRule(
            gain=float(np.float32(metres_per_unit(spec) / span)),
            offset=float(np.float32(-spec.near / span)),
            background=float(np.float32(math.nan if spec.background is None else spec.background)),
            invalid=tuple(float(np.float32(value)) for value in spec.invalid),
        )


def normalize_depth(depth: Floats, rule: DepthRule) -> Floats:
    """File values to MISSING, BACKGROUND or [NEAREST, 1]. What is named background is background even where
    it is infinite or also invalid."""
    with np.errstate(over="ignore", invalid="ignore"):
        normalized = depth * np.float32(rule.gain) + np.float32(rule.offset)
        np.clip(normalized, np.float32(NEAREST), np.float32(1), out=normalized)
    normalized[~np.isfinite(depth)] = MISSING
    for value in rule.invalid:
        normalized[depth == np.float32(value)] = MISSING
    normalized[depth == np.float32(rule.background)] = BACKGROUND
    return normalized


def depth_indices(size: int, side: int, color_length: int, depth_length: int) -> npt.NDArray[np.int64]:
    """The depth index under each of `size` output pixels along one axis: floor((i + 0.5) · scale + offset),
    computed in integers so that no platform rounds a pixel to another place.

    The square is the middle `side` of the colour's `color_length` pixels; depth has `depth_length` pixels
    along the same field of view.
    """
    i = np.arange(size, dtype=np.int64)
    return ((2 * i + 1) * side + (color_length - side) * size) * depth_length // (2 * color_length * size)


def square_depth(depth: Floats, color_shape: tuple[int, ...], size: int) -> Floats:
    """Depth (h, w) under the centre square of a colour image of shape (H, W, …), by nearest neighbour: (size,
    size)."""
    height, width = color_shape[:2]
    if depth.shape == (size, size) and height == width:
        return depth
    side = min(height, width)
    rows = depth_indices(size, side, height, depth.shape[0])
    columns = depth_indices(size, side, width, depth.shape[1])
    return depth[rows[:, None], columns]


def square_color(color: Bytes, size: int) -> Bytes:
    """Centre square of colour (H, W, 3), resized to (size, size, 3); as it is where it has that size
    already."""
    height, width = color.shape[:2]
    if height == width == size:
        return color
    side = min(height, width)
    margin = math.ceil(side / size) + 1  # the filter's reach: repeat the border there, as DALI does
    padded = np.pad(color, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top, left = margin + (height - side) / 2, margin + (width - side) / 2
    image = Image.fromarray(padded)
    # Across, then down: left to itself, Pillow from 13 on takes either first, and each rounds to 8 bits.
    across = (left, 0, left + side, image.height)
    image = image.resize((size, image.height), Image.Resampling.BILINEAR, box=across)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(0, top, size, top + side)))


def pack(color: Bytes, depth: Floats, draw: Draw | None, out: Floats) -> None:
    """Flip, shift, scale and join colour (S, S, 3) and normalised depth (S, S) into `out`, (S, S, 4) in [0,
    1]."""
    size = depth.shape[0]
    top, left = (draw.top, draw.left) if draw else (0, 0)
    if draw and draw.flip:
        color, depth = color[:, ::-1], depth[:, ::-1]
    color, depth = color[top:, left:], depth[top:, left:]
    out[size - top :] = 0
    out[:, size - left :] = 0
    inside = out[: size - top, : size - left]
    seen = (depth != BACKGROUND)[..., None]
    np.divide(color * seen, np.float32(255), out=inside[..., :3], dtype=np.float32)
    np.maximum(depth, 0, out=inside[..., 3])


def read_color(source: Source) -> Bytes:
    """8-bit RGB (H, W, 3) of a JPEG or PNG of any kind: grey, palette, CMYK, with alpha (dropped), 16-bit
    (rounded down).

    Raises DataError.
    """
    with open_color(source) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert() would clip
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_color_shape(source: Source) -> tuple[int, int]:
    """(H, W) of a JPEG or PNG, from its header. Raises DataError."""
    with open_color(source) as image:
        return image.height, image.width


@contextmanager
def open_color(source: Source) -> Iterator[Image.Image]:
    """Opens a JPEG or PNG; what goes wrong then or while it is read becomes a DataError."""
    data = read(source)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            yield image
    except UnidentifiedImageError:
        raise DataError(f"{source}: not a JPEG or PNG image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source}: the colour image cannot be decoded: {error}") from None


def read_depth(source: Source, channel: str | None) -> Floats:
    """Depth (h, w) in the file's own units. Raises DataError."""
    try:
        return depth_files.decode(read(source), channel, name=str(source))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None


def check_aspect(source: Source, depth_shape: tuple[int, ...], color_shape: tuple[int, ...]) -> None:
    """Raises DataError naming the depth file unless both images show the same field of view."""
    (h, w), (height, width) = depth_shape[:2], color_shape[:2]
    if abs(width * h - w * height) > ASPECT_TOLERANCE * max(width * h, w * height):
        raise DataError(
            f"{source}: depth of {w} × {h} pixels does not fit the colour of {width} × {height}; "
            "expected the same aspect ratio"
        )


def probe_depth(source: Source) -> depth_files.Info:
    """What the headers of a depth file say. Raises DataError."""
    try:
        return depth_files.probe(read(source), name=str(source))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None


def read_square(record: Record, spec: DepthSpec, size: int) -> tuple[Bytes, Floats]:
    """Colour (S, S, 3) and normalised depth (S, S) of one record. Raises DataError."""
    color = read_color(record.color)
    depth = read_square_depth(record, spec, size, color.shape)
    normalized = normalize_depth(depth, DepthRule.of(spec))
    check_valid(record.depth, normalized)
    return square_color(color, size), normalized


def read_square_depth(record: Record, spec: DepthSpec, size: int, color_shape: tuple[int, ...]) -> Floats:
    """Depth (S, S) in the file's own units, beside a colour file of shape (H, W, …). Raises DataError."""
    depth = read_depth(record.depth, spec.channel)
    check_aspect(record.depth, depth.shape, color_shape)
    return square_depth(depth, color_shape, size)


def check_valid(source: Source, normalized: Floats) -> None:
    """Raises DataError naming the depth file where no normalised depth is valid."""
    if not (normalized > 0).any():
        raise DataError(f"{source}: no valid depth; all of it is missing or background")
