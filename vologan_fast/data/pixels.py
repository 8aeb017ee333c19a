"""The definition of one RGB-D image from its two files, in readable NumPy and Pillow.

The native loader (csrc/batch, csrc/depth/pixels.h) gives the same bits. The DALI operators give the same bits too,
with two exceptions:

- Resized colour may differ by 1/255. Pillow rounds to 8 bits between its two passes, and DALI only at the end. Both
  results are within one level of the exact value, and so they are within one level of each other once rounded.
- 16-bit colour may differ by 1/255. Pillow keeps the high byte, and DALI rounds.

Geometry: the rectangle in the centre of the colour image that has the aspect ratio of H × W (`crop_shape`) is resized
to H × W by an antialiased triangle filter, which repeats the border. Depth is taken from the same rectangle by nearest
neighbour. A mean of measured and missing depth, or a mean
across an edge, would be a surface that does not exist. EXIF orientation is not applied, because depth files have none.
An EXR may hold more or fewer pixels than its picture; `find_frame` finds those that show what the colour shows.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vologan_fast import depth as depth_files
from vologan_fast.config import CHANNELS, Channels, DataConfig, DepthSpec, Size, height_and_width
from vologan_fast.data.damage import PNG, find_jpeg_damage, find_png_damage
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

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `Limits.pixels` is the limit here

ABSURD = 1e20
"""No depth in any unit is as large as this. A file with such a value, which is not said to mean background or "not
measured", is broken."""
MOST_PIXELS = 1 << 27
"""The largest value of `data.max_pixels`. Pillow refuses images that are a third larger."""

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


class Limits(NamedTuple):
    """What a file of colour or depth may hold."""

    pixels: int = DataConfig.max_pixels
    """Most pixels of an image."""
    nan: float = math.inf
    """A depth file is refused if this fraction of its values, or more, is not finite, or if one is ABSURD. Above 1: no
    depth file is refused for its values."""

    @staticmethod
    def of(config: DataConfig) -> Limits:
        return Limits(config.max_pixels, config.max_nan if config.on_error == "skip" else math.inf)


DEFAULT = Limits()


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


NO_DEPTH = DepthRule(1.0, 0.0, math.nan, math.nan, ())
"""A rule for native code where no depth is read."""


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


