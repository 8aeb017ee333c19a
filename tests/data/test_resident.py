"""Images that are kept decoded: the same batches as the streaming loaders give, and safe files."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import BACKENDS, MakeDataset, needs_dali, picture, surface, write_image, write_manifest
from PIL import Image
from test_loader import corrupt_color, delete, erase_depth, same, take, truncate

from vologan_fast import _batch
from vologan_fast.config import DOMAINS, AugmentConfig, ConfigError, DataConfig, DepthSpec
from vologan_fast.data import DataError, Dataset, RGBDLoader, load_dataset, open_loader
from vologan_fast.data import loader as loader_module
from vologan_fast.data.demo import make_demo
from vologan_fast.data.loaders.kept_place import choose_place
from vologan_fast.data.loaders.packed_file import ArraySpec, make_packed, open_packed
from vologan_fast.data.loaders.resident import Images, depth_levels, encode_depth, kept_as, pack_plain
from vologan_fast.data.pixels import NEAREST, DepthRule, normalize_depth, pack
from vologan_fast.data.sampling import Draw
from vologan_fast.files import cache_folder
from vologan_fast.host import free_host_memory

MOVING = AugmentConfig(flip=0.5, shift=0.7)
PLACES = ["host", "disk"]


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def dataset(root: Path, backend: str = "torch", size: int = 64, **settings: Any) -> Dataset:
    return load_dataset(root, DataConfig(size=size, backend=backend, augment=MOVING, **settings), seed=5)


def kept(data: Dataset, cache: str, depth: str = "exact") -> Dataset:
    """Return the same data set with settings that keep its images decoded."""
    config = dataclasses.replace(data.config, cache=cache, cache_depth=depth)
    return dataclasses.replace(data, config=config)


def kept_files() -> list[str]:
    return sorted(path.name for path in cache_folder("images").iterdir()) if cache_folder("images").exists() else []


# The same batches


@pytest.mark.parametrize("cache", PLACES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "height", "width"), [(64, 64, 64), (50, 60, 80)])
def test_the_batches_are_those_that_are_decoded_from_files(
    make_dataset: MakeDataset, backend: str, cache: str, size: int, height: int, width: int
) -> None:
    """The batches have the same bits over epochs, with flips and shifts, and with the resizing of each backend."""
    data = dataset(make_dataset(height=height, width=width), backend, size)
    with open_loader(data, 3, seed=1) as streaming, open_loader(kept(data, cache), 3, seed=1) as resident:
        assert "resident" in resident.describe()
        assert resident.steps_per_epoch == streaming.steps_per_epoch == 2
        for expected, found in zip(take(streaming, 7), take(resident, 7), strict=True):
            for x, y in zip(expected, found, strict=True):
                assert torch.equal(x, y)
                assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)


def write_depth(root: Path, kind: str) -> dict[str, Any]:
    """Write a data set with one kind of depth files and many kinds of values. Returns its settings."""
    millimetres = kind.startswith("uint")
    items: dict[str, list[dict[str, str]]] = {}
    for domain in DOMAINS:
        items[domain] = []
        for i in range(3):
            depth = surface(i, 32, 32)
            depth[3, 3:9] = [np.nan, np.inf, -np.inf, -0.0, 1e-8, 60000]
            depth[:, :4] = -1
            if millimetres:
                depth = np.nan_to_num((depth + 1) * 100, posinf=255).clip(0, 255)
            if kind == "uint16 PNG":
                depth = depth * 257
            name = f"{i}"
            if kind == "int16":
                depth = np.nan_to_num(depth, posinf=9, neginf=9).clip(-9, 9)
            item = write_image(root / domain, name, picture(i, 32, 32), depth.astype(kind.split()[0]), ".png")
            if kind == "uint16 PNG":
                item["depth_path"] = f"{domain}/{name}.depth.png"
                Image.fromarray(depth.astype(np.uint16)).save(root / item["depth_path"])
            items[domain].append(item)
    write_manifest(root, items)
    spec = (
        DepthSpec("mm", None, 0.01, 60, (0.0, 7.0), 255.0)
        if millimetres
        else DepthSpec("normalized", None, -1, 1, (), -1.0)
    )
    return {"synthetic": spec, "real": spec}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "bytes_a_pixel"),
    [("float16", 5), ("uint16", 5), ("uint8", 5), ("uint16 PNG", 5), ("float32", 7), ("float64", 7), ("int16", 7)],
)
def test_depth_of_every_kind_is_kept_exactly(tmp_path: Path, backend: str, kind: str, bytes_a_pixel: int) -> None:
    settings = write_depth(tmp_path / "set", kind)
    data = dataset(tmp_path / "set", backend, 32, **settings)
    with open_loader(data, 2) as streaming, open_loader(kept(data, "disk"), 2) as resident:
        assert same(take(streaming, 5), take(resident, 5))
    (file,) = cache_folder("images").iterdir()
    pixels = 32 * 32 * sum(map(len, data.train.values()))
    assert 0 <= file.stat().st_size - pixels * bytes_a_pixel < 5 * 4096


@pytest.mark.parametrize("cache", PLACES)
def test_compact_float_depth_is_off_by_less_than_its_levels(make_dataset: MakeDataset, cache: str) -> None:
    data = dataset(make_dataset())
    with open_loader(data, 4) as streaming, open_loader(kept(data, cache, "compact"), 4) as resident:
        for expected, found in zip(take(streaming, 4), take(resident, 4), strict=True):
            for x, y in zip(expected, found, strict=True):
                assert torch.equal(x[:, :3], y[:, :3])
                assert ((x[:, 3] == 0) == (y[:, 3] == 0)).all()
                assert 0 < (x[:, 3] - y[:, 3]).abs().max() <= 2**-17 + 2**-24


def test_the_demo_data_is_kept_exactly(tmp_path: Path) -> None:
    data = dataset(make_demo(tmp_path / "demo", 6, 32), "auto", 32)
    with open_loader(data, 2) as streaming, open_loader(kept(data, "auto"), 2) as resident:
        assert "resident in host memory (auto: fits into half of the" in resident.describe()
        assert same(take(streaming, 8), take(resident, 8))


@needs_dali
def test_real_images_are_kept_exactly(real_images: Path) -> None:
    """The images are 16-bit PNGs of a sensor and EXR files. DALI resizes them."""
    data = dataset(real_images / "rooms", "dali", 128)
    with open_loader(data, 3) as streaming, open_loader(kept(data, "host"), 3) as resident:
        assert same(take(streaming, 4), take(resident, 4))


@pytest.mark.parametrize("cache", PLACES)
def test_ranks_share_the_batches_of_one_process(make_dataset: MakeDataset, cache: str) -> None:
    data = kept(dataset(make_dataset(synthetic=20, real=9), size=32), cache)
    with open_loader(data, 8) as alone:
        expected = take(alone, 5)
    parts = []
    for rank in range(4):
        with open_loader(data, 8, rank=rank, world_size=4, local_world_size=4) as loader:
            parts.append(take(loader, 5))
    joined = [tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    assert same(joined, expected)


def test_a_restored_loader_continues_with_the_same_bits_in_either_mode(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    with open_loader(data, 4) as streaming:
        take(streaming, 3)
        state = streaming.state_dict()
        expected = take(streaming, 4)
    with open_loader(kept(data, "host"), 4) as resident:
        take(resident, 1)
        resident.load_state_dict(state)
        assert same(take(resident, 4), expected)
        assert resident.state_dict() == {"step": 7}


def test_batches_belong_to_the_caller(make_dataset: MakeDataset) -> None:
    """Batches stay valid while later ones reuse the memory of released ones, and after the loader is closed."""
    with open_loader(kept(dataset(make_dataset()), "host"), 4) as loader:
        batches = take(loader, 12)
        at_once = [tuple(image.clone() for image in pair) for pair in batches]
        take(loader, 12)
        batches[0][0].fill_(7)
        assert not (next(loader)[0] == 7).any()
    assert same(batches[1:], at_once[1:])
    assert len({image.data_ptr() for pair in batches for image in pair}) == 24
    with pytest.raises(ValueError, match="closed"):
        next(loader)


# One pass


def random_images(height: int, width: int, coded: bool, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    color = torch.from_numpy(rng.integers(0, 256, (5, height, width, 3), dtype=np.uint8))
    codes = torch.from_numpy(rng.integers(0, 65536, (5, height, width), dtype=np.uint16))
    levels = torch.from_numpy(rng.uniform(NEAREST, 1, 65536).astype(np.float32))
    levels[::3], levels[1::3] = -1, 0
    codes[:, ::3], codes[:, 1::3, : width // 2] = 3, 4  # runs of background and of missing depth
    return Images(color, codes, levels) if coded else Images(color, levels[codes.long()], None)


SIZES = [(1, 1), (7, 7), (16, 16), (33, 33), (64, 64), (16, 40), (33, 7), (1, 9), (64, 48)]


def every_draw(height: int, width: int) -> torch.Tensor:
    """Return draws of 5 images: (N, 4)."""
    shifts = [(0, 0), (1, 0), (0, 3), (2, 5), (height, 0), (0, width), (height - 1, width - 1)]
    rows = [
        (i % 5, flip, min(top, height), min(left, width)) for flip in (0, 1) for i, (top, left) in enumerate(shifts)
    ]
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_plain_batch_is_the_definition_of_a_pixel(height: int, width: int, coded: bool) -> None:
    images, draws = random_images(height, width, coded), every_draw(height, width)
    batch = pack_plain(images, draws)
    for (index, flip, top, left), found in zip(draws.tolist(), batch, strict=True):
        depth = images.depth[index] if images.levels is None else images.levels[images.depth[index].long()]
        expected = np.empty((height, width, 4), np.float32)
        pack(images.color[index].numpy(), depth.numpy(), Draw(index, bool(flip), top, left), expected)
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_native_batch_is_the_plain_one(height: int, width: int, coded: bool) -> None:
    images, draws = random_images(height, width, coded), every_draw(height, width)
    levels = None if images.levels is None else images.levels.numpy()
    memory = _batch.BatchMemory()
    for _ in range(2):  # the second time with reused memory
        batch = memory.empty(len(draws), height, width)
        batch.fill(np.nan)
        _batch.pack(images.color.numpy(), images.depth.numpy(), levels, draws.numpy(), batch)
        assert torch.equal(torch.from_numpy(batch), pack_plain(images, draws))
        del batch


def test_what_lies_outside_is_refused() -> None:
    images, batch = random_images(8, 8, False), np.empty((1, 8, 8, 4), np.float32)
    color, depth, first = images.color.numpy(), images.depth.numpy(), np.zeros((1, 4), np.int32)
    for bad in ([5, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 9, 0], [0, 0, 0, -1]):
        with pytest.raises(IndexError):
            _batch.pack(color, depth, None, np.array([bad], np.int32), batch)
    for wrong in (depth[:4], depth[:, :7], depth.astype(np.float64), depth.view(np.uint32)):
        with pytest.raises(ValueError, match="expected depth"):
            _batch.pack(color, wrong, None, first, batch)
    shifted = np.empty(4 * 64 + 1, np.float32)[1:].reshape(1, 8, 8, 4)
    for room in (batch[:, :7], np.empty((2, 8, 8, 4), np.float32), np.empty((1, 8, 8, 3), np.float32), shifted):
        with pytest.raises((ValueError, TypeError)):
            _batch.pack(color, depth, None, first, room)


INTERPRETED = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_resident import every_draw, random_images
from vologan_fast.data.loaders import resident_triton
from vologan_fast.data.loaders.resident import pack_plain

for size in ((1, 1), (7, 7), (24, 24), (33, 33), (16, 40), (33, 7)):
    for coded in (True, False):
        images, draws = random_images(*size, coded), every_draw(*size)
        for dtype in (torch.float32, torch.float16):
            batch = torch.full((len(draws), *size, 4), float("nan"), dtype=dtype)
            resident_triton.pack(images.color, images.depth, images.levels, draws, batch)
            assert torch.equal(batch, pack_plain(images, draws).to(dtype)), (size, coded, dtype)
"""


