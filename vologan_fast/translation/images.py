"""One image in the units of its files: into the network's range, through the network, and back.

The geometry of a file is kept. Colour and depth may differ in size; the network sees both at the larger one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vologan_fast import _batch
from vologan_fast.config import CHANNELS, DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import (
    ASPECT_TOLERANCE,
    BACKGROUND,
    MISSING,
    NEAREST,
    Bytes,
    DepthRule,
    Floats,
    grey,
    is_normalized,
    metres_per_unit,
    normalize_depth,
    pack,
)
from vologan_fast.translation.encoding import new_depth
from vologan_fast.translation.translator import Translator

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """One image on its way through the network. Colour, or depth, is None where the network does not read it."""

    color: Bytes | None
    """(H, W, 3)."""
    depth: Values | None
    """(h, w), in the units of its file."""
    kind: np.dtype[Any] | None
    """The type of the file's depth."""
    normalized: Floats | None
    """(h, w): the depth as training sees it."""
    image: Tensor
    """(C, H, W) float32 in [0, 1], at the larger of the two sizes."""


class Translated(NamedTuple):
    """One translated image. Colour, or depth, is None where the model does not make it."""

    color: Bytes | None
    """(H, W, 3), or (H, W) for grey: uint8."""
    depth: Values | None
    """(h, w), in file units."""


def translate_image(
    model: Translator, color: Bytes | None = None, depth: Values | None = None, *, seed: int = 0
) -> Translated:
    """Translate one image. Returns colour and depth, or None for the one that the model does not make.

    Pass what the model reads (`model.source_channels`). `color` is (H, W, 3) uint8. A model that reads grey makes it of
    the colour, as in training, and also takes (H, W). `depth` is (h, w) of any integer or float type, in the units of
    the files that the model was trained on (`model.source`). It may have another size than the colour, with the same
    aspect ratio.

    The result's colour has the size of the colour that came in; grey is (H, W). Its depth has the size, the type and
    the units of the depth that came in. Without such depth, it has the size of the colour, and the units of
    `model.output_depth`. It is float32 where the target's files hold floats. Else it is uint16, or int32 if uint16 does
    not hold near and far.

    Background keeps its colour and depth. Where the translation has no depth, the result is missing: it keeps the
    file's own missing value, or takes the one of `model.output_depth`. A value beyond near or far keeps its value, if
    the network leaves it at this end of its range.

    A model with noise draws one of its results. `seed` says which.

    Raises ValueError if an image is absent or superfluous, for other shapes and types, if the aspect ratios differ,
    and where `restore` raises DataError.
    """
    color, depth = _check_color(model, color), _check_depth(model, depth)
    if color is not None and depth is not None:
        (h, w), (height, width) = depth.shape, color.shape[:2]
        if abs(width * h - w * height) > ASPECT_TOLERANCE * max(width * h, w * height):
            raise ValueError(f"depth: expected the aspect ratio of the colour, {width} × {height}; found {w} × {h}")
    prepared = prepare(model, color, depth)
    device = next(model.generator.parameters()).device
    with torch.inference_mode():
        y = model(prepared.image[None].to(device), seed=seed)[0].cpu()
    restored = restore(model, y, prepared)
    if restored.color is not None and restored.color.ndim == 3:
        return restored._replace(color=np.ascontiguousarray(restored.color[..., :3]))
    return restored


def _check_color(model: Translator, color: Bytes | None) -> Bytes | None:
    """Return colour (H, W, 3), or None for a model that reads none. Raises ValueError."""
    reads = model.source_channels.color
    if not reads:
        if color is not None:
            raise ValueError("color: expected None, because the model reads depth alone")
        return None
    expected = f"color: expected (H, W, 3){' or (H, W)' if reads == 1 else ''} uint8, found"
    if color is None:
        raise ValueError(f"{expected} None")
    if color.dtype != np.uint8 or not (color.shape[2:] == (3,) or (reads == 1 and color.ndim == 2)):
        raise ValueError(f"{expected} {color.shape} {color.dtype}")
    return np.repeat(color[..., None], 3, 2) if color.ndim == 2 else color


def _check_depth(model: Translator, depth: Values | None) -> Values | None:
    """Return the depth, or None for a model that reads none. Raises ValueError."""
    if not model.source_channels.depth:
        if depth is not None:
            raise ValueError("depth: expected None, because the model reads colour alone")
        return None
    if depth is None:
        raise ValueError("depth: expected (h, w) of integers or floats, found None")
    if depth.ndim != 2 or depth.dtype.kind not in "iuf":
        raise ValueError(f"depth: expected (h, w) of integers or floats, found {depth.shape} {depth.dtype}")
    return depth


