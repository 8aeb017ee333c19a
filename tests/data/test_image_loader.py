"""The image loader of csrc/batch compared with pixels.py, for all kinds of files and of damage.

The loader gives the same bits or no image.
"""

import io
import math
import subprocess
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from color_files import EncodeJpeg, textured
from datasets import MakeDataset, surface
from hypothesis import given, settings
from hypothesis import strategies as st
from native_build import CSRC, DECODER, compiled
from PIL import Image

from vologan_fast.config import DataConfig, DepthSpec, Size, height_and_width
from vologan_fast.data import DataError, Dataset, load_dataset, open_loader
from vologan_fast.data.loaders import native as native_loader
from vologan_fast.data.pixels import BACKGROUND, DepthRule, crop_color, pack, read_color, read_cropped
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Draw

_image_loader = pytest.importorskip("vologan_fast._image_loader", reason="there was no libjpeg-turbo to build it with")

PAPER = DepthSpec("normalized", None, -1.0, 1.0, (), -1.0)
STILL = Draw(0, False, 0, 0)


def native(record: Record, size: Size, draw: Draw = STILL, spec: DepthSpec = PAPER) -> np.ndarray | None:
    """Load an image natively from its files and from their bytes. Returns (H, W, 4), or None if native code refuses."""
    rule = DepthRule.of(spec)
    loader = _image_loader.ImageLoader(height_and_width(size), spec.channel or "", *rule)
    batch = np.full((3, *height_and_width(size), 4), np.nan, np.float32)
    files = (record.color, record.depth)
    color, depth = (
        [(bytes(path), 0, -1, -1), path.read_bytes(), (bytes(path), 0, path.stat().st_size, crc32(path.read_bytes()))]
        for path in files
    )
    missed = loader.load(color, depth, [(draw.flip, draw.top, draw.left)] * 3, batch)
    assert missed in ([], [0, 1, 2])
    if missed:
        return None
    assert np.array_equal(batch[0], batch[1]) and np.array_equal(batch[0], batch[2])
    return batch[0]


def plain(record: Record, size: Size, draw: Draw = STILL, spec: DepthSpec = PAPER) -> np.ndarray:
    out = np.full((*height_and_width(size), 4), np.nan, np.float32)
    pack(*read_cropped(record, spec, size), draw, out)
    return out


def same(record: Record, size: Size, draw: Draw = STILL, spec: DepthSpec = PAPER) -> bool:
    found = native(record, size, draw, spec)
    return found is not None and np.array_equal(found.view(np.int32), plain(record, size, draw, spec).view(np.int32))


def pair(folder: Path, color: Image.Image, depth: np.ndarray, **options: Any) -> Record:
    color.save(folder / "color.jpg", "JPEG", **{"quality": 90} | options)
    np.save(folder / "depth.npy", depth)
    return Record(folder / "color.jpg", folder / "depth.npy")


