"""Data sets in shards: the same images as in a folder with either backend, and no harm from a damaged set."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import BACKENDS, MakeDataset, needs_dali
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vologan_fast.config import DataConfig, DepthSpec
from vologan_fast.data import DataError, Dataset, RGBDLoader, held_out_batches, load_dataset, open_loader
from vologan_fast.data.inspection import inspect_dataset
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import pack as pack_image
from vologan_fast.data.pixels import read_cropped
from vologan_fast.data.shards.index import parse_index, parse_manifest

Pair = tuple[torch.Tensor, torch.Tensor]
NORMALIZED = DepthSpec("normalized", near=-1.0, far=1.0, invalid=(), background=-1.0)


@pytest.fixture
def packed(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Make a data set of 25 synthetic and 11 real images in shards of at most 4."""
    pack(make_dataset(synthetic=25, real=11), tmp_path / "packed", 4)
    return tmp_path / "packed"


def dataset(root: Path, backend: str = "torch", **changes: Any) -> Dataset:
    return load_dataset(root, DataConfig(size=64, backend=backend, **changes), seed=5)  # type: ignore[arg-type]


def take(loader: RGBDLoader, steps: int) -> list[Pair]:
    return [next(loader) for _ in range(steps)]


def same(a: list[Pair], b: list[Pair]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_records_are_a_sequence(packed: Path) -> None:
    records = find_records(packed)["synthetic"]
    listed = list(records)
    assert len(records) == len(listed) == 25
    assert records[3] == listed[3] and records[-1] == listed[-1]
    assert list(records[4:9]) == listed[4:9]
    assert list(records[np.array([7, 2])]) == [listed[7], listed[2]]  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        records[25]


def test_training_and_held_out_images_are_all_images(packed: Path) -> None:
    data = dataset(packed)
    for domain, records in find_records(packed).items():
        names = [str(record.color) for part in (data.train, data.held_out) for record in part[domain]]
        assert sorted(names) == sorted(str(record.color) for record in records)
    assert len(data.held_out["synthetic"]) == 5
    assert data.describe()[0].startswith("synthetic: 20 training and 5 held-out images; depth: float32 NPY")


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_are_what_the_sampler_says(packed: Path, backend: str) -> None:
    data = dataset(packed, backend)
    with open_loader(data, 4, seed=2) as loader:
        if backend == "dali":
            assert loader.describe().startswith("DALI")
        for step, pair in enumerate(take(loader, 12)):
            for domain, images in zip(("synthetic", "real"), pair, strict=True):
                for image, draw in zip(images, loader.sampler.draw(domain, step), strict=True):
                    expected = np.empty((64, 64, 4), np.float32)
                    pack_image(*read_cropped(data.train[domain][draw.index], data.spec(domain), 64), draw, expected)
                    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taken", [1, 5, 7])
def test_a_restored_loader_continues_with_the_same_bits(packed: Path, backend: str, taken: int) -> None:
    data = dataset(packed, backend)
    with open_loader(data, 4) as loader:
        take(loader, taken)
        state = loader.state_dict()
        expected = take(loader, 6)
    with open_loader(dataset(packed, backend), 4) as again:
        again.load_state_dict(state)
        assert same(take(again, 6), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_share_the_batches_of_one_process(packed: Path, backend: str) -> None:
    data = dataset(packed, backend)
    with open_loader(data, 8) as alone:
        expected = take(alone, 4)
    parts = []
    for rank in range(4):
        with open_loader(data, 8, rank=rank, world_size=4) as loader:
            parts.append(take(loader, 4))
    together = [tuple(map(torch.cat, zip(*pairs, strict=True))) for pairs in zip(*parts, strict=True)]
    assert same(together, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["host", "disk"])
def test_kept_images_give_the_same_batches(
    packed: Path, backend: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with open_loader(dataset(packed, backend), 4) as loader:
        expected = take(loader, 8)
    with open_loader(dataset(packed, backend, cache=cache), 4) as loader:
        assert "resident" in loader.describe()
        assert same(take(loader, 8), expected)
    if cache == "disk":  # found again after the shards have moved, but not for other shards
        moved = shutil.move(packed, tmp_path / "moved")
        with open_loader(dataset(moved, backend, cache=cache), 4) as loader:
            assert "made before" in loader.describe() and same(take(loader, 8), expected)
        pack(tmp_path / "set", packed, 3)
        with open_loader(dataset(packed, backend, cache=cache), 4) as loader:
            assert "made now" in loader.describe()


def test_held_out_images_are_read(packed: Path) -> None:
    data = dataset(packed)
    found = torch.cat(list(held_out_batches(data, "real", 2)))
    assert len(found) == len(data.held_out["real"]) == 2
    color, depth = read_cropped(data.held_out["real"][1], data.spec("real"), 64)
    expected = np.empty((64, 64, 4), np.float32)
    pack_image(color, depth, None, expected)
    assert torch.equal(found[1].permute(1, 2, 0), torch.from_numpy(expected))


def test_a_set_is_known_by_its_bytes(packed: Path, tmp_path: Path) -> None:
    before = dataset(packed).fingerprint()
    shutil.copytree(packed, tmp_path / "copy")
    assert dataset(tmp_path / "copy").fingerprint() == before
    pack(tmp_path / "set", tmp_path / "other", 4, seed=1)
    assert dataset(tmp_path / "other").fingerprint() != before


@needs_dali
def test_one_file_of_a_kind_that_dali_does_not_read_is_known(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file is found even if it is outside the sample whose headers are read."""
    OpenEXR = pytest.importorskip("OpenEXR")
    root = make_dataset(synthetic=9)
    depth = np.load(root / "synthetic/004.npy")
    header = {"compression": OpenEXR.PIZ_COMPRESSION}
    OpenEXR.File(header, {"Z": depth}).write(str(root / "synthetic/piz.exr"))
    (root / "synthetic/piz.exr").rename(root / "synthetic/004.npy")
    pack(root, tmp_path / "packed", 4)
    monkeypatch.setattr("vologan_fast.data.depth_spec.SAMPLE", 1)
    assert "piz compression" in dataset(tmp_path / "packed").not_native
    with open_loader(dataset(tmp_path / "packed"), 2) as loader:
        take(loader, 4)


# Broken data sets


def overwrite(member: Any, data: bytes) -> None:
    with member.shard.path.open("r+b") as file:
        file.seek(member.offset)
        file.write(data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["color", "depth"])
def test_a_member_that_is_broken_is_named(packed: Path, backend: str, part: str) -> None:
    data = dataset(packed, backend)
    broken = getattr(data.train["real"][2], part)
    overwrite(broken, bytes(100))
    with (
        open_loader(data, 2) as loader,
        pytest.raises(DataError, match=f"^{re.escape(str(broken))}: damaged, or changed: expected "),
    ):
        take(loader, 12)
    assert str(broken) == f"{broken.shard.path}:{broken.name}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_that_is_cut_off_while_it_is_read_is_named(packed: Path, backend: str) -> None:
    data = dataset(packed, backend)
    shard = data.train["real"][0].color.shard  # type: ignore[union-attr]
    with open_loader(data, 2) as loader:
        next(loader)
        with shard.path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(DataError, match=rf"^{shard.path}: expected \d+ bytes or more, found 1000"):
            take(loader, 12)


def change(path: Path, edit: Callable[[Any], None]) -> None:
    manifest = json.loads(path.read_bytes())
    del manifest["crc32"]  # as the message says
    edit(manifest)
    path.write_text(json.dumps(manifest))


def first(manifest: Any) -> Any:
    return manifest["domains"]["synthetic"]["shards"][0]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(format=3), "format is 3; expected 1 or 2"),
        (lambda m: m.update(format=2), "held_out is None; expected an object"),
        (lambda m: m.pop("format"), "format is None; expected a whole number"),
        (lambda m: m["domains"].pop("real"), "real is None; expected an object"),
        (lambda m: m["domains"]["real"].update(shards=[]), "real: the domain is empty"),
        (lambda m: first(m).update(file="../outside.tar"), "expected the plain name of a .tar file"),
        (lambda m: first(m).update(file="/etc/passwd"), "expected the plain name of a .tar file"),
        (lambda m: first(m).update(file="absent.tar"), "absent.(tar|idx): no such file"),
        (lambda m: first(m).update(samples=True), "samples is True; expected a whole number"),
        (lambda m: first(m).update(bytes=2**70), "expected a positive number of 62 bits"),
        (lambda m: first(m).update(sha256="no"), "no SHA-256 checksum"),
        (lambda m: first(m).update(bytes=first(m)["bytes"] + 512), r"synthetic-000000.tar: expected \d+ bytes, found"),
        (lambda m: first(m).update(samples=9), "expected v1.2, 9"),
        (lambda m: m["domains"]["synthetic"]["shards"].append(first(m)), "synthetic-000000.tar is listed twice"),
    ],
)
def test_a_manifest_that_cannot_be_used(packed: Path, edit: Callable[[Any], None], said: str) -> None:
    change(packed / "shards.json", edit)
    with pytest.raises(DataError, match=said) as error:
        find_records(packed)
    assert str(error.value).startswith(str(packed)) and "\n" not in str(error.value)


def test_an_index_of_another_tar_is_refused(packed: Path) -> None:
    shutil.copy(packed / "synthetic-000001.idx", packed / "synthetic-000000.idx")
    with pytest.raises(DataError, match=r"synthetic-000000\.idx: this is not the index that shards\.json names"):
        find_records(packed)


def test_shards_that_are_linked_are_followed(packed: Path, tmp_path: Path) -> None:
    elsewhere = shutil.move(packed / "real-000000.tar", tmp_path / "elsewhere.tar")
    (packed / "real-000000.tar").symlink_to(elsewhere)
    assert len(find_records(packed)["real"]) == 11


# Damaged sets: a DataError, or a set whose parts all lie inside its files

ENTRY = {"file": "a.tar", "samples": 2, "bytes": 10240, "sha256": "0" * 64, "index_sha256": "0" * 64}
INDEX = b"v1.2 2\njpg 512 100 k.jpg depth.exr 1536 200 k.depth.exr\njpg 2560 100 l.jpg depth.exr 3584 200 l.depth.exr\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def entry_of(index: bytes) -> Any:
    domain = {"depth": [], "shards": [{**ENTRY, "index_sha256": hashlib.sha256(index).hexdigest()}]}
    other = {"depth": [], "shards": [{**ENTRY, "file": "b.tar"}]}
    manifest = {"format": 1, "domains": {"synthetic": domain, "real": other}}
    return parse_manifest(json.dumps(manifest).encode(), "shards.json")["synthetic"].shards[0]


def check_index(index: bytes) -> bool:
    entry = entry_of(index)
    try:
        found = parse_index(index, entry, "a.idx")
    except DataError as error:
        assert str(error).startswith("a.idx: ") and "\n" not in str(error)
        return False
    assert found.spans.shape == (2, 4) and found.suffixes.shape == (2, 2) and found.keys.shape == (2,)
    for offset, size in ((found.spans[:, 0], found.spans[:, 1]), (found.spans[:, 2], found.spans[:, 3])):
        assert (offset >= 512).all() and (size > 0).all() and (offset + size <= entry.bytes).all()
    return True


def test_the_index_that_is_mangled_below_is_sound() -> None:
    assert check_index(INDEX)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mangled_index_files(data: st.DataObject) -> None:
    index = bytearray(INDEX)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(index) - 1))
        how = data.draw(st.sampled_from(["byte", "cut", "insert", "word"]))
        if how == "byte":
            index[where] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del index[where : where + data.draw(st.integers(1, 20))]
        elif how == "insert":
            index[where:where] = data.draw(st.binary(max_size=12))
        else:
            words = bytes(index).split(b" ")
            i = data.draw(st.integers(0, len(words) - 1))
            words[i] = data.draw(st.integers(-(2**70), 2**70).map(lambda n: b"%d" % n) | st.binary(max_size=8))
            index = bytearray(b" ".join(words))
        index = index or bytearray(b" ")
    check_index(bytes(index))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"512", b"511"),
        (b"512", b"-12"),
        (b"512", b"5e2"),
        (b"512", b"9" * 30),
        (b" 200 l", b" 9999 l"),
        (b"k.jpg", b"../k.jpg"),
        (b"k.jpg", b"\x1b[31m.jpg"),
        (b"jpg", b"tiff"),
        (b"depth.exr", b"exr"),
        (b"v1.2", b"v1.1"),
        (b"l.depth.exr", b"k.depth.exr"),
    ],
)
def test_an_index_that_cannot_be_used(old: bytes, new: bytes) -> None:
    assert old in INDEX and not check_index(INDEX.replace(old, new))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mangled_manifests(data: st.DataObject) -> None:
    kind = {"format": "exr", "compression": "zip", "types": ["float16"], "not_native": "", "samples": 2}
    domains = {
        name: {"depth": [dict(kind)], "shards": [{**ENTRY, "file": f"{name}.tar"}]} for name in ("synthetic", "real")
    }
    manifest: Any = {"format": 1, "domains": domains}
    place = manifest
    while True:  # replace a value somewhere in the tree
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    check_manifest(json.dumps(manifest).encode())


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_manifests_that_are_none(data: bytes) -> None:
    check_manifest(data)


def check_manifest(data: bytes) -> None:
    try:
        found = parse_manifest(data, "shards.json")
    except DataError as error:
        assert str(error).startswith("shards.json") and "\n" not in str(error)
        return
    for domain in found.values():
        for entry in domain.shards:
            assert "/" not in entry.file and entry.file not in (".", "..") and entry.file.endswith(".tar")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whole_sets_with_a_mangled_file(packed: Path, data: st.DataObject) -> None:
    """Any file of the set may be truncated, or may have changed bytes."""
    path = data.draw(st.sampled_from(sorted(packed.iterdir())))
    good = path.read_bytes()
    bad = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    for _ in range(data.draw(st.integers(0, 3))):
        if bad:
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bad)
    try:
        for record in find_records(packed)["synthetic"][:3]:
            read_cropped(record, NORMALIZED, 64)
    except DataError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(good)


def test_shards_can_be_inspected(packed: Path) -> None:
    domains, _ = inspect_dataset(packed, DataConfig(size=64))
    assert [len(domain.records) for domain in domains] == [25, 11]
    assert not any(domain.broken or domain.refusal for domain in domains)
    first = domains[1].sample[0].record
    overwrite(first.depth, bytes(100))
    _, real = inspect_dataset(packed, DataConfig(size=64))[0]
    assert real.broken[0].startswith(f"{first.depth}: ")
