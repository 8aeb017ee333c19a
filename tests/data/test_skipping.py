"""`--data.on-error skip`: the next good images replace bad ones, the same for all loaders, ranks and resumes."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import MakeDataset
from PIL import Image
from test_loader import same, take
from test_resident import own_cache_folder  # noqa: F401  a fixture

from vologan_fast.config import AugmentConfig, ConfigError, DataConfig
from vologan_fast.data import DataError, Dataset, held_out_batches, load_dataset, open_loader
from vologan_fast.data.skipping import Skipped, Skipping

MOVING = AugmentConfig(flip=0.5, shift=0.7)


def dataset(root: Path, **settings: Any) -> Dataset:
    config = DataConfig(size=64, backend="torch", augment=MOVING, on_error="skip", **settings)
    return load_dataset(root, config, seed=5)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def nan(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        depth = np.load(file)
        depth.ravel()[: int(share * depth.size)] = np.nan
        np.save(file, depth)

    return damage


def far(value: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        depth = np.load(file)
        depth[7, 40] = value
        np.save(file, depth)

    return damage


def large(file: Path) -> None:
    Image.new("RGB", (3000, 3000)).save(file)


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "colour cut": (".jpg", truncate, "the colour image cannot be decoded"),
    "depth cut": (".npy", truncate, "expected .*, found"),
    "absent": (".jpg", Path.unlink, "no such file"),
    "a pipe": (".npy", lambda file: (file.unlink(), os.mkfifo(file)), "not a regular file"),
    "half NaN": (".npy", nan(0.5), "50% of the depth is NaN or infinite; expected less than 50%"),
    "1e30": (".npy", far(1e30), r"depth of 1e\+30; expected less than 1e\+20"),
    "too large": (".jpg", large, r"an image of 3000 × 3000 pixels; expected at most 1000000 pixels"),
}


def with_records(data: Dataset, domain: str, records: list[Any]) -> Dataset:
    """Return the data set with other training images in a domain, and no bad ones yet."""
    skipping = Skipping(str(data.root), data.config.max_skipped)
    return dataclasses.replace(data, train={**data.train, domain: records}, skipping=skipping)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_good_image_takes_the_place_of_a_bad_one(make_dataset: MakeDataset, fault: str) -> None:
    """The batches are those of a data set whose list has the next image twice. Each file is named with its reason."""
    suffix, damage, said = FAULTS[fault]
    data = dataset(make_dataset(synthetic=8, real=8), max_pixels=1_000_000)
    bad = data.train["synthetic"][2]
    damage(bad.color.with_suffix(suffix))  # type: ignore[union-attr]
    with open_loader(data, 2, seed=1) as loader:
        found = take(loader, 9)
    records = list(data.train["synthetic"])
    records[2] = records[3]
    whole = with_records(data, "synthetic", records)
    with open_loader(whole, 2, seed=1) as loader:
        assert same(take(loader, 9), found)
    assert whole.skipping is not None and not whole.skipping.found()
    assert data.skipping is not None
    (named,) = data.skipping.found()
    assert named.file == os.path.relpath(str(bad.color), data.root)
    assert (named.split, named.domain) == ("train", "synthetic")
    with pytest.raises(DataError, match=said):
        raise DataError(named.reason)
    with pytest.raises(DataError, match=str(bad.color.with_suffix(suffix))):  # type: ignore[union-attr]
        raise DataError(named.reason)


def test_what_is_less_is_no_fault(make_dataset: MakeDataset) -> None:
    """A little less than half NaN, and 1e30 that means background or nothing, as some programs write it."""
    root = make_dataset(synthetic=8, real=8)
    data = dataset(root)
    records = data.train["synthetic"]
    nan(0.49)(records[0].depth)  # type: ignore[arg-type]
    far(1e30)(records[1].depth)  # type: ignore[arg-type]
    far(1e25)(records[2].depth)  # type: ignore[arg-type]
    spec = dataclasses.replace(data.config.synthetic, background=1e30, invalid=(1e25,))
    data = dataclasses.replace(data, config=dataclasses.replace(data.config, synthetic=spec))
    with open_loader(data, 2) as loader:
        take(loader, 8)
    assert data.skipping is not None and data.skipping.found() == []


def test_neighbours_that_are_bad_are_passed_over(make_dataset: MakeDataset) -> None:
    """Several bad images in a row, up to the end of the list, so that the first image takes the places of the last."""
    data = dataset(make_dataset(synthetic=8, real=8))
    records = list(data.train["real"])
    for record in records[-3:]:
        truncate(record.color)  # type: ignore[arg-type]
    with open_loader(data, 2, seed=1) as loader:
        found = take(loader, 9)
    with open_loader(with_records(data, "real", [*records[:-3], *3 * [records[0]]]), 2, seed=1) as loader:
        assert same(take(loader, 9), found)


def damaged(make_dataset: MakeDataset) -> Path:
    root = make_dataset(synthetic=12, real=9)
    data = dataset(root)
    truncate(data.train["synthetic"][1].depth)  # type: ignore[arg-type]
    truncate(data.train["synthetic"][2].color)  # type: ignore[arg-type]
    nan(0.7)(data.train["real"][3].depth)  # type: ignore[arg-type]
    truncate(data.held_out["real"][0].color)  # type: ignore[arg-type]
    return root


def test_ranks_and_resumed_loaders_get_the_batches_of_one(make_dataset: MakeDataset) -> None:
    root = damaged(make_dataset)
    with open_loader(dataset(root), 4, seed=1) as loader:
        expected = take(loader, 8)
    parts = []
    for rank in range(2):
        with open_loader(dataset(root), 4, seed=1, rank=rank, world_size=2) as loader:
            parts.append(take(loader, 8))
    joined = [tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    assert same(joined, expected)
    with open_loader(dataset(root), 4, seed=1) as loader:
        loader.load_state_dict({"step": 5})
        assert same(take(loader, 3), expected[5:])


@pytest.mark.parametrize("cache", ["host", "disk"])
def test_kept_images_replace_the_same(make_dataset: MakeDataset, cache: str) -> None:
    root = damaged(make_dataset)
    streamed = dataset(root)
    with open_loader(streamed, 4, seed=1) as loader:
        expected = take(loader, 8)
    for _ in range(2):  # the second time from the packed file
        kept = dataset(root, cache=cache)
        with open_loader(kept, 4, seed=1) as loader:
            assert "resident" in loader.describe()
            assert same(take(loader, 8), expected)
        assert kept.skipping is not None and streamed.skipping is not None
        assert {(bad.file, bad.reason) for bad in kept.skipping.found()} == {
            (bad.file, bad.reason) for bad in streamed.skipping.found()
        }


def test_held_out_images_are_replaced_too(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset(synthetic=8, real=20))
    records = data.held_out["real"]
    assert len(records) == 4
    (whole,) = held_out_batches(data, "real", 8)
    truncate(records[1].color)  # type: ignore[arg-type]
    (found,) = held_out_batches(data, "real", 8, step=7)
    assert torch.equal(found, whole[[0, 2, 2, 3]])
    assert data.skipping is not None
    (named,) = data.skipping.found()
    assert (named.step, named.split, named.domain) == (7, "held_out", "real")


def test_a_bad_file_in_the_sample_of_the_depth_settings_is_passed_over(make_dataset: MakeDataset) -> None:
    """Without this, the file would end the run before the first step. The settings are those of the other files."""
    root = make_dataset()
    expected = dataset(root).specs
    truncate(dataset(root).train["real"][0].depth)  # type: ignore[arg-type]
    far(1e30)(dataset(root).train["synthetic"][1].depth)  # type: ignore[arg-type]
    assert dataset(root).specs == expected
    with pytest.raises(DataError):
        load_dataset(root, DataConfig(size=64), seed=5)


def test_more_bad_images_than_allowed_end_the_run(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset(synthetic=8, real=8), max_skipped=2)
    for record in data.train["real"][:3]:
        truncate(record.color)  # type: ignore[arg-type]
    with (
        open_loader(data, 2) as loader,
        pytest.raises(
            DataError, match=r"3 images are bad, more than --data\.max-skipped 2; the last one: .*\.jpg: the"
        ),
    ):
        take(loader, 8)


def test_a_list_of_nothing_but_bad_images_ends_the_run(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset(synthetic=8, real=8))
    for record in data.train["real"]:
        truncate(record.color)  # type: ignore[arg-type]
    with open_loader(data, 2) as loader, pytest.raises(DataError, match="all 6 images of a list are bad"):
        take(loader, 8)


def test_what_was_replaced_stays_replaced(make_dataset: MakeDataset) -> None:
    """A record says that an image is bad since step 4, for example on a disk that stalled. It can be read again now."""
    data = dataset(make_dataset(synthetic=8, real=8))
    with open_loader(data, 2, seed=1) as loader:
        before = take(loader, 9)
    records = list(data.train["synthetic"])
    other = with_records(data, "synthetic", [*records[:2], records[3], *records[3:]])
    with open_loader(other, 2, seed=1) as loader:
        after = take(loader, 9)
    name = os.path.relpath(str(records[2].color), data.root)
    assert data.skipping is not None
    data.skipping.restore([Skipped(4, "train", "synthetic", name, "a stall")])
    with open_loader(data, 2, seed=1) as loader:
        found = take(loader, 9)
    assert same(found, before[:3] + after[3:]) and not same(found, before) and not same(found, after)


def test_dali_is_refused_with_a_reason(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    data = dataclasses.replace(data, config=dataclasses.replace(data.config, backend="dali"))
    with pytest.raises(ConfigError, match=r"data\.backend is dali, but DALI does not skip bad images"):
        open_loader(data, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_skipped": -1}, "data.max_skipped is -1; expected 0 or more"),
        ({"max_nan": 1.5}, "data.max_nan is 1.5; expected 0 to 1"),
        ({"max_pixels": 0}, "data.max_pixels is 0; expected 1 to 134217728"),
        ({"max_pixels": 1 << 28}, "data.max_pixels is 268435456; expected 1 to 134217728"),
    ],
)
def test_settings_that_cannot_work(make_dataset: MakeDataset, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataset(make_dataset(), **settings)
