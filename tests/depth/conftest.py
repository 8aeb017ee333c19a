"""Fixtures of the depth decoder's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vologan_fast import _depth, depth


@pytest.fixture
def openexr_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes planes with the OpenEXR library and returns the path."""
    OpenEXR = pytest.importorskip("OpenEXR")

    def write(planes: dict[str, np.ndarray], compression: str, **header: object) -> Path:
        path = tmp_path / "image.exr"
        header = {
            "compression": getattr(OpenEXR, f"{compression.upper()}_COMPRESSION"),
            "type": OpenEXR.scanlineimage,
            **header,
        }
        OpenEXR.File(header, dict(planes)).write(str(path))  # a copy: it replaces the arrays in its dictionary
        return path

    return write


@pytest.fixture(scope="module", params=["decoder of files", "decoder of chunks"])
def exr_decoder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a module's tests twice. The second time, EXR files are decoded by the code that GPUs run."""
    if request.param == "decoder of files":
        yield
        return

    def decode(source: Any, channel: str | None, limits: depth.Limits, name: str) -> np.ndarray:
        info = _depth.probe(source, channel, limits, name)
        if info["format"] != "exr" or info["not_native"]:
            return _depth.decode(source, channel, limits, name)
        out = np.empty((1, info["height"], info["width"]), np.float32)
        (found,) = _depth.decode_chunks([source], out, channel, None, limits)
        if isinstance(found, Exception):
            raise found
        return out[0]

    def decode_batch(sources: Sequence[Any], out: np.ndarray, *options: Any) -> list[Any]:
        _, channel, limits = options
        if any(_depth.probe(source, channel, limits, "<bytes>")["format"] != "exr" for source in sources):
            return _depth.decode_batch(sources, out, *options)
        found = _depth.decode_chunks(sources, out, channel, None, limits)
        return [result if isinstance(result, Exception) else None for result in found]

    replaced = {"decode": decode, "decode_batch": decode_batch}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "_depth", SimpleNamespace(**{**vars(_depth), **replaced}))
        yield
