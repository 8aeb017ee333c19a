"""One RGB-D image in the units of its files: into the network's range, through the network, and back.

The geometry of a file is kept. Colour and depth may differ in size; the network sees both at the larger one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vologan_fast import _batch
from vologan_fast.config import DepthSpec, require_rgbd
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import (
    ASPECT_TOLERANCE,
    BACKGROUND,
    MISSING,
    NEAREST,
    Bytes,
    DepthRule,
    Floats,
    is_normalized,
    metres_per_unit,
    normalize_depth,
)
from vologan_fast.translation.translator import Translator

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """One image on its way through the network."""

    color: Bytes
    """(H, W, 3)."""
    depth: Values
    """(h, w), in the units of its file."""
    kind: np.dtype[Any]
    """The type of the file's depth."""
    normalized: Floats
    """(h, w): the depth as training sees it."""
    image: Tensor
    """(4, H, W) float32 in [0, 1], at the larger of the two sizes."""


def translate_image(model: Translator, color: Bytes, depth: Values) -> tuple[Bytes, Values]:
    """Translate one image. Returns colour (H, W, 3) uint8, and depth (h, w) in its own type and units.

    `color` is (H, W, 3) uint8. `depth` is (h, w) of any integer or float type, in the units of the files that the model
    was trained on (`model.source`). It may have another size than the colour, with the same aspect ratio.

    Background keeps its colour and depth. Where the translation has no depth, the result is missing: it keeps the
    file's own missing value, or takes the one of `model.source`. A value beyond near or far keeps its value, if the
    network leaves it at this end of its range.

    Raises ValueError for other shapes and types, if the aspect ratios differ, and where `restore` raises DataError.
    Raises ConfigError for a model of other channels than RGB-D.
    """
    require_rgbd(model.data, "translate_image")
    if color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8:
        raise ValueError(f"color: expected (H, W, 3) uint8, found {color.shape} {color.dtype}")
    if depth.ndim != 2 or depth.dtype.kind not in "iuf":
        raise ValueError(f"depth: expected (h, w) of integers or floats, found {depth.shape} {depth.dtype}")
    (h, w), (height, width) = depth.shape, color.shape[:2]
    if abs(width * h - w * height) > ASPECT_TOLERANCE * max(width * h, w * height):
        raise ValueError(f"depth: expected the aspect ratio of the colour, {width} × {height}; found {w} × {h}")
    prepared = prepare(color, depth, model.source)
    device = next(model.generator.parameters()).device
    with torch.inference_mode():
        y = model(prepared.image[None].to(device))[0].cpu()
    restored, restored_depth = restore(y, prepared, model.source)
    return np.ascontiguousarray(restored[..., :3]), restored_depth


def prepare(color: Bytes, depth: Values, spec: DepthSpec, kind: npt.DTypeLike | None = None) -> Prepared:
    """Make the network's image of a colour and a depth image, which show the same field of view.

    `kind` is the type of the file's depth, if `depth` has another one that holds the same values.
    """
    color = np.ascontiguousarray(color)
    normalized = np.array(depth, np.float32, order="C")  # a copy, which is then normalised in place
    _batch.normalize(normalized, *DepthRule.of(spec))
    height, width = max(color.shape[:2], depth.shape, key=lambda shape: shape[0] * shape[1])
    image = np.empty((4, height, width), np.float32)
    _batch.split(_resized(color, height, width), _at_size(normalized, height, width), image)
    return Prepared(color, depth, np.dtype(kind or depth.dtype), normalized, torch.from_numpy(image))


