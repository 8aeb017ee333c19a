"""The definition of an RGB-D image: the depth rule, the geometry and the kinds of colour files."""

import math
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_build import CSRC, compiled, compiled_for_arm
from PIL import Image

from vologan_fast import _batch
from vologan_fast.config import DepthSpec
from vologan_fast.data import DataError
from vologan_fast.data.depth_spec import valid_pixels
from vologan_fast.data.pixels import (
    BACKGROUND,
    MISSING,
    NEAREST,
    DepthRule,
    crop_color,
    crop_depth,
    depth_indices,
    metres_per_unit,
    normalize_depth,
    pack,
    read_color,
)
from vologan_fast.data.sampling import Draw

PAPER = DepthSpec("normalized", None, -1.0, 1.0, (), -1.0)
MILLIMETRES = DepthSpec("mm", None, 0.5, 4.5, (0.0,), None)


def normalize(spec: DepthSpec, *values: float) -> list[float]:
    """Normalise values by the definition, and check that native code gives the same bits."""
    depth, rule = np.array(values, np.float32), DepthRule.of(spec)
    normalized = normalize_depth(depth, rule)
    _batch.normalize(depth, *rule)
    assert np.array_equal(depth.view(np.int32), normalized.view(np.int32))
    return normalized.tolist()


def test_the_paper_s_depth_is_half_of_d_plus_one() -> None:
    assert normalize(PAPER, 0, 1, 0.5, -0.5, -1, -0.999, 1.5) == [0.5, 1, 0.75, 0.25, BACKGROUND, NEAREST, 1]


def test_millimetres_become_a_fraction_of_near_to_far() -> None:
    assert normalize(MILLIMETRES, 2500, 500, 4500, 0) == [0.5, NEAREST, 1, MISSING]
    assert normalize(MILLIMETRES, 1, 65535) == [NEAREST, 1]  # nearer and farther depth stays valid


def test_a_distance_of_0_or_less_is_missing_in_a_metric_unit() -> None:
    metres = DepthSpec("m", None, 0.5, 4.5, (), None)
    assert normalize(metres, -1, -0.001, -0.0, 0.0, 0.001, 2.5) == [MISSING] * 4 + [NEAREST, 0.5]
    backwards = DepthSpec("auto", -1.0, 0.5, 4.5, (), None)  # the z axis of OpenGL
    assert normalize(backwards, 1, 0, -0.001, -2.5) == [MISSING, MISSING, NEAREST, 0.5]


def test_what_is_no_number_is_missing() -> None:
    assert normalize(PAPER, math.nan, math.inf, -math.inf) == [MISSING] * 3


def test_a_background_may_be_infinite_or_a_value_that_is_invalid_by_default() -> None:
    infinite = DepthSpec("m", None, 0.0, 10.0, (), math.inf)
    assert normalize(infinite, math.inf, -math.inf, 5) == [BACKGROUND, MISSING, 0.5]
    zero = DepthSpec("mm", None, 0.0, 10.0, (0.0,), 0.0)
    assert normalize(zero, 0, -0.0, 5000) == [BACKGROUND, BACKGROUND, 0.5]


def test_values_are_compared_as_the_file_stores_them() -> None:
    blender = DepthSpec("m", None, 0.0, 10.0, (0.1,), 1e10)
    assert normalize(blender, np.float32(1e10), np.float32(0.1)) == [BACKGROUND, MISSING]


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
limits = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def is_tiny(d: float) -> bool:
    """Whether d may become 0 when float32 scales it. Such a distance may be missing or valid."""
    return 0 < abs(d) < 1e-30


@given(
    values=st.lists(st.floats(width=32).filter(lambda d: not is_tiny(d)) | st.just(-0.0), min_size=1, max_size=50),
    unit=st.sampled_from([("m", None), ("mm", None), ("normalized", None), ("auto", 0.25), ("auto", -1.0)]),
    limits=limits,
    invalid=st.lists(finite, max_size=3),
    background=st.none() | finite,
)
def test_every_value_becomes_missing_background_or_a_valid_depth(
    values: list[float],
    unit: tuple[Any, float | None],
    limits: tuple[float, float],
    invalid: list[float],
    background: float | None,
) -> None:
    """Each value is compared with the rule in double precision. The statistics count the same values as valid."""
    near, far = limits
    spec = DepthSpec(*unit, near, far, tuple(invalid), background)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalized = normalize(spec, *values)
        valid = valid_pixels(np.array(values, np.float32), spec).tolist()
    for d, z in zip(values, normalized, strict=True):
        metres = d * metres_per_unit(spec)
        if d == background:
            assert z == BACKGROUND
        elif not math.isfinite(d) or d in invalid or (metres <= 0 and unit[0] != "normalized"):
            assert z == MISSING
        else:
            exact = min(max((metres - near) / (far - near), NEAREST), 1.0)
            # There are two roundings. The terms are as large as d / span and near / span.
            assert abs(z - exact) <= 2**-22 * (1 + max(abs(metres), abs(near)) / (far - near))
            assert NEAREST <= z <= 1
    assert valid == [z > 0 for z in normalized]


def test_depth_lies_under_the_middle_of_each_output_pixel() -> None:
    assert depth_indices(4, 4, 4, 4).tolist() == [0, 1, 2, 3]
    assert depth_indices(2, 8, 8, 8).tolist() == [2, 6]  # floor((i + 0.5) · 4)
    assert depth_indices(4, 4, 4, 2).tolist() == [0, 0, 1, 1]  # depth of half the size
    assert depth_indices(4, 4, 8, 8).tolist() == [2, 3, 4, 5]  # the middle of a wide image


