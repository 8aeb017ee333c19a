"""EXR in a data set: where its pixels lie under the colour, and the type of the channel that is read.

`expected_depth` is an independent definition, pixel by pixel and in fractions. The NumPy definition, the native
loader, DALI and kept images must all give it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import BACKENDS, needs_dali, picture
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from vologan_fast import depth as depth_files
from vologan_fast.config import DOMAINS, DataConfig, DepthSpec, Size, height_and_width
from vologan_fast.data import DataError, Record, load_dataset, open_loader
from vologan_fast.data.depth_spec import resolve_depth
from vologan_fast.data.inspection import inspect_dataset
from vologan_fast.data.loader import held_out_batches
from vologan_fast.data.loaders.native import image_batches
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import DepthRule, find_frame, normalize_depth, read_cropped_depth
from vologan_fast.report.inspection import print_report

OpenEXR = pytest.importorskip("OpenEXR")
METRES = DepthSpec("m", None, 0.0, 1000.0, (), None)

Box = tuple[int, int, int, int]
"""A window: column and row of its first pixel, width and height."""


def write_exr(path: Path, planes: dict[str, np.ndarray], data: Box, display: Box, compression: str = "ZIP") -> Path:
    def corners(box: Box) -> tuple[np.ndarray, np.ndarray]:
        x, y, width, height = box
        return np.array([x, y], np.int32), np.array([x + width - 1, y + height - 1], np.int32)

    header = {
        "type": OpenEXR.scanlineimage,
        "compression": getattr(OpenEXR, f"{compression}_COMPRESSION"),
        "dataWindow": corners(data),
        "displayWindow": corners(display),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    OpenEXR.File(header, dict(planes)).write(str(path))
    return path


def distinct(box: Box) -> np.ndarray:
    """Return depth that is different at each place of the plane: float32 (height, width), at most 1000."""
    x, y, width, height = box
    columns, rows = np.meshgrid(np.arange(x, x + width), np.arange(y, y + height))
    return (500 + columns + rows / 64).astype(np.float32)


def expected_frame(data: Box, display: Box, color: tuple[int, int]) -> Box | None:
    """Return the window that the colour (width, height) shows."""
    for box in (display, data):
        if box[2:] == color:
            return box
    smaller = display[2] <= data[2] and display[3] <= data[3]
    for box in (display, data):
        ours, theirs = Fraction(box[2], box[3]), Fraction(*color)
        if abs(ours - theirs) <= Fraction(2, 100) * max(ours, theirs):
            if box == display and smaller and Fraction(display[2] * display[3], data[2] * data[3]) < Fraction(1, 4):
                return None
            return box
    return None


def expected_crop(color: tuple[int, int], shown: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of the largest rectangle of the aspect ratio of `shown`, rounded half up to pixels."""
    scale = min(Fraction(color[0], shown[0]), Fraction(color[1], shown[1]))
    width, height = (max(1, math.floor(scale * side + Fraction(1, 2))) for side in shown)
    return width, height


def expected_depth(plane: np.ndarray, data: Box, frame: Box, color: tuple[int, int], size: Size) -> np.ndarray:
    """Return depth under the centre of the colour, by nearest neighbour, at a size. It is NaN where none is."""
    height, width = height_and_width(size)
    shown = width, height
    found = np.full((height, width), np.nan, np.float32)
    crop = expected_crop(color, shown)
    for row in range(height):
        for column in range(width):
            at = []
            for axis, i in enumerate((column, row)):
                step = Fraction(crop[axis], shown[axis])
                in_color = Fraction(color[axis] - crop[axis], 2) + (Fraction(i) + Fraction(1, 2)) * step
                at.append(frame[axis] + math.floor(in_color * frame[2 + axis] / color[axis]) - data[axis])
            if 0 <= at[0] < data[2] and 0 <= at[1] < data[3]:
                found[row, column] = plane[at[1], at[0]]
    return found


