"""Benchmark of EXR batches to GPU memory: decoded on the GPU, beside decoded on all CPU cores and copied.

    pytest bench/decode/test_gpu_decode.py

Both start with the files in memory, and end with float32 depth on the GPU. The results are checked before the timing.
GB/s counts the bytes after inflating.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenes import SIZE, person

from vologan_fast import _depth, depth

sys.path.append(str(Path(__file__).parents[2] / "tests" / "depth"))
from depth_writers import Exr

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
if not hasattr(_depth, "decode_chunks_on_gpu"):
    pytest.skip("the depth decoder was built without CUDA", allow_module_level=True)

IMAGES = 32


@pytest.fixture(scope="module", params=["half", "float"])
def files(request: pytest.FixtureRequest) -> tuple[str, list[bytes]]:
    scene, dtype = person(), np.float16 if request.param == "half" else np.float32
    contents = []
    for i in range(IMAGES):
        noise = np.random.default_rng(i).normal(0, 1e-3, scene.shape)  # as of a sensor, on the foreground
        contents.append(Exr({"Z": np.where(scene > -1, scene + noise, -1).astype(dtype)}, "zip").bytes())
    return request.param, contents


def on_gpu(files: list[bytes], out: torch.Tensor, pinned: torch.Tensor) -> None:
    depth.decode_batch(files, out)


def on_cpu(files: list[bytes], out: torch.Tensor, pinned: torch.Tensor) -> None:
    depth.decode_batch(files, pinned)
    out.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()


@pytest.mark.parametrize("decode", [on_gpu, on_cpu])
def test_decode_to_gpu(
    benchmark: Any, files: tuple[str, list[bytes]], decode: Callable[..., None], record: Any
) -> None:
    kind, contents = files
    group, case = "depth decoder, files in memory to a GPU", f"{IMAGES} × EXR ZIP {kind}, {SIZE}²"
    side = {"on_gpu": "ours", "on_cpu": "ours, CPU and a copy"}[decode.__name__]
    record(group, case, side)
    out = torch.empty(IMAGES, SIZE, SIZE, device="cuda")
    pinned = torch.empty(IMAGES, SIZE, SIZE, pin_memory=True)
    decode(contents, out, pinned)
    np.testing.assert_array_equal(out.cpu().numpy(), np.stack([depth.decode(file) for file in contents]))
    if record.preparing:
        pytest.skip("prepared")
    benchmark.group = f"{group}: {case}"
    benchmark.pedantic(decode, args=(contents, out, pinned), rounds=30, warmup_rounds=3)
    if not benchmark.disabled:
        seconds, inflated = benchmark.stats.stats.median, IMAGES * SIZE**2 * (2 if kind == "half" else 4)
        record(
            group,
            case,
            side,
            milliseconds=1e3 * seconds,
            images_per_second=round(IMAGES / seconds),
            inflated_gb_per_second=round(inflated / seconds / 1e9, 2),
        )