def restore(y: Tensor, prepared: Prepared, spec: DepthSpec) -> tuple[Bytes, Values]:
    """Return colour and depth of a translation (4, H, W), in the sizes, the type and the units of the input.

    The colour has 3 or 4 bytes a pixel, R, G, B and one that has no meaning. `write_color` takes both.

    Raises DataError if y is not finite, and if a hole cannot be written (see `restore_depth`).
    """
    planes, before = np.ascontiguousarray(y.numpy()), prepared.color
    height, width = before.shape[:2]
    background = _at_size(prepared.normalized, height, width)
    same_size = planes.shape[1:] == (height, width)
    color = np.empty((height, width, 4), np.uint8)
    # The values are in [0, 1], so only NaN or an infinity gives a sum that is not finite.
    finite = _batch.join(planes, before, background, color) if same_size else math.isfinite(planes.sum())
    if not finite:
        raise DataError("the network gave values that are not finite; expected values from 0 to 1")
    if not same_size:
        levels = (planes[:3] * np.float32(255) + np.float32(0.5)).astype(np.uint8)  # y is in [0, 1]
        levels = _resized(levels.transpose(1, 2, 0), height, width)
        color = np.where(background[..., None] == BACKGROUND, before, levels)
    z = np.ascontiguousarray(_at_size(planes[3], *prepared.depth.shape))
    return color, restore_depth(z, prepared.depth, prepared.normalized, spec, prepared.kind)


def _resized(color: Bytes, height: int, width: int) -> Bytes:
    """Return colour (H, W, 3) at another size, by Pillow's triangle filter."""
    if color.shape[:2] == (height, width):
        return color
    image = Image.fromarray(np.ascontiguousarray(color))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def restore_depth(
    z: npt.ArrayLike, depth: Values, before: npt.ArrayLike, spec: DepthSpec, kind: npt.DTypeLike | None = None
) -> Values:
    """Return normalised depth z (h, w) in file units.

    `depth` is the depth that came in, in file units, and `before` the same normalised. The result has the type `kind`,
    or the type of `depth`. A hole of z is missing. Background keeps its value, and so does missing depth or an end of
    the range that has not changed, because different file values become one of these.

    Raises DataError if there are holes, and no value of the type means missing.
    """
    assert spec.near is not None and spec.far is not None  # a resolved spec
    z, before, kind = np.asarray(z), np.asarray(before), np.dtype(kind or depth.dtype)
    unit = metres_per_unit(spec)
    gain, offset = float(np.float32((spec.far - spec.near) / unit)), float(np.float32(spec.near / unit))
    value = missing_value(kind, spec, depth)
    if kind.kind in "iu" and math.isnan(value):
        if ((z < NEAREST / 2) & (before != BACKGROUND) & ((before != MISSING) | np.isnan(depth))).any():
            raise DataError(
                f"no value of {kind} depth means missing, but the translation has holes; expected one in "
                "--data.DOMAIN.invalid, with which the run was trained"
            )
        value = 0.0  # is not used
    missing = _cast(np.array([value], np.float32), kind)
    restored = np.empty(z.shape, kind)
    beyond_halves = kind == np.float16 and max(abs(offset), abs(gain + offset)) > float(np.finfo(np.float16).max)
    if kind in (np.float32, np.float16, np.uint16) and not beyond_halves:
        file = depth.astype(np.float32, copy=False)
        _batch.restore(z, file, before, gain, offset, missing, _codes(kind, spec), restored)
    else:
        restore_plainly(z, depth, before, gain, offset, missing, _codes(kind, spec), restored)
    return restored


def restore_plainly(
    z: Floats,
    file: Values,
    before: Floats,
    gain: float,
    offset: float,
    missing: Values,
    codes: Values,
    restored: Values,
) -> None:
    """Fill `restored` (h, w) with translated depth z in file units: the definition of FileRule, for all types.

    csrc/batch/translated_rows.h explains the arguments, and gives the same bits for float32, float16 and uint16. Only
    results beyond the range of float16 are infinite there, and the largest finite value here.
    """
    restored[:] = _round(z * np.float32(gain) + np.float32(offset), restored.dtype)
    for code, beside in codes:
        restored[restored == code] = beside
    hole = z < NEAREST / 2
    restored[hole] = missing
    now = np.where(hole, MISSING, z.clip(NEAREST, 1))
    many = (before == MISSING) | (before == NEAREST) | (before == 1)
    kept = (before == BACKGROUND) | (many & (now == before))
    restored[kept] = _cast(file[kept], restored.dtype)


def _round(values: Floats, kind: np.dtype[Any]) -> Values:
    """Return the nearest finite values of a type."""
    if kind.kind == "f" and kind.itemsize == 2:
        info = np.finfo(np.float16)
        values = values.clip(info.min, info.max)
    return _cast(values, kind)


