"""Native rows of translated images have the bits of their definitions, and packed files those of other libraries."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vologan_fast import _batch
from vologan_fast import depth as depth_files
from vologan_fast.data import DataError
from vologan_fast.data.pixels import BACKGROUND, MISSING, NEAREST
from vologan_fast.translation.encoding import ColorKind, color_kind, encode_depth, write_color
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
@settings(deadline=None)
@given(seed=st.integers(0, 9999), width=st.integers(1, 300))
def test_restored_depth(kind: Any, seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), width)
    before = mixed(rng, shape)
    z = np.where(rng.random(shape) < 0.3, before, mixed(rng, shape))
    gain, offset = float(np.float32(rng.choice([2, 3500, 6e4, -5]))), float(np.float32(rng.choice([-1, 0, 500])))
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


@settings(deadline=None)
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
    joined = np.empty((*shape, 4), np.uint8)
    assert _batch.join(planes, color, depth, joined)
    levels = (planes[:3] * np.float32(255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(joined[..., :3], np.where(seen[..., None], levels, color))
    assert (joined[..., 3] == 255).all()
    planes.reshape(-1)[rng.integers(planes.size)] = rng.choice([np.nan, np.inf, -np.inf])
    assert not _batch.join(planes, color, depth, joined)


def test_arrays_that_do_not_fit() -> None:
    color, depth, planes = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.float32), np.zeros((4, 2, 3), np.float32)
    for bad in ((color[:1], depth, planes), (color, depth.reshape(3, 2), planes), (color, depth, planes[:3])):
        with pytest.raises(ValueError, match="expected colour"):
            _batch.split(*bad)
        with pytest.raises(ValueError, match="expected planes"):
            _batch.join(bad[2], bad[0], bad[1], np.zeros((2, 3, 4), np.uint8))
    for shape in ((2, 3, 3), (3, 2, 4), (2, 3), (1, 6, 4)):
        with pytest.raises(ValueError, match="expected planes"):
            _batch.join(planes, color, depth, np.zeros(shape, np.uint8))
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
@settings(deadline=None)
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
@settings(deadline=None)
@given(seed=st.integers(0, 9999), height=st.integers(1, 40), width=st.integers(1, 40))
def test_pillow_reads_our_png(kind: Any, seed: int, height: int, width: int) -> None:
    plane = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (height, width), kind, endpoint=True)
    content = encode_depth(plane, "png")
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert np.array_equal(np.asarray(image), plane)
    np.testing.assert_array_equal(depth_files.decode(content), plane)


TIFF_KINDS = ["uint8", "uint16", "uint32", "int16", "int32", "float32"]


@pytest.mark.parametrize("kind", TIFF_KINDS)
@settings(deadline=None)
@given(seed=st.integers(0, 9999), height=st.integers(1, 40), width=st.integers(1, 40))
def test_tiff_keeps_type_and_values(kind: str, seed: int, height: int, width: int) -> None:
    random_bytes = np.random.default_rng(seed).integers(0, 256, (height, width * np.dtype(kind).itemsize), np.uint8)
    plane = random_bytes.view(kind)
    plane = plane.T if seed % 2 else plane
    content = encode_depth(plane, "tiff")
    info = depth_files.probe(content)
    assert (info.format, info.channels[0].dtype, info.height, info.width) == ("tiff", kind, *plane.shape)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(depth_files.decode(content), plane.astype(np.float32))
    if kind in ("uint8", "uint16", "int32", "float32"):
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(np.asarray(image), plane)


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_opencv_reads_our_tiff(kind: str) -> None:
    cv2 = pytest.importorskip("cv2")
    info: Any = np.finfo(kind) if kind == "float32" else np.iinfo(kind)
    plane = np.linspace(info.min / 2, info.max / 2, 15 * 21).reshape(15, 21).astype(kind)
    found = cv2.imdecode(np.frombuffer(encode_depth(plane, "tiff"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None and found.tobytes() == plane.tobytes()


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "float16", "float64"])
def test_types_that_tiff_lacks(kind: str) -> None:
    with pytest.raises(DataError, match=f"TIFF: expected depth of uint8, .*float32, found {kind}"):
        encode_depth(np.ones((2, 3), kind), "tiff")


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "kwds", "arr_0", "a/b", "depth.Z", "Tiefe ä", ""])
def test_npz_with_any_name(name: str) -> None:
    plane = np.arange(12, dtype=np.float16).reshape(3, 4)
    content = encode_depth(plane, "npz", name)
    assert content == encode_depth(plane, "npz", name)
    with np.load(io.BytesIO(content)) as arrays:
        assert arrays.files == [name] and arrays[name].dtype == plane.dtype
        np.testing.assert_array_equal(arrays[name], plane)
    np.testing.assert_array_equal(depth_files.decode(content, name), plane)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def with_tables(jpeg: bytes, ids: dict[int, int]) -> bytes:
    """Return a JPEG whose quantisation tables have other numbers."""
    changed, at = bytearray(jpeg), 2
    while changed[at + 1] != 0xDA:  # the scan
        marker, length = changed[at + 1], int.from_bytes(changed[at + 2 : at + 4], "big")
        if marker == 0xDB:
            for table in range(at + 4, at + 2 + length, 65):  # of 8 bits
                changed[table] = ids[changed[table]]
        elif marker in (0xC0, 0xC2):
            for component in range(at + 10, at + 2 + length, 3):
                changed[component + 2] = ids[changed[component + 2]]
        at += 2 + length
    return bytes(changed)


@pytest.mark.parametrize("ids", [{0: 0, 1: 1}, {0: 2, 1: 3}, {0: 0, 1: 2}, {0: 1, 1: 3}, {0: 1, 1: 0}, {0: 3, 1: 1}])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 90, "progressive": True, "subsampling": 0}])
def test_jpeg_keeps_the_table_of_each_component(ids: dict[int, int], options: dict[str, Any]) -> None:
    picture = io.BytesIO()
    ramp = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8)
    Image.fromarray(np.stack([ramp * 3, ramp * 2, ramp + 60], -1)).save(picture, "JPEG", **options)
    written = io.BytesIO()
    with Image.open(io.BytesIO(with_tables(picture.getvalue(), ids))) as before:
        kind = color_kind(before)
        write_color(written, np.asarray(before), kind)
        tables = [before.quantization[component[3]] for component in before.layer]
    with Image.open(written) as after:
        assert [after.quantization[component[3]] for component in after.layer] == tables


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 90, "subsampling": 0}])
@pytest.mark.parametrize("shape", [(24, 32), (7, 13), (1, 1)])
def test_pixels_of_four_bytes_give_the_same_file(format_: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 4), np.uint8)
    kind = ColorKind(format_, options if format_ == "JPEG" else {"compress_level": 1})
    three, four = io.BytesIO(), io.BytesIO()
    write_color(three, pixels[..., :3], kind)
    write_color(four, pixels, kind)
    assert four.getvalue() == three.getvalue()


def test_jpeg_with_three_tables() -> None:
    picture, written = io.BytesIO(), io.BytesIO()
    three = [[number] * 64 for number in (3, 7, 12)]
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(picture, "JPEG", qtables=three)
    with Image.open(picture) as before:
        write_color(written, np.asarray(before), color_kind(before))
    with Image.open(written) as after:
        assert [after.quantization[component[3]] for component in after.layer] == three
