"""What the tests of the depth decoder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def openexr_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes planes by the OpenEXR library and returns the path."""
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
