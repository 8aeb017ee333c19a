"""Masks that say which pixels show people."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vologan_fast.data.convert.writer import MAX_PIXELS, read_bytes
from vologan_fast.data.errors import DataError

Mask = npt.NDArray[np.bool_]

_GREY = ("1", "L", "LA", "P", "RGB", "RGBA")


def read_mask(path: Path, size: tuple[int, int]) -> Mask:
    """Read a mask of (height, width) `size`: an 8-bit PNG or JPEG, in which 128 and more means a person.

    Raises DataError for a file that is no such image, and for another size.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=("JPEG", "PNG")) as image:
            if (image.height, image.width) != size:
                raise DataError(
                    f"{path}: mask of {image.width} × {image.height}; expected {size[1]} × {size[0]}, as the image's"
                )
            if image.mode not in _GREY or image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: a mask of kind {image.mode}; expected an 8-bit image")
            return np.asarray(image.convert("L")) >= 128
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected a mask as PNG or JPEG, found another file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the mask cannot be decoded: {error}") from None


def sampled(mask: Mask, size: tuple[int, int]) -> Mask:
    """Return the mask at the centres of the pixels of an image of the same view, of (height, width) `size`."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def people_square(mask: Mask) -> tuple[slice, slice]:
    """Return the largest square of an image that shows most pixels of people, as (rows, columns).

    Of several such squares, the one nearest to the middle is taken. Training uses the middle of an image, where
    perhaps nobody stands.
    """
    side = min(mask.shape)
    axis = int(mask.shape[1] > mask.shape[0])
    before = np.concatenate([[0], np.cumsum(mask.sum(axis=1 - axis))])
    shown = before[side:] - before[:-side]
    starts = np.flatnonzero(shown == shown.max())
    start = int(starts[np.argmin(np.abs(starts - (len(shown) - 1) / 2))])
    square = [slice(0, side), slice(0, side)]
    square[axis] = slice(start, start + side)
    return square[0], square[1]
