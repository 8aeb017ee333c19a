"""One RGB-D image in the units of its files: into the network's range, through the network, and back.

The geometry of a file is kept. Colour and depth may differ in size; the network sees both at the larger one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vologan_fast.config import DepthSpec
from vologan_fast.data.pixels import (
    BACKGROUND,
    MISSING,
    NEAREST,
    Bytes,
    DepthRule,
    Floats,
    check_aspect,
    is_normalized,
    metres_per_unit,
    normalize_depth,
    pack,
)
from vologan_fast.translation.translator import Translator

Values = npt.NDArray[Any]


def translate_image(model: Translator, color: Bytes, depth: Values) -> tuple[Bytes, Values]:
    """Translate one image. Returns colour (H, W, 3) uint8, and depth (h, w) in its own type and units.

    `color` is (H, W, 3) uint8. `depth` is (h, w) of any integer or float type, in the units of the files that the model
    was trained on (`model.source`). It may have another size than the colour, with the same aspect ratio.

    Background keeps its colour and depth. Where the translation has no depth, the result is missing: it keeps the
    file's own missing value, or takes the one of `model.source`. A value beyond near or far keeps its value, if the
    network leaves it at this end of its range.

    Raises ValueError for other shapes and types, and DataError if the aspect ratios differ.
    """
    if color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8:
        raise ValueError(f"color: expected (H, W, 3) uint8, found {color.shape} {color.dtype}")
    if depth.ndim != 2 or depth.dtype.kind not in "iuf":
        raise ValueError(f"depth: expected (h, w) of integers or floats, found {depth.shape} {depth.dtype}")
    x = to_network(color, depth.astype(np.float32), model.source)
    device = next(model.generator.parameters()).device
    with torch.inference_mode():
        y = model(x[None].to(device))[0]
    return from_network(y, color, depth, model.source)


def to_network(color: Bytes, depth: Floats, spec: DepthSpec) -> Tensor:
    """Return an image (4, H, W) in [0, 1]. `depth` is in file units. Raises DataError if the aspect ratios differ."""
    check_aspect(Path("depth"), depth.shape, color.shape)
    height, width = _working_size(color, depth)
    if color.shape[:2] != (height, width):
        color = np.asarray(Image.fromarray(color).resize((width, height), Image.Resampling.BILINEAR))
    normalized = normalize_depth(depth, DepthRule.of(spec))[
        _under(height, depth.shape[0])[:, None], _under(width, depth.shape[1])
    ]
    image = np.empty((height, width, 4), np.float32)
    pack(color, normalized, None, image)
    return torch.from_numpy(image).permute(2, 0, 1)


def from_network(y: Tensor, color: Bytes, depth: Values, spec: DepthSpec) -> tuple[Bytes, Values]:
    """Return colour and depth of a translation (4, H, W), in the sizes, the type and the units of the input."""
    image = y.permute(1, 2, 0).cpu().numpy()
    height, width = image.shape[:2]
    rule = DepthRule.of(spec)
    before = normalize_depth(depth.astype(np.float32), rule)
    found = np.rint(image[..., :3] * 255).clip(0, 255).astype(np.uint8)
    if found.shape != color.shape:
        found = np.asarray(Image.fromarray(found).resize(color.shape[1::-1], Image.Resampling.BILINEAR))
    background = (before == BACKGROUND)[
        _under(color.shape[0], depth.shape[0])[:, None], _under(color.shape[1], depth.shape[1])
    ]
    found = np.where(background[..., None], color, found)
    # Each depth pixel takes the network's pixel at its centre.
    z = image[_under(depth.shape[0], height)[:, None], _under(depth.shape[1], width), 3]
    return found, restore_depth(z, depth, before, spec)


def restore_depth(z: Floats, depth: Values, before: Floats, spec: DepthSpec) -> Values:
    """Return normalised depth z (h, w) in file units.

    `depth` is the depth that came in, in file units, and `before` the same normalised. The result has its type.
    """
    assert spec.near is not None and spec.far is not None  # a resolved spec
    metres = z.astype(np.float64) * (spec.far - spec.near) + spec.near
    missing = z < NEAREST / 2
    kept = (before == BACKGROUND) | (missing & (before == MISSING))
    kept |= ((before == NEAREST) & (z <= NEAREST) & ~missing) | ((before == 1) & (z >= 1))
    codes = [*(spec.invalid or ()), *([] if spec.background is None else [spec.background])]
    codes += [] if is_normalized(spec) else [0.0]
    values = _as_type(metres / metres_per_unit(spec), depth.dtype, codes)
    values[missing] = _missing_value(depth.dtype, spec)
    return np.where(kept, depth, values)


def _as_type(values: npt.NDArray[np.float64], kind: np.dtype[Any], codes: list[float]) -> Values:
    """Round to a type. A value that would then be a code for missing or background becomes a neighbour that is not."""
    codes = sorted(codes)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            rounded = values.astype(kind)
        for code in codes:
            rounded[rounded == kind.type(code)] = np.nextafter(kind.type(code), kind.type(np.inf))
        return rounded
    info = np.iinfo(kind)
    whole = np.rint(values).clip(info.min, info.max)
    for code in codes:
        whole[whole == code] += 1
    whole = whole.clip(info.min, info.max)
    for code in reversed(codes):  # for codes at the end of the type, such as 65535
        whole[whole == code] -= 1
    return whole.astype(kind)


def _missing_value(kind: np.dtype[Any], spec: DepthSpec) -> float:
    """Return the file value for "not measured"."""
    if spec.invalid:
        return spec.invalid[0]
    return 0.0 if kind.kind in "iu" or not is_normalized(spec) else math.nan


def _working_size(color: Bytes, depth: Floats) -> tuple[int, int]:
    """Return the height and width at which the network sees an image."""
    return max(color.shape[:2], depth.shape[:2], key=lambda shape: shape[0] * shape[1])


def _under(size: int, length: int) -> npt.NDArray[np.int64]:
    """Return, for each of `size` pixels along a side, the index of the pixel at its centre among `length` pixels."""
    return (2 * np.arange(size, dtype=np.int64) + 1) * length // (2 * size)