def prepare(
    model: Translator, color: Bytes | None, depth: Values | None, kind: npt.DTypeLike | None = None
) -> Prepared:
    """Make the network's image of a colour and a depth image, which show the same field of view.

    One of them is None if the model does not read it. `kind` is the type of the file's depth, if `depth` has another
    one that holds the same values.
    """
    normalized = kind_of_depth = shown = measured = None
    height, width = max((i.shape[:2] for i in (color, depth) if i is not None), key=lambda shape: shape[0] * shape[1])
    if color is not None:
        color = np.ascontiguousarray(color)
        shown = _resized(color, height, width)
    if depth is not None:
        assert model.source is not None
        normalized = np.array(depth, np.float32, order="C")  # a copy, which is then normalised in place
        _batch.normalize(normalized, *DepthRule.of(model.source))
        measured = _at_size(normalized, height, width)
        kind_of_depth = np.dtype(kind or depth.dtype)
    image = np.empty((model.channels, height, width), np.float32)
    if model.source_channels == CHANNELS["rgbd"]:
        assert shown is not None and measured is not None
        _batch.split(shown, measured, image)  # as `pack`, and faster
    else:
        pack(shown, measured, None, image.transpose(1, 2, 0))
    return Prepared(color, depth, kind_of_depth, normalized, torch.from_numpy(image))


def restore(model: Translator, y: Tensor, prepared: Prepared) -> Translated:
    """Return colour and depth of a translation (C, H, W), in the sizes, the type and the units of the input.

    Where the input lacks one of them, it has the size of the other. The colour has 3 or 4 bytes a pixel: R, G, B and
    one that has no meaning. Grey is (H, W). `write_color` takes all of them.

    Raises DataError if y is not finite, and if a hole cannot be written (see `restore_depth`).
    """
    planes, makes = np.ascontiguousarray(y.numpy()), model.target_channels
    height, width = next(i.shape[:2] for i in (prepared.color, prepared.depth) if i is not None)
    background = None if prepared.normalized is None else _at_size(prepared.normalized, height, width)
    color = None
    before, same_size = prepared.color, planes.shape[1:] == (height, width)
    if makes == CHANNELS["rgbd"] and before is not None and background is not None and same_size:
        color = np.empty((height, width, 4), np.uint8)
        finite = _batch.join(planes, before, background, color)  # as the lines below, and faster
    else:  # The values are in [0, 1], so only NaN or an infinity gives a sum that is not finite.
        finite = math.isfinite(planes.sum())
    if not finite:
        raise DataError("the network gave values that are not finite; expected values from 0 to 1")
    if makes.color and color is None:
        levels = (planes[: makes.color] * np.float32(255) + np.float32(0.5)).astype(np.uint8)  # y is in [0, 1]
        levels = _resized(levels.transpose(1, 2, 0) if makes.color == 3 else levels[0], height, width)
        color = levels if background is None else _with_background(levels, background, before)
    return Translated(color, _restored_depth(planes[-1], prepared, model.output_depth) if makes.depth else None)


def _with_background(levels: Bytes, background: Floats, before: Bytes | None) -> Bytes:
    """Return colour (H, W, 3) or grey (H, W) with the colour from before, or 0, at pixels of background."""
    kept = np.zeros_like(levels) if before is None else before if levels.ndim == 3 else grey(before)
    there = background == BACKGROUND
    return np.where(there[..., None] if levels.ndim == 3 else there, kept, levels)


def _restored_depth(z: Floats, prepared: Prepared, spec: DepthSpec | None) -> Values:
    """Return translated depth z (H, W) in file units. If the input has no depth, no pixel is known to be background."""
    assert spec is not None  # the translations have depth
    if prepared.depth is None or prepared.normalized is None:
        nothing = np.zeros_like(z)
        return restore_depth(z, nothing, np.full_like(z, 0.5), spec, new_depth(spec).type)
    z = np.ascontiguousarray(_at_size(z, *prepared.depth.shape))
    return restore_depth(z, prepared.depth, prepared.normalized, spec, prepared.kind)


def _resized(color: Bytes, height: int, width: int) -> Bytes:
    """Return colour (H, W, 3) or grey (H, W) at another size, by Pillow's triangle filter."""
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
