"""Data sets with depth in TIFF and NPZ: the same batches as from NPY, by every command that reads depth."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import picture, write_image, write_manifest
from PIL import Image

from vologan_fast.config import DataConfig, DepthSpec
from vologan_fast.data import Dataset, load_dataset, open_loader
from vologan_fast.data.inspection import inspect_dataset
from vologan_fast.data.loader import held_out_batches
from vologan_fast.data.pack import pack

KINDS = ["tif", "tiff", "npz"]


def write_depth(path: Path, depth: np.ndarray) -> None:
    if path.suffix == ".npz":
        np.savez_compressed(path, depth=depth, rgb=np.zeros((4, 4, 3), np.uint8))
    else:
        Image.fromarray(depth).save(path, "TIFF", compression="tiff_adobe_deflate")


@pytest.fixture(params=["uint16", "float32"])
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    """Write one data set with NPY depth, and twins of it with depth of each other kind. Depth is in millimetres."""
    items: dict[str, list[dict[str, str]]] = {}
    rng = np.random.default_rng(0)
    for domain in ("synthetic", "real"):
        folder = tmp_path / "npy" / domain
        depth = [rng.integers(400, 4000, (48, 48)).astype(request.param) for _ in range(6)]
        for image in depth:
            image[:5, :7] = 0
        items[domain] = [write_image(folder, f"{i}", picture(i, 48, 48), image) for i, image in enumerate(depth)]
    write_manifest(tmp_path / "npy", items)
    roots = {"npy": tmp_path / "npy"}
    for kind in KINDS:
        root = roots[kind] = tmp_path / kind
        shutil.copytree(tmp_path / "npy", root)
        for path in list(root.rglob("*.npy")):
            write_depth(path.with_suffix(f".{kind}"), np.load(path))
            path.unlink()
        write_manifest(
            root, {d: [{**i, "depth_path": i["depth_path"].replace("npy", kind)} for i in items[d]] for d in items}
        )
    return roots


def config(**settings: object) -> DataConfig:
    spec = DepthSpec("mm", invalid=(0.0,))
    return DataConfig(size=32, synthetic=spec, real=spec, **settings)  # type: ignore[arg-type]


def batches(data: Dataset) -> list[torch.Tensor]:
    with open_loader(data, 4) as loader:
        found = [batch for _ in range(4) for batch in next(loader)]
    return found + list(held_out_batches(data, "real", 4))


def test_batches_equal_those_of_npy(twins: dict[str, Path], tmp_path: Path) -> None:
    expected = batches(load_dataset(twins["npy"], config(), 0))
    pack(twins["npy"], tmp_path / "npy shards")
    shards = batches(load_dataset(tmp_path / "npy shards", config(), 0))
    for kind in KINDS:
        for cache in ("none", "host"):
            data = load_dataset(twins[kind], config(cache=cache), 0)
            assert all(map(torch.equal, expected, batches(data))), (kind, cache)
        pack(twins[kind], tmp_path / f"{kind} shards")
        for cache in ("none", "host"):
            data = load_dataset(tmp_path / f"{kind} shards", config(cache=cache), 0)
            assert all(map(torch.equal, shards, batches(data))), (kind, cache)


def test_they_are_described_and_dali_leaves_them_to_the_native_loader(twins: dict[str, Path]) -> None:
    for kind, name, decoder in (("tif", "TIFF", "Pillow"), ("npz", "NPZ", "zipfile")):
        data = load_dataset(twins[kind], config(), 0)
        assert data.not_native.endswith(f".{kind}: {name}")
        assert name in data.depth["real"]
        domains, _ = inspect_dataset(twins[kind], config())
        for domain in domains:
            assert not domain.broken and not domain.refusal
            assert {image.depth.info.decoder for image in domain.sample} == {decoder}
            assert any("that DALI does not read" in finding and name in finding for finding in domain.findings)


def test_layouts_of_folders_find_them(twins: dict[str, Path], tmp_path: Path) -> None:
    expected = load_dataset(twins["npy"], config(), 0)
    for kind in KINDS:
        for domain in ("synthetic", "real"):
            for part, suffix in (("color", "jpg"), ("depth", kind)):
                (tmp_path / "folders" / kind / domain / part).mkdir(parents=True)
                for file in (twins[kind] / domain).glob(f"*.{suffix}"):
                    shutil.copy(file, tmp_path / "folders" / kind / domain / part)
        data = load_dataset(tmp_path / "folders" / kind, config(), 0)
        assert all(map(torch.equal, batches(expected), batches(data)))
