"""Colour and people from the multilayer EXR files of Unreal's Movie Render Queue.

The picture is in the channels R, G and B, linear. The people are in the Cryptomatte: `ActorHitProxyMask00.R` holds, for
each pixel, a number of 32 bits that stands for the object in it. The attribute `cryptomatte/KEY/manifest` gives the
number of each name, in hexadecimal. BEDLAM's people have the names be_actor_…_body, …_clothing and …_hair, perhaps with
a folder before them. The files were rendered without antialiasing, so a pixel shows one object only.

Cryptomatte: https://github.com/Psyop/Cryptomatte. Names: tools/post_render_pipeline/exr/exr_save_masks.py in
https://github.com/PerceivingSystems/bedlam2_render.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast.data.convert.people import Mask
from vologan_fast.data.convert.writer import missing_library
from vologan_fast.data.errors import DataError

_MANIFEST = re.compile(r"cryptomatte/[^/]+/manifest")
_PERSON = re.compile(r"(.*/)?be_actor_.*_(body|clothing|hair)")
_OBJECTS = "ActorHitProxyMask00.R"


class Multilayer:
    """The channels and attributes of the first part of a file.

    Raises DataError if the file cannot be read.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        """Read the file, whose channels have the (height, width) `size`. `depth.decode` has checked its headers."""
        try:
            import OpenEXR
        except ImportError:
            raise missing_library("multilayer EXR", "OpenEXR") from None
        self.path, self.size = path, size
        try:
            with OpenEXR.File(str(path), separate_channels=True) as file:
                part = file.parts[0]
                self.header: dict[str, Any] = dict(part.header)
                self.channels = {name: np.asarray(channel.pixels) for name, channel in part.channels.items()}
        except Exception as error:  # the bindings raise RuntimeError, ValueError, …
            raise DataError(f"{path}: expected a multilayer EXR, found one that cannot be read: {error}") from None

    def color(self) -> npt.NDArray[np.uint8]:
        """Return R, G and B as 8-bit sRGB (h, w, 3). Raises DataError if a channel is missing."""
        linear = np.stack([self._channel(name) for name in "RGB"], axis=-1).astype(np.float32)
        return srgb(linear)

    def people(self) -> Mask:
        """Return the mask (h, w) of all people. Raises DataError if the file does not say where they are."""
        texts = [value for name, value in self.header.items() if _MANIFEST.fullmatch(name)]
        try:
            numbers: dict[str, str] = json.loads(texts[0])
            texts = [number for name, number in numbers.items() if _PERSON.fullmatch(name)]
            people = np.array([int(text, 16) for text in texts], np.uint32)
        except (IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise DataError(f"{self.path}: expected a Cryptomatte with a manifest of its objects, found none") from None
        objects = self._channel(_OBJECTS)
        if objects.dtype != np.float32:
            raise DataError(f"{self.path}: {_OBJECTS} is {objects.dtype}; expected float32")
        return np.isin(np.ascontiguousarray(objects).view(np.uint32), people)

    def _channel(self, name: str) -> npt.NDArray[Any]:
        if name not in self.channels:
            raise DataError(f"{self.path}: expected a channel {name}, found {', '.join(sorted(self.channels)[:20])}")
        channel = self.channels[name]
        if channel.shape != self.size:
            raise DataError(
                f"{self.path}: channel {name} of shape {channel.shape}; expected {self.size}, as the depth's"
            )
        return channel


def srgb(linear: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Convert linear light to 8-bit sRGB (IEC 61966-2-1). Values outside of [0, 1] are clamped, NaN is 0."""
    light = np.clip(np.nan_to_num(linear, nan=0, posinf=1, neginf=0), 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (curve * 255 + 0.5).astype(np.uint8)