@given(
    size=st.integers(1, 600),
    side=st.integers(1, 600),
    extra=st.integers(0, 600),
    depth_length=st.integers(1, 900),
)
def test_depth_indices_stay_inside_and_in_order(size: int, side: int, extra: int, depth_length: int) -> None:
    indices = depth_indices(size, side, side + extra, depth_length)
    assert indices[0] >= 0 and indices[-1] < depth_length
    assert (np.diff(indices) >= 0).all()
    first = (0.5 * side / size + extra / 2) * depth_length / (side + extra)
    assert math.floor(first - 1e-6) <= indices[0] <= math.floor(first + 1e-6)


def test_small_depth_beside_large_colour_keeps_its_values_and_its_place() -> None:
    depth = np.arange(12 * 16, dtype=np.float32).reshape(12, 16)
    square = crop_depth(depth, (120, 160, 3), 48)
    assert set(np.unique(square)) == set(np.unique(depth[:, 2:14]))  # the middle 12 × 12, nothing interpolated
    assert (square[::4, ::4] == depth[:, 2:14]).all()


def test_colour_of_the_right_size_is_left_alone() -> None:
    color = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert crop_color(color, 32) is color


def test_colour_is_cropped_about_the_centre() -> None:
    color = np.zeros((10, 20, 3), np.uint8)
    color[:, 5:15] = 255
    assert (crop_color(color, 10) == 255).all()
    assert (crop_color(color.transpose(1, 0, 2).copy(), 10) == 255).all()


def test_colour_and_depth_see_the_same_after_resizing() -> None:
    """An edge in the middle of both images stays in the middle of both."""
    color = np.zeros((90, 120, 3), np.uint8)
    color[:, 60:] = 255
    depth = (color[::2, ::2, 0] > 0).astype(np.float32)
    square = crop_color(color, 30)
    assert (square[:, :15] < 128).all() and (square[:, 15:] > 127).all()
    assert (crop_depth(depth, color.shape, 30) == (square[..., 0] > 127)).all()


def packed(draw: Draw | None) -> np.ndarray:
    color = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    depth = np.linspace(0.25, 1, 16, dtype=np.float32).reshape(4, 4)
    depth[0, 0], depth[3, 3] = MISSING, BACKGROUND
    out = np.full((4, 4, 4), np.nan, np.float32)
    pack(color, depth, draw, out)
    return out


def test_a_hole_keeps_its_colour_and_background_has_none() -> None:
    image = packed(None)
    assert (image[0, 1] == np.array([3 / 255, 4 / 255, 5 / 255, 0.3], np.float32)).all()
    assert (image[0, 0] == np.array([0, 1 / 255, 2 / 255, 0], np.float32)).all()
    assert (image[3, 3] == 0).all()


def test_a_flip_moves_colour_and_depth_together() -> None:
    assert (packed(Draw(0, True, 0, 0)) == packed(None)[:, ::-1]).all()


@pytest.mark.parametrize(("top", "left"), [(0, 0), (1, 0), (0, 3), (1, 2), (4, 4)])
def test_a_shift_moves_the_flipped_image_up_and_left_over_zeros(top: int, left: int) -> None:
    padded = np.zeros((8, 8, 4), np.float32)
    padded[:4, :4] = packed(Draw(0, True, 0, 0))
    assert (packed(Draw(0, True, top, left)) == padded[top : top + 4, left : left + 4]).all()


RED, GREEN = (200, 30, 40), (20, 190, 60)


def two_tone(height: int = 16, width: int = 24) -> Image.Image:
    """Return an image that is red on the left and green on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_every_kind_of_colour_file_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    two_tone().convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    color = read_color(path)
    assert color.shape == (16, 24, 3) and color.dtype == np.uint8
    assert np.abs(color[8, 2] - np.array(RED, int)).max() <= 8
    assert np.abs(color[8, 21] - np.array(GREEN, int)).max() <= 8


def test_grey_images_repeat_their_channel(tmp_path: Path) -> None:
    two_tone().convert("L").save(tmp_path / "grey.jpg")
    deep = np.linspace(0, 65535, 16 * 24).astype(np.uint16).reshape(16, 24)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = read_color(tmp_path / "grey.jpg")
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    assert (read_color(tmp_path / "deep.png")[..., 1] == deep >> 8).all()


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    """Phones write an orientation into the JPEG, but the depth of the image is not rotated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    two_tone().save(tmp_path / "a.jpg", exif=exif)
    assert read_color(tmp_path / "a.jpg").shape == (16, 24, 3)


def test_colour_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(DataError, match=rf"^{path}: no such file$"):
        read_color(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=rf"^{path}: not a JPEG or PNG image$"):
        read_color(path)
    two_tone(256, 256).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=rf"^{path}: the colour image cannot be decoded: .*truncated"):
        read_color(path)


PIXEL_ROWS = (Path(__file__).with_name("pixel_rows_test.cpp"), CSRC / "batch" / "pixel_rows.cpp")


def test_rows_are_packed_alike_by_every_processor(tmp_path: Path) -> None:
    program = compiled(tmp_path, *PIXEL_ROWS, "-I", CSRC / "batch", "-ffp-contract=off")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_rows_are_packed_alike_on_arm(tmp_path: Path) -> None:
    command = compiled_for_arm(tmp_path, *PIXEL_ROWS, "-I", CSRC / "batch", "-ffp-contract=off")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