def test_the_kernel_s_batch_is_the_plain_one_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED, Path(__file__).parent]
    subprocess.run(command, env=environment, check=True, timeout=300)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["host", "device", "disk"])
def test_batches_on_a_gpu_are_those_that_are_decoded_from_files(make_dataset: MakeDataset, cache: str) -> None:
    data = dataset(make_dataset())
    with open_loader(data, 4, device="cuda") as streaming, open_loader(kept(data, cache), 4, device="cuda") as resident:
        assert same(take(streaming, 5), take(resident, 5))


# The kept form of depth


def test_every_code_means_what_the_file_s_value_means() -> None:
    rule = DepthRule.of(DepthSpec("mm", None, 0.5, 4.5, (0.0, 3.0), 9.0))
    values = np.arange(65536, dtype=np.uint16)
    for kind, depth in (("half", values.view(np.float16)), ("integer", values)):
        depth = depth.astype(np.float32)
        levels = depth_levels(kind, rule)
        assert levels is not None
        assert np.array_equal(levels[encode_depth(depth, kind, rule)], normalize_depth(depth, rule))


def test_what_is_kept_of_which_files() -> None:
    assert kept_as({"float16"}, False) == kept_as({"float16"}, True) == "half"
    assert kept_as({"uint8", "uint16"}, False) == "integer"
    assert kept_as({"float16", "float32"}, False) == kept_as({"uint32"}, False) == "float32"
    assert kept_as({"float32"}, True) == kept_as({"float16", "uint16"}, True) == "compact"


