"""Both loaders see one picture: colour files of every kind are read alike, or are refused by all with one sentence.

pixels.py is the definition, with Pillow. The native loader gives the same bits or leaves the file to it. DALI on the
CPU gives the same bits, except for one level of 255 in resized and in 16-bit colour.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from color_files import EncodeJpeg, jpegs, pngs, pngs_that_are_not_whole, refused, saved, textured
from datasets import MakeDataset, needs_dali
from PIL import Image

from vologan_fast.config import DataConfig, DepthSpec
from vologan_fast.data import DataError, load_dataset, open_loader
from vologan_fast.data.loaders.native import load_color
from vologan_fast.data.pixels import DepthRule, crop_color, pack, read_color, read_color_shape, read_cropped
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Draw

S = 40


@pytest.fixture(scope="module")
def written(encode_jpeg: EncodeJpeg, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write all kinds of colour files. Returns their paths by their kind."""
    folder = tmp_path_factory.mktemp("colour")
    files = {}
    for i, (name, content) in enumerate({**jpegs(encode_jpeg, S), **pngs(S)}.items()):
        files[name] = folder / f"{i}.jpg"
        files[name].write_bytes(content)
    return files


def expected(path: Path, size: int) -> np.ndarray:
    return crop_color(read_color(path), size)


def by_native(files: Sequence[Path], size: int) -> list[np.ndarray | None]:
    """Return the squares of files, and None for those that the native loader leaves to Pillow."""
    module = pytest.importorskip("vologan_fast._image_loader")
    loader = module.ImageLoader((size, size), "", 1, 0, float("nan"), float("nan"), [])
    rgb = np.zeros((len(files), size, size, 3), np.uint8)
    missed = loader.load_colors([path.read_bytes() for path in files], rgb)
    return [None if i in missed else rgb[i] for i in range(len(files))]


