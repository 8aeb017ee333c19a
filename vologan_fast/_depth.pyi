"""The compiled depth decoder (csrc/python/depth.cpp). Use it through vologan_fast.depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

simd_level: str
"""The instruction set of the hot loops: avx2, sse4.1, neon or scalar."""

class DecodeError(ValueError): ...
class NotNative(DecodeError): ...

class Limits:
    max_pixels: int
    max_bytes: int
    def __init__(self, *, max_pixels: int = ..., max_bytes: int = ...) -> None: ...

def probe(source: object, channel: str | None, limits: Limits, name_of_bytes: str) -> dict[str, Any]: ...
def decode(source: object, channel: str | None, limits: Limits, name_of_bytes: str) -> NDArray[np.float32]: ...
def decode_batch(
    sources: Sequence[object], out: NDArray[np.float32], threads: int, channel: str | None, limits: Limits
) -> list[Exception | None]: ...
def decode_chunks_on_gpu(  # only in builds with CUDA
    sources: Sequence[object],
    data: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    channel: str | None,
    limits: Limits,
    device: int,
    stream: int,
) -> list[bool | Exception]: ...
def choose_array(names: Sequence[str], channel: str | None) -> tuple[int | None, str]: ...