def overlap(a: Box, b: Box) -> bool:
    return all(a[k] < b[k] + b[2 + k] and b[k] < a[k] + a[2 + k] for k in (0, 1))


def write_color(path: Path, color: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(0, color[1], color[0])).save(path, quality=95)
    return path


sides = st.integers(1, 24)
boxes = st.tuples(st.integers(-12, 12), st.integers(-12, 12), sides, sides)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Box, Box, tuple[int, int]]:
    """Draw data window, display window and the colour's size, which mostly fits one of them."""
    data, display = draw(boxes), draw(boxes)
    if draw(st.booleans()):  # overscan or a crop, with the same aspect ratio
        grow = draw(st.integers(-4, 8))
        display = (data[0] + grow, data[1] + grow, max(1, data[2] - 2 * grow), max(1, data[3] - 2 * grow))
    width, height = draw(st.sampled_from([display[2:], data[2:]]))
    times = draw(st.sampled_from([1, 1, 2, 3]))
    if draw(st.integers(0, 9)) == 0:
        width += 7
    return data, display, (width * times, height * times)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    windows=windows(),
    size=st.sampled_from([1, 4, 7, 16, (4, 9), (16, 5), (6, 8)]),
    compression=st.sampled_from(["NO", "ZIP", "PIZ"]),
)
@example(windows=((-8, -8, 80, 80), (0, 0, 64, 64), (64, 64)), size=64, compression="ZIP")  # overscan
@example(windows=((8, 4, 40, 30), (0, 0, 64, 48), (64, 48)), size=16, compression="ZIP")  # a crop
@example(windows=((100, 50, 64, 64), (100, 50, 64, 64), (64, 64)), size=64, compression="ZIP")  # elsewhere
@example(windows=((8, 0, 64, 64), (0, 0, 64, 64), (64, 64)), size=64, compression="NO")  # moved
@example(windows=((64, 0, 64, 64), (0, 0, 64, 64), (64, 64)), size=8, compression="ZIP")  # not in the picture
@example(windows=((0, 0, 64, 64), (0, 0, 32, 32), (96, 96)), size=16, compression="ZIP")  # a quarter
@example(windows=((0, 0, 64, 64), (0, 0, 31, 31), (96, 96)), size=16, compression="ZIP")  # less
@example(windows=((0, 0, 1, 1), (-(2**27), -(2**27), 2**28, 2**28), (4, 4)), size=4, compression="ZIP")
def test_every_loader_places_depth_under_the_colour(
    tmp_path: Path, windows: tuple[Box, Box, tuple[int, int]], size: Size, compression: str
) -> None:
    data, display, color = windows
    plane = distinct(data)
    depth = write_exr(tmp_path / "a.exr", {"Z": plane}, data, display, compression)
    record = Record(write_color(tmp_path / "a.jpg", color), depth)
    assert np.array_equal(depth_files.decode(depth), plane)  # decode returns the data window, whatever the display
    frame = expected_frame(data, display, color)
    if frame is None:
        with pytest.raises(DataError, match=rf"a\.exr: depth of .* does not fit the colour of {color[0]} × {color[1]}"):
            read_cropped_depth(record, METRES, size, color[::-1])
        with pytest.raises(DataError, match="does not fit the colour"):
            next(image_batches([record], METRES, size, 1, 1, torch.device("cpu")))
        return
    expected = expected_depth(plane, data, frame, color, size)
    if frame == display and not overlap(data, display):
        with pytest.raises(
            DataError, match=r"a\.exr: no valid depth; its data window .* expected windows that overlap"
        ):
            read_cropped_depth(record, METRES, size, color[::-1])
        with pytest.raises(DataError, match="expected windows that overlap"):
            next(image_batches([record], METRES, size, 1, 1, torch.device("cpu")))
        return
    found = read_cropped_depth(record, METRES, size, color[::-1])
    np.testing.assert_array_equal(found, expected)
    x, y = (np.arange(data[k], data[k] + data[2 + k]) for k in (0, 1))
    x, y = (a[(a >= frame[k]) & (a < frame[k] + frame[2 + k])] for k, a in enumerate((x, y)))
    crop = find_frame(depth, depth_files.probe(depth), color[::-1]).crop(plane)
    np.testing.assert_array_equal(crop, plane[np.ix_(y - data[1], x - data[0])])
    normalized = normalize_depth(expected, DepthRule.of(METRES))
    if not (normalized > 0).any():
        with pytest.raises(DataError, match="no valid depth"):
            next(image_batches([record], METRES, size, 1, 1, torch.device("cpu")))
        return
    (image,) = next(image_batches([record], METRES, size, 1, 1, torch.device("cpu")))
    np.testing.assert_array_equal(image[3].numpy(), normalized)
    if importlib.util.find_spec("vologan_fast._image_loader") and compression != "PIZ":
        assert native(record, size) is not None, "left to Python"
        np.testing.assert_array_equal(native(record, size), normalized)


