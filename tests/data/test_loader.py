"""Batches from files, with either backend: their content, repetition, resumption, and errors for broken files."""

import dataclasses
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import BACKENDS, MakeDataset, needs_dali, picture, write_image, write_manifest
from PIL import Image

from vologan_fast.config import AugmentConfig, ConfigError, DataConfig, DepthSpec
from vologan_fast.data import DataError, Dataset, RGBDLoader, held_out_batches, load_dataset, open_loader
from vologan_fast.data.manifest import find_records

STILL = AugmentConfig(flip=0, shift=0)

Pair = tuple[torch.Tensor, torch.Tensor]


def dataset(root: Path, backend: str = "torch", size: int = 64, **settings: object) -> Dataset:
    return load_dataset(root, DataConfig(size=size, backend=backend, **settings), seed=5)  # type: ignore[arg-type]


def take(loader: RGBDLoader, steps: int) -> list[Pair]:
    return [next(loader) for _ in range(steps)]


def same(a: list[Pair], b: list[Pair]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_have_the_layout_that_the_networks_want(make_dataset: MakeDataset, backend: str) -> None:
    with open_loader(dataset(make_dataset(), backend), batch=4) as loader:
        assert loader.steps_per_epoch == 2  # 6 of 7 synthetic images are for training
        for image in next(loader):
            assert image.shape == (4, 4, 64, 64) and image.dtype == torch.float32
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert image.min() >= 0 and image.max() <= 1
            depth = image[:, 3]
            assert ((depth == 0) | (depth >= 1 / 1024)).all()
            background = depth == 0
            assert background.any() and (image[:, :3].amax(1)[background] == 0).all()


def test_a_data_set_is_the_same_by_every_path_and_another_with_other_depth_files(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset()
    whole = dataset(root).fingerprint()
    monkeypatch.chdir(root.parent)
    assert dataset(Path(root.name)).fingerprint() == whole
    for depth in sorted(root.rglob("*.npy")):
        depth.rename(depth.with_name(f"other-{depth.name}"))
    manifest = root / "training_paths.json"
    manifest.write_text(re.sub(r"(\d+)\.npy", r"other-\1.npy", manifest.read_text()))
    assert dataset(root).fingerprint() != whole


def test_dots_behind_a_link_are_followed_as_the_system_does(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """`LINK/../set` is the folder beside the link's target, not the folder beside the link."""
    root = make_dataset(name="far/set")
    (tmp_path / "far/elsewhere").mkdir()
    make_dataset(synthetic=3, name="near/set")
    (tmp_path / "near/link").symlink_to(tmp_path / "far/elsewhere")
    found = dataset(tmp_path / "near/link/../set")
    assert found.root == root
    assert found.fingerprint() == dataset(root).fingerprint()
    assert find_records(tmp_path / "near/link/../set") == find_records(root)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    for domain in ("synthetic", "real"):
        for i in range(2):
            write_image(tmp_path / domain, f"{i}\udcff", picture(i, 64, 64), np.full((64, 64), 0.5, np.float32))
            (tmp_path / domain / f"{i}\udcff.npy").rename(tmp_path / domain / f"{i}\udcff.depth.npy")
    found = dataset(tmp_path)
    assert found.fingerprint()
    with open_loader(found, batch=1) as loader:
        assert next(loader)[0].shape == (1, 4, 64, 64)


@needs_dali
@pytest.mark.parametrize(
    ("size", "height", "width"), [(64, 64, 64), (64, 60, 80), (64, 160, 120), (50, 333, 251), (96, 48, 64)]
)
def test_both_backends_give_the_same_batches(make_dataset: MakeDataset, size: int, height: int, width: int) -> None:
    """Depth has the same bits. Resized colour agrees within one level, for the reason in pixels.py.

    Colour that is not resized has the same bits, except that DALI may multiply by 1/255 instead of dividing.
    """
    root = make_dataset(height=height, width=width)
    with (
        open_loader(dataset(root, "torch", size), 4, seed=1) as plain,
        open_loader(dataset(root, "dali", size), 4, seed=1) as dali,
    ):
        for expected, found in zip(take(plain, 6), take(dali, 6), strict=True):
            for x, y in zip(expected, found, strict=True):
                assert torch.equal(x[:, 3], y[:, 3])
                tolerance = 2**-24 if height == width == size else 1.001 / 255
                assert (x - y).abs().max() <= tolerance


@needs_dali
@pytest.mark.parametrize("folder", ["rooms", "vologan512"])
def test_both_backends_read_real_images_alike(real_images: Path, tmp_path: Path, folder: str) -> None:
    if folder == "vologan512":  # without the compressions that only the OpenEXR library reads
        for domain, count in (("synthetic", 14), ("real", 8)):
            for kind in ("color", "depth"):
                (tmp_path / domain / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / domain / "color" / f"{i}.jpg").symlink_to(real_images / folder / domain / f"{i:04}.jpg")
                (tmp_path / domain / "depth" / f"{i}.exr").symlink_to(real_images / folder / domain / f"{i:04}.exr")
    root = tmp_path if folder == "vologan512" else real_images / folder
    with (
        open_loader(dataset(root, "torch", 128), 3) as plain,
        open_loader(dataset(root, "dali", 128), 3) as dali,
    ):
        for expected, found in zip(take(plain, 3), take(dali, 3), strict=True):
            for x, y in zip(expected, found, strict=True):
                assert torch.equal(x[:, 3], y[:, 3])
                assert (x - y).abs().max() <= 1.001 / 255


@pytest.mark.parametrize("backend", BACKENDS)
def test_orientation(tmp_path: Path, backend: str) -> None:
    """Nothing is swapped or mirrored. Red is near at the top left, green is far at the right, with a hole between."""
    color = np.zeros((64, 64, 3), np.uint8)
    color[:32, :32] = (255, 0, 0)
    color[:, 32:] = (0, 255, 0)
    depth = np.full((64, 64), -0.5, np.float32)
    depth[:, 32:] = 0.5
    depth[28:36, 28:36] = np.nan
    depth[48:, :16] = -1
    items = {
        domain: [write_image(tmp_path / domain, f"{i}", color, depth, ".png") for i in range(2)]
        for domain in ("synthetic", "real")
    }
    write_manifest(tmp_path, items)

    with open_loader(dataset(tmp_path, backend, augment=STILL), 1) as loader:
        image = next(loader)[0][0]
    assert image[:, 5, 5].tolist() == [1, 0, 0, 0.25]
    assert image[:, 5, 50].tolist() == [0, 1, 0, 0.75]
    assert image[:, 30, 29].tolist() == [1, 0, 0, 0]  # the hole affects only depth
    assert image[:, 60, 3].tolist() == [0, 0, 0, 0]

    flipped = AugmentConfig(flip=1, shift=0)
    with open_loader(dataset(tmp_path, backend, augment=flipped), 1) as loader:
        assert torch.equal(next(loader)[0][0], image.flip(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_holes_of_a_real_sensor_are_black_in_depth_only(real_images: Path, backend: str) -> None:
    data = dataset(real_images / "rooms", backend, 480, augment=STILL)
    with open_loader(data, 4) as loader:
        sensor = next(loader)[1]
    holes = sensor[:, 3] == 0
    assert 0.05 < holes.float().mean() < 0.6
    assert (sensor[:, :3].amax(1)[holes] > 0).float().mean() > 0.9
    measured = sensor[:, 3][~holes]
    assert measured.min() == 1 / 1024 and measured.max() == 1  # the percentiles leave 1 % on either side


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_repeats_and_another_does_not(make_dataset: MakeDataset, backend: str) -> None:
    data = dataset(make_dataset(), backend)
    runs = []
    for seed in (1, 1, 2):
        with open_loader(data, 3, seed) as loader:
            runs.append(take(loader, 4))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_restored_loader_continues_with_the_same_bits(make_dataset: MakeDataset, backend: str, taken: int) -> None:
    data = dataset(make_dataset(), backend)
    with open_loader(data, 4) as loader:
        take(loader, taken)
        state = loader.state_dict()
        expected = take(loader, 4)
    assert state == {"step": taken}  # batches that were decoded ahead do not count
    with open_loader(data, 4) as loader:
        take(loader, 2)  # a loader that has already run can be restored too
        loader.load_state_dict(state)
        assert same(take(loader, 4), expected)
        assert loader.state_dict() == {"step": taken + 4}


def shared(
    data: Dataset, world_size: int, steps: int, state: dict[str, int]
) -> tuple[list[list[Pair]], dict[str, int]]:
    """Take batches of 8 on `world_size` ranks from `state` on.

    Returns the batches of each rank, and their common state afterwards.
    """
    ranks, states = [], []
    for rank in range(world_size):
        with open_loader(data, 8, rank=rank, world_size=world_size, local_world_size=world_size) as loader:
            loader.load_state_dict(state)
            ranks.append(take(loader, steps))
            states.append(loader.state_dict())
            assert loader.steps_per_epoch == 2  # for the whole batch: 16 of 20 synthetic images are for training
    assert states == states[:1] * world_size
    return ranks, states[0]


def joined(ranks: list[list[Pair]]) -> list[Pair]:
    """Concatenate the ranks' parts of each batch."""
    return [tuple(torch.cat(parts) for parts in zip(*of_step, strict=True)) for of_step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_share_the_batches_of_one_process_and_any_number_goes_on(make_dataset: MakeDataset, backend: str) -> None:
    data = dataset(make_dataset(synthetic=20, real=9), backend, size=32)
    with open_loader(data, 8) as alone:
        expected = take(alone, 6)
    four, state = shared(data, 4, 3, {"step": 0})
    two, state = shared(data, 2, 2, state)
    one, state = shared(data, 1, 1, state)
    assert state == {"step": 6}
    assert {len(image) for of_rank in four for pair in of_rank for image in pair} == {2}
    assert same(joined(four) + joined(two) + joined(one), expected)


def test_four_ranks_share_an_epoch_without_overlap(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset(synthetic=20, real=9), augment=STILL)
    drawn = []
    for rank in range(4):
        with open_loader(data, 8, rank=rank, world_size=4) as loader:
            drawn.append([draw.index for step in range(2) for draw in loader.sampler.draw("synthetic", step)])
    assert all(len(set(of_rank)) == 4 for of_rank in drawn)
    assert sorted(index for of_rank in drawn for index in of_rank) == list(range(16))


@needs_dali
@pytest.mark.gpu
def test_a_gpu_gives_the_same_depth_of_exr_and_other_files(make_dataset: MakeDataset) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    data = dataset(make_dataset(), "dali")
    for i, record in enumerate(data.train["synthetic"]):
        if i % 3:  # the format follows from the content; the others stay NPY
            header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
            written = record.depth.with_suffix(".exr")
            OpenEXR.File(header, {"Z": np.load(record.depth)}).write(str(written))
            written.rename(record.depth)
    with open_loader(data, 4) as cpu, open_loader(data, 4, device="cuda") as gpu:
        for expected, found in zip(take(cpu, 6), take(gpu, 6), strict=True):
            for x, y in zip(expected, found, strict=True):
                assert torch.equal(x[:, 3], y[:, 3].cpu())


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_stay_valid(make_dataset: MakeDataset, backend: str) -> None:
    """Batches stay valid while later ones are decoded, and after the loader is closed."""
    with open_loader(dataset(make_dataset(), backend), 4) as loader:
        batches = take(loader, 12)
        at_once = [tuple(image.clone() for image in pair) for pair in batches]
        take(loader, 12)
    assert same(batches, at_once)
    assert len({image.data_ptr() for pair in batches for image in pair}) == 24


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads of Linux")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_loader_has_no_threads_left_and_gives_nothing(make_dataset: MakeDataset, backend: str) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    data = dataset(make_dataset(), backend)
    open_loader(data, 4).close()
    before = threads()
    with open_loader(data, 4) as loader:
        next(loader)
        assert threads() > before
    deadline = time.monotonic() + 10  # a joined thread leaves the list a moment later
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_forgets_to_close_ends_all_the_same(make_dataset: MakeDataset, backend: str) -> None:
    script = f"""
from vologan_fast.config import DataConfig
from vologan_fast.data import load_dataset, open_loader
loader = open_loader(load_dataset({str(make_dataset())!r}, DataConfig(size=64, backend={backend!r}), 0), 4)
next(loader)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def replace(path: Path, data: bytes) -> None:
    """Replace a file in one step, because the loader reads ahead meanwhile."""
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").rename(path)


def corrupt_color(path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 99).convert("RGB").save(file, "JPEG")
    replace(path, file.getvalue()[:-200])


def truncate(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    path.unlink()


def npy(depth: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, depth)
    return file.getvalue()


def erase_depth(path: Path) -> None:
    replace(path, npy(np.full((64, 64), np.nan, np.float32)))


def change_shape(path: Path) -> None:
    replace(path, npy(np.zeros((64, 32), np.float32)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("suffix", "damage", "said"),
    [
        (".jpg", corrupt_color, "the colour image cannot be decoded"),
        (".jpg", delete, "no such file"),
        (".npy", truncate, "expected .*, found"),
        (".npy", delete, "no such file"),
        (".npy", erase_depth, "no valid depth"),
        (".npy", change_shape, "depth of 32 × 64 pixels does not fit the colour of 64 × 64"),
    ],
)
def test_a_file_that_breaks_during_training_is_named(
    make_dataset: MakeDataset, backend: str, suffix: str, damage, said: str
) -> None:
    root = make_dataset(synthetic=3, real=3)
    data = dataset(root, backend)
    broken = data.train["real"][1].color.with_suffix(suffix)
    with open_loader(data, 1) as loader:
        next(loader)
        damage(broken)
        for _ in range(2):  # the next call raises the same error
            with pytest.raises(DataError, match=rf"^{broken}: .*{said}") as error:
                take(loader, 8)
    assert "\n" not in str(error.value)


@needs_dali
def test_an_exr_that_dali_cannot_read_and_nobody_saw_before_is_named(
    make_dataset: MakeDataset, real_images: Path
) -> None:
    data = dataset(make_dataset(), "dali")
    piz = (real_images / "vologan512/synthetic/0016.exr").read_bytes()
    resized = data.train["real"][0]
    Image.new("RGB", (512, 512)).save(resized.color)
    resized.depth.write_bytes(piz)
    with open_loader(data, 4) as loader, pytest.raises(DataError, match=r"piz compression.*--data.backend torch"):
        take(loader, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_files_of_the_format_are_read(tmp_path: Path, backend: str) -> None:
    """The files are CMYK, grey and rotated JPEGs, and a colour PNG. Their depth has another size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    items = []
    for name, mode, suffix in (
        ("cmyk", "CMYK", ".jpg"),
        ("grey", "L", ".jpg"),
        ("exif", "RGB", ".jpg"),
        ("alpha", "RGBA", ".png"),
    ):
        depth = np.linspace(-1, 1, 32 * 24, dtype=np.float32).reshape(24, 32)
        item = write_image(tmp_path / "synthetic", name, picture(0, 96, 128), depth, suffix)
        Image.fromarray(picture(0, 96, 128)).convert(mode).save(tmp_path / item["color_path"], exif=exif)
        items.append(item)
    write_manifest(tmp_path, {"synthetic": items, "real": items})
    data = dataset(tmp_path, backend, 96, augment=STILL)
    with open_loader(data, 3) as loader:
        image = next(loader)[0]
    assert len(np.unique(image[:, 3].numpy())) <= 24 * 24 + 1  # no depth was made up
    reference = picture(0, 96, 128)[:, 16:112] / np.float32(255)
    for sample, record in zip(image, (data.train["synthetic"][d.index] for d in _draws(loader)), strict=True):
        found = sample[:3].permute(1, 2, 0).numpy()
        grey = reference @ np.array([[0.299], [0.587], [0.114]])
        expected = grey if record.color.stem == "grey" else reference
        assert np.abs(found - expected)[:, 2:].mean() < 0.02  # JPEG at Pillow's default quality
        assert (np.abs(found - expected)[2:-2, 2:-2] < 0.2).all()


def _draws(loader: RGBDLoader):
    return loader.sampler.draw("synthetic", 0)


@pytest.mark.parametrize("domain", ["synthetic", "real"])
def test_held_out_images_come_in_order_and_unaugmented(make_dataset: MakeDataset, domain: str) -> None:
    root = make_dataset(synthetic=20, real=13)
    always = AugmentConfig(flip=1, shift=1)
    data = dataset(root, held_out=0.25, augment=always)
    batches = list(held_out_batches(data, domain, batch=2))
    count = len(data.held_out[domain])
    assert [len(b) for b in batches] == [2] * (count // 2) + [1] * (count % 2)
    for image, record in zip(torch.cat(batches), data.held_out[domain], strict=True):
        color = np.asarray(Image.open(record.color)) / np.float32(255)
        visible = image[3].numpy() > 0
        assert (image[:3].permute(1, 2, 0).numpy()[visible] == color[visible]).all()
    assert torch.equal(torch.cat(list(held_out_batches(data, domain, 3))), torch.cat(batches))


def test_held_out_images_are_fixed_by_the_seed_and_never_trained_on(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=20, real=10)
    first, again = (load_dataset(root, DataConfig(size=64), seed=1) for _ in range(2))
    other = load_dataset(root, DataConfig(size=64), seed=2)
    assert first.held_out == again.held_out != other.held_out
    assert len(first.held_out["synthetic"]) == 4 and len(first.held_out["real"]) == 2
    for domain, count in (("synthetic", 20), ("real", 10)):
        assert not set(first.train[domain]) & set(first.held_out[domain])
        assert len(set(first.train[domain]) | set(first.held_out[domain])) == count


def test_any_records_can_be_read_in_order(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    records = data.train["real"][:2]
    (both,) = held_out_batches(data, "real", 8, records=records)
    assert both.shape == (2, 4, 64, 64)


def test_a_broken_held_out_image_is_named(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    delete(data.held_out["real"][0].depth)
    with pytest.raises(DataError, match="no such file"):
        list(held_out_batches(data, "real", 2))


def test_a_resumed_run_uses_the_recorded_statistics(real_images: Path) -> None:
    first = load_dataset(real_images / "rooms", DataConfig(size=64), 0)
    assert first.config.real.near is not None
    again = load_dataset(real_images / "rooms", first.config, 0)
    assert again.config == first.config
    moved = dataclasses.replace(first.config, real=dataclasses.replace(first.config.real, near=0.5, far=2.0))
    assert load_dataset(real_images / "rooms", moved, 0).config == moved


def test_a_domain_with_one_image(make_dataset: MakeDataset) -> None:
    with pytest.raises(DataError, match="the real domain has 1 image; expected at least 2"):
        dataset(make_dataset(real=1))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DataConfig(held_out=1.5), "data.held_out is 1.5"),
        (DataConfig(augment=AugmentConfig(flip=-1)), "data.augment.flip is -1"),
        (DataConfig(size=0), "data.size is 0"),
        (DataConfig(threads=-1), "data.threads is -1"),
    ],
)
def test_settings_that_cannot_be(make_dataset: MakeDataset, config: DataConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_dataset(make_dataset(), config, 0)


def test_the_dataset_describes_itself(real_images: Path) -> None:
    lines = load_dataset(real_images / "rooms", DataConfig(size=64), 0).describe()
    assert lines[0].startswith("synthetic: 32 training and 8 held-out images; depth: uint16 PNG in mm, near 1.1")
    assert "1st and 99th percentile of 5 files), missing 0 and below, " in lines[1]
    assert lines[1].endswith("% of the pixels missing")


def test_importing_the_data_package_imports_no_dali() -> None:
    script = "import sys, vologan_fast, vologan_fast.data; sys.exit('nvidia.dali' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


WITHOUT_DALI = """
import sys
sys.modules["nvidia"] = None  # as if it were not installed
from vologan_fast.config import DataConfig
from vologan_fast.data import load_dataset, open_loader
loader = open_loader(load_dataset(sys.argv[1], DataConfig(size=64, backend=sys.argv[2]), 0), 4)
print(loader.describe())
next(loader)
loader.close()
"""


def test_without_dali_a_demand_for_it_is_refused(make_dataset: MakeDataset) -> None:
    command = [sys.executable, "-c", WITHOUT_DALI, str(make_dataset())]
    said = subprocess.run([*command, "auto"], check=True, capture_output=True, text=True).stdout
    assert said.startswith("native loader, JPEG by ")
    refused = subprocess.run([*command, "dali"], capture_output=True, text=True)
    assert "ConfigError: data.backend is dali, but DALI is not installed" in refused.stderr


@needs_dali
@pytest.mark.parametrize(("plugin", "said"), [("not there", "was not built"), ("no library", "another version")])
def test_without_a_matching_plugin_a_demand_for_dali_is_refused(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin: str, said: str
) -> None:
    from vologan_fast.data.loaders import dali

    data = dataset(make_dataset(), "dali")
    path = tmp_path / "plugin.so"
    path.write_text(plugin)
    spec = None if plugin == "not there" else type("Spec", (), {"origin": str(path)})
    with monkeypatch.context() as patch:
        patch.setattr(dali.importlib.util, "find_spec", lambda name: True if name.startswith("nvidia") else spec)
        dali.load_operators.cache_clear()
        with pytest.raises(ConfigError, match=f"data.backend is dali, but DALI .* is installed, but .*{said}"):
            open_loader(data, 4)
    dali.load_operators.cache_clear()


@needs_dali
def test_exr_kinds_that_the_operator_does_not_read_are_for_the_torch_loader(real_images: Path) -> None:
    with pytest.raises(ConfigError, match=r"DALI's depth operator does not read .*\.exr"):
        open_loader(dataset(real_images / "vologan512", "dali"), 2)
    with open_loader(dataset(real_images / "vologan512"), 2) as loader:
        next(loader)


@needs_dali
def test_dali_says_who_it_is(make_dataset: MakeDataset) -> None:
    with open_loader(dataset(make_dataset(), "dali", threads=2), 4) as loader:
        assert loader.describe().startswith("DALI 2.") and loader.describe().endswith("CPU, 2 threads per domain")


def test_depth_units_reach_both_domains(make_dataset: MakeDataset) -> None:
    wider = DepthSpec("normalized", near=-2.0, far=2.0)
    data = dataset(make_dataset(), synthetic=wider, augment=STILL)
    paper = dataset(make_dataset(name="other"), augment=STILL)
    with open_loader(data, 2) as loader, open_loader(paper, 2) as reference:
        z, p = next(loader)[0][:, 3], next(reference)[0][:, 3]
    seen = p > 1 / 1024
    assert torch.allclose(z[seen], p[seen] / 2 + 0.25, atol=1e-6)
