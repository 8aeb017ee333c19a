"""One RGB-D image in the units of its files: into the network's range, through the network, and back.

The geometry of a file is kept. Colour and depth may differ in size; the network sees both at the larger one.
"""

from __future__ import annotations

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
    is_normalized,
    metres_per_unit,
)
from vologan_fast.translation.translator import Translator

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """One image on its way through the network."""

    planes: Tensor
    """(3, H, W) uint8: the colour. Planes are faster to compute with than pixels."""
    depth: Values
    """(h, w), in the type and the units of its file."""
    normalized: Tensor
    """(h, w) float32: the depth as training sees it."""
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


def prepare(color: Bytes, depth: Values, spec: DepthSpec) -> Prepared:
    """Make the network's image of a colour and a depth image, which show the same field of view."""
    values = np.array(depth, np.float32, order="C")  # a copy, which is then normalised in place
    _batch.normalize(values, *DepthRule.of(spec))
    normalized = torch.from_numpy(values)
    height, width = max(color.shape[:2], depth.shape, key=lambda shape: shape[0] * shape[1])
    planes = torch.tensor(color).permute(2, 0, 1).contiguous()
    z = _at_size(normalized, height, width)
    image = torch.empty(4, height, width)
    image[:3] = _resized(planes, height, width)
    image[:3].div_(255).mul_(z != BACKGROUND)
    torch.clamp_min(z, 0, out=image[3])
    return Prepared(planes, depth, normalized, image)


def restore(y: Tensor, prepared: Prepared, spec: DepthSpec) -> tuple[Bytes, Values]:
    """Return colour and depth of a translation (4, H, W), in the sizes, the type and the units of the input."""
    height, width = prepared.planes.shape[1:]
    levels = _resized(y[:3].mul(255).add_(0.5).to(torch.uint8), height, width)  # y is in [0, 1]
    background = _at_size(prepared.normalized == BACKGROUND, height, width)
    color = torch.where(background, prepared.planes, levels).permute(1, 2, 0).contiguous().numpy()
    z = _at_size(y[3], *prepared.depth.shape)
    return color, restore_depth(z, prepared.depth, prepared.normalized, spec)


def _resized(planes: Tensor, height: int, width: int) -> Tensor:
    """Return colour (3, H, W) uint8 at another size, by Pillow's triangle filter."""
    if planes.shape[1:] == (height, width):
        return planes
    image = Image.fromarray(planes.permute(1, 2, 0).numpy())
    return torch.tensor(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def restore_depth(z: Tensor, depth: Values, before: Tensor, spec: DepthSpec) -> Values:
    """Return normalised depth z (h, w) in file units.

    `depth` is the depth that came in, in file units, and `before` the same normalised. The result has its type.
    """
    assert spec.near is not None and spec.far is not None  # a resolved spec
    missing = z < NEAREST / 2
    # 0 is missing in both; NEAREST and 1 are the ends of the range.
    kept = (before == BACKGROUND) | ((z.clamp(NEAREST, 1).where(~missing, MISSING) == before) & _is_end(before))
    codes = [*(spec.invalid or ()), *([] if spec.background is None else [spec.background])]
    codes += [] if is_normalized(spec) else [0.0]
    unit = metres_per_unit(spec)
    values = _as_type((z * ((spec.far - spec.near) / unit)).add_(spec.near / unit), depth.dtype, codes)
    values[missing.numpy()] = missing_value(depth.dtype, spec)
    np.copyto(values, depth, where=kept.numpy())
    return values


def _is_end(before: Tensor) -> Tensor:
    """Whether normalised depth is missing, or at an end of the range, where different file values have one result."""
    return (before == MISSING) | (before == NEAREST) | (before == 1)


def _at_size(image: Tensor, height: int, width: int) -> Tensor:
    """Return (height, width) pixels of an image (h, w): for each pixel, the one at its centre."""
    if image.shape == (height, width):
        return image
    rows, columns = (_under(size, length) for size, length in zip((height, width), image.shape, strict=True))
    return image[rows[:, None], columns]


def _under(size: int, length: int) -> Tensor:
    """Return, for each of `size` pixels along a side, the index of the pixel at its centre among `length` pixels."""
    return (2 * torch.arange(size) + 1) * length // (2 * size)


def _as_type(values: Tensor, kind: np.dtype[Any], codes: list[float]) -> Values:
    """Round to a type. A value that would then be a code for missing or background becomes a neighbour that is not."""
    codes = sorted(codes)
    if kind.kind == "f":
        rounded = values.half() if kind == np.float16 else values  # NumPy converts to half ten times slower
        found = [(code, at) for code in codes if (at := rounded == code).any()]
        result = rounded.numpy().astype(kind, copy=False)
        for code, at in found:
            result[at.numpy()] = np.nextafter(kind.type(code), kind.type(np.inf))
        return result
    info = np.iinfo(kind)
    whole = np.rint(values.double().numpy()).clip(info.min, info.max)
    for code in codes:
        whole[whole == code] += 1
    whole = whole.clip(info.min, info.max)
    for code in reversed(codes):  # for codes at the end of the type, such as 65535
        whole[whole == code] -= 1
    return whole.astype(kind)


def missing_value(kind: np.dtype[Any], spec: DepthSpec) -> float:
    """Return the file value for "not measured"."""
    if spec.invalid:
        return spec.invalid[0]
    return 0.0 if kind.kind in "iu" or not is_normalized(spec) else math.nan
