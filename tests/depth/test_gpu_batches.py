"""decode_batch into a tensor on a GPU: the same bits and errors as on the CPU, whichever of them decodes a file."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from depth_images import assert_same_bits, depth_image
from depth_writers import Exr, png

from vologan_fast import _depth, depth

HEIGHT, WIDTH = 37, 70


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Write EXR files of every kind that GPUs decode, and files that the CPU decodes for them."""
    files = {
        f"{compression}-{dtype}.exr": Exr({"Z": depth_image(HEIGHT, WIDTH, dtype)}, compression).bytes()
        for compression in ("none", "rle", "zips", "zip")
        for dtype in ("float16", "float32", "uint32")
    }
    files["grey.png"] = png(depth_image(HEIGHT, WIDTH, "uint16"), 4)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "plain.npy", depth_image(HEIGHT, WIDTH))
    return [*(tmp_path / name for name in files), tmp_path / "plain.npy"]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a GPU, or the CPU with a stand-in: the GPU's code runs on the CPU and is reached in the same way."""
    if request.param == "cuda":
        if not hasattr(_depth, "decode_chunks_on_gpu"):
            pytest.skip("the depth decoder was built without CUDA")
        return "cuda"

    def decode(sources: Any, data: int, shape: Any, strides: Any, channel: Any, limits: Any, *_: int) -> list[Any]:
        memory = (ctypes.c_float * (1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)))).from_address(
            data
        )
        out = np.lib.stride_tricks.as_strided(np.ctypeslib.as_array(memory), shape, [4 * s for s in strides])
        return _depth.decode_chunks(sources, out, channel, None, limits)

    monkeypatch.setattr(depth, "_depth", SimpleNamespace(**{**vars(_depth), "decode_chunks_on_gpu": decode}))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return "cpu"


def test_a_gpu_s_batch_has_the_bits_of_the_cpu_s(paths: list[Path], device: str) -> None:
    whole = torch.full((len(paths), HEIGHT + 2, WIDTH + 3), 7.0, device=device)
    expected = whole.cpu().numpy().copy()
    for path, image in zip(paths, expected, strict=True):
        image[1:-1, :WIDTH] = depth.decode(path)
    out = whole[:, 1:-1, :WIDTH]
    assert depth.decode_batch(paths, out) is out
    assert_same_bits(whole.cpu().numpy(), expected)


@pytest.mark.parametrize("name", ["zip-float16.exr", "zips-uint32.exr", "grey.png"])
def test_errors_are_those_of_the_cpu(paths: list[Path], device: str, name: str) -> None:
    broken = next(path for path in paths if path.name == name)
    content = bytearray(broken.read_bytes())
    content[-17 if name.endswith("png") else -3] ^= 255
    broken.write_bytes(content)
    with pytest.raises(depth.DecodeError) as expected:
        depth.decode(broken)
    with pytest.raises(depth.DecodeError) as found:
        depth.decode_batch(paths, torch.empty(len(paths), HEIGHT, WIDTH, device=device))
    assert str(found.value) == str(expected.value) and broken.name in str(found.value)


@pytest.mark.parametrize("index", [0, -2])  # decoded by the GPU, by the CPU
def test_another_size_is_named(paths: list[Path], device: str, index: int) -> None:
    with pytest.raises(
        depth.DecodeError, match=rf"{paths[index].name}.*expected width × height 70 × 36, found 70 × 37"
    ):
        depth.decode_batch([paths[index]], torch.empty(1, HEIGHT - 1, WIDTH, device=device))


def test_memory_that_elements_share_is_refused(paths: list[Path], device: str) -> None:
    out = torch.empty(1, HEIGHT, WIDTH, device=device).expand(len(paths), -1, -1)
    with pytest.raises(ValueError, match="share no memory"):
        depth.decode_batch(paths, out)
