"""Benchmark of batches from kept images on their way to the GPU, beside the loader that decodes files. No peers needed.

    pytest bench/loader/test_resident.py

The images have 512², colour as JPEG and depth as EXR (half, ZIP). A batch has 8 images of each domain. On a GPU the
batches end in its memory. Three sides keep decoded images: in the memory of the GPU (*ours, device*), in the memory of
the host (*ours, host*), or in a file (*ours, disk*). *files* decodes with all cores. Each side is first compared with
*files*. The time is that of a batch of both domains. *host* is the time in which the host asks for a batch, without a
wait at the end.
"""

from __future__ import annotations

import dataclasses
import io
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vologan_fast.config import DOMAINS, AugmentConfig, DataConfig
from vologan_fast.data import Dataset, load_dataset, open_loader

sys.path.append(str(Path(__file__).parents[2] / "tests" / "depth"))
from depth_writers import Exr

ON_GPU = torch.cuda.is_available()
REHEARSAL = os.environ.get("VOLOGAN_REHEARSAL") == "1"
SIZE, BATCH, IMAGES = (32, 2, 3) if REHEARSAL else (512, 8, 24)
TURNS, BATCHES = (2, 2) if REHEARSAL else (5, 20)
AHEAD = 5
"""Batches taken before the clock starts. This is more than any loader holds ready."""
SIDES = {"ours, device": "device", "ours, host": "host", "ours, disk": "disk", "files": "none"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("images")
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    radius = (x / 0.35) ** 2 + (y / 0.8) ** 2
    for domain in DOMAINS:
        for kind in ("color", "depth"):
            (root / domain / kind).mkdir(parents=True)
        for i in range(IMAGES):
            rng = np.random.default_rng(len(domain) * 1000 + i)
            texture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            color = np.asarray(texture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).copy()
            depth = (radius / 2 - 0.5 + rng.normal(0, 2e-3, radius.shape)).clip(-0.99, 1).astype(np.float16)
            color[radius > 1], depth[radius > 1] = 0, -1
            file = io.BytesIO()
            Image.fromarray(color).save(file, "JPEG", quality=95)
            (root / domain / f"color/{i:03}.jpg").write_bytes(file.getvalue())
            (root / domain / f"depth/{i:03}.exr").write_bytes(Exr({"Z": depth}, "zip").bytes())
    return load_dataset(root, DataConfig(size=SIZE, backend="torch", augment=AugmentConfig()), seed=0)


def batches(dataset: Dataset, cache: str) -> Any:
    config = dataclasses.replace(dataset.config, cache=cache)
    return open_loader(dataclasses.replace(dataset, config=config), BATCH, device="cuda" if ON_GPU else "cpu")


@pytest.mark.parametrize("side", SIDES)
def test_resident(side: str, dataset: Dataset, record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, case = "kept images to the GPU", f"batch of 2 × {BATCH} images, {SIZE}²"
    record(group, case, side)
    if side == "ours, device" and not ON_GPU:
        pytest.skip("needs a GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with batches(dataset, SIDES[side]) as loader:
        if side != "files":
            with batches(dataset, "none") as files:
                for _, expected, found in zip(range(2), files, loader, strict=False):
                    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        if record.preparing:
            pytest.skip("prepared")
        for _ in range(AHEAD):
            next(loader)
        whole, host = zip(*(timed(loader) for _ in range(TURNS)), strict=True)
    seconds = statistics.median(whole)
    record(
        group,
        case,
        side,
        milliseconds=1e3 * seconds,
        host_microseconds=1e6 * statistics.median(host),
        images_per_second=round(2 * BATCH / seconds),
    )


def timed(loader: Iterator[Any]) -> tuple[float, float]:
    """Return the seconds of a batch, and those of the host."""
    synchronize()
    began = time.perf_counter()
    for _ in range(BATCHES):
        next(loader)
    host = time.perf_counter() - began
    synchronize()
    return (time.perf_counter() - began) / BATCHES, host / BATCHES


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()