def _cast(values: Values, kind: np.dtype[Any]) -> Values:
    """Return file values in the type of the file. Floats that are out of the range of an integer become its end.

    The largest integer of 32 or 64 bits is read as a float32 above it, so this returns it.
    """
    if kind.kind == "f" or values.dtype == kind:
        with np.errstate(over="ignore"):
            return values.astype(kind)
    info = np.iinfo(kind)
    values = np.rint(values.astype(np.float64))
    most = float(info.max)
    most = most if int(most) <= info.max else math.nextafter(most, 0)
    whole = values.clip(info.min, most).astype(kind)
    whole[values > most] = info.max
    return whole


@functools.lru_cache
def _codes(kind: np.dtype[Any], spec: DepthSpec) -> Values:
    """Return the values of a type that mean missing or background, each with a value beside it: (n, 2).

    A translated depth must not be such a code. If it is, it becomes the value beside it, for one code after the other.
    The value beside is farther away; at the end of the type it is nearer. The values beside differ as float32 too,
    because depth is read so.
    """
    values = [*(spec.invalid or ()), *([] if spec.background is None else [spec.background])]
    values += [] if is_normalized(spec) else [0.0]
    codes = sorted({float(np.float32(value)) for value in values if math.isfinite(value)})
    codes = [code for code in codes if _holds(kind, code)]
    if kind.kind == "f":
        step = np.float16 if kind.itemsize == 2 else np.float32
        codes += [-code for code in codes if code == 0]  # -0, which has other bits
        most = float(np.finfo(step).max)
        up = [(code, np.nextafter(step(code), step(np.inf))) for code in codes if code < most]
        down = [(code, np.nextafter(step(code), step(-np.inf))) for code in reversed(codes) if code > -most]
        farther, nearer, end = (up, down, most) if metres_per_unit(spec) > 0 else (down, up, -most)
        return np.array(farther + (nearer if end in codes else []), kind).reshape(-1, 2)
    least, most = (float(np.float32(end)) for end in (np.iinfo(kind).min, np.iinfo(kind).max))
    near = np.array(codes, np.float32)
    above = np.ceil(np.nextafter(near, np.float32(np.inf)))
    below = np.floor(np.nextafter(near, np.float32(-np.inf)))
    up = [(code, max(code + 1, value)) for code, value in zip(codes, above, strict=True) if code < most]
    down = [(code, min(code - 1, value)) for code, value in zip(codes, below, strict=True) if code > least][::-1]
    pairs = up + down if metres_per_unit(spec) > 0 else down + up
    return _cast(np.array(pairs, np.float64), kind).reshape(-1, 2)


def _holds(kind: np.dtype[Any], value: float) -> bool:
    """Return whether a type can hold a value such that it is read as the same float32."""
    exact = np.array([value], np.float32)
    if kind.kind != "f" and not np.isfinite(exact).all():
        return False
    return np.array_equal(_cast(exact, kind).astype(np.float32), exact, equal_nan=True)


def _at_size(image: Values, height: int, width: int) -> Values:
    """Return (height, width) pixels of an image (h, w): for each pixel, the one at its centre."""
    if image.shape == (height, width):
        return image
    rows, columns = (_under(size, length) for size, length in zip((height, width), image.shape, strict=True))
    return image[rows[:, None], columns]


def _under(size: int, length: int) -> npt.NDArray[np.int64]:
    """Return, for each of `size` pixels along a side, the index of the pixel at its centre among `length` pixels."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


def missing_value(kind: np.dtype[Any], spec: DepthSpec, depth: Values) -> float:
    """Return the file value for "not measured". NaN if an integer type has none.

    It is the first of these values that the type can hold and that is read as missing: the values of `spec.invalid`,
    NaN if the depth is normalised or if the file's own depth has NaN in it, 0, and NaN.
    """
    has_nan = is_normalized(spec) or (kind.kind == "f" and bool(np.isnan(depth).any()))
    return _missing_value(kind, spec, has_nan)


@functools.lru_cache
def _missing_value(kind: np.dtype[Any], spec: DepthSpec, has_nan: bool) -> float:
    candidates = [*(spec.invalid or ()), *([math.nan] if has_nan else []), 0.0]
    for value in candidates:
        read = normalize_depth(np.array([value], np.float32), DepthRule.of(spec))
        if read[0] == MISSING and _holds(kind, value):
            return value
    return math.nan
