"""Batches from decoded images (csrc/python/resident.cpp); use it through vologan_fast.data.resident."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class BatchMemory:
    def __init__(self) -> None: ...

def pack(
    color: NDArray[np.uint8],
    depth: NDArray[Any],
    levels: NDArray[np.float32] | None,
    draws: NDArray[np.int32],
    memory: BatchMemory,
) -> NDArray[np.float32]: ...
