"""Native rows of translated images have the bits of their definitions, and packed files those of other libraries."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vologan_fast import _batch
from vologan_fast import depth as depth_files
from vologan_fast.data.pixels import BACKGROUND, MISSING, NEAREST
from vologan_fast.translation.encoding import encode_depth
from vologan_fast.translation.images import restore_plainly

KINDS = [np.float32, np.float16, np.uint16]
SPECIAL = np.array(
    [MISSING, NEAREST, NEAREST / 2, 1, BACKGROUND, 0.5, 1 / 3, np.nextafter(np.float32(1), 0)], np.float32
)


def mixed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return normalised depth, often one of the special values."""
    values = rng.random(shape, np.float32)
    return np.where(rng.random(shape) < 0.5, values, rng.choice(SPECIAL, shape))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 9999), width=st.integers(1, 300))
def test_restored_depth(kind: Any, seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), width)
    before = mixed(rng, shape)
    z = np.where(rng.random(shape) < 0.3, before, mixed(rng, shape))
    gain, offset = float(np.float32(rng.choice([2, 3500, 7e4, -5]))), float(np.float32(rng.choice([-1, 0, 500])))
    file = (rng.random(shape, np.float32) * 4000).astype(kind).astype(np.float32)
    values = np.unique((rng.choice([0, 0.25, 0.5, 1], 3) * gain + offset).clip(0, 60000).astype(kind))
    codes = np.array([(value, value + kind(1)) for value in values], kind)
    missing = np.array([7], kind)
    found, expected = np.empty(shape, kind), np.empty(shape, kind)
    _batch.restore(z, file, before, gain, offset, missing, codes, found)
    restore_plainly(z, file, before, gain, offset, missing, codes, expected)
    assert found.tobytes() == expected.tobytes()


def test_every_half_and_its_neighbours() -> None:
    """Halves, and the floats around them and half-way between them, round to the half that NumPy gives."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    exact = np.concatenate([halves, between, np.float32([65519.9, 65520, 1e9, -1e9, np.inf, -np.inf, 1e-30])])
    values = np.concatenate([exact, np.nextafter(exact, np.float32(9e9)), np.nextafter(exact, np.float32(-9e9))])
    found = np.empty(values.shape, np.float16)
    kept = np.full(values.shape, BACKGROUND, np.float32)
    nothing = np.zeros((0, 2), np.float16)
    _batch.restore(kept, values, kept, 1.0, 0.0, np.zeros(1, np.float16), nothing, found)
    with np.errstate(over="ignore"):
        assert found.tobytes() == values.astype(np.float16).tobytes()
    not_numbers = np.array([0x7FC00000, 0xFF802000, 0x7F800001], np.uint32).view(np.float32)
    found = np.empty(3, np.float16)
    _batch.restore(kept[:3], not_numbers, kept[:3], 1.0, 0.0, np.zeros(1, np.float16), nothing, found)
    assert np.isnan(found).all()


@given(seed=st.integers(0, 9999), width=st.integers(1, 300))
def test_planes_and_pixels(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), width)
    color, depth = rng.integers(0, 256, (*shape, 3), np.uint8), mixed(rng, shape)
    seen = depth != BACKGROUND
    planes = np.empty((4, *shape), np.float32)
    _batch.split(color, depth, planes)
    expected = np.concatenate([color.transpose(2, 0, 1) / np.float32(255), depth[None]]) * 1.0
    assert planes.tobytes() == np.where(seen, expected, np.float32(0)).astype(np.float32).tobytes()
    planes[:3] = rng.random((3, *shape), np.float32)
    planes[:3, :, ::7] = 1
    joined = np.empty_like(color)
    _batch.join(planes, color, depth, joined)
    levels = (planes[:3] * np.float32(255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(joined, np.where(seen[..., None], levels, color))


def test_arrays_that_do_not_fit() -> None:
    color, depth, planes = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.float32), np.zeros((4, 2, 3), np.float32)
    for bad in ((color[:1], depth, planes), (color, depth.reshape(3, 2), planes), (color, depth, planes[:3])):
        with pytest.raises(ValueError, match="expected colour"):
            _batch.split(*bad)
        with pytest.raises(ValueError, match="expected planes"):
            _batch.join(bad[2], bad[0], bad[1], color)
    one, codes = np.zeros(1, np.float32), np.zeros((1, 2), np.float32)
    for missing, pairs, restored in (
        (one, codes, depth[:1]),
        (one.astype(np.float16), codes, depth),
        (one, one, depth),
    ):
        with pytest.raises(ValueError, match="expected arrays"):
            _batch.restore(depth, depth, depth, 1.0, 0.0, missing, pairs, restored)
    wide = np.zeros((2, 3))
    with pytest.raises(ValueError, match="expected a result"):
        _batch.restore(depth, depth, depth, 1.0, 0.0, one.astype(float), codes.astype(float), wide)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint32])
@pytest.mark.parametrize("name", ["Z", "a layer.with a name of more than 31 letters.Z"])
@given(seed=st.integers(0, 9999), height=st.integers(1, 50), width=st.integers(1, 40))
def test_openexr_reads_our_exr(kind: Any, name: str, seed: int, height: int, width: int) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width * np.dtype(kind).itemsize), np.uint8).view(kind)  # larger when packed
    plane = noise if seed % 2 else np.add.outer(np.arange(height), np.arange(width)).astype(kind)
    content = encode_depth(plane, "exr", name)
    file = OpenEXR.File(io.BytesIO(content), separate_channels=True)
    found = file.channels()[name].pixels
    assert found.dtype == kind and found.tobytes() == plane.tobytes()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(depth_files.decode(content, name), plane.astype(np.float32))
    info = depth_files.probe(content, name)
    assert (info.compression, info.decoder, info.width, info.height) == ("zip", "native", width, height)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@given(seed=st.integers(0, 9999), height=st.integers(1, 40), width=st.integers(1, 40))
def test_pillow_reads_our_png(kind: Any, seed: int, height: int, width: int) -> None:
    plane = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (height, width), kind, endpoint=True)
    content = encode_depth(plane, "png")
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert np.array_equal(np.asarray(image), plane)
    np.testing.assert_array_equal(depth_files.decode(content), plane)