@pytest.mark.parametrize("cache", ["none", "auto"])
def test_what_rounds_is_not_left_to_chance(make_dataset: MakeDataset, cache: str) -> None:
    with pytest.raises(ConfigError, match=f"cache_depth is compact and data.cache {cache}; expected exact"):
        open_loader(kept(dataset(make_dataset()), cache, "compact"), 4)


# Broken files


@pytest.mark.parametrize("cache", PLACES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("suffix", "damage", "said"),
    [
        (".jpg", corrupt_color, "the colour image cannot be decoded"),
        (".jpg", delete, "no such file"),
        (".npy", truncate, "expected .*, found"),
        (".npy", delete, "No such file|no such file"),
        (".npy", erase_depth, "no valid depth"),
    ],
)
def test_a_broken_file_is_named_before_training_begins(
    make_dataset: MakeDataset, backend: str, cache: str, suffix: str, damage: Any, said: str
) -> None:
    data = dataset(make_dataset(synthetic=3, real=3), backend)
    broken = data.train["real"][1].color.with_suffix(suffix)
    damage(broken)
    with pytest.raises(DataError, match=rf"{broken}.*({said})|({said}).*{broken}") as error:
        open_loader(kept(data, cache), 1)
    assert "\n" not in str(error.value)
    assert kept_files() == []


