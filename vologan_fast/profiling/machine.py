"""The best speeds of this machine, measured when they are needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vologan_fast.host import processor
from vologan_fast.networks import Numerics


@dataclass(frozen=True)
class Machine:
    """The best measured speeds of this machine."""

    name: str
    dtype: str
    copy: float
    """Bytes per second of a large copy, read and written bytes together."""
    multiply: float
    """FLOP per second in `dtype`, of a matrix product or a convolution, whichever is faster."""


def measure_machine(device: torch.device, numerics: Numerics) -> Machine:
    """Measure the speed of a large copy, and of products in `numerics`, each as the fastest of five runs.

    The copy has 256 MiB, on a GPU 1 GiB. The products are a matrix product and a convolution, because the matrix
    product is not always the faster one. On AMD, MKL leaves AVX-512 unused, and oneDNN's convolutions are twice as
    fast.
    """
    on_gpu, (dtype, layout) = device.type == "cuda", numerics
    source = torch.ones(2 ** (28 if on_gpu else 26), device=device)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device)
    side = 8192 if on_gpu else 2048
    left, right = torch.rand(2, side, side, device=device).to(dtype)
    rate = 2 * side**3 / _fastest(lambda: left @ right, device)
    n, channels, size = (8, 256, 128) if on_gpu else (2, 64, 64)  # with a larger size, a CPU would wait for new memory
    images = torch.rand(n, channels, size, size, device=device).to(dtype, memory_format=layout)
    weight = torch.rand(channels, channels, 3, 3, device=device).to(dtype, memory_format=layout)
    flop = 2 * 9 * channels**2 * size**2 * n
    rate = max(rate, flop / _fastest(lambda: F.conv2d(images, weight, padding=1), device))
    name = torch.cuda.get_device_name(device) if on_gpu else f"{processor()}, threads: {torch.get_num_threads()}"
    tf32 = on_gpu and dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    kind = "tf32" if tf32 else str(dtype).removeprefix("torch.")
    return Machine(name, kind, 2 * source.nbytes / copied, rate)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of five runs."""
    repeats = 10 if device.type == "cuda" else 1
    run()
    seconds = []
    for _ in range(5):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        synchronize(device)
        seconds.append((time.perf_counter() - began) / repeats)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
