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
from vologan_fast.config import DepthSpec
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

    Raises ValueError for other shapes and types, and if the aspect ratios differ.
    """
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
    return restore(y, prepared, model.source)


def prepare(color: Bytes, depth: Values, spec: DepthSpec, kind: npt.DTypeLike | None = None) -> Prepared:
    """Make the network's image of a colour and a depth image, which show the same field of view.

    `kind` is the type of the file's depth, if `depth` has another one that holds the same values.
    """
    color = np.ascontiguousarray(color)
    normalized = np.array(depth, np.float32, order="C")  # a copy, which is then normalised in place
    _batch.normalize(normalized, *DepthRule.of(spec))
    height, width = max(color.shape[:2], depth.shape, key=lambda shape: shape[0] * shape[1])
    image = np.empty((Translator.channels, height, width), np.float32)
    _batch.split(_resized(color, height, width), _at_size(normalized, height, width), image)
    return Prepared(color, depth, np.dtype(kind or depth.dtype), normalized, torch.from_numpy(image))


def restore(y: Tensor, prepared: Prepared, spec: DepthSpec) -> tuple[Bytes, Values]:
    """Return colour and depth of a translation (4, H, W), in the sizes, the type and the units of the input."""
    planes, before = np.ascontiguousarray(y.numpy()), prepared.color
    height, width = before.shape[:2]
    background = _at_size(prepared.normalized, height, width)
    if planes.shape[1:] == (height, width):
        color = np.empty_like(before)
        _batch.join(planes, before, background, color)
    else:
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
    """
    assert spec.near is not None and spec.far is not None  # a resolved spec
    z, before, kind = np.asarray(z), np.asarray(before), np.dtype(kind or depth.dtype)
    unit = metres_per_unit(spec)
    gain, offset = float(np.float32((spec.far - spec.near) / unit)), float(np.float32(spec.near / unit))
    with np.errstate(invalid="ignore", over="ignore"):  # a value for "not measured" that the type lacks
        missing = np.array([missing_value(kind, spec, depth)]).astype(kind)
    restored = np.empty(z.shape, kind)
    if kind in (np.float32, np.float16, np.uint16):
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

    csrc/batch/translated_rows.h explains the arguments, and gives the same bits for float32, float16 and uint16.
    """
    restored[:] = _round(z * np.float32(gain) + np.float32(offset), restored.dtype)
    for code, beside in codes:
        restored[restored == code] = beside
    hole = z < NEAREST / 2
    restored[hole] = missing
    now = np.where(hole, MISSING, z.clip(NEAREST, 1))
    many = (before == MISSING) | (before == NEAREST) | (before == 1)
    kept = (before == BACKGROUND) | (many & (now == before))
    np.copyto(restored, file.astype(restored.dtype, copy=False), where=kept)


def _round(values: Floats, kind: np.dtype[Any]) -> Values:
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(kind)
    info = np.iinfo(kind)
    return np.rint(values.astype(np.float64)).clip(info.min, info.max).astype(kind)


@functools.lru_cache
def _codes(kind: np.dtype[Any], spec: DepthSpec) -> Values:
    """Return the values of a type that mean missing or background, each with a value beside it: (n, 2).

    A translated depth must not be such a code. If it is, it becomes the value beside it, for one code after the other.
    """
    values = [*(spec.invalid or ()), *([] if spec.background is None else [spec.background])]
    values += [] if is_normalized(spec) else [0.0]
    codes = sorted({float(np.float32(value)) for value in values if math.isfinite(value)})
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            exact = [kind.type(code) for code in codes if float(kind.type(code)) == code]
        exact += [-code for code in exact if code == 0]  # -0, which has other bits
        return np.array([(code, np.nextafter(code, kind.type(np.inf))) for code in exact], kind).reshape(-1, 2)
    info = np.iinfo(kind)
    whole = [int(code) for code in codes if code.is_integer() and info.min <= code <= info.max]
    above = [(code, code + 1) for code in whole if code < info.max]
    below = [(code, code - 1) for code in reversed(whole) if code > info.min]  # for codes at the end of the type
    return np.array(above + below, kind).reshape(-1, 2)


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
    """Return the file value for "not measured": the first of `spec.invalid`, else NaN or 0.

    Integers get 0. Floats get NaN if the depth is normalised, or if the file's own depth has NaN in it.
    """
    if spec.invalid:
        return spec.invalid[0]
    if kind.kind in "iu":
        return 0.0
    return math.nan if is_normalized(spec) or bool(np.isnan(depth).any()) else 0.0
