"""Random crop, scale and jitter: against formulas in float64, in every loader, and by sample alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import BACKENDS, MakeDataset

from vologan_fast.config import CHANNELS, DOMAINS, AugmentConfig, ConfigError, DataConfig
from vologan_fast.data import Dataset, held_out_batches, load_dataset, open_loader
from vologan_fast.data.augmentation import NUMBERS, Augmentation, loaded_size
from vologan_fast.data.sampling import Sampler

SIZE = (32, 40)
LUMA = np.array([0.299, 0.587, 0.114])


def augment(**values: float) -> AugmentConfig:
    return AugmentConfig(**{"flip": 0.5, "shift": 0.2} | values)  # type: ignore[arg-type]


def dataset(root: Path, settings: AugmentConfig, **values: object) -> Dataset:
    return load_dataset(root, DataConfig(size=SIZE, augment=settings, **values), seed=5)  # type: ignore[arg-type]


def images(channels: str, height: int = 36, width: int = 45) -> torch.Tensor:
    """Return 4 smooth images with background at the left, as a loader makes them."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(4, CHANNELS[channels].number, 5, 5, generator=generator) * 0.8 + 0.1
    found = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    found[..., : width // 6] = 0
    return found.contiguous(memory_format=torch.channels_last)


def numbers() -> torch.Tensor:
    return torch.rand(4, NUMBERS, generator=torch.Generator().manual_seed(7))


def cut(image: np.ndarray, size: tuple[int, int], row: float, column: float, factor: float, color: int) -> np.ndarray:
    """Return the window of an image (H, W, C), pixel by pixel in float64."""
    height, width, channels = image.shape
    top, left = int(row * (height - size[0] + 1)), int(column * (width - size[1] + 1))
    out = np.zeros((*size, channels))

    def at(y: int, x: int) -> np.ndarray:
        return image[y, x] if 0 <= y < height and 0 <= x < width else np.zeros(channels)

    for i in range(size[0]):
        for j in range(size[1]):
            y = top + (size[0] - 1) / 2 + (i - (size[0] - 1) / 2) / factor
            x = left + (size[1] - 1) / 2 + (j - (size[1] - 1) / 2) / factor
            nearest = at(int(np.floor(y + 0.5)), int(np.floor(x + 0.5)))
            if not nearest.any():
                continue
            total, weights = np.zeros(channels), 0.0
            for u in (int(np.floor(y)), int(np.floor(y)) + 1):
                for v in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if at(u, v).any():
                        weight = (1 - abs(y - u)) * (1 - abs(x - v))
                        total, weights = total + weight * at(u, v), weights + weight
            out[i, j] = nearest
            out[i, j, :color] = total[:color] / max(weights, 1e-6)
    return out


def jittered(image: np.ndarray, most: float, random: np.ndarray, color: int) -> np.ndarray:
    brightness, contrast, saturation = 1 + most * (2 * random - 1)
    seen = image.any(axis=2, keepdims=True)

    def grey(rgb: np.ndarray) -> np.ndarray:
        return rgb if color == 1 else (rgb * LUMA).sum(2, keepdims=True)

    rgb = image[..., :color] * brightness
    mean = grey(rgb)[seen[..., 0]].mean()
    rgb = mean + (rgb - mean) * contrast
    rgb = grey(rgb) + (rgb - grey(rgb)) * saturation
    return np.concatenate([rgb.clip(0, 1) * seen, image[..., color:]], axis=2)


@pytest.mark.parametrize("channels", [*CHANNELS])
@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_batches_follow_the_formulas(channels: str, scale: float, jitter: float) -> None:
    settings, color = augment(crop=0.125, scale=scale, jitter=jitter), CHANNELS[channels].color
    batch, random = images(channels), numbers()
    assert loaded_size(SIZE, settings) == (36, 45)
    found = Augmentation(SIZE, settings, CHANNELS[channels])(batch, random)
    assert found.shape == (4, CHANNELS[channels].number, *SIZE)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, result, (row, column, size, *of_color) in zip(batch, found, random.double().tolist(), strict=True):
        plain = image.permute(1, 2, 0).double().numpy()
        wanted = cut(plain, SIZE, row, column, (1 + scale) ** (2 * size - 1), color)
        if jitter and color:
            wanted = jittered(wanted, jitter, np.array(of_color), color)
        different = abs(result.permute(1, 2, 0).numpy() - wanted).max(2) > 2e-5
        # Where a place lies half-way between two pixels, float32 may take the other one.
        assert different.mean() <= (0.01 if scale else 0)


def test_a_crop_alone_is_a_window() -> None:
    batch, settings = images("rgbd"), augment(crop=0.125)
    found = Augmentation(SIZE, settings, CHANNELS["rgbd"])(batch, numbers())
    for image, result in zip(batch, found, strict=True):
        windows = [image[:, top : top + 32, left : left + 40] for top in range(5) for left in range(6)]
        assert sum(torch.equal(window, result) for window in windows) == 1


def test_every_place_is_reached_and_none_beyond() -> None:
    """A number that float32 rounds up to 1 gives the last place."""
    ramp = torch.arange(1.0, 13.0).view(1, 1, 3, 4).expand(200, -1, -1, -1)
    random = torch.rand(200, NUMBERS, generator=torch.Generator().manual_seed(0))
    random[0] = 1.0
    found = Augmentation((2, 2), augment(crop=0.5), CHANNELS["grey"])(ramp, random)
    assert set(found[:, 0, 0, 0].tolist()) == {1, 2, 3, 5, 6, 7}
    assert found[0].flatten().tolist() == [7, 8, 11, 12]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["none", "host", "disk"])