class Frame(NamedTuple):
    """The pixels of a depth file that show the same field of view as the colour image: a rectangle.

    `top` and `left` are counted from the first pixel of the decoded depth. The frame may reach beyond the decoded
    depth. There, depth is missing.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0

    def crop(self, depth: Floats) -> Floats:
        """Return the decoded depth (h, w) inside the frame, as a view. It is empty if none lies inside."""
        rows = slice(max(self.top, 0), max(self.top + self.height, 0))
        columns = slice(max(self.left, 0), max(self.left + self.width, 0))
        return depth[rows, columns]


def crop_shape(shape: tuple[int, ...], size: Size) -> tuple[int, int]:
    """Return (height, width) of the largest rectangle in an image of shape (H, W, …) with the aspect ratio of `size`.

    The side that is cut is rounded to whole pixels, half up. The rectangle lies in the centre of the image.
    """
    height, width = shape[:2]
    h, w = height_and_width(size)

    def rounded(product: int, by: int) -> int:
        return max((2 * product + by) // (2 * by), 1)

    return (height, rounded(height * w, h)) if width * h > height * w else (rounded(width * h, w), width)


def crop_depth(depth: Floats, color_shape: tuple[int, ...], size: Size, frame: Frame | None = None) -> Floats:
    """Resample depth (h, w) to the centre of a colour image of shape (H, W, …), by nearest neighbour.

    `crop_shape` gives the rectangle in the centre. Without a frame, all of the depth lies under the colour image.
    Returns depth of `size`, with NaN outside of the depth.
    """
    whole = Frame(*depth.shape)
    frame = frame or whole
    height, width = color_shape[:2]
    h, w = height_and_width(size)
    crop = crop_shape(color_shape, size)
    if frame == whole and depth.shape == (h, w) and crop == (height, width):
        return depth
    rows = frame.top + depth_indices(h, crop[0], height, frame.height)
    columns = frame.left + depth_indices(w, crop[1], width, frame.width)
    if frame == whole:
        return depth[rows[:, None], columns]
    there = ((rows >= 0) & (rows < depth.shape[0]))[:, None] & (columns >= 0) & (columns < depth.shape[1])
    cropped = depth[rows.clip(0, depth.shape[0] - 1)[:, None], columns.clip(0, depth.shape[1] - 1)]
    cropped[~there] = np.nan
    return cropped


def crop_color(color: Bytes, size: Size) -> Bytes:
    """Return the centre of colour (H, W, 3), resized to `size`: (h, w, 3). `crop_shape` gives the rectangle.

    Colour that has this size already is returned unchanged.
    """
    height, width = color.shape[:2]
    h, w = height_and_width(size)
    if (height, width) == (h, w):
        return color
    high, wide = crop_shape(color.shape, size)
    # the reach of the filter; the border is repeated there, as in DALI
    above, beside = math.ceil(high / h) + 1, math.ceil(wide / w) + 1
    padded = np.pad(color, ((above, above), (beside, beside), (0, 0)), mode="edge")
    top, left = above + (height - high) / 2, beside + (width - wide) / 2
    image = Image.fromarray(padded)
    # Resize across, then down. In one call, Pillow 13 and newer may take either first, and each pass rounds to 8 bits.
    across = (left, 0, left + wide, image.height)
    image = image.resize((w, image.height), Image.Resampling.BILINEAR, box=across)
    return np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=(0, top, w, top + high)))


def pack(color: Bytes | None, depth: Floats | None, draw: Draw | None, out: Floats) -> None:
    """Flip, shift, scale and join colour (H, W, 3) and normalised depth (H, W) into `out`, (H, W, channels) in [0, 1].

    One of the two may be None. Then `out` has no channel for it. If `out` has one channel for colour, it becomes grey.
    Without `draw` there is no flip and no shift. Without depth, there is no background.
    """
    height, width, channels = out.shape
    top, left = (draw.top, draw.left) if draw else (0, 0)
    step = -1 if draw and draw.flip else 1
    out[height - top :] = 0
    out[:, width - left :] = 0
    inside = out[: height - top, : width - left]
    seen: Any = 1
    if depth is not None:
        depth = depth[:, ::step][top:, left:]
        seen = (depth != BACKGROUND)[..., None]
        np.maximum(depth, 0, out=inside[..., -1])
    if color is not None:
        shown = channels - (depth is not None)
        color = (grey(color)[..., None] if shown == 1 else color)[:, ::step][top:, left:]
        np.divide(color * seen, np.float32(255), out=inside[..., :shown], dtype=np.float32)


def grey(color: Bytes) -> Bytes:
    """Return the luma (H, W) of colour (H, W, 3), by Rec. 601 in the arithmetic of Pillow's mode "L".

    It is (0.299 R + 0.587 G + 0.114 B), with weights of 16 bits after the point, rounded half up.
    """
    red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).astype(np.uint8)


def read_color(source: Source, limits: Limits = DEFAULT) -> Bytes:
    """Read a JPEG or PNG as 8-bit RGB (H, W, 3). Raises DataError.

    Grey, palette and CMYK images are converted. Alpha is dropped. 16-bit values are rounded down to 8 bits.
    """
    with open_color(source, limits=limits) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert() would clip
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_color_shape(source: Source, limits: Limits = DEFAULT, data: bytes | None = None) -> tuple[int, int]:
    """Return the size (H, W) of a JPEG or PNG, from its header. `data` is as in `open_color`. Raises DataError."""
    with open_color(source, header=True, limits=limits, data=data) as image:
        return image.height, image.width


@contextmanager
def open_color(
    source: Source, header: bool = False, limits: Limits = DEFAULT, data: bytes | None = None
) -> Iterator[Image.Image]:
    """Open a JPEG or PNG. An error then or while the image is used becomes a DataError, which names the file.

    `data` is the content of the file, if it was read before.

    The pixels are loaded, unless only the `header` will be used. A file that ends early is then refused, also where
    Pillow would read it. So is an image of too many pixels, before any of them is decoded.
    A JPEG of CMYK without Adobe's marker is refused. Nothing says whether 0 is no ink or all ink there, and libraries
    differ.
    """
    data = read(source) if data is None else data
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            check_pixels(source, image.width, image.height, limits)
            if image.mode == "CMYK" and "adobe" not in image.info:
                raise DataError(
                    f"{source}: a CMYK JPEG without Adobe's marker, which readers disagree about; expected RGB"
                )
            if not header:
                image.load()
                is_png = image.format == "PNG"
                found = find_png_damage(data, _ends_black(image)) if is_png else find_jpeg_damage(data)
                if found:
                    raise DataError(f"{source}: the colour image cannot be decoded: {found}")
            yield image
    except UnidentifiedImageError:
        if data.startswith((b"\xff\xd8\xff", PNG)):
            reason = "its headers are broken, or it is of a rare kind, such as a JPEG of 12 bits"
            raise DataError(f"{source}: the colour image cannot be decoded: {reason}") from None
        raise DataError(f"{source}: not a JPEG or PNG image") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source}: the colour image cannot be decoded: {error}") from None


def check_pixels(source: Source | str, width: int, height: int, limits: Limits) -> None:
    """Raise DataError, which names the file, if an image has too many pixels."""
    if width * height > limits.pixels:
        raise DataError(
            f"{source}: an image of {width} × {height} pixels; expected at most {limits.pixels} pixels "
            "(--data.max-pixels)"
        )


def _ends_black(image: Image.Image) -> bool:
    return not any(image.crop((0, image.height - 1, image.width, image.height)).tobytes())


def read_depth(source: Source, channel: str | None, limits: Limits = DEFAULT) -> tuple[depth_files.Info, Floats]:
    """Read depth (h, w) in the file's own units, with the description of the file. Raises DataError."""
    data = read(source)
    return _describe(source, data, channel, limits), _decode(source, data, channel, limits)


