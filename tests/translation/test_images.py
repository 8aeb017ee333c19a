"""Images in file units through a network and back, in memory and in files."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from vologan_fast import depth as depth_files
from vologan_fast.config import PRESETS, DepthSpec, GeneratorConfig
from vologan_fast.data import DataError
from vologan_fast.data.pixels import BACKGROUND, MISSING, NEAREST, DepthRule, normalize_depth
from vologan_fast.networks.generator import Generator
from vologan_fast.translation.encoding import encode_depth
from vologan_fast.translation.images import prepare, restore, restore_depth, translate_image
from vologan_fast.translation.inputs import find_inputs
from vologan_fast.translation.job import translate_files
from vologan_fast.translation.translator import Translator


class Same(Generator):
    """A network that changes nothing, and that has the generator's demands on sizes."""

    config = GeneratorConfig()
    size_multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0 and min(x.shape[2:]) > 8
        return x


class Changed(Same):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x).clone())


def translator(spec: DepthSpec, network: nn.Module | None = None, weights: Path = Path(__file__)) -> Translator:
    config = PRESETS["demo"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=spec, real=spec))
    return Translator(network or Same(), config, "s2t", weights)  # type: ignore[arg-type]


METRES = DepthSpec("m", None, 0.5, 4.0, (), None)
MILLIMETRES = DepthSpec("mm", None, 0.5, 4.0, (0.0, 65535.0), None)
TUM = DepthSpec("auto", 0.0002, 0.5, 4.0, (0.0,), None)
PAPER = DepthSpec("normalized", None, -1.0, 1.0, (), -1.0)
BLENDER = DepthSpec("m", None, 0.5, 4.0, (), 1e10)
OPENGL = DepthSpec("auto", -1.0, 0.5, 4.0, (), None)