def native(record: Record, size: Size) -> np.ndarray | None:
    """Return the depth of an image that native code loads, or None if it leaves the image to Python."""
    from vologan_fast import _image_loader

    rule = DepthRule.of(METRES)
    loader = _image_loader.ImageLoader(height_and_width(size), "", *rule)
    batch = np.zeros((1, *height_and_width(size), 4), np.float32)
    places = [(str(path), 0, -1, -1) for path in (record.color, record.depth)]
    missed = loader.load([places[0]], [places[1]], [(False, 0, 0)], batch)
    return None if missed else batch[0, ..., 3]


CASES: dict[str, tuple[Box, Box, tuple[int, int]]] = {
    "overscan": ((-8, -8, 80, 80), (0, 0, 64, 64), (64, 64)),
    "crop": ((8, 20, 40, 30), (0, 0, 64, 64), (64, 64)),
    "moved": ((5, -3, 64, 64), (0, 0, 64, 64), (64, 64)),
    "half the size": ((-4, -4, 40, 40), (0, 0, 32, 32), (64, 64)),
    "a wide picture": ((-8, -6, 96, 60), (0, 0, 80, 48), (80, 48)),
    "colour of the data window": ((-8, -8, 80, 80), (0, 0, 64, 48), (80, 80)),
}


def write_dataset(root: Path, case: str, **planes: Any) -> dict[str, list[Record]]:
    data, display, color = CASES[case]
    records: dict[str, list[Record]] = {}
    for k, domain in enumerate(DOMAINS):
        records[domain] = []
        for i in range(3):
            plane = distinct(data) + np.float32(100 * k + 10 * i)
            depth = write_exr(root / domain / "depth" / f"{i}.exr", {"Z": plane, **planes}, data, display)
            records[domain].append(Record(write_color(root / domain / "color" / f"{i}.jpg", color), depth))
    return records


def batches_of(root: Path, count: int = 3, **settings: Any) -> list[torch.Tensor]:
    dataset = load_dataset(root, DataConfig(synthetic=METRES, real=METRES, **settings), seed=3)
    with open_loader(dataset, 2, seed=1) as loader:
        return [x for _ in range(count) for x in next(loader)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [64, 24])
def test_batches_are_the_same_from_files_shards_and_kept_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, backend: str, size: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_dataset(tmp_path / "set", case)
    settings = {"size": size, "backend": backend}
    streamed = batches_of(tmp_path / "set", **settings)
    for cache in ("host", "disk"):
        for x, y in zip(streamed, batches_of(tmp_path / "set", cache=cache, **settings), strict=True):
            assert torch.equal(x, y)
    pack(tmp_path / "set", tmp_path / "shards")
    shards = batches_of(tmp_path / "shards", **settings)
    kept = batches_of(tmp_path / "shards", cache="host", **settings)
    for x, y in zip(shards, kept, strict=True):
        assert torch.equal(x, y)
    if backend == "torch":
        return
    for x, y in zip(streamed, batches_of(tmp_path / "set", size=size, backend="torch"), strict=True):
        assert torch.equal(x[:, 3], y[:, 3])


