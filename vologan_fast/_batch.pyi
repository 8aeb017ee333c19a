"""Native code that makes batches from decoded images (csrc/python/batch.cpp)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class BatchMemory:
    def __init__(self) -> None: ...
    def empty(self, count: int, size: int) -> NDArray[np.float32]: ...

def normalize(
    depth: NDArray[np.float32], gain: float, offset: float, background: float, floor: float, invalid: Sequence[float]
) -> None: ...
def pack(
    color: NDArray[np.uint8],
    depth: NDArray[Any],
    levels: NDArray[np.float32] | None,
    draws: NDArray[np.int32],
    rgbd: NDArray[np.float32],
) -> None: ...