def test_every_loader_augments_alike(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, cache: str
) -> None:
    """Files of the loaded size are not resized, so all loaders begin with the same images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = augment(crop=0.125, scale=0.2, jitter=0.3)
    root = make_dataset(5, 4, 36, 45)
    with (
        open_loader(dataset(root, settings), 4) as plain,
        open_loader(dataset(root, settings, backend=backend, cache=cache), 4) as other,
    ):
        for _ in range(3):
            for x, y in zip(next(plain), next(other), strict=True):
                assert x.shape == (4, 4, *SIZE)
                torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_numbers_depend_on_the_sample_alone(make_dataset: MakeDataset) -> None:
    """Two processes together make the batches of one, and a loader continues with the same bits."""
    data = dataset(make_dataset(9, 6, 40, 48), augment(crop=0.2, scale=0.1, jitter=0.1))
    with open_loader(data, 4) as whole:
        batches = [next(whole) for _ in range(5)]
    parts = []
    for rank in range(2):
        with open_loader(data, 4, rank=rank, world_size=2) as loader:
            loader.load_state_dict({"step": 2})
            parts.append([next(loader) for _ in range(3)])
    for step in range(3):
        for i in range(2):
            together = torch.cat([parts[rank][step][i] for rank in range(2)])
            torch.testing.assert_close(together, batches[2 + step][i], rtol=0, atol=1e-6)
    assert not torch.equal(batches[0][0], batches[1][0])


def test_domains_and_samples_have_numbers_of_their_own() -> None:
    sampler = Sampler(3, {"synthetic": 50, "real": 50}, 8, SIZE, AugmentConfig())
    found = [sampler.numbers(domain, step, NUMBERS) for domain in DOMAINS for step in range(20)]
    values = np.concatenate(found)
    assert values.shape == (320, NUMBERS) and values.min() >= 0 and values.max() < 1
    assert len(np.unique(values)) == values.size
    assert abs(values.mean(0) - 0.5).max() < 5 * 12**-0.5 * 320**-0.5  # five standard errors
    with_ranks = [dataclasses.replace(sampler, rank=r, world_size=4).numbers("real", 6, NUMBERS) for r in range(4)]
    assert np.array_equal(np.concatenate(with_ranks), sampler.numbers("real", 6, NUMBERS))


def test_held_out_images_are_not_augmented(make_dataset: MakeDataset) -> None:
    root = make_dataset(5, 4, 36, 45)
    for domain in DOMAINS:
        still = list(held_out_batches(dataset(root, AugmentConfig()), domain, 4))
        other = list(held_out_batches(dataset(root, augment(crop=0.125, scale=0.5, jitter=0.5)), domain, 4))
        assert all(map(torch.equal, still, other))


def test_what_cannot_be_is_refused(make_dataset: MakeDataset) -> None:
    root = make_dataset(3, 3, 36, 45)
    for name in ("crop", "scale", "jitter"):
        with pytest.raises(ConfigError, match=rf"data\.augment\.{name} is -1; expected 0 to 1"):
            dataset(root, augment(**{name: -1}))
    with pytest.raises(ConfigError, match=r"data\.augment\.jitter is 0\.1; expected 0 for images without colour"):
        dataset(root, augment(jitter=0.1), channels="depth")
    dataset(root, augment(jitter=0.1), channels=("depth", "rgb"))