@needs_dali
def test_a_window_that_fits_no_colour_is_named_by_dali_too(tmp_path: Path) -> None:
    write_dataset(tmp_path, "overscan")
    for domain in DOMAINS:
        for i in range(3):
            write_color(tmp_path / domain / "color" / f"{i}.jpg", (64, 48))
    dataset = load_dataset_unchecked(tmp_path, backend="dali")
    with open_loader(dataset, 2) as loader, pytest.raises(DataError, match=r"\.exr: .* data window is 80 × 80"):
        next(loader)


def load_dataset_unchecked(root: Path, **settings: Any) -> Any:
    """Return a data set as if its colours had fitted when it was resolved."""
    from vologan_fast.data.dataset import Dataset
    from vologan_fast.data.manifest import find_records

    config = DataConfig(size=32, synthetic=METRES, real=METRES, **settings)
    records = find_records(root)
    return Dataset(root, config, records, records, dict.fromkeys(DOMAINS, ""), "")


def test_the_refusal_names_both_windows_and_the_colour(tmp_path: Path) -> None:
    depth = write_exr(tmp_path / "a.exr", {"Z": distinct((-8, -8, 80, 80))}, (-8, -8, 80, 80), (0, 0, 64, 64))
    with pytest.raises(
        DataError,
        match=r"a\.exr: depth of 80 × 80 pixels does not fit the colour of 64 × 48; its data window is 80 × 80 pixels "
        r"from column -8 and row -8 on and its display window 64 × 64 pixels from column 0 and row 0 on; expected",
    ):
        find_frame(depth, depth_files.probe(depth), (48, 64))


@pytest.mark.parametrize("default", [64, 1])
@pytest.mark.parametrize("color", [(256, 256), (1024, 1024), (32, 32)])
def test_a_display_window_that_a_library_left_at_its_default_is_not_believed(
    tmp_path: Path, default: int, color: tuple[int, int]
) -> None:
    data, display = (0, 0, 512, 512), (0, 0, default, default)
    depth = write_exr(tmp_path / "a.exr", {"Z": distinct(data)}, data, display)
    record = Record(write_color(tmp_path / "a.jpg", color), depth)
    with pytest.raises(DataError, match=r"less than a quarter of it; expected colour with the size of one of them"):
        find_frame(depth, depth_files.probe(depth), color[::-1])
    if importlib.util.find_spec("vologan_fast._image_loader"):
        assert native(record, 16) is None  # Python tells the reason
    with pytest.raises(DataError, match="less than a quarter"):
        next(image_batches([record], METRES, 16, 1, 1, torch.device("cpu")))
    assert find_frame(depth, depth_files.probe(depth), (512, 512)).crop(distinct(data)).shape == (512, 512)
    assert find_frame(depth, depth_files.probe(depth), (default, default)).width == default


def test_aspect_ratios_may_differ_by_a_rounded_pixel_only(tmp_path: Path) -> None:
    def frame(depth: tuple[int, int], color: tuple[int, int]) -> Any:
        np.save(tmp_path / "a.npy", np.ones(depth, np.float32))
        return find_frame(Path("a.npy"), depth_files.probe(tmp_path / "a.npy"), color)

    assert (frame((192, 256), (1440, 1920)).height, frame((101, 135), (600, 800)).width) == (192, 135)
    with pytest.raises(DataError, match=r"^a.npy: depth of 64 × 64 pixels does not fit the colour of 640 × 480"):
        frame((64, 64), (480, 640))


