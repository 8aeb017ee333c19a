"""Images that are no squares: every loader gives what the definition in this file says, and one number means a square.

Colour is compared to the bit where the crop is not resized. Resized colour is compared with exact arithmetic: Pillow
rounds to 8 bits after each of its two passes, so it is within 1 level of the exact value.
"""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import BACKENDS, MakeDataset, picture, surface
from PIL import Image

from vologan_fast.config import DOMAINS, AugmentConfig, Config, ConfigError, DataConfig, check, from_dict, to_dict
from vologan_fast.data import Dataset, held_out_batches, load_dataset, open_loader
from vologan_fast.data.loaders import native
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import crop_color, crop_shape
from vologan_fast.data.records import Record

SIZES = [(48, 24), (24, 64), (30, 40), (40, 30), (17, 5)]  # height, width


def rectangle(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, Fraction]]:
    """Return (length, first pixel) of the crop, for rows and for columns."""
    scale = min(Fraction(shape[0], size[0]), Fraction(shape[1], size[1]))
    lengths = [max(1, math.floor(scale * side + Fraction(1, 2))) for side in size]
    return [(length, Fraction(whole - length, 2)) for whole, length in zip(shape, lengths, strict=True)]


def filtered(line: np.ndarray, first: Fraction, length: int, size: int) -> np.ndarray:
    """Return `size` pixels of the middle of a line (L, …), by a triangle filter that repeats the ends: float64."""
    scale = length / size
    reach = max(scale, 1.0)
    out = []
    for i in range(size):
        center = float(first) + (i + 0.5) * scale
        taps = np.arange(math.floor(center - reach) - 1, math.ceil(center + reach) + 2)
        weights = np.clip(1 - abs(taps + 0.5 - center) / reach, 0, None)
        out.append(np.tensordot(weights / weights.sum(), line[taps.clip(0, len(line) - 1)].astype(np.float64), 1))
    return np.stack(out)


def exact_color(color: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return colour (H, W, 3) cropped and resized, in levels, without rounding."""
    (high, top), (wide, left) = rectangle(color.shape[:2], size)
    rows = filtered(color, top, high, size[0])
    return filtered(rows.transpose(1, 0, 2), left, wide, size[1]).transpose(1, 0, 2)


def exact_depth(depth: np.ndarray, color_shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return depth under the crop of the colour, by nearest neighbour."""
    index = []
    for axis, (length, first) in enumerate(rectangle(color_shape, size)):
        centers = [first + (i + Fraction(1, 2)) * Fraction(length, size[axis]) for i in range(size[axis])]
        index.append([math.floor(center * depth.shape[axis] / color_shape[axis]) for center in centers])
    return depth[np.ix_(*index)]


def augmented(image: np.ndarray, flip: bool, top: int, left: int) -> np.ndarray:
    """Return an image flipped, padded with zeros at the bottom and at the right, and cropped from (top, left)."""
    height, width = image.shape[:2]
    image = np.pad(image[:, ::-1] if flip else image, ((0, top), (0, left), (0, 0)))
    return image[top : top + height, left : left + width]


def expected(record: Record, size: tuple[int, int]) -> np.ndarray:
    """Return colour in levels and depth of a record of make_dataset: float64 (h, w, 4)."""
    assert isinstance(record.color, Path) and isinstance(record.depth, Path)
    color, depth = np.asarray(Image.open(record.color)), np.load(record.depth)
    depth = exact_depth(depth, color.shape[:2], size)
    normalized = np.where(depth == -1, 0, np.clip((depth + 1) / 2, 1 / 1024, 1))
    levels = exact_color(color, size) * (depth != -1)[..., None]
    return np.concatenate([levels, normalized[..., None]], axis=2)


def agree(image: torch.Tensor, wanted: np.ndarray, resized: bool) -> bool:
    """Return whether an image (4, h, w) of a batch is as wanted."""
    found = image.permute(1, 2, 0).numpy().astype(np.float64)
    color = abs(found[..., :3] * 255 - wanted[..., :3]).max() <= (1.0001 if resized else 1e-4)
    return bool(color and abs(found[..., 3] - wanted[..., 3]).max() <= 1e-7)


def dataset(root: Path, size: object, backend: str = "torch", **settings: object) -> Dataset:
    return load_dataset(root, DataConfig(size=size, backend=backend, **settings), seed=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), [(48, 24), (60, 80), (81, 35)])
@pytest.mark.parametrize("size", SIZES)
def test_batches_are_the_centre_of_the_files(
    make_dataset: MakeDataset, backend: str, height: int, width: int, size: tuple[int, int]
) -> None:
    data = dataset(make_dataset(3, 2, height, width), size, backend)
    resized = (height, width) != size
    with open_loader(data, 2) as loader:
        for step in range(4):
            for domain, batch in zip(DOMAINS, next(loader), strict=True):
                assert batch.shape == (2, 4, *size) and batch.is_contiguous(memory_format=torch.channels_last)
                for draw, image in zip(loader.sampler.draw(domain, step), batch, strict=True):
                    wanted = augmented(expected(data.train[domain][draw.index], size), draw.flip, draw.top, draw.left)
                    assert agree(image, wanted, resized), (domain, draw)
    (held_out,) = held_out_batches(data, "synthetic", 4)
    assert agree(held_out[0], expected(data.held_out["synthetic"][0], size), resized)