# The choice of the place

GB = 10**9


@pytest.mark.parametrize(
    ("wanted", "needed", "host", "device", "processes", "place"),
    [
        ("auto", 5 * GB, 40 * GB, 24 * GB, 1, "device"),
        ("auto", 7 * GB, 40 * GB, 24 * GB, 1, "host"),
        ("auto", 7 * GB, 40 * GB, None, 1, "host"),
        ("auto", 21 * GB, 40 * GB, 24 * GB, 1, "none"),
        ("auto", 7 * GB, 40 * GB, None, 4, "none"),
        ("host", 35 * GB, 40 * GB, None, 1, "host"),
        ("device", 20 * GB, 0, 24 * GB, 8, "device"),
    ],
)
def test_images_are_kept_where_they_fit(
    wanted: str, needed: int, host: int, device: int | None, processes: int, place: str
) -> None:
    found, why = choose_place(wanted, needed, host, device, processes)
    assert found == place
    assert ("auto:" in why) == (wanted == "auto") and "\n" not in why


@pytest.mark.parametrize(
    ("wanted", "device", "said"),
    [("host", None, "5 GB of images do not fit"), ("device", 4 * GB, "4 GB of free GPU"), ("device", None, "a GPU")],
)
def test_no_room_where_it_is_asked_for(wanted: str, device: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_place(wanted, 5 * GB, 4 * GB, device)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal:       9 kB\nMemAvailable:   8000 kB\n")
    assert free_host_memory(tmp_path) == 8000 * 1024
    write("proc/self/cgroup", "0::/outer/inner\n")
    for folder, limit in (("", "max"), ("/outer", "5000"), ("/outer/inner", "max")):
        write(f"sys/fs/cgroup{folder}/memory.max", f"{limit}\n")
        write(f"sys/fs/cgroup{folder}/memory.current", "3000\n")
        write(f"sys/fs/cgroup{folder}/memory.stat", "anon 1\ninactive_file 100\n")
    assert free_host_memory(tmp_path) == 2100
    write("proc/self/cgroup", "5:memory:/job\n0::/outer\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "700")
    write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "800")
    assert free_host_memory(tmp_path) == 0
    assert free_host_memory() > 0


def test_where_auto_finds_no_room_images_are_streamed(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vologan_fast.data.loaders import resident

    monkeypatch.setattr(resident, "free_host_memory", lambda: 100_000)
    data = dataset(make_dataset())
    with open_loader(data, 4) as streaming, open_loader(kept(data, "auto"), 4) as loader:
        assert "native loader" in loader.describe() and "do not fit into half" in loader.describe()
        assert same(take(loader, 2), take(streaming, 2))
    with pytest.raises(ConfigError, match="do not fit"):
        open_loader(kept(data, "host"), 4)


# The packed file


def opened(data: Dataset) -> RGBDLoader:
    return open_loader(kept(data, "disk"), 2)


def test_a_packed_file_is_used_again_and_only_for_the_same_data(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    with opened(data) as loader:
        assert "made now" in loader.describe()
        expected = take(loader, 2)
    (name,) = kept_files()
    with opened(data) as loader:
        assert "made before" in loader.describe() and name in loader.describe()
        assert same(take(loader, 2), expected)

    for settings in ({"size": 32}, {"real": dataclasses.replace(data.config.real, near=-0.5)}):
        other = dataclasses.replace(data, config=dataclasses.replace(data.config, **settings))
        with opened(other) as loader:
            assert "made now" in loader.describe()
    touched = data.train["real"][0].depth
    np.save(touched, np.load(touched) * 0.5)
    os.utime(touched, ns=(1, 1))
    with opened(data) as changed, open_loader(data, 2) as streaming:
        assert "made now" in changed.describe()
        assert same(take(changed, 4), take(streaming, 4))
    assert len(kept_files()) == 4


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(b"")])
def test_a_packed_file_that_was_cut_off_is_made_anew(make_dataset: MakeDataset, damage: Any) -> None:
    data = dataset(make_dataset())
    opened(data).close()
    damage(cache_folder("images") / kept_files()[0])
    with opened(data) as loader, open_loader(data, 2) as streaming:
        assert "made now" in loader.describe()
        assert same(take(loader, 3), take(streaming, 3))


MAKE = """
import json, os, sys, time
from pathlib import Path
from vologan_fast.config import DataConfig
from vologan_fast.data import load_dataset, open_loader
from vologan_fast.data.loaders import resident
size, slow = json.loads(sys.argv[2])
decode = resident.encode_depth
def slowly(*arguments):
    os.write(1, b"decoding\\n")  # whole, whichever thread
    time.sleep(slow)
    return decode(*arguments)
resident.encode_depth = slowly
config = DataConfig(size=size, backend="torch", cache="disk", threads=1)
try:
    print(open_loader(load_dataset(sys.argv[1], config, 5), 2).describe(), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(1)
"""


def maker(root: Path, slow: float = 0.0, size: int = 64, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, root, json.dumps([size, slow])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_a_maker_that_is_killed_leaves_nothing_that_the_next_one_trips_over(make_dataset: MakeDataset) -> None:
    root = make_dataset()
    killed = maker(root, slow=0.2)
    assert killed.stdout is not None
    for _ in range(4):
        assert killed.stdout.readline() == "decoding\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [name.endswith(".partial") for name in kept_files()] == [True]
    data = load_dataset(root, DataConfig(size=64, backend="torch", threads=1), 5)
    with opened(data) as loader, open_loader(data, 2) as streaming:
        assert "made now" in loader.describe()
        assert same(take(loader, 4), take(streaming, 4))
    assert [name.endswith(".images") for name in kept_files()] == [True]


def test_two_that_want_the_same_file_make_it_once(make_dataset: MakeDataset) -> None:
    root = make_dataset()
    both = [maker(root, slow=0.05) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("decoding") for text in said)[1] == 9  # 6 + 3 images for training
    assert sum(text.count("decoding") for text in said) == 9
    assert len(kept_files()) == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing(make_dataset: MakeDataset) -> None:
    limit = 50 * 1024  # the largest size of a file in bytes, which acts like a full disk
    full = maker(make_dataset(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    said, _ = full.communicate(timeout=300)
    assert full.returncode == 1
    last = said.splitlines()[-1]
    assert (
        last.startswith("DataError ") and "cannot be written (File too large)" in last and "--data.cache none" in last
    )
    assert kept_files() == []


def test_what_will_not_fit_on_the_disk_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with pytest.raises(DataError, match="B are free"):
        make_packed(path, {}, {"a": ArraySpec((1 << 50, 1), "uint8")}, lambda write: pytest.fail("begun"))
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    values = {"a": np.arange(15, dtype=np.uint8).reshape(5, 3), "b": np.arange(10, dtype=np.float32).reshape(5, 2)}
    specs = {name: ArraySpec(array.shape, str(array.dtype)) for name, array in values.items()}

    def fill(write: Any) -> None:
        for i in (3, 0, 1, 2, 4):
            for name, array in values.items():
                write(name, i, array[i])

    make_packed(tmp_path / "file", {"note": "é"}, specs, fill)
    file = open_packed(tmp_path / "file")
    assert file is not None and file.header == {"note": "é"}
    for name, array in values.items():
        found = np.empty_like(array)
        for i in range(len(array)):
            file.read(name, i, found[i])
        assert np.array_equal(found, array)
    assert open_packed(tmp_path / "absent") is None


def test_a_reader_while_the_file_is_made_waits(tmp_path: Path) -> None:
    """Two threads of one process make the same file. The second one finds the file of the first one."""
    path, begun, calls = tmp_path / "file", threading.Event(), []

    def fill(write: Any) -> None:
        calls.append(1)
        begun.set()
        time.sleep(0.1)
        write("a", 0, np.zeros(4, np.uint8))

    specs = {"a": ArraySpec((1, 4), "uint8")}
    first = threading.Thread(target=make_packed, args=(path, {}, specs, fill))
    first.start()
    begun.wait()
    make_packed(path, {}, specs, fill)
    first.join()
    assert calls == [1] and open_packed(path) is not None


def test_held_out_images_are_not_kept(make_dataset: MakeDataset) -> None:
    data = kept(dataset(make_dataset()), "host")
    (batch,) = loader_module.held_out_batches(data, "real", 8)
    assert len(batch) == len(data.held_out["real"])