def test_only_depth_under_the_colour_counts_for_near_far_and_the_report(tmp_path: Path) -> None:
    data, display, color = CASES["overscan"]
    plane = np.full((80, 80), 50, np.float32)  # the overscan is far away
    plane[8:-8, 8:-8] = np.linspace(1, 2, 64, dtype=np.float32)
    plane[8:24, 8:-8] = np.nan  # a quarter of the picture
    for domain in DOMAINS:
        for i in range(2):
            write_exr(tmp_path / domain / "depth" / f"{i}.exr", {"Z": plane}, data, display)
            write_color(tmp_path / domain / "color" / f"{i}.jpg", color)
    spec = DepthSpec("m")
    dataset = load_dataset(tmp_path, DataConfig(size=64, synthetic=spec, real=spec), 0)
    assert dataset.spec("real").far == pytest.approx(2, abs=0.02)
    domains, _ = inspect_dataset(tmp_path, DataConfig(size=64, synthetic=spec, real=spec))
    assert domains[0].depths[0].missing == pytest.approx(0.25)
    console = Console(width=200, file=io.StringIO())
    print_report(domains, [], console)
    assert "windows     placed in the display window" in console.file.getvalue()
    assert domains[0].values.max() <= 2
    (image, *_) = next(held_out_batches(dataset, "real", 1))
    assert (image[3, :16] == 0).all() and (image[3, 16:] > 0).all()


# The type of the channel that is read

types = st.sampled_from([np.float16, np.float32, np.uint32])