@pytest.mark.parametrize("size", [*SIZES, 32])
def test_native_code_the_plain_reader_kept_images_and_shards_give_the_same_bits(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_dataset(3, 3, 45, 60)

    def batches(data: Dataset) -> list[torch.Tensor]:
        with open_loader(data, 2) as loader:
            return [image for _ in range(4) for image in next(loader)]

    data = dataset(root, size, threads=1)
    found = batches(data)
    for cache in ("host", "disk"):
        kept = dataclasses.replace(data, config=dataclasses.replace(data.config, cache=cache))
        assert all(map(torch.equal, batches(kept), found))
    with monkeypatch.context() as without:
        without.setattr(native, "_image_loader", None)
        assert all(map(torch.equal, batches(data), found))
    pack(root, tmp_path / "shards", shard_size=2)
    shards = dataset(tmp_path / "shards", size)
    with open_loader(shards, 2) as loader:
        for step in range(2):
            for domain, batch in zip(DOMAINS, next(loader), strict=True):
                for draw, image in zip(loader.sampler.draw(domain, step), batch, strict=True):
                    records = [shards.train[domain][draw.index]]
                    (still,) = next(held_out_batches(shards, domain, 1, records=records))
                    moved = augmented(still.permute(1, 2, 0).numpy(), draw.flip, draw.top, draw.left)
                    assert np.array_equal(image.permute(1, 2, 0).numpy(), moved)


def test_two_equal_numbers_are_the_square(make_dataset: MakeDataset) -> None:
    root = make_dataset(3, 3, 45, 60)
    with open_loader(dataset(root, 32), 2) as one, open_loader(dataset(root, (32, 32)), 2) as two:
        for _ in range(3):
            assert all(map(torch.equal, next(one), next(two)))


@pytest.mark.parametrize("shape", [(45, 60), (60, 45), (33, 33), (100, 7)])
def test_a_square_crop_is_the_shorter_side(shape: tuple[int, int]) -> None:
    assert crop_shape(shape, 16) == (min(shape), min(shape))


@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [
        ((480, 640), (512, 256), (480, 240)),
        ((1920, 1440), (512, 256), (1920, 960)),
        ((480, 640), (480, 640), (480, 640)),
        ((720, 1280), (480, 640), (720, 960)),
        ((10, 10), (2, 3), (7, 10)),  # 6 2/3 rows
        ((9, 100), (2, 1), (9, 5)),  # 4 1/2 columns
        ((1, 100), (100, 1), (1, 1)),
    ],
)
def test_the_crop_in_numbers(shape: tuple[int, int], size: tuple[int, int], crop: tuple[int, int]) -> None:
    assert crop_shape(shape, size) == crop
    assert tuple(length for length, _ in rectangle(shape, size)) == crop


def test_colour_of_the_same_aspect_ratio_is_only_resized() -> None:
    color = picture(3, 96, 48)
    whole = np.asarray(Image.fromarray(color).resize((12, 24), Image.Resampling.BILINEAR))
    inner = (slice(3, -3), slice(3, -3))  # the border is repeated here, and left out by Pillow
    assert abs(crop_color(color, (24, 12)).astype(int) - whole)[inner].max() <= 1
    assert crop_color(color, (96, 48)) is color
    assert surface(0, 96, 48).shape == (96, 48)


def test_shifts_are_fractions_of_each_side(make_dataset: MakeDataset) -> None:
    augment = AugmentConfig(shift=1, shift_height=0.5, shift_width=0.25)
    with open_loader(dataset(make_dataset(60, 60, 8, 8), (32, 80), augment=augment), 16) as loader:
        rows = np.concatenate([loader.sampler.rows("real", step) for step in range(200)])
    assert rows[:, 2].max() == 16 and rows[:, 3].max() == 20


# The setting


@pytest.mark.parametrize(("size", "recorded"), [(64, 64), ((512, 256), [512, 256])])
def test_both_forms_survive_json(size: object, recorded: object) -> None:
    config = Config(data=DataConfig(size=size))  # type: ignore[arg-type]
    written = json.loads(json.dumps(to_dict(config)))
    assert written["data"]["size"] == recorded
    assert from_dict(written) == config
    assert config.data.shape == ((64, 64) if size == 64 else (512, 256))


@pytest.mark.parametrize("size", [[512], [512, 256, 3], "512", 512.0, [512, "256"], None])
def test_another_form_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.size"):
        from_dict({"data": {"size": size}})


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (500, "--data.size is 500: expected a multiple of 32, .* halve the image 5 times; the nearest: 480 or 512"),
        (32, "--data.size is 32: expected a multiple of 32, and larger, .* the nearest: 64"),
        ((500, 256), "--data.size is 500 256: expected multiples of 32, .* the nearest: 480 256 or 512 256"),
        ((512, 250), "--data.size is 512 250: expected multiples of 32, .* the nearest: 512 224 or 512 256"),
        ((512, 20), "--data.size is 512 20: expected multiples of 32, .* the nearest: 512 64"),
    ],
)
def test_a_size_that_the_networks_cannot_have_is_refused_with_the_nearest(size: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}$"):
        check(Config(data=DataConfig(size=size)))  # type: ignore[arg-type]
    check(Config(data=DataConfig(size=(480, 640))))
