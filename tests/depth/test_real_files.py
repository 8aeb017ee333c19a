"""All real depth images at hand, compared with the libraries that people use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from depth_images import assert_same_bits

from vologan_fast import depth

pytestmark = pytest.mark.usefixtures("exr_decoder")


def test_exr_equals_openexr(real_images: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    paths = sorted(real_images.rglob("*.exr"))
    assert paths
    for path in paths:
        (plane,) = OpenEXR.File(str(path), separate_channels=True).parts[0].channels.values()
        assert_same_bits(depth.decode(path), plane.pixels.astype(np.float32))
    assert {depth.probe(path).compression for path in paths} >= {"none", "rle", "zips", "zip", "piz", "pxr24"}


def test_png_equals_opencv(real_images: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    paths = sorted(real_images.rglob("depth/*.png"))
    assert paths
    for path in paths:
        expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert expected.dtype == np.uint16
        assert_same_bits(depth.decode(path), expected.astype(np.float32))


def test_colour_images_are_no_depth(real_images: Path) -> None:
    for path in sorted(real_images.rglob("color/*"))[::8]:
        with pytest.raises(depth.DecodeError, match=r"found (a JPEG image|red, green and blue that differ)"):
            depth.decode(path)