@st.composite
def mixed_planes(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Draw a depth channel between others of other types, which come before and behind it in the file."""
    dtype = draw(types)
    values = st.integers(1, 60000) if dtype == np.uint32 else st.floats(2**-8, 60000, width=16)
    if dtype == np.float32:
        values = st.floats(2**-8, 60000, width=32)
    cells = draw(st.lists(values, min_size=16, max_size=16))
    planes = {draw(st.sampled_from(["Z", "depth.Z", "Depth.V", "zdepth"])): np.array(cells, dtype).reshape(4, 4)}
    for name in draw(st.lists(st.sampled_from(["A", "ID", "id", "R", "N.X", "zz.mask", "Albedo.R"]), unique=True)):
        planes[name] = np.full((4, 4), 7, draw(types))
    return planes


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(mixed_planes(), min_size=3, max_size=3), compression=st.sampled_from(["ZIP", "PIZ"]))
def test_kept_images_have_the_bits_of_streamed_ones_for_any_mixture_of_types(
    tmp_path_factory: pytest.TempPathFactory, files: list[dict[str, np.ndarray]], compression: str
) -> None:
    root = tmp_path_factory.mktemp("set")
    for domain in DOMAINS:
        for i, planes in enumerate(files):
            write_exr(root / domain / "depth" / f"{i}.exr", planes, (0, 0, 4, 4), (0, 0, 4, 4), compression)
            write_color(root / domain / "color" / f"{i}.jpg", (4, 4))
    integer = [depth_files.probe(root / "real" / "depth" / f"{i}.exr").channel.dtype == "uint32" for i in range(3)]
    assume(all(integer) or not any(integer))  # a domain must not hold both
    spec = DepthSpec("mm", None, 0.0, 60.0) if all(integer) else DepthSpec("m", None, 0.0, 60000.0)
    dataset = load_dataset(root, DataConfig(size=4, backend="torch", synthetic=spec, real=spec), 0)
    kept = dataclasses.replace(dataset, config=dataclasses.replace(dataset.config, cache="host"))
    with open_loader(dataset, 2) as streaming, open_loader(kept, 2) as resident:
        for _ in range(3):
            for x, y in zip(next(streaming), next(resident), strict=True):
                assert torch.equal(x, y)


@pytest.mark.parametrize("others", [["ID"], ["id"], ["ID", "id", "N.X"], []])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unit_and_missing_values_follow_from_the_channel_that_is_read(
    tmp_path: Path, others: list[str], dtype: Any
) -> None:
    planes = {"Z": np.linspace(1, 4, 64, dtype=dtype).reshape(8, 8)}
    planes |= {name: np.zeros((8, 8), np.uint32) for name in others}
    box = (0, 0, 8, 8)
    depth = write_exr(tmp_path / "a.exr", planes, box, box)
    record = Record(write_color(tmp_path / "a.jpg", (8, 8)), depth)
    with pytest.raises(DataError, match=r"expected normalised depth .* set --data\.real\.unit m"):
        resolve_depth("real", [record], DepthSpec())
    assert resolve_depth("real", [record], DepthSpec("m")).spec.invalid == ()
    integers = write_exr(tmp_path / "b.exr", {"A": planes["Z"], "depth.V": np.full((8, 8), 1500, np.uint32)}, box, box)
    found = resolve_depth("real", [Record(record.color, integers)], DepthSpec(near=0, far=4))
    assert (found.spec.unit, found.spec.invalid) == ("mm", (0.0,))
    assert "uint32 EXR (channel depth.V)" in found.description


def test_an_older_shard_s_first_part_does_not_decide_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shards.json of earlier versions lists the types of the first part only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
    for domain in DOMAINS:
        for i in range(3):
            plane = np.linspace(1, 4 + i, 64, dtype=np.float32).reshape(8, 8)
            parts = {"rgba": {c: plane.astype(np.float16) for c in "RGB"}, "depth": {"Z": plane}}
            path = tmp_path / "set" / domain / "depth" / f"{i}.exr"
            path.parent.mkdir(parents=True, exist_ok=True)
            OpenEXR.File([OpenEXR.Part({"name": n, **header}, p) for n, p in parts.items()]).write(str(path))
            write_color(tmp_path / "set" / domain / "color" / f"{i}.jpg", (8, 8))
    pack(tmp_path / "set", tmp_path / "shards")
    manifest = tmp_path / "shards" / "shards.json"
    assert '"float32"' in manifest.read_text()  # all parts are listed now
    own = manifest.read_text().rindex(',\n "crc32"')
    manifest.write_text(
        (manifest.read_text()[:own] + "}").replace('"float32"', '"float16"').replace('"float16","float16"', '"float16"')
    )
    settings = {"size": 8, "backend": "torch"}
    streamed, kept = (batches_of(tmp_path / "shards", cache=cache, **settings) for cache in ("none", "host"))
    for x, y in zip(streamed, kept, strict=True):
        assert torch.equal(x, y)


def test_inspect_tells_the_channel_and_why_and_finds_a_domain_of_several(tmp_path: Path) -> None:
    box = (0, 0, 8, 8)
    ramp = np.linspace(1, 4, 64, dtype=np.float32).reshape(8, 8)
    names = ["Z", "Z", "ViewLayer.Depth.V"]
    for domain in DOMAINS:
        for i, name in enumerate(names if domain == "real" else ["Z"] * 3):
            others = {c: ramp.astype(np.float16) for c in ("R", "G", "B")}
            write_exr(tmp_path / domain / "depth" / f"{i}.exr", {**others, name: ramp}, box, box)
            write_color(tmp_path / domain / "color" / f"{i}.jpg", (8, 8))
    domains, between = inspect_dataset(tmp_path, DataConfig(size=8, synthetic=DepthSpec("m"), real=DepthSpec("m")))
    console = Console(width=200, file=io.StringIO())
    print_report(domains, between, console)
    text = console.file.getvalue()
    assert "Z: its name says depth" in text
    assert "ViewLayer.Depth.V: its name says depth" in text
    assert "windows" not in text
    assert any("2 channels of depth in one domain: Z (2), ViewLayer.Depth.V (1)" in f for f in domains[1].findings)


def test_data_windows_that_renderers_crop_file_by_file_are_no_mixture_of_sizes(tmp_path: Path) -> None:
    display = (0, 0, 32, 32)
    for domain in DOMAINS:
        for i in range(3):
            data = (4 + i, 3, 20 - i, 20 + i)
            write_exr(tmp_path / domain / "depth" / f"{i}.exr", {"Z": distinct(data)}, data, display)
            write_color(tmp_path / domain / "color" / f"{i}.jpg", (32, 32))
    domains, _ = inspect_dataset(tmp_path, DataConfig(size=32, synthetic=METRES, real=METRES))
    assert not any("sizes of depth" in finding for domain in domains for finding in domain.findings)
