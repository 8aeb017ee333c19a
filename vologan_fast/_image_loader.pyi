"""The compiled loader of images for a batch (csrc/python/image_loader.cpp). It is built only with libjpeg-turbo."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_File = bytes | tuple[bytes, int, int, int]

def decode_jpeg(file: bytes, max_pixels: int = ...) -> NDArray[np.uint8] | None: ...

jpeg_backend: str
simd_level: str

class ImageLoader:
    def __init__(
        self,
        size: tuple[int, int],
        channel: str,
        gain: float,
        offset: float,
        background: float,
        floor: float,
        invalid: Sequence[float],
        types: int = 7,
        channels: tuple[int, bool] = ...,
        max_pixels: int = ...,
        max_nan: float = ...,
    ) -> None: ...
    def load(
        self,
        colors: Sequence[_File | None],
        depths: Sequence[_File | None],
        draws: Sequence[tuple[bool, int, int]],
        images: NDArray[np.float32],
    ) -> list[int]: ...
    def load_colors(self, colors: Sequence[_File], rgb: NDArray[np.uint8]) -> list[int]: ...