def probe_depth(source: Source, channel: str | None, limits: Limits = DEFAULT) -> depth_files.Info:
    """Return the description of a depth file from its headers. Raises DataError, also if no channel can be chosen."""
    return _describe(source, read(source), channel, limits)


def check_plausible(source: Source, depth: Floats, spec: DepthSpec, limits: Limits) -> None:
    """Raise DataError, which names the file, if its values break the limits.

    Values that the spec calls background or "not measured" do not count.
    """
    if limits.nan > 1:
        return
    with np.errstate(invalid="ignore"):
        odd = ~(np.abs(depth) < np.float32(ABSURD))
    for value in (*(spec.invalid or ()), *(() if spec.background is None else (spec.background,))):
        odd &= depth != np.float32(value)
    finite = odd & np.isfinite(depth)
    if finite.any():
        raise DataError(f"{source}: depth of {depth[finite][0]:g}; expected less than {ABSURD:g}")
    if np.count_nonzero(odd) >= limits.nan * depth.size:
        share = np.count_nonzero(odd) / depth.size
        raise DataError(f"{source}: {share:.0%} of the depth is NaN or infinite; expected less than {limits.nan:.0%}")


def _decode(source: Source, data: bytes, channel: str | None, limits: Limits) -> Floats:
    try:
        return depth_files.decode(data, channel, name=str(source), limits=_for_decoder(limits))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None


def _for_decoder(limits: Limits) -> depth_files.Limits:
    return depth_files.Limits(max_pixels=limits.pixels)


def _describe(source: Source, data: bytes, channel: str | None, limits: Limits) -> depth_files.Info:
    try:
        info = depth_files.probe(data, channel, name=str(source), limits=_for_decoder(limits))
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None
    if info.channel is None:
        raise DataError(f"{source}: channels: {info.why}")
    return info


def depth_type(info: depth_files.Info) -> str:
    """Return the NumPy name of the type of the chosen channel's samples, such as "float16"."""
    assert info.channel is not None  # probe_depth and read_depth raise an error instead
    return info.channel.dtype


_TYPES = {"float": 1, "integer": 2, "8-bit": 2 + 4, "auto": 1 + 2 + 4}
"""For each setting `values`, a sum: 1 for floats, 2 for integers of more than 8 bits, 4 for integers of 8 bits."""


def accepted_types(spec: DepthSpec) -> int:
    """Return the types of values that files of the domain may hold, as native code takes them (`_TYPES`)."""
    return _TYPES[spec.values]


def check_type(source: Source, info: depth_files.Info, spec: DepthSpec) -> None:
    """Raise DataError, which names the file, if its type is not one of `spec.values`.

    A unit and a value for "not measured" belong to a type. In a file of another type they would be wrong.
    """
    found = depth_type(info)
    kind = 1 if "int" not in found else 4 if found in ("uint8", "int8") else 2
    if not accepted_types(spec) & kind:
        others = {"float": "floats", "integer": "integers of more than 8 bits", "8-bit": "integers"}[spec.values]
        raise DataError(f"{source}: {found} depth in a domain whose other files hold {others}; expected one kind")


