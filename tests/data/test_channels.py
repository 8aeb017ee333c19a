"""Channel sets: what each holds, that all loaders agree, and that files which are not needed are not read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
from datasets import BACKENDS, MakeDataset, surface
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vologan_fast import depth as depth_files
from vologan_fast.config import CHANNELS, DOMAINS, DataConfig, DepthSpec
from vologan_fast.data import DataError, Dataset, Record, held_out_batches, load_dataset, open_loader
from vologan_fast.data.loaders import native
from vologan_fast.data.loaders.native import image_batches
from vologan_fast.data.loaders.resident import Images, pack_plain
from vologan_fast.data.pixels import grey, pack, picture_shape, read_cropped_depth
from vologan_fast.data.records import place
from vologan_fast.data.sampling import Draw

SETS = ["rgbd", "rgb", "depth", "grey+depth", "grey"]


def dataset(root: Path, channels: object, size: object = 32, **settings: object) -> Dataset:
    config = DataConfig(size=size, channels=channels, **settings)  # type: ignore[arg-type]
    return load_dataset(root, config, seed=5)


def expected(record: Record, name: str) -> np.ndarray:
    """Return the channels (H, W, C) of a record of make_dataset, at the size of its files."""
    assert isinstance(record.color, Path) and isinstance(record.depth, Path)
    with Image.open(record.color) as image:
        planes = {"rgb": np.asarray(image), "grey": np.asarray(image.convert("L"))[..., None]}
    values = np.load(record.depth)[..., None]
    depth = np.where(values == -1, 0, np.clip((values + 1) / 2, 1 / 1024, 1))
    color, _, also = name.replace("rgbd", "rgb+depth").partition("+")
    seen = values != -1 if also else 1
    if color == "depth":
        return depth
    return np.concatenate([planes[color] / 255 * seen, *([depth] if also else [])], axis=2)


def moved(image: np.ndarray, draw: Draw) -> np.ndarray:
    height, width = image.shape[:2]
    image = np.pad(image[:, ::-1] if draw.flip else image, ((0, draw.top), (0, draw.left), (0, 0)))
    return image[draw.top : draw.top + height, draw.left : draw.left + width]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
def test_batches_hold_the_channels(make_dataset: MakeDataset, backend: str, name: str) -> None:
    data = dataset(make_dataset(4, 3, 32, 48), name, (32, 48), backend=backend)
    with open_loader(data, 2) as loader:
        for step in range(4):
            for domain, batch in zip(DOMAINS, next(loader), strict=True):
                assert batch.shape == (2, CHANNELS[name].number, 32, 48) and batch.dtype == torch.float32
                assert batch.is_contiguous(memory_format=torch.channels_last)
                for draw, image in zip(loader.sampler.draw(domain, step), batch, strict=True):
                    wanted = moved(expected(data.train[domain][draw.index], name), draw)
                    assert abs(image.permute(1, 2, 0).numpy() - wanted).max() <= 2**-23
    (held_out,) = held_out_batches(data, "real", 4)
    assert abs(held_out[0].permute(1, 2, 0).numpy() - expected(data.held_out["real"][0], name)).max() <= 2**-23


@pytest.mark.parametrize("names", [*SETS[1:], ("rgbd", "depth"), ("grey", "rgb")], ids=str)
def test_native_code_the_plain_reader_and_kept_images_give_the_same_bits(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = dataset(make_dataset(4, 3, 45, 60), names, (24, 40), threads=1)

    def batches(data: Dataset) -> list[torch.Tensor]:
        with open_loader(data, 2) as loader:
            return [image for _ in range(4) for image in next(loader)]

    found = batches(data)
    for cache in ("host", "disk"):
        kept = dataclasses.replace(data, config=dataclasses.replace(data.config, cache=cache))
        assert all(map(torch.equal, batches(kept), found))
    monkeypatch.setattr(native, "_image_loader", None)
    assert all(map(torch.equal, batches(data), found))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize(("name", "unused"), [("rgb", "npy"), ("grey", "npy"), ("depth", "jpg")])
def test_a_file_that_is_not_needed_is_not_read(
    make_dataset: MakeDataset, backend: str, cache: str, name: str, unused: str
) -> None:
    root = make_dataset(4, 3)
    for file in root.rglob(f"*.{unused}"):
        file.write_bytes(b"neither colour nor depth")
    data = dataset(root, name, backend=backend, cache=cache)
    with open_loader(data, 2) as loader:
        assert all(batch.amax() > 0 for _ in range(3) for batch in next(loader))
    assert len(next(held_out_batches(data, "synthetic", 4)))
    with pytest.raises(DataError), open_loader(dataset(root, "rgbd", backend=backend, cache=cache), 2) as loader:
        for _ in range(8):
            next(loader)


def test_depth_that_is_not_read_needs_no_settings(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset(), ("rgb", "depth"))
    assert data.spec("synthetic") == DepthSpec() and data.spec("real").near == -1
    assert data.describe()[0].endswith("depth: not read")


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=50))
def test_grey_is_pillow_s_luma(colours: list[tuple[int, int, int]]) -> None:
    color = np.array([colours], np.uint8)
    assert np.array_equal(grey(color), np.asarray(Image.fromarray(color).convert("L")))


def test_grey_is_within_half_a_level_of_rec_601() -> None:
    color = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exact = color @ np.array([0.299, 0.587, 0.114])
    assert abs(grey(color) - exact).max() <= 0.5 + 255 * 3 * 2**-17  # rounding of the sum, and of the weights
    same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.array_equal(grey(same), same[..., 0])


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_the_passes_over_kept_images_are_the_definition(name: str, coded: bool) -> None:
    from vologan_fast import _batch

    channels, rng = CHANNELS[name], np.random.default_rng(1)
    color = rng.integers(0, 256, (3, 9, 13, 3), dtype=np.uint8) if channels.color else None
    levels = rng.uniform(0.1, 1, 65536).astype(np.float32)
    levels[::3], levels[1::3] = -1, 0
    codes = rng.integers(0, 65536, (3, 9, 13), dtype=np.uint16)
    kept = (codes if coded else levels[codes]) if channels.depth else None
    table = levels if coded and channels.depth else None
    draws = np.array([[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 3, 5], [2, 1, 9, 0], [1, 1, 2, 13]], np.int32)
    batch = _batch.BatchMemory().empty(len(draws), 9, 13, channels.number)
    batch.fill(np.nan)
    _batch.pack(color, kept, table, draws, batch)
    tensors = [None if array is None else torch.from_numpy(array) for array in (color, kept, table)]
    assert np.array_equal(pack_plain(Images(*tensors, channels), torch.from_numpy(draws)).numpy(), batch)
    for (index, flip, top, left), found in zip(draws.tolist(), batch, strict=True):
        wanted = np.full_like(found, np.nan)
        depth = levels[codes[index]] if channels.depth else None
        pack(None if color is None else color[index], depth, Draw(index, bool(flip), top, left), wanted)
        assert np.array_equal(found, wanted)


def test_a_batch_with_room_for_other_channels_is_refused() -> None:
    from vologan_fast import _batch

    color, depth, draws = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.float32), np.zeros((1, 4), np.int32)
    for wrong in ((None, None, 1), (color, None, 2), (color, None, 4), (None, depth, 2), (color, depth, 1)):
        with pytest.raises(ValueError, match=r"expected|no such"):
            _batch.pack(wrong[0], wrong[1], None, draws, np.zeros((1, 4, 4, wrong[2]), np.float32))
    with pytest.raises(ValueError, match="no such channels"):
        native._image_loader.ImageLoader((4, 4), "", 1, 0, 0, 0, [], 7, (2, True))


def write_exr(path: Path, data: tuple[int, int, int, int], display: tuple[int, int, int, int]) -> Path:
    """Write depth in the data window (x, y, width, height), with this display window."""
    corners = [((x, y), (x + w - 1, y + h - 1)) for x, y, w, h in (data, display)]
    header = {"type": OpenEXR.scanlineimage, "dataWindow": corners[0], "displayWindow": corners[1]}
    OpenEXR.File(header, {"Z": surface(1, data[3], data[2]) + 2}).write(str(path))
    return path


@pytest.mark.parametrize(
    ("data", "display", "picture"),
    [
        ((0, 0, 40, 30), (0, 0, 40, 30), (30, 40)),
        ((-4, -4, 48, 38), (0, 0, 40, 30), (30, 40)),  # overscan
        ((8, 8, 16, 16), (0, 0, 40, 30), (30, 40)),  # a crop
        ((0, 0, 64, 64), (0, 0, 16, 16), (64, 64)),  # a library's default
    ],
)
def test_without_colour_the_picture_of_the_file_is_shown(
    tmp_path: Path, data: tuple[int, int, int, int], display: tuple[int, int, int, int], picture: tuple[int, int]
) -> None:
    """The result is that of a colour image of the picture's size."""
    file, spec = write_exr(tmp_path / "a.exr", data, display), DepthSpec("m", None, 0.5, 4, (), None)
    assert picture_shape(depth_files.probe(file)) == picture
    record = Record(tmp_path / "absent.jpg", file)
    alone = read_cropped_depth(record, spec, (12, 8), None)
    np.testing.assert_array_equal(alone, read_cropped_depth(record, spec, (12, 8), picture))
    (image,) = next(image_batches([record], spec, (12, 8), 1, 1, torch.device("cpu"), CHANNELS["depth"]))
    assert np.array_equal(image[0].numpy() > 0, alone > 0)
    if native._image_loader:
        loader = native._image_loader.ImageLoader(
            (12, 8), "", 1, 0, float("nan"), 0, [], channels=tuple(CHANNELS["depth"])
        )
        batch = np.zeros((1, 12, 8, 1), np.float32)
        assert loader.load([None], [place(file)], [(False, 0, 0)], batch) == []
        np.testing.assert_array_equal(batch[0, ..., 0], np.where(alone > 0, alone.clip(1 / 1024, 1), 0))


def test_the_setting_survives_json() -> None:
    from vologan_fast.config import Config, ConfigError, from_dict, to_dict

    for channels in ("rgb", ("rgbd", "depth")):
        config = Config(data=DataConfig(channels=channels))  # type: ignore[arg-type]
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    for wrong in ("rgba", ["rgb"], ["rgb", "rgb", "rgb"], ["rgb", "d"], 3):
        with pytest.raises(ConfigError, match=r"data\.channels"):
            from_dict({"data": {"channels": wrong}})