def by_dali(files: Sequence[Path], size: int, on_gpu: bool = False) -> np.ndarray:
    from vologan_fast.data.loaders import dali

    assert dali.load_operators() == ""
    pipeline = dali._color_pipeline(
        lambda i: dali._places(files),
        (size, size),
        1 << 26,
        on_gpu,
        batch_size=len(files),
        num_threads=2,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    (colors,) = pipeline.run()
    return np.array((colors.as_cpu() if on_gpu else colors).as_tensor())


def test_the_native_loader_has_the_bits_of_pillow(written: dict[str, Path], encode_jpeg: EncodeJpeg) -> None:
    found = dict(zip(written, by_native(list(written.values()), S), strict=True))
    for name, square in found.items():
        assert square is None or np.array_equal(square, expected(written[name], S)), name
    left = {name for name in jpegs(encode_jpeg, S) if found[name] is None}
    unknown = {f"ycc A transform {transform}" for transform in (2, 3)}
    assert left == {"ycc 141111 J", "ycc 141111 Jp", *unknown, *(n for n in found if n.startswith(("cmyk", "ycck")))}


def test_whole_images_of_the_native_loader_have_the_bits_of_pillow(
    written: dict[str, Path], encode_jpeg: EncodeJpeg, tmp_path: Path
) -> None:
    for name, path in written.items():
        assert np.array_equal(load_color(path), read_color(path)), name
    for height, width in ((1, 1), (17, 3), (33, 70)):
        path = tmp_path / "a.jpg"
        path.write_bytes(saved(textured(3, height, width), "JPEG"))
        assert np.array_equal(load_color(path), read_color(path))
    for content, said in refused(encode_jpeg, S).values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{path}: .*{said}"):
            load_color(path)


def test_a_box_of_the_native_loader_has_the_bits_of_pillow(written: dict[str, Path], tmp_path: Path) -> None:
    """Only the visible box of a JPEG is decoded, and the box is flipped and shifted."""
    module = pytest.importorskip("vologan_fast._image_loader")
    depth = np.full((S, S), -1, np.float32)
    depth[9:30, 13:33] = 0.5
    np.save(tmp_path / "depth.npy", depth)
    spec = DepthSpec("normalized", None, -1.0, 1.0, (), -1.0)
    rule = DepthRule.of(spec)
    loader = module.ImageLoader((S, S), "", rule.gain, rule.offset, rule.background, rule.floor, rule.invalid)
    depth_file = (tmp_path / "depth.npy").read_bytes()
    for name, path in written.items():
        found, plain = np.zeros((1, S, S, 4), np.float32), np.zeros((S, S, 4), np.float32)
        if not loader.load([path.read_bytes()], [depth_file], [(True, 2, 5)], found):
            pack(*read_cropped(Record(path, tmp_path / "depth.npy"), spec, S), Draw(0, True, 2, 5), plain)
            assert np.array_equal(found[0].view(np.int32), plain.view(np.int32)), name


@needs_dali
def test_dali_has_the_bits_of_pillow(written: dict[str, Path]) -> None:
    for name, square in zip(written, by_dali(list(written.values()), S), strict=True):
        levels = np.abs(square.astype(int) - expected(written[name], S)).max()
        assert levels <= (1 if name.startswith("16") else 0), name


SIZES = [(1, 1), (2, 2), (17, 3), (3, 17), (40, 41), (41, 40), (33, 64), (64, 33), (80, 80), (7, 9), (300, 211)]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write colour of odd sizes, as JPEG and PNG."""
    folder = tmp_path_factory.mktemp("odd")
    files = {}
    for height, width in SIZES:
        image = textured(height, height, width)
        kinds = {
            "4:2:0": {"subsampling": "4:2:0"},
            "4:2:2": {"subsampling": "4:2:2"},
            "progressive": {"progressive": True},
        }
        for kind, options in kinds.items():
            files[f"{height} {width} {kind}"] = folder / f"{height}-{width}-{kind}.jpg"
            files[f"{height} {width} {kind}"].write_bytes(saved(image, "JPEG", **options))
        files[f"{height} {width} PNG"] = folder / f"{height}-{width}.png"
        image.save(files[f"{height} {width} PNG"])
    return files


@pytest.mark.parametrize("size", [1, 2, 37, 40])
def test_the_native_loader_resizes_as_pillow(odd: dict[str, Path], size: int) -> None:
    for name, square in zip(odd, by_native(list(odd.values()), size), strict=True):
        assert np.array_equal(square, expected(odd[name], size)) if square is not None else "PNG" in name, name


@needs_dali
@pytest.mark.parametrize("size", [1, 2, 37, 40])
def test_dali_resizes_to_within_one_level(odd: dict[str, Path], size: int) -> None:
    for name, square in zip(odd, by_dali(list(odd.values()), size), strict=True):
        assert np.abs(square.astype(int) - expected(odd[name], size)).max() <= 1, name


dali_is_there = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")


def test_what_no_loader_reads_is_refused_by_all(encode_jpeg: EncodeJpeg, tmp_path: Path) -> None:
    for name, (content, said) in refused(encode_jpeg, S).items():
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{path}: .*{said}"):
            read_color(path)
        assert by_native([path], S) == [None], name
        if dali_is_there:
            with pytest.raises(RuntimeError):
                by_dali([path], S)


@needs_dali
def test_dali_names_a_png_that_is_not_whole(make_dataset: MakeDataset) -> None:
    """DALI's own error has several lines and no name."""
    data = load_dataset(make_dataset(height=S, width=S), DataConfig(size=S, backend="dali", threads=1), 0)
    path = data.train["real"][1].color
    files = list(pngs_that_are_not_whole(S).values())
    for content, said in files[::20] + files[-4:]:
        path.write_bytes(content)
        with open_loader(data, 4) as loader, pytest.raises(DataError, match=f"^{path}: .* decoded: .*{said}"):
            for _ in range(3):
                next(loader)


def test_a_jpeg_that_ends_early_is_refused_or_read_alike(tmp_path: Path) -> None:
    """Without an end marker it is refused. With one, libjpeg fills the rest with grey, and all read that."""
    path = tmp_path / "a.jpg"
    image = textured(1, S, S)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}):
        exif = Image.Exif()
        exif[0x9286] = saved(image.resize((8, 8)), "JPEG")  # with an end marker of its own
        whole = saved(image, "JPEG", quality=90, exif=exif, **options)
        scan = whole.index(b"\xff\xda", whole.index(b"\xff\xd9")) + 14
        for part in (0.1, 0.5, 0.9, 0.99, 1):
            cut = whole[: scan + int(part * (len(whole) - 2 - scan))]
            for behind in (b"", bytes(99), bytes(9999), b"x" * 99, b"\xff\xd8" * 9, b"\xff\xe0\0\x04xx"):
                path.write_bytes(cut + behind)
                with pytest.raises(DataError, match=f"^{path}: the colour image cannot be decoded"):
                    read_color(path)
                assert by_native([path], S) == [None]
                if dali_is_there and len(behind) == 99:
                    with pytest.raises(RuntimeError):
                        by_dali([path], S)
            path.write_bytes(cut + b"\xff\xd9")
            (native,) = by_native([path], S)
            assert native is None or np.array_equal(native, read_color(path))
            if dali_is_there:
                assert np.array_equal(by_dali([path], S)[0], read_color(path))


def test_jpegs_of_12_bits_are_named(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path = tmp_path / "a.jpg"
    grey = np.asarray(textured(0, S, S).convert("L"), np.uint16) * 16
    path.write_bytes(imagecodecs.jpeg_encode(grey, bitspersample=12))
    with pytest.raises(DataError, match="a JPEG of 12 bits"):
        read_color_shape(path)


def test_training_refuses_them_when_it_begins(make_dataset: MakeDataset, encode_jpeg: EncodeJpeg) -> None:
    root = make_dataset(height=S, width=S)
    path = root / "real/001.jpg"
    path.write_bytes(encode_jpeg(textured(1, S, S).convert("CMYK"), "cmyk", "cmyk", ""))
    with pytest.raises(DataError, match=f"^{path}: a CMYK JPEG without Adobe's marker"):
        load_dataset(root, DataConfig(size=S), 0)


@pytest.mark.gpu
@needs_dali
def test_a_gpu_sees_the_same_colours(written: dict[str, Path]) -> None:
    """A GPU's decoder rounds differently. Another colour space, or an inverted one, would be tens of levels away."""
    for name, square in zip(written, by_dali(list(written.values()), S, on_gpu=True), strict=True):
        assert np.abs(square.astype(int) - expected(written[name], S)).mean() < 4, name