def example(spec: DepthSpec, dtype: Any, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return depth in file units with values in and beyond the range, holes and background."""
    rng = np.random.default_rng(seed)
    near, far = spec.near, spec.far
    assert near is not None and far is not None
    units = {"m": 1, "mm": 1000, "normalized": 1}.get(spec.unit, 1) if spec.scale is None else 1 / spec.scale
    depth = (rng.uniform(near - 0.1, far + 0.1, shape) * units).astype(dtype)
    holes = [*(spec.invalid or ()), *([] if spec.unit == "normalized" else [0, -units / abs(units)])]
    if np.dtype(dtype).kind == "f":
        holes += [math.nan, math.inf]
    for value in [*holes, *([spec.background] if spec.background is not None else [])]:
        if np.dtype(dtype).kind == "f" or value >= 0:
            depth[rng.random(shape) < 0.05] = value
    depth[0, 0] = np.asarray((near + far) / 2 * units).astype(dtype)  # at least one valid value
    return depth


CASES = [
    (METRES, "float32"),
    (METRES, "float16"),
    (METRES, "float64"),
    (MILLIMETRES, "uint16"),
    (MILLIMETRES, "int32"),
    (MILLIMETRES, "float32"),
    (TUM, "uint16"),
    (PAPER, "float32"),
    (PAPER, "float16"),
    (BLENDER, "float32"),
    (OPENGL, "float32"),
]


@pytest.mark.parametrize(("spec", "dtype"), CASES)
@settings(max_examples=15, deadline=None)
@given(
    color_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    factor=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_a_network_that_changes_nothing_returns_the_image(
    spec: DepthSpec, dtype: str, color_size: tuple[int, int], factor: int, seed: int
) -> None:
    depth = example(spec, dtype, color_size, seed)
    color = np.random.default_rng(seed).integers(0, 256, (*color_size, 3), np.uint8)
    color = color.repeat(factor, 0).repeat(factor, 1)  # depth may be smaller than colour
    found_color, found = translate_image(translator(spec), color, depth)
    assert np.array_equal(found_color, color)
    assert_same_depth(found, depth, spec)


def assert_same_depth(found: np.ndarray, depth: np.ndarray, spec: DepthSpec) -> None:
    """Check values to the digits of a float32 or of the type. All other values are the same bits."""
    assert found.dtype == depth.dtype and found.shape == depth.shape
    assert np.array_equal(np.isnan(found), np.isnan(depth))
    whole = np.isfinite(depth)
    assert np.array_equal(found[~whole & ~np.isnan(depth)], depth[~whole & ~np.isnan(depth)])
    error = np.abs(found[whole].astype(np.float64) - depth[whole].astype(np.float64))
    span = np.abs(depth[whole].astype(np.float64)[np.abs(depth[whole].astype(np.float64)) < 1e9]).max()
    allowed = 2**-21 * float(span) + (np.spacing(np.abs(depth[whole])) if depth.dtype.kind == "f" else 0.5)
    assert (error <= allowed).all()


def test_a_hole_that_the_network_makes_becomes_the_file_s_missing_value() -> None:
    def with_hole(x: Tensor) -> Tensor:
        x[:, 3, :, 8:16] = 0
        return x

    color, values = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 2.0)
    for spec, dtype, missing in [
        (METRES, np.float32, 0.0),
        (MILLIMETRES, np.uint16, 0.0),
        (dataclasses.replace(MILLIMETRES, invalid=(65535.0,)), np.uint16, 65535.0),
        (PAPER, np.float32, math.nan),
        (OPENGL, np.float32, 0.0),
    ]:
        units = {"mm": 1000}.get(spec.unit, 1) * (0.25 if spec is PAPER else 1) * (-1 if spec is OPENGL else 1)
        _, found = translate_image(translator(spec, Changed(with_hole)), color, (values * units).astype(dtype))
        np.testing.assert_array_equal(found[:, 8:16], np.asarray(missing).astype(dtype))
        assert (found[:, :8] != np.asarray(missing)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_file_with_nan_gets_no_other_value_for_missing(dtype: type) -> None:
    def with_hole(x: Tensor) -> Tensor:
        x[:, 3, :, 8:16] = 0
        return x

    depth = np.full((32, 32), 2, dtype)
    depth[0, 0] = math.nan
    model = translator(METRES, Changed(with_hole))
    _, found = translate_image(model, np.zeros((32, 32, 3), np.uint8), depth)
    assert np.isnan(found[:, 8:16]).all() and (found[1:, :8] == 2).all()


def hole(x: Tensor) -> Tensor:
    """Return a translation without depth in the left half."""
    x[:, 3, :, : x.shape[3] // 2] = 0
    return x


INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("end", ["min", "max"])
@pytest.mark.parametrize("meaning", ["background", "missing"])
def test_the_ends_of_an_integer_type_are_codes(dtype: str, end: str, meaning: str) -> None:
    """The largest integers of 32 and 64 bits are rounded up when they are read as float32."""
    code = int(getattr(np.iinfo(dtype), end))
    invalid, background = ((), float(code)) if meaning == "background" else ((float(code),), None)
    spec = DepthSpec("normalized", None, 10.0, 100.0, invalid, background)
    depth, color = np.full((32, 32), 50, dtype), np.zeros((32, 32, 3), np.uint8)
    depth[:, ::3] = code
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in (depth, depth.astype(np.float32)):  # the second is what a reader of files gives
            model = translator(spec)
            prepared = prepare(model, color, file, dtype)
            _, found = restore(model, model(prepared.image[None])[0], prepared)
            assert found.dtype == depth.dtype and np.array_equal(found, depth)
        if meaning == "missing":
            _, found = translate_image(translator(spec, Changed(hole)), color, depth)
            assert (found[:, :16] == code).all() and np.array_equal(found[:, 16:], depth[:, 16:])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float16", "float32"])
@pytest.mark.parametrize("sign", [1, -1])
@settings(max_examples=20, deadline=None)
@given(codes=st.lists(st.integers(0, 12), max_size=4, unique=True), seed=st.integers(0, 99))
def test_a_depth_never_becomes_a_code(dtype: str, sign: int, codes: list[int], seed: int) -> None:
    """The range begins at zero and has other codes in it. With a negative scale, depth lies along the negative axis."""
    spec = DepthSpec("auto", sign * 0.01, 0.001, 1.2, tuple(float(sign * code) for code in codes), None)
    z = np.random.default_rng(seed).uniform(NEAREST, 0.1, (8, 8)).astype(np.float32)
    z[0, 0] = NEAREST
    depth = np.full((8, 8), sign * 100, dtype)
    restored = restore_depth(z, depth, np.full((8, 8), 0.5, np.float32), spec)
    assert restored.dtype == depth.dtype
    read = normalize_depth(restored.astype(np.float32), DepthRule.of(spec))
    assert (read >= NEAREST).all()
    beside = 5.5 * 0.01 / 1.2  # four codes and 0 may follow each other, and the value itself is rounded
    assert np.abs(read - z).max() <= beside


@pytest.mark.parametrize(
    ("spec", "dtype", "missing"),
    [
        (dataclasses.replace(MILLIMETRES, invalid=(-1.0, 0.0)), "uint16", 0),
        (dataclasses.replace(MILLIMETRES, invalid=(-1.0, 0.0)), "uint32", 0),
        (dataclasses.replace(MILLIMETRES, invalid=(-1.0, 0.0)), "int32", -1),
        (dataclasses.replace(MILLIMETRES, invalid=(1.5, 0.0)), "uint16", 0),
        (dataclasses.replace(MILLIMETRES, invalid=(math.nan, math.inf)), "uint16", 0),
        (dataclasses.replace(MILLIMETRES, invalid=()), "uint16", 0),
        (dataclasses.replace(MILLIMETRES, invalid=(70000.0,)), "float16", 0),
        (dataclasses.replace(MILLIMETRES, invalid=(65535.0, 0.0), near=0.01, far=0.2), "uint8", 0),
        (dataclasses.replace(METRES, background=0.0), "float32", math.nan),
        (dataclasses.replace(METRES, background=0.0), "float16", math.nan),
        (dataclasses.replace(METRES, background=0.0, invalid=(0.0, 9.0)), "float64", 9),
        (dataclasses.replace(METRES, invalid=(math.inf,)), "float16", math.inf),
        (DepthSpec("normalized", None, 0.0, 200.0, (), None), "float32", math.nan),
        (DepthSpec("normalized", None, 0.0, 200.0, (-1.0, 255.0), None), "uint8", 255),
        (dataclasses.replace(MILLIMETRES, invalid=(), background=0.0), "uint16", None),
        (dataclasses.replace(MILLIMETRES, invalid=(-1.0,), background=0.0), "uint32", None),
        (DepthSpec("normalized", None, 0.0, 200.0, (), None), "uint16", None),
        (DepthSpec("normalized", None, 0.0, 200.0, (0.5,), 0.0), "int64", None),
    ],
)
def test_the_value_of_a_hole_is_read_as_missing(spec: DepthSpec, dtype: str, missing: float | None) -> None:
    middle = {"m": 2, "mm": 2000 if spec.far == 4 else 100, "normalized": 100}[spec.unit]
    depth, color = np.full((32, 32), middle, dtype), np.zeros((32, 32, 3), np.uint8)
    network = Changed(hole)
    if missing is None:
        with pytest.raises(DataError, match=f"no value of {dtype} depth means missing.*--data.DOMAIN.invalid"):
            translate_image(translator(spec, network), color, depth)
        if spec.background is not None:
            depth[:, :16] = 0  # background, so nothing is missing
        network = Changed(lambda x: x) if spec.background is None else network
        assert np.array_equal(translate_image(translator(spec, network), color, depth)[1], depth)
        return
    _, found = translate_image(translator(spec, network), color, depth)
    np.testing.assert_array_equal(found[:, :16], np.full((32, 16), missing, dtype))
    normalized = normalize_depth(found.astype(np.float32), DepthRule.of(spec))
    assert (normalized[:, :16] == MISSING).all() and (normalized[:, 16:] > 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_network_whose_values_are_not_finite(value: float) -> None:
    def broken(x: Tensor) -> Tensor:
        x[0, 1, 2, 3] = value
        return x

    color, depth = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 2, np.float32)
    with pytest.raises(DataError, match="the network gave values that are not finite"):
        translate_image(translator(METRES, Changed(broken)), color, depth)


@pytest.mark.parametrize("background", [None, 65504.0])
def test_halves_stay_finite(background: float | None) -> None:
    spec = DepthSpec("mm", None, 0.5, 80.0, (0.0,), background)
    depth = np.full((32, 32), 65472, np.float16)
    depth[:, :9] = [0, 65504, np.inf, np.nan, -1, 500, 499, 60000, 65440]
    color = np.zeros((32, 32, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, same = translate_image(translator(spec), color, depth)
        _, far = translate_image(translator(spec, Changed(lambda x: x * 0 + 1)), color, depth)
    np.testing.assert_array_equal(same, depth)
    assert (far[:, 1] == 65504).all() and (far[:, 9:] == (65504 if background is None else 65472)).all()
    assert np.isfinite(far).all()


def test_background_stays_whatever_the_network_paints() -> None:
    depth = np.full((32, 32), 2, np.float32)
    depth[:, :9] = 1e10
    color = np.full((32, 32, 3), 77, np.uint8)
    found_color, found = translate_image(translator(BLENDER, Changed(lambda x: x * 0 + 0.5)), color, depth)
    assert (found[:, :9] == 1e10).all() and (found_color[:, :9] == 77).all()
    assert np.allclose(found[:, 9:], 2.25) and (found_color[:, 9:] == 128).all()


@settings(deadline=None)
@given(
    z=st.floats(1 / 1024, 1, width=32),
    near=st.floats(-2, 0.5),
    dtype=st.sampled_from(["uint16", "int16", "float16", "float32"]),
)
def test_a_translated_depth_is_never_a_code(z: float, near: float, dtype: str) -> None:
    """0 in normalised depth and -1 as background are values of the range, too."""
    spec = DepthSpec("normalized", None, near, near + 3, (0.0, 1.0), -1.0)
    depth = np.full((1, 1), 2).astype(dtype)
    found = restore_depth(torch.full((1, 1), z), depth, torch.full((1, 1), 0.5), spec)
    assert found.item() not in (0, 1, -1)


FLOATS = ["float16", "float32", "float64"]


@settings(deadline=None)
@given(
    z=st.floats(1 / 1024, 1, width=32),
    dtype=st.sampled_from([*INTEGERS, *FLOATS]),
    end=st.sampled_from([0, 1, -1]),
    power=st.integers(0, 64),
    away=st.integers(-2, 2),
    sign=st.sampled_from([1, -1]),
)
def test_no_translated_depth_is_read_as_a_code(
    z: float, dtype: str, end: int, power: int, away: int, sign: int
) -> None:
    """Near the codes, the next value of the type may be the same float32."""
    info: Any = np.finfo(dtype) if dtype in FLOATS else np.iinfo(dtype)
    code = {0: float(sign * 2**power + away), 1: float(info.max), -1: float(info.min)}[end]
    code = code if abs(code) < 3e38 else math.copysign(float(np.finfo(np.float32).max), code)
    with np.errstate(over="ignore"):
        near = float(np.nextafter(np.float32(code), np.float32(-np.inf)))
    spec = DepthSpec("normalized", None, near, near + max(abs(near) / 2**21, 3), (near,), code)
    if not -3e38 < near < 3e38 or not float(info.min) <= code <= float(info.max):
        return
    depth = np.full((1, 1), 2).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = restore_depth(torch.full((1, 1), z), depth, torch.full((1, 1), 0.5), spec)
    assert normalize_depth(found.astype(np.float32), DepthRule.of(spec)).item() not in (BACKGROUND, MISSING)


def test_arguments_that_do_not_fit() -> None:
    model = translator(METRES)
    good_color, good_depth = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), np.float32)
    for color, depth, words in [
        (good_color[..., :2], good_depth, "color: expected"),
        (good_color / 255, good_depth, "color: expected"),
        (good_color, good_depth[None], "depth: expected"),
        (good_color, good_depth > 0, "depth: expected"),
    ]:
        with pytest.raises(ValueError, match=words):
            translate_image(model, color, depth)
    with pytest.raises(ValueError, match="expected the aspect ratio of the colour"):
        translate_image(model, good_color, good_depth[:16])


FORMATS = [
    ("exr", METRES, "float32"),
    ("exr", PAPER, "float16"),
    ("png", MILLIMETRES, "uint16"),
    ("npy", METRES, "float32"),
    ("npy", MILLIMETRES, "int32"),
    ("pfm", METRES, "float32"),
    ("tiff", MILLIMETRES, "uint16"),
    ("tiff", METRES, "float32"),
    ("tiff", MILLIMETRES, "int32"),
    ("npz", METRES, "float16"),
]


@pytest.mark.parametrize(("format_", "spec", "dtype"), FORMATS)
@pytest.mark.parametrize("color_suffix", [".png", ".jpg"])
@pytest.mark.parametrize("layout", ["folders", "beside", "one domain", "one file"])
def test_files_come_out_as_they_came_in(
    tmp_path: Path, format_: str, spec: DepthSpec, dtype: str, color_suffix: str, layout: str
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    names = []
    for i, shape in enumerate([(20, 31), (20, 31), (48, 17)]):
        folder = {"folders": "synthetic/{}", "beside": "synthetic", "one domain": "{}", "one file": ""}[layout]
        suffix = ".depth" if "{" not in folder else ""
        names.append(
            (folder.format("color") + f"/é {i}{color_suffix}", folder.format("depth") + f"/é {i}{suffix}.{format_}")
        )
        for name in names[-1]:
            (root / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(picture // 8 + 100).save(root / names[-1][0].lstrip("/"), quality=95, subsampling=0)
        (root / names[-1][1].lstrip("/")).write_bytes(encode_depth(example(spec, dtype, shape, i), format_))
    if layout == "one file":
        names = names[:1]
        source = str(root / names[0][0].lstrip("/"))
    else:
        source = str(root)
    done = translate_files(translator(spec), find_inputs(source, "synthetic"), out, threads=2, batch=2)
    assert (done.written, done.kept, done.broken) == (len(names), 0, [])
    for color, depth in names:
        for suffix, name in (("color", color.lstrip("/")), ("depth", depth.lstrip("/"))):
            before, after = root / name, out / name
            if suffix == "color":
                with Image.open(before) as a, Image.open(after) as b:
                    assert a.format == b.format
                    difference = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
                    # A second JPEG of the same pixels, by the same tables, is off by a level on average.
                    assert difference.mean() <= (0 if color_suffix == ".png" else 1)
            else:
                assert depth_files.probe(before).channels == depth_files.probe(after).channels
                assert_same_depth(
                    depth_files.decode(after).astype(dtype), depth_files.decode(before).astype(dtype), spec
                )
    again = translate_files(translator(spec), find_inputs(source, "synthetic"), out, threads=2)
    assert (again.written, again.kept) == (0, len(names))


def test_no_input_is_ever_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(folder / f"{i}.png")
        np.save(folder / f"{i}.depth.npy", np.full((16, 16), 2, np.float32))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link"):
        done = translate_files(translator(METRES), find_inputs(str(tmp_path), "synthetic"), out)
        assert (done.written, len(done.broken)) == (0, 2)
        assert "the output would replace this file" in done.broken[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint32"])
def test_depth_of_a_crop_comes_out_in_its_place(tmp_path: Path, dtype: str) -> None:
    """The data window of an EXR is a part of the picture that the colour shows. The rest is missing."""
    OpenEXR = pytest.importorskip("OpenEXR")
    for kind in ("color", "depth"):
        (tmp_path / "in" / kind).mkdir(parents=True)
    Image.fromarray(np.full((24, 32, 3), 9, np.uint8)).save(tmp_path / "in/color/a.png")
    spec = MILLIMETRES if dtype == "uint32" else METRES
    depth = (np.random.default_rng(0).uniform(1, 3, (10, 12)) * (1000 if dtype == "uint32" else 1)).astype(dtype)
    windows = {"dataWindow": ((5, 7), (16, 16)), "displayWindow": ((0, 0), (31, 23))}
    windows = {name: tuple(np.array(corner, np.int32) for corner in window) for name, window in windows.items()}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **windows}
    OpenEXR.File(header, {"Z": depth}).write(str(tmp_path / "in/depth/a.exr"))
    done = translate_files(translator(spec), find_inputs(str(tmp_path / "in"), "synthetic"), tmp_path / "out")
    assert (done.written, done.broken) == (1, [])
    expected = np.zeros((24, 32), dtype)
    expected[7:17, 5:17] = depth
    assert_same_depth(depth_files.decode(tmp_path / "out/depth/a.exr").astype(dtype), expected, spec)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / "in/a.png")
    np.save(tmp_path / "in/a.depth.npy", np.full((16, 16), 2, np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.a.png.partial").mkdir()  # the name of the unfinished file is taken
    with pytest.raises(DataError, match=r"out/a\.png: cannot be written"):
        translate_files(translator(METRES), find_inputs(str(tmp_path / "in"), "synthetic"), tmp_path / "out")
