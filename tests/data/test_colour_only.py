"""Colour without depth: CycleGAN's layout with its test split, the other layouts, and what needs depth."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import BACKENDS, picture
from PIL import Image
from rich.console import Console

from vologan_fast import load, translate_image
from vologan_fast.config import CHANNELS, DOMAINS, DataConfig, DepthSpec
from vologan_fast.data import DataError, Record, held_out_batches, load_dataset, open_loader
from vologan_fast.data.inspection import inspect_dataset
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pack import pack
from vologan_fast.report.inspection import print_report, write_picture
from vologan_fast.train import main
from vologan_fast.training.run_folder import read_config

RGB = DataConfig(size=32, channels="rgb")


def write(folder: Path, count: int, seed: int = 0, suffix: str = ".jpg") -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{i:03}{suffix}" for i in range(count)]
    for i, file in enumerate(files):
        Image.fromarray(picture(seed + i, 40, 48)).save(file)
    return files


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    root = tmp_path / "horse2zebra"
    for seed, (name, count) in enumerate([("trainA", 5), ("trainB", 4), ("testA", 2), ("testB", 3)]):
        write(root / name, count, 100 * seed)
    return root


def test_the_folders_are_the_domains_and_the_given_split(letters: Path) -> None:
    data = load_dataset(letters, RGB, seed=0)
    for domain, letter in zip(DOMAINS, "AB", strict=True):
        for part, name in ((data.train, "train"), (data.held_out, "test")):
            files = sorted((letters / f"{name}{letter}").iterdir())
            assert list(part[domain]) == [Record(file) for file in files]
    assert data.describe()[0] == "synthetic: 5 training and 2 held-out images; depth: not read"
    assert load_dataset(letters, RGB, seed=1).train == data.train  # nothing is drawn
    assert sum(map(len, held_out_batches(data, "real", 2))) == 3


def test_without_a_test_folder_the_split_is_drawn(letters: Path) -> None:
    for file in (letters / "testB").iterdir():
        file.unlink()
    data = load_dataset(letters, RGB, seed=0)
    assert (len(data.train["synthetic"]), len(data.held_out["synthetic"])) == (5, 2)
    assert (len(data.train["real"]), len(data.held_out["real"])) == (3, 1)
    assert {r.color for part in (data.train, data.held_out) for r in part["real"]} == set(
        (letters / "trainB").iterdir()
    )


def test_one_image_suffices_beside_a_given_split(tmp_path: Path) -> None:
    for name in ("trainA", "trainB", "testA", "testB"):
        write(tmp_path / name, 1)
    data = load_dataset(tmp_path, RGB, seed=0)
    assert [len(part["real"]) for part in (data.train, data.held_out)] == [1, 1]
    (tmp_path / "testA/000.jpg").unlink()
    with pytest.raises(DataError, match="the synthetic domain has 1 image; expected at least 2"):
        load_dataset(tmp_path, RGB, seed=0)


def test_half_of_the_layout_names_the_empty_domain(tmp_path: Path) -> None:
    write(tmp_path / "trainA", 3)
    with pytest.raises(DataError, match="the real domain is empty"):
        find_records(tmp_path)


def test_other_layouts_come_first(letters: Path) -> None:
    for domain in DOMAINS:
        write(letters / domain, 2)
    found = load_dataset(letters, RGB, seed=0)
    assert {record.color.parent.name for part in (found.train, found.held_out) for record in part["real"]} == {"real"}  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["none", "host", "disk"])
@pytest.mark.parametrize("layout", ["letters", "folders", "beside", "manifest"])
def test_every_loader_reads_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, cache: str, layout: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, items = tmp_path / "set", {}
    for domain, letter in zip(DOMAINS, "AB", strict=True):
        folders = {"letters": f"train{letter}", "folders": f"{domain}/color", "beside": domain, "manifest": letter}
        files = write(root / folders[layout], 4, ord(letter))
        items[f"{domain}_data"] = [{"color_path": str(file.relative_to(root))} for file in files]
    if layout == "manifest":
        (root / "training_paths.json").write_text(json.dumps(items))
    data = load_dataset(root, DataConfig(size=(32, 40), channels="rgb", backend=backend, cache=cache), seed=0)
    assert data.fingerprint()
    with open_loader(data, 2) as loader:
        for batch in next(loader):
            assert batch.shape == (2, 3, 32, 40) and batch.amax() > 0.5
    record = data.train["real"][0]
    still = next(held_out_batches(data, "real", 1, records=[record]))
    assert still.shape == (1, 3, 32, 40) and torch.isfinite(still).all()


def test_some_without_depth_are_still_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for domain in DOMAINS:
        write(root / domain / "color", 2)
        (root / domain / "depth").mkdir()
    (root / "real/depth/000.exr").write_bytes(b"")
    with pytest.raises(DataError, match=r"real/color/001.jpg: no depth image for this colour image"):
        find_records(root)


@pytest.mark.parametrize("channels", ["rgbd", "depth", "grey+depth", ("rgb", "rgbd")])
def test_channels_with_depth_need_depth(letters: Path, channels: object) -> None:
    with pytest.raises(
        DataError,
        match=r"00.jpg: no depth image for this .* \(and \d more\); expected one, or --data.channels rgb or grey$",
    ):
        load_dataset(letters, DataConfig(size=32, channels=channels), seed=0)  # type: ignore[arg-type]


def test_inspect_reads_the_colour_that_is_there(letters: Path, tmp_path: Path) -> None:
    domains, between = inspect_dataset(letters, RGB)
    assert [(d.channels, len(d.colors), d.depths, d.description, d.refusal) for d in domains] == [
        (CHANNELS["rgb"], count, [], "not read", "")
        for count in (5 + 2, 4 + 3)  # with the images for tests
    ]
    assert between == []
    console = Console(file=io.StringIO(), width=200)
    print_report(domains, between, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "JPEG; 48 × 40; " in text and "training refuses" not in text and "valid depth" not in text
    assert write_picture(tmp_path / "picture.png", domains, (32, 32))
    domains, _ = inspect_dataset(letters, DataConfig(size=32))
    assert "no depth image for this colour image" in domains[0].refusal and len(domains[0].colors) == 5 + 2
    with pytest.raises(DataError, match=r"trainA/000.jpg: the image has no depth file"):
        _ = find_records(letters)["synthetic"][0].depth


@pytest.mark.parametrize("layout", ["folders", "tagged", "plain", "manifest", "letters"])
def test_depth_alone_is_a_data_set(tmp_path: Path, layout: str) -> None:
    root, names = tmp_path / "set", {"letters": ("trainA", "trainB")}.get(layout, DOMAINS)
    manifest: dict[str, list[dict[str, str]]] = {f"{domain}_data": [] for domain in DOMAINS}
    for domain, name in zip(DOMAINS, names, strict=True):
        for i in range(4):
            depth = np.random.default_rng(i).uniform(0.5, 4.5, (40, 48)).astype(np.float32)
            file = root / name / {"folders": f"depth/{i}.npy", "tagged": f"{i}.depth.npy"}.get(layout, f"{i}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, depth)
            manifest[f"{domain}_data"].append({"depth_path": str(file.relative_to(root))})
    if layout == "manifest":
        (root / "training_paths.json").write_text(json.dumps(manifest))
    settings = DataConfig(size=32, channels="depth", synthetic=DepthSpec("m"), real=DepthSpec("m"), held_out=0.25)
    dataset = load_dataset(root, settings, seed=0)
    assert [len(dataset.train[domain]) for domain in DOMAINS] == [3, 3]
    with open_loader(dataset, 2) as loader:
        assert all(batch.shape == (2, 1, 32, 32) for batch in next(loader))
    domains, _ = inspect_dataset(root, settings)
    assert [(len(d.depths), d.colors, d.refusal, bool(d.description)) for d in domains] == [(4, [], "", True)] * 2
    assert write_picture(tmp_path / "picture.png", domains, (32, 32))
    pack(root, tmp_path / "packed", shard_size=2)
    packed = load_dataset(tmp_path / "packed", settings, seed=0)
    assert len(packed.train["real"]) == 3 and packed.depth == dataset.depth
    for channels in ("rgbd", "grey"):
        with pytest.raises(DataError, match=r": no colour image for this depth image \(and 3 more\); expected one, or"):
            load_dataset(root, DataConfig(size=32, channels=channels), seed=0)  # type: ignore[arg-type]
    domains, _ = inspect_dataset(root, DataConfig(size=32, synthetic=DepthSpec("m"), real=DepthSpec("m")))
    assert "no colour image for this depth image" in domains[0].refusal


def test_training_on_a_folder_of_colour(letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--preset", "demo", "--data", str(letters), "--data.size", "32", "--device", "cpu", "--max-steps", "2"]
    options += ["--generator.width", "4", "--discriminator.widths", "4", "4", "4"]
    options += ["--discriminator.down-widths", "4", "4", "4"]
    assert main([*options, "--run-dir", str(run)]) == 1
    assert "no depth image for this colour image" in capsys.readouterr().err
    assert main([*options, "--data.channels", "rgb", "--run-dir", str(run)]) == 0
    with Image.open(run / "samples/step-00000002.png") as grid:
        assert grid.width == 3 * (4 * 32 + 4)  # colour alone: input, translation and cycle
    _, config = read_config(run / "config.json")
    assert config.data.channels == "rgb" and config.data.real.near is None
    translated, depth = translate_image(load(run), picture(0, 32, 32))
    assert translated is not None and translated.shape == (32, 32, 3) and depth is None
