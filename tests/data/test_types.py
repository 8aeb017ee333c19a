"""A file whose values have another type than the rest of its domain: every loader names it when it reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import BACKENDS, picture, write_image, write_manifest

from vologan_fast.config import AugmentConfig, DataConfig, DepthSpec
from vologan_fast.data import DataError, held_out_batches, load_dataset, open_loader
from vologan_fast.data.pack import pack

TYPES = {"float": "float32", "half": "float16", "integer": "uint16", "signed": "int32", "8-bit": "uint8"}
COUNT, ODD = 12, 7


def write_set(root: Path, most: str, odd: str) -> Path:
    """Write images whose depth has the type `most`, and one image of each domain whose depth has the type `odd`."""
    rng = np.random.default_rng(0)
    items = {}
    for domain in ("synthetic", "real"):
        items[domain] = []
        for i in range(COUNT):
            depth = rng.uniform(100, 250, (32, 32)).astype(TYPES[odd if i == ODD else most])
            items[domain].append(write_image(root / domain, f"{i:02}", picture(i, 32, 32), depth))
    write_manifest(root, items)
    return root


def read_all(root: Path, backend: str, cache: str = "none") -> None:
    """Load a data set, and read all its images, as training does."""
    spec = DepthSpec("mm", near=0.1, far=0.25)
    config = DataConfig(size=32, synthetic=spec, real=spec, backend=backend, cache=cache, augment=AugmentConfig(0, 0))
    data = load_dataset(root, config, 0)
    with open_loader(data, 2) as loader:
        for _ in range(loader.steps_per_epoch):
            next(loader)
    for domain in ("synthetic", "real"):
        list(held_out_batches(data, domain, 2))


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the first image of a domain be in the sample. The other images stand for those of a large set."""
    monkeypatch.setattr("vologan_fast.data.depth_spec.SAMPLE", 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("most", "odd"),
    [("integer", "float"), ("integer", "8-bit"), ("signed", "half"), ("float", "integer"), ("half", "8-bit")],
)
def test_a_file_of_another_type_is_named(tmp_path: Path, backend: str, most: str, odd: str) -> None:
    root = write_set(tmp_path / "set", most, odd)
    with pytest.raises(DataError) as error:
        read_all(root, backend)
    assert f"/{ODD:02}.npy: {TYPES[odd]} depth in a domain whose other files hold " in str(error.value)


@pytest.mark.parametrize("cache", ["host", "disk"])
def test_it_is_named_also_when_images_are_kept_or_packed(tmp_path: Path, cache: str) -> None:
    root = write_set(tmp_path / "set", "integer", "float")
    with pytest.raises(DataError, match="float32 depth in a domain"):
        read_all(root, "torch", cache)
    pack(root, tmp_path / "shards", shard_size=5)
    with pytest.raises(DataError, match=r"float32 depth in a domain|uint16 depth in a domain"):
        read_all(tmp_path / "shards", "torch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("most", "odd"), [("float", "half"), ("integer", "signed"), ("8-bit", "integer")])
def test_types_of_one_kind_may_be_mixed(tmp_path: Path, backend: str, most: str, odd: str) -> None:
    read_all(write_set(tmp_path / "set", most, odd), backend)