KINDS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "coarse": {"quality": 5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([*KINDS, "grey"]),
    seen=st.tuples(*[st.integers(0, 71)] * 4),
    flip=st.booleans(),
    shift=st.tuples(st.integers(0, 72), st.integers(0, 72)) | st.just((0, 0)),
    seed=st.integers(0, 99),
)
def test_what_is_seen_has_the_same_bits(
    folder: Path, kind: str, seen: tuple[int, ...], flip: bool, shift: tuple[int, int], seed: int
) -> None:
    """Colour is decoded only in a box around the visible pixels. The box may have any size and any place."""
    left, right = sorted(seen[:2])
    top, bottom = sorted(seen[2:])
    depth = np.full((72, 72), -1, np.float32)
    depth[top : bottom + 1, left : right + 1] = surface(seed, 72, 72)[top : bottom + 1, left : right + 1]
    depth[top, left], depth[bottom, right] = 0.5, np.nan
    depth[(top + bottom) // 2, (left + right) // 2] = 0.25
    image = textured(seed, 72, 72)
    record = pair(folder, image.convert("L") if kind == "grey" else image, depth, **KINDS.get(kind, {}))
    assert same(record, 72, Draw(0, flip, *shift))


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from([*KINDS, "grey"]),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.integers(1, 90) | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    rows=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 9),
)
def test_any_size_is_resized_to_the_same_bits(
    folder: Path, kind: str, height: int, width: int, size: Size, rows: tuple[float, float], seed: int
) -> None:
    depth = surface(seed, height, width)
    depth[: int(min(rows) * height)] = depth[int(max(rows) * height) + 1 :] = -1
    depth[height // 2, width // 2] = 0.5
    image = textured(seed, height, width)
    record = pair(folder, image.convert("L") if kind == "grey" else image, depth, **KINDS.get(kind, {}))
    try:
        expected = plain(record, size)
    except DataError:  # nearest neighbour skipped the only valid pixel
        assert native(record, size) is None
        return
    found = native(record, size)
    assert found is not None and np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("flags", ["J", "Jp"], ids=["baseline", "progressive"])
@pytest.mark.parametrize("factors", ["411111", "121111", "311111", "212111", "112121", "221211", "111211"])
@pytest.mark.parametrize("size", [80, 50])
def test_rare_subsamplings(tmp_path: Path, encode_jpeg: EncodeJpeg, factors: str, flags: str, size: int) -> None:
    depth = surface(0, 80, 80)
    depth[:, 55:] = depth[:13] = depth[63:] = -1
    record = pair(tmp_path, Image.new("RGB", (1, 1)), depth)
    record.color.write_bytes(encode_jpeg(textured(0, 80, 80), "rgb", "ycc", flags, factors=factors))
    assert same(record, size)


@pytest.mark.parametrize("factors", ["141111", "111214", "241111", "131111"])
def test_colour_planes_of_less_than_half_the_height_are_left_to_pillow(
    tmp_path: Path, encode_jpeg: EncodeJpeg, factors: str
) -> None:
    """For some of these files, libjpeg-turbo 2.1 never finishes skipping rows."""
    depth = np.full((73, 73), -1, np.float32)
    depth[:62, 41:67] = 0.5
    record = pair(tmp_path, Image.new("RGB", (1, 1)), depth)
    for flags in ("J", "Jp"):
        record.color.write_bytes(encode_jpeg(textured(0, 73, 73), "rgb", "ycc", flags, factors=factors))
        assert native(record, 73) is None


def test_progressive_files_that_lack_their_last_scans_are_left_to_pillow(tmp_path: Path) -> None:
    """Libjpeg smooths the blocks of such files, and each version does it differently."""
    record = pair(tmp_path, textured(1, 160, 160), surface(0, 160, 160), progressive=True)
    whole = record.color.read_bytes()
    assert same(record, 160)
    scans = [i for i in range(len(whole)) if whole[i : i + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        record.color.write_bytes(whole[:scan] + b"\xff\xd9")
        assert native(record, 160) is None


@pytest.mark.parametrize("size", [512, 480, 200])
def test_real_images(real_images: Path, size: int) -> None:
    folder = real_images / "vologan512" / "synthetic"
    records = [Record(color, color.with_suffix(".exr")) for color in sorted(folder.glob("*.jpg"))]
    found = [native(record, size) is not None and same(record, size) for record in records]
    assert sum(found) > 15  # the OpenEXR library reads the others
    assert all(ok or native(record, size) is None for ok, record in zip(found, records, strict=True))


def test_what_is_meant_by_a_spec_reaches_the_pixels(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).integers(0, 5000, (40, 40)).astype(np.uint16)
    depth[:9], depth[20, 20], depth[21, 21] = 0, 65535, 1234
    record = pair(tmp_path, textured(1, 40, 40), depth)
    for spec in (
        DepthSpec("mm", None, 0.5, 4.5, (0.0, 1234.0), None),
        DepthSpec("mm", None, 0.5, 4.5, (65535.0,), 0.0),
        DepthSpec("m", 0.01, 0.0, 30.0, (), 1234.0),
    ):
        assert same(record, 40, Draw(0, True, 3, 5), spec)


def test_other_kinds_of_colour_are_left_to_others(tmp_path: Path) -> None:
    color, depth = textured(0, 32, 32), surface(0, 32, 32)
    record = pair(tmp_path, color, depth)
    assert same(record, 32)
    for other in (color.convert("CMYK"), None, color.convert("P")):
        if other is None:  # no image at all
            record.color.write_bytes(b"")
        else:
            other.save(record.color, "JPEG" if other.mode == "CMYK" else "PNG")
        assert native(record, 32) is None


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_colour_file_is_read_to_its_end(folder: Path, options: dict[str, Any]) -> None:
    """A file that is truncated at any place gives no image, also if only rows below the visible pixels are missing."""
    depth = np.full((48, 48), -1, np.float32)
    depth[5:20, 5:20] = 0.5
    record = pair(folder, textured(3, 48, 48), depth, **options)
    whole = record.color.read_bytes()
    assert same(record, 48)
    for end in range(0, len(whole), 7):
        record.color.write_bytes(whole[:end])
        assert native(record, 48) is None
    record.color.write_bytes(whole[: -len(whole) // 3] + b"\0" * (len(whole) // 3))
    assert native(record, 48) is None


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_colour_file_gives_what_pillow_reads_or_nothing(
    folder: Path, kind: str, at: float, byte: int
) -> None:
    depth = surface(4, 40, 40)
    record = pair(folder, textured(4, 40, 40), depth, **KINDS[kind])
    data = bytearray(record.color.read_bytes())
    data[int(at * len(data))] = byte
    record.color.write_bytes(data)
    for size in (40, 24):
        found = native(record, size)
        if found is not None:
            assert np.array_equal(found.view(np.int32), plain(record, size).view(np.int32))


@pytest.mark.slow
def test_sanitisers_see_nothing(tmp_path: Path) -> None:
    """The sanitisers find no invalid read or write, for sound and damaged files of all kinds, resized or not.

    The images are the same as those of the Python module.
    """
    sources = [
        CSRC / "batch" / f"{n}.cpp"
        for n in ("color_kind", "cropped_color", "image_loader", "jpeg", "pixel_rows", "cropped_depth")
    ]
    test = Path(__file__).with_name("image_loader_test.cpp")
    program = compiled(
        tmp_path, test, *sources, *DECODER, "-I", CSRC / "batch", "-ffp-contract=off", "-ljpeg", "-pthread"
    )
    rng = np.random.default_rng(0)
    records = []
    for i, options in enumerate(KINDS.values()):
        for height, width in ((40, 40), (37, 61), (90, 24), (1, 1)):
            folder = tmp_path / f"{i}-{height}"
            folder.mkdir()
            record = pair(folder, textured(i, height, width), surface(i, height, width), **options)
            records.append(record)
            for damage in range(4):
                data = bytearray(record.color.read_bytes())
                if damage:
                    data[int(rng.integers(len(data)))] = int(rng.integers(256))
                else:
                    del data[int(rng.integers(len(data))) :]
                path = folder / f"{damage}.jpg"
                path.write_bytes(data)
                records.append(Record(path, record.depth))
    for size in (40, 25):
        files = [str(file) for record in records for file in (record.color, record.depth)]
        result = subprocess.run([program, str(size), *files], capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()
        answer = io.BytesIO(result.stdout)
        loaded = 0
        for i, record in enumerate(records):
            expected = native(record, size, Draw(0, (2 + 2 * i) % 4 == 0, 1, 2))
            assert (answer.read(1) == b"1") == (expected is not None)
            if expected is not None:
                loaded += 1
                assert answer.read(expected.nbytes) == expected.tobytes()
        assert not answer.read() and loaded > len(records) / 4


@pytest.mark.parametrize("depth", [np.full((32, 32), -1, np.float32), np.ones((32, 20), np.float32), None])
def test_depth_that_cannot_be_used_gives_no_image(tmp_path: Path, depth: np.ndarray | None) -> None:
    record = pair(tmp_path, textured(0, 32, 32), np.ones((32, 32), np.float32) if depth is None else depth)
    if depth is None:
        record.depth.write_bytes(record.depth.read_bytes()[:-1])
    assert native(record, 32) is None


def colors(files: list[Any], size: int) -> tuple[np.ndarray, list[int]]:
    """The colour of some files by the native code, and the indices of those that it leaves to Pillow."""
    out = np.full((len(files), size, size, 3), 77, np.uint8)
    return out, _image_loader.ImageLoader((size, size), "", 1, 0, BACKGROUND, math.nan, []).load_colors(files, out)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([*KINDS, "grey"]),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_colour_alone_has_the_same_bits(folder: Path, kind: str, height: int, width: int, size: int, seed: int) -> None:
    """Also where no depth is seen: images that are kept decoded keep the whole colour."""
    image = textured(seed, height, width)
    record = pair(folder, image.convert("L") if kind == "grey" else image, np.zeros(1), **KINDS.get(kind, {}))
    found, missed = colors([(bytes(record.color), 0, -1, -1), record.color.read_bytes()], size)
    assert missed == []
    assert all(np.array_equal(each, crop_color(read_color(record.color), size)) for each in found)


def test_colour_that_is_broken_or_of_another_kind_is_left_to_pillow(tmp_path: Path) -> None:
    record = pair(tmp_path, textured(0, 32, 32), surface(0, 32, 32))
    good = record.color.read_bytes()
    textured(0, 32, 32).save(tmp_path / "color.png")
    textured(0, 32, 32).convert("CMYK").save(tmp_path / "cmyk.jpg")
    others = [good[:-200], b"", (bytes(tmp_path / "missing"), 0, -1, -1)]
    others += [(tmp_path / name).read_bytes() for name in ("color.png", "cmyk.jpg")]
    found, missed = colors([good, *others, good], 32)
    assert missed == [1, 2, 3, 4, 5]
    assert np.array_equal(found[0], found[-1]) and np.array_equal(found[0], read_color(record.color))


def test_a_broken_image_does_not_touch_the_others(tmp_path: Path) -> None:
    record = pair(tmp_path, textured(0, 32, 32), surface(0, 32, 32))
    expected, rule = plain(record, 32), DepthRule.of(PAPER)
    loader = _image_loader.ImageLoader((32, 32), "", *rule)
    good, missing = (bytes(record.color), 0, -1, -1), (bytes(tmp_path / "missing"), 0, -1, -1)
    beyond, depth = (bytes(record.color), 0, 1 << 20, -1), (bytes(record.depth), 0, -1, -1)
    batch = np.zeros((5, 32, 32, 4), np.float32)
    colors = [good, missing, good, beyond, good]
    assert loader.load(colors, [depth] * 5, [(False, 0, 0)] * 5, batch) == [1, 3]
    assert all(np.array_equal(batch[i], expected) for i in (0, 2, 4))


def test_arguments_that_do_not_fit_are_refused() -> None:
    loader = _image_loader.ImageLoader((8, 8), "", 1, 0, BACKGROUND, math.nan, [])
    room = np.empty((1, 8, 8, 4), np.float32)
    for draw in ((False, 9, 0), (False, 0, 9), (False, -1, 0), (False, 0, -1)):
        with pytest.raises(IndexError):
            loader.load([b""], [b""], [draw], room)
    odd = np.empty(8 * 8 * 4 + 1, np.float32)[1:].reshape(1, 8, 8, 4)
    for wrong in (np.empty((2, 8, 8, 4), np.float32), room[..., :3], room.astype(np.float64), odd):
        with pytest.raises((ValueError, TypeError)):
            loader.load([b""], [b""], [(False, 0, 0)], wrong)
    rgb = np.empty((1, 8, 8, 3), np.uint8)
    for wrong in (np.empty((2, 8, 8, 3), np.uint8), rgb[..., :2], rgb[:, :, ::2], rgb[0], rgb.astype(np.float32)):
        with pytest.raises((ValueError, TypeError)):
            loader.load_colors([b""], wrong)
    with pytest.raises(ValueError, match="height and width"):
        _image_loader.ImageLoader((0, 8), "", 1, 0, BACKGROUND, math.nan, [])


def check_batches_without_it(data: Dataset, monkeypatch: pytest.MonkeyPatch, description: str) -> None:
    """The first batches are the same to the bit without the native code; the loaders' descriptions name the decoder."""
    with open_loader(data, 4) as loader:
        assert f"{description} libjpeg-turbo" in loader.describe()
        expected = [next(loader) for _ in range(4)]
    monkeypatch.setattr(native_loader, "_image_loader", None)
    with open_loader(data, 4) as loader:
        assert f"{description} Pillow" in loader.describe()
        for batches in expected:
            assert all(x.equal(y) for x, y in zip(batches, next(loader), strict=True))


def test_batches_are_the_same_without_it(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset(make_dataset(height=64, width=80), DataConfig(size=64, backend="torch"), 0)
    check_batches_without_it(data, monkeypatch, "JPEG by")


def test_kept_images_are_decoded_natively_to_the_bits_of_pillow(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files are not read by the native code: a PNG, and a JPEG with four channels."""
    root = make_dataset(height=64, width=80)
    textured(3, 64, 80).save(root / "real/001.jpg", "PNG")
    textured(4, 64, 80).convert("CMYK").save(root / "synthetic/002.jpg")
    data = load_dataset(root, DataConfig(size=50, backend="torch", cache="host"), 0)
    check_batches_without_it(data, monkeypatch, "decoded by")
