"""Native code that makes batches from decoded images, and takes images to planes and back (csrc/python/batch.cpp)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

simd_level: str
"""The instruction set that packs pixels: avx512, avx2 or scalar."""

class BatchMemory:
    def __init__(self) -> None: ...
    def empty(self, count: int, height: int, width: int, channels: int = 4) -> NDArray[np.float32]: ...

def normalize(
    depth: NDArray[np.float32], gain: float, offset: float, background: float, floor: float, invalid: Sequence[float]
) -> None: ...
def pack(
    color: NDArray[np.uint8] | None,
    depth: NDArray[Any] | None,
    levels: NDArray[np.float32] | None,
    draws: NDArray[np.int32],
    batch: NDArray[np.float32],
) -> None: ...
def split(color: NDArray[np.uint8], depth: NDArray[np.float32], planes: NDArray[np.float32]) -> None: ...
def join(
    planes: NDArray[np.float32], color: NDArray[np.uint8], depth: NDArray[np.float32], joined: NDArray[np.uint8]
) -> bool: ...
def restore(
    z: NDArray[np.float32],
    file: NDArray[np.float32],
    before: NDArray[np.float32],
    gain: float,
    offset: float,
    missing: NDArray[Any],
    codes: NDArray[Any],
    restored: NDArray[Any],
) -> None: ...
