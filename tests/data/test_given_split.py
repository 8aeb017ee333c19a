"""Images for tests (testA, testB): inspected, packed and fingerprinted like the others; and files that are skipped."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import picture, surface
from PIL import Image
from rich.console import Console

from vologan_fast.config import DOMAINS, DataConfig
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.inspection import inspect_dataset
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pack import pack
from vologan_fast.data.records import read
from vologan_fast.report.inspection import print_report
from vologan_fast.translation.inputs import find_inputs

RGB = DataConfig(size=32, channels="rgb")
COUNTS = {"trainA": 5, "trainB": 4, "testA": 2, "testB": 3}


def write(folder: Path, count: int, seed: int, suffix: str = ".jpg", depth: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(seed + i, 32, 32)).save(folder / f"{i:03}{suffix}")
        if depth:
            np.save(folder / f"{i:03}.depth.npy", surface(seed + i, 32, 32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate(COUNTS.items()):
        write(tmp_path / "set" / name, count, 100 * seed)
    return tmp_path / "set"


@pytest.fixture
def rgbd(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate(COUNTS.items()):
        write(tmp_path / "rgbd" / name, count, 100 * seed, depth=True)
    return tmp_path / "rgbd"


def report(root: Path, config: DataConfig = RGB) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(*inspect_dataset(root, config), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_inspect_counts_and_reads_images_for_tests(root: Path) -> None:
    text = report(root)
    assert "7 (5 training and 2 held-out images), of which 7 were read" in text
    assert "7 (4 training and 3 held-out images), of which 7 were read" in text
    assert "nothing looks wrong" in text
    file = root / "testB/001.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    domains, _ = inspect_dataset(root, RGB)
    assert domains[0].broken == () and domains[1].broken[0].startswith(f"{file}: ")


def test_inspect_counts_what_training_draws(root: Path) -> None:
    for name in ("testA", "testB"):
        shutil.rmtree(root / name)
    write(root / "trainA", 10, 0)
    data = load_dataset(root, RGB, 0)
    for domain in DOMAINS:
        parts = f"{len(data.train[domain])} training and {len(data.held_out[domain])} held-out images"
        assert parts in report(root)


def test_inspect_tells_a_copy_of_a_training_image_from_other_images(root: Path) -> None:
    shutil.copy(root / "trainB/002.jpg", root / "testB/000.jpg")
    (sentence,) = inspect_dataset(root, RGB)[1]
    assert sentence.startswith("1 colour files of images for tests have the bytes of a training image, such as ")
    assert f"{root / 'testB/000.jpg'} those of {root / 'trainB/002.jpg'}" in sentence
    shutil.copy(root / "testB/001.jpg", root / "testB/000.jpg")
    (sentence,) = inspect_dataset(root, RGB)[1]
    assert sentence.startswith("1 colour files have the bytes of another one")


def test_images_for_tests_need_the_files_of_the_channels(rgbd: Path) -> None:
    load_dataset(rgbd, DataConfig(size=32), 0)
    for file in (rgbd / "testB").glob("*.npy"):
        file.unlink()
    words = rf"{rgbd}/testB/000.jpg: no depth image for this colour image \(and 2 more\)"
    with pytest.raises(DataError, match=words) as error:
        load_dataset(rgbd, DataConfig(size=32), 0)
    domains, _ = inspect_dataset(rgbd, DataConfig(size=32))
    assert [domain.refusal for domain in domains] == ["", str(error.value)]
    assert len(domains[1].colors) == 7 and len(domains[1].depths) == 4
    load_dataset(rgbd, RGB, 0)


def test_a_link_to_nowhere_is_found_at_the_start(root: Path) -> None:
    (root / "testA/001.jpg").unlink()
    (root / "testA/001.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError, match=f"{root}/testA/001.jpg: no such file"):
        load_dataset(root, RGB, 0)
    assert inspect_dataset(root, RGB)[0][0].broken == (f"{root}/testA/001.jpg: no such file",)


@pytest.mark.parametrize("given", [("A", "B"), ("B",), ()])
def test_shards_keep_the_given_split(rgbd: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    for letter in {"A", "B"} - set(given):
        shutil.rmtree(rgbd / f"test{letter}")
    said = pack(rgbd, tmp_path / "packed", 2)
    pack(tmp_path / "packed", tmp_path / "again", 3)  # shards of shards
    count = sum(COUNTS[f"test{letter}"] for letter in given)
    assert (f"; {count} of the images are held out" in said) == bool(given)
    whole = load_dataset(rgbd, DataConfig(size=32), 0)
    for shards in (tmp_path / "packed", tmp_path / "again"):
        data = load_dataset(shards, DataConfig(size=32), 0)
        assert data.given == whole.given == {DOMAINS["AB".index(letter)] for letter in given}
        for domain in data.given:
            found, expected = ([read(r.color) + read(r.depth) for r in s.held_out[domain]] for s in (data, whole))
            assert found == expected  # also in the same order
            found, expected = ({read(r.color) + read(r.depth) for r in s.train[domain]} for s in (data, whole))
            assert found == expected
        for domain in DOMAINS:
            assert len(data.train[domain]) == len(whole.train[domain])
            names = [image.color for image in find_inputs(str(shards), domain)]
            assert len(names) == len(set(names)) == len(find_inputs(str(rgbd), domain))
    assert ('"format": 2' in (tmp_path / "packed/shards.json").read_text()) == bool(given)
    domains, between = inspect_dataset(tmp_path / "packed", DataConfig(size=32))
    assert [len(domain.records) for domain in domains] == [len(find_inputs(str(rgbd), domain)) for domain in DOMAINS]
    assert between == [] and not any(domain.broken or domain.refusal for domain in domains)


def test_a_packed_split_is_read_through_the_loaders(rgbd: Path, tmp_path: Path) -> None:
    import torch

    from vologan_fast.data import held_out_batches

    pack(rgbd, tmp_path / "packed", 2)
    one, two = (load_dataset(path, DataConfig(size=32), 0) for path in (rgbd, tmp_path / "packed"))
    for a, b in zip(held_out_batches(one, "real", 2), held_out_batches(two, "real", 2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
def test_the_fingerprint_covers_the_given_images(root: Path, tmp_path: Path, packed: bool) -> None:
    def load(name: str):
        if packed:
            pack(root, tmp_path / name)
        return load_dataset(tmp_path / name if packed else root, RGB, 0)

    before = load("before")
    write(root / "testB", 4, 300)
    after = load("after")
    assert [record.color.name for record in after.held_out["real"]] != [r.color.name for r in before.held_out["real"]]
    assert before.has_fingerprint(before.fingerprint()) and after.has_fingerprint(after.fingerprint())
    assert not after.has_fingerprint(before.fingerprint())
    # Older versions recorded what a data set without given images still has.
    former = before._checksum(())
    assert former != before.fingerprint() and after.has_fingerprint(former)


def test_without_given_images_the_fingerprint_is_as_before(tmp_path: Path) -> None:
    for seed, name in enumerate(("trainA", "trainB")):
        write(tmp_path / name, 3, 10 * seed)
    data = load_dataset(tmp_path, RGB, 0)
    lines = [f"{d} train{'AB'[DOMAINS.index(d)]}/{r.color.name}\n" for d in sorted(DOMAINS) for r in data.train[d]]
    assert data.fingerprint() == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_domain_of_other_suffixes_is_said_to_be_skipped(root: Path) -> None:
    shutil.rmtree(root / "trainB")
    write(root / "trainB", 3, 0, ".webp")
    write(root / "trainB", 1, 0, ".bmp")
    (root / "trainB/.hidden.gif").touch()
    (root / "trainB/Thumbs.db").touch()
    words = (
        f"{root}/trainB: the real domain is empty; both domains need images; {root}/trainB: 4 files are skipped, with "
        "other suffixes: .webp (3), .bmp (1); expected colour in .jpg, .jpeg, .png, or depth as NAME.depth with .exr"
    )
    with pytest.raises(DataError) as error:
        find_records(root)
    assert str(error.value).startswith(words)
    domain = inspect_dataset(root, RGB)[0][1]
    assert domain.refusal.startswith(f"{root}/trainB: the real domain is empty")
    assert "4 files are skipped" in domain.findings[0]
    shutil.rmtree(root / "trainA")
    write(root / "trainA", 2, 0, ".gif")
    with pytest.raises(DataError, match=r"no images found; \S+/trainA: 2 files .* \.gif \(2\); .*trainB: 4 files"):
        find_records(root)


@pytest.mark.parametrize("layout", ["letters", "folders", "beside"])
def test_inspect_names_some_skipped_files(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "set"
    for domain, letter in zip(DOMAINS, "AB", strict=True):
        folder = root / {"letters": f"train{letter}", "folders": f"{domain}/color", "beside": domain}[layout]
        write(folder, 4, 10 * ord(letter))
    assert report(root).endswith("nothing looks wrong\n")
    write(folder, 2, 5, ".webp")
    (folder / "notes").touch()
    text = report(root)
    assert f"looks wrong: {folder}: 3 files are skipped, with other suffixes: .webp (2), no suffix (1); " in text
    load_dataset(root, RGB, 0)  # training goes on


def test_skipped_images_for_tests_are_not_replaced_by_drawn_ones(root: Path) -> None:
    shutil.rmtree(root / "testA")
    write(root / "testA", 2, 0, ".webp")
    with pytest.raises(DataError, match=rf"{root}/testA: 2 files are skipped, with other suffixes: .webp \(2\); "):
        load_dataset(root, RGB, 0)
    assert "2 files are skipped" in inspect_dataset(root, RGB)[0][0].refusal


def test_an_empty_domain_names_its_folder(root: Path, tmp_path: Path) -> None:
    for file in (root / "trainB").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=rf"^{root}/trainB: the real domain is empty"):
        find_records(root)
    (root / "trainB").rmdir()
    with pytest.raises(DataError, match=rf"^{root}/trainB: no such folder: the real domain is empty"):
        find_records(root)
    write(tmp_path / "other/real", 2, 0)
    with pytest.raises(DataError, match=rf"^{tmp_path}/other/synthetic: no such folder: the synthetic domain is empty"):
        find_records(tmp_path / "other")
    (tmp_path / "other/training_paths.json").write_text('{"synthetic_data": [], "real_data": []}')
    with pytest.raises(DataError, match=r"training_paths.json: synthetic_data: the synthetic domain is empty"):
        find_records(tmp_path / "other")


def test_a_folder_above_or_below_the_data_set(root: Path, tmp_path: Path) -> None:
    for wrong in (root / "trainA", root / "testA", tmp_path, root / "trainA/000.jpg"):
        with pytest.raises(DataError, match=rf"; did you mean {root}\?$"):
            find_records(wrong)
    for domain in DOMAINS:
        write(tmp_path / "b" / domain / "color", 2, 0)
    with pytest.raises(DataError, match=rf"; did you mean {tmp_path}/b\?$"):
        find_records(tmp_path / "b/real/color")
    with pytest.raises(DataError, match=rf"; did you mean {tmp_path}/b or {root}\?$"):
        find_records(tmp_path)
    (tmp_path / "c/d/e").mkdir(parents=True)
    with pytest.raises(DataError, match="no images found") as error:
        find_records(tmp_path / "c/d/e")
    assert "did you mean" not in str(error.value)


def test_one_held_out_image_is_too_few_to_evaluate(root: Path) -> None:
    assert load_dataset(root, RGB, 0).warnings() == []
    for i in (1, 2):
        (root / f"testB/00{i}.jpg").unlink()
    words = "the real domain has 1 held-out image; evaluate needs at least 2: add images for tests"
    assert load_dataset(root, RGB, 0).warnings() == [words]
    assert words in report(root)
    shutil.rmtree(root / "testB")
    (sentence,) = load_dataset(root, RGB, 0).warnings()
    assert "choose a larger --data.held-out" in sentence and sentence in report(root)
