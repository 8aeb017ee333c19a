"""Images for the tests of the depth decoder, and a comparison of two images."""

from __future__ import annotations

import numpy as np

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 1e10, 65504, -65504, -0.0, 0.0, 6e-8, 6.1e-5, 1e-42, -1, 1, 0.1], np.float32
)
"""Values that real depth files hold: no measurement, background, the largest half, denormals."""


def depth_image(height: int, width: int, dtype: str = "float32") -> np.ndarray:
    """Return a smooth body before a constant background, with SPECIAL values in between; integers for uint types."""
    y, x = np.mgrid[0:height, 0:width]
    body = 0.3 + 0.2 * np.sin(x / 7) * np.cos(y / 5)
    image = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (0.3 * width) ** 2 + 1, body, -1.0)
    if np.dtype(dtype).kind == "u":
        return ((image + 1) * 0.5 * np.iinfo(dtype).max).astype(dtype)
    image = image.astype(np.float32).reshape(-1)
    places = np.random.default_rng(height * 1000 + width).permutation(image.size)[: len(SPECIAL)]
    image[places] = SPECIAL[: len(places)]
    with np.errstate(over="ignore"):
        return image.reshape(height, width).astype(dtype)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert that two images are equal to the bit, including the sign of zeros. All NaNs count as equal."""
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