def find_frame(source: Source, info: depth_files.Info, color_shape: tuple[int, ...]) -> Frame:
    """Return the frame of a depth file under a colour image of shape (H, W, …).

    It is the display window or the data window of the file, in this order: the one with the colour's size, else the one
    with its aspect ratio, within ASPECT_TOLERANCE. Images of the same aspect ratio are assumed to show the same field
    of view. This is in doubt if the display window lacks the colour's size, and is smaller than a quarter of the data
    window. Some programs leave a library's default there, such as 64 × 64. Raises DataError, which names the file and
    its windows, in doubt, if neither window fits, or if the frame holds no pixel.
    """
    height, width = color_shape[:2]
    (x, y, x_last, y_last), (left, top, right, bottom) = info.data_window, info.display_window
    whole = Frame(y_last - y + 1, x_last - x + 1)
    placed = Frame(bottom - top + 1, right - left + 1, top - y, left - x)
    windows = (
        f"its data window is {_in_words(info.data_window)} and its display window {_in_words(info.display_window)}"
    )

    def has_aspect(frame: Frame) -> bool:
        across, along = frame.width * height, frame.height * width
        return abs(across - along) <= ASPECT_TOLERANCE * max(across, along)

    fitting = [frame for frame in (placed, whole) if (frame.height, frame.width) == (height, width)]
    inside = placed.height <= whole.height and placed.width <= whole.width
    small = inside and 4 * placed.height * placed.width < whole.height * whole.width
    if not fitting and small and has_aspect(placed):
        raise DataError(
            f"{source}: depth of {whole.width} × {whole.height} pixels does not fit the colour of {width} × {height}; "
            f"{windows}, less than a quarter of it; expected colour with the size of one of them"
        )
    fitting = fitting or [frame for frame in (placed, whole) if has_aspect(frame)]
    if fitting and fitting[0] == placed and not (x <= right and left <= x_last and y <= bottom and top <= y_last):
        raise DataError(f"{source}: no valid depth; {windows}; expected windows that overlap")
    if fitting:
        return fitting[0]
    sizes = f"depth of {whole.width} × {whole.height} pixels does not fit the colour of {width} × {height}"
    if placed == whole:
        raise DataError(f"{source}: {sizes}; expected the same aspect ratio")
    raise DataError(f"{source}: {sizes}; {windows}; expected colour with the size or the aspect ratio of one of them")


def picture_shape(info: depth_files.Info) -> tuple[int, int]:
    """Return (height, width) of the picture that a depth file shows, for depth without a colour image.

    It is the display window of an EXR, unless this is smaller than a quarter of the data window, as in `find_frame`.
    """
    left, top, right, bottom = info.display_window
    height, width = bottom - top + 1, right - left + 1
    inside = height <= info.height and width <= info.width
    doubtful = inside and 4 * height * width < info.height * info.width
    return (info.height, info.width) if doubtful else (height, width)


def _in_words(window: tuple[int, int, int, int]) -> str:
    x, y, x_last, y_last = window
    return f"{x_last - x + 1} × {y_last - y + 1} pixels from column {x} and row {y} on"


def read_cropped(
    record: Record,
    spec: DepthSpec,
    size: Size,
    channels: Channels = CHANNELS["rgbd"],
    limits: Limits = DEFAULT,
) -> tuple[Bytes | None, Floats | None]:
    """Read colour (H, W, 3) and normalised depth (H, W) of one record at a size. Raises DataError.

    A file that the channels do not need is not read, and None is returned for it.
    """
    color = read_color(record.color, limits) if channels.color else None
    normalized = None
    if channels.depth:
        depth = read_cropped_depth(record, spec, size, None if color is None else color.shape, limits)
        normalized = normalize_depth(depth, DepthRule.of(spec))
        check_valid(record.depth, normalized)
    return None if color is None else crop_color(color, size), normalized


def read_cropped_depth(
    record: Record, spec: DepthSpec, size: Size, color_shape: tuple[int, ...] | None, limits: Limits = DEFAULT
) -> Floats:
    """Read depth of `size` in the file's own units. Raises DataError.

    `color_shape` is the shape (H, W, …) of the record's colour file. It places the rectangle that is read. None: the
    depth is read without colour, and the picture that its file shows takes the place of the colour.
    """
    info, depth = read_depth(record.depth, spec.channel, limits)
    check_plausible(record.depth, depth, spec, limits)
    check_type(record.depth, info, spec)
    color_shape = color_shape or picture_shape(info)
    return crop_depth(depth, color_shape, size, find_frame(record.depth, info, color_shape))


def check_valid(source: Source, normalized: Floats) -> None:
    """Raise DataError, which names the depth file, if no normalised depth is valid."""
    if not (normalized > 0).any():
        raise DataError(f"{source}: no valid depth; all of it is missing or background")
