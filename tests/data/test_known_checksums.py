"""Files whose checksums are known, in a folder with checksums.json or in a shard: no reader accepts other bytes."""

import dataclasses
import io
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import test_flipped_data_files as kinds
from datasets import MakeDataset, needs_dali
from editors import EDITED
from PIL import Image

from vologan_fast.checksums import checksums, entry
from vologan_fast.config import CHANNELS, DataConfig, DepthSpec
from vologan_fast.data import DataError, load_dataset, open_loader
from vologan_fast.data.checksums import Known, make_checksums
from vologan_fast.data.convert.writer import File, Frame, write_frames
from vologan_fast.data.loaders import native
from vologan_fast.data.manifest import find_records, list_records, read_folder, skipped_files
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import read_cropped
from vologan_fast.data.records import KnownFile, Member, Record, Source, read
from vologan_fast.data.sampling import Draw
from vologan_fast.translation.inputs import find_inputs

SPEC = DepthSpec("m", near=0.0, far=1.0, invalid=())
PIXELS = 16


def tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(kinds.METRES).save(stream, "TIFF")
    return stream.getvalue()


DEPTH = {
    **{f"{name}.exr": kinds.exr(f"{name}_COMPRESSION") for name in ("NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24")},
    "a.npy": kinds.DEPTH["depth.npy"],
    "b.npz": kinds.DEPTH["depth.npz"],
    "c.pfm": kinds.DEPTH["depth.pfm"],
    "d.png": kinds.DEPTH["depth.png"],
    "e.tiff": tiff(),
}


def make_set(root: Path) -> Path:
    """A data set with a pair of each kind of depth, and both kinds of colour. checksums.json lists its files."""
    for domain in ("synthetic", "real"):
        for part in ("color", "depth"):
            (root / domain / part).mkdir(parents=True)
        for i, (name, content) in enumerate(DEPTH.items()):
            (root / domain / "depth" / name).write_bytes(content)
            kind = "jpg" if i % 2 else "png"
            color = root / domain / "color" / f"{Path(name).stem}.{kind}"
            color.write_bytes(kinds.COLOR[f"colour.{kind}"])
    make_checksums(root)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("known") / "set")


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    pack(folder, folder.with_name("shards"), 3)
    return folder.with_name("shards")


@pytest.fixture(params=["folder", "shards"])
def root(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def faults(source: Source, count: int) -> Iterator[str]:
    """Damage a file `count` times, and make it whole again: flipped bits, and ends that are cut off or cleared."""
    draw = random.Random(source.name)
    path, offset = (source, 0) if isinstance(source, Path) else (source.shard.local(), source.offset)
    size = source.stat().st_size if isinstance(source, Path) else source.size
    content = path.read_bytes()
    whole = content[offset : offset + size]
    for i in range(count):
        at = draw.randrange(size)
        if i % 4 < 3:
            damaged = bytearray(whole)
            damaged[at] ^= 1 << draw.randrange(8)
        elif isinstance(source, Path):
            damaged = bytearray(whole[:at])
        else:
            at = draw.randrange(len(whole.rstrip(b"\0")))  # a tail of zeros is the same when it is cleared
            damaged = bytearray(whole[:at] + bytes(size - at))
        path.write_bytes(content[:offset] + damaged + content[offset + size :])
        try:
            yield f"{source}: fault {i} at {at}"
        finally:
            path.write_bytes(content)


def by_python(record: Record) -> None:
    read_cropped(record, SPEC, (PIXELS, PIXELS))


def natively(record: Record) -> None:
    """As training does: native code gets the places of the files. What it refuses, Python reads."""
    images = native._Images(
        [record], SPEC, (PIXELS, PIXELS), native.torch.device("cpu"), CHANNELS["rgbd"], native.DEFAULT, None
    )
    images._load_together([(0, Draw(0, False, 0, 0))], native._batch.BatchMemory().empty(1, PIXELS, PIXELS, 4))


def natively_colour_alone(record: Record) -> None:
    images = native._Images(
        [record], SPEC, (PIXELS, PIXELS), native.torch.device("cpu"), CHANNELS["rgb"], native.DEFAULT, None
    )
    images.load_colors(0, np.empty((1, PIXELS, PIXELS, 3), np.uint8))


READERS: dict[Callable[[Record], None], tuple[str, ...]] = {
    by_python: ("color", "depth"),
    natively: ("color", "depth"),
    natively_colour_alone: ("color",),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_flip_and_no_truncation_is_accepted_in_silence(root: Path, reader: Callable[[Record], None]) -> None:
    """1,320 faults in all, in each kind of file."""
    done = 0
    for record in find_records(root)["real"]:
        reader(record)
        for part in READERS[reader]:
            source: Source = getattr(record, part)
            for fault in faults(source, 12):
                with pytest.raises(DataError) as error:
                    reader(record)
                    pytest.fail(f"accepted: {fault}")
                assert str(error.value).startswith(f"{source}: damaged, or changed: expected "), fault
                done += 1
    assert done == 12 * len(READERS[reader]) * len(DEPTH)


@pytest.mark.skipif(native._image_loader is None, reason="there is no native loader")
def test_native_code_itself_refuses_other_bytes(root: Path) -> None:
    """Not Python, which is asked only for what native code has refused."""
    loader = native._image_loader.ImageLoader((PIXELS, PIXELS), "", *native.DepthRule.of(SPEC))
    out = native._batch.BatchMemory().empty(1, PIXELS, PIXELS, 4)
    record = next(r for r in find_records(root)["real"] if read(r.depth) == DEPTH["ZIP.exr"])
    places = [[native.place(file)] for file in record.files]

    def missed() -> list[int]:
        return list(loader.load(*places, [(False, 0, 0)], out))

    assert missed() == []
    for source in record.files:
        for fault in faults(source, 20):
            assert missed() == [0], fault
    assert missed() == []


@pytest.fixture(params=["folder", "shards"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data set of kinds that both loaders read, with eight images a domain."""
    root = tmp_path / "trained"
    for domain in ("synthetic", "real"):
        for i in range(8):
            name = ("NO.exr", "a.npy", "c.pfm", "ZIP.exr")[i % 4]
            for part, suffix, content in (
                ("color", ".jpg", kinds.COLOR["colour.jpg"]),
                ("depth", Path(name).suffix, DEPTH[name]),
            ):
                path = root / domain / part / f"{i}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    make_checksums(root)
    if request.param == "folder":
        return root
    pack(root, tmp_path / "packed", 3)
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "torch"},
        pytest.param({"backend": "dali"}, marks=needs_dali),
        {"backend": "torch", "cache": "host"},
        {"backend": "torch", "cache": "disk"},
        pytest.param({"backend": "dali", "cache": "host"}, marks=needs_dali),
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_all_loaders_name_the_file(
    trained: Path, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = DataConfig(size=PIXELS, held_out=0.2, synthetic=SPEC, real=SPEC, **options)  # type: ignore[arg-type]
    data = load_dataset(trained, config, 0)
    for record in data.train["real"][:4]:
        for source in record.files:
            for fault in faults(source, 1):
                with pytest.raises(DataError) as error, open_loader(data, 2) as loader:
                    for _ in range(8):
                        next(loader)
                    pytest.fail(f"accepted: {fault}")
                assert str(error.value).startswith(f"{source}: damaged, or changed: ")
    assert not list((tmp_path / "cache").rglob("*.images"))  # nothing is kept of a damaged file
    with open_loader(data, 2) as loader:
        next(loader)


def test_a_damaged_image_is_replaced_as_any_bad_one(trained: Path) -> None:
    config = DataConfig(size=PIXELS, held_out=0.2, synthetic=SPEC, real=SPEC, on_error="skip")
    for fault in faults(find_records(trained)["real"][1].depth, 2):
        data = load_dataset(trained, config, 0)
        with open_loader(data, 2) as loader:
            for _ in range(8):
                next(loader)
        assert data.skipping is not None
        (bad,) = data.skipping.found()
        assert ": damaged, or changed: " in bad.reason, fault


def test_translate_compares_what_it_is_given(folder: Path) -> None:
    """A whole data set, the folder of a domain, the folders in it, and one file."""
    for data in (folder, folder / "real", folder / "real/color/NO.png"):
        record = next(i.record for i in find_inputs(str(data), "real") if i.record.color.name == "NO.png")
        for source in record.files:
            for fault in faults(source, 4):
                with pytest.raises(DataError, match=": damaged, or changed: "):
                    read(source)
                    pytest.fail(f"accepted: {fault}")


def test_pack_compares_what_it_reads(folder: Path, tmp_path: Path) -> None:
    source = find_records(folder)["synthetic"][3].depth
    for i, fault in enumerate(faults(source, 2)):
        with pytest.raises(DataError, match=f"^{source}: damaged, or changed: "):
            pack(folder, tmp_path / f"packed{i}", 3)
            pytest.fail(f"accepted: {fault}")


def test_a_list_of_images_is_compared_too(make_dataset: MakeDataset) -> None:
    """Else a flipped bit in it would exchange two images."""
    root = make_dataset(2, 2, 16, 16)
    make_checksums(root)
    assert all(isinstance(file, KnownFile) for record in find_records(root)["real"] for file in record.files)
    for fault in faults(root / "training_paths.json", 100):
        with pytest.raises(DataError, match=r"training_paths\.json: damaged, or changed: "):
            find_records(root)
            pytest.fail(f"accepted: {fault}")


@pytest.mark.parametrize("name", ["checksums.json", "shards.json"])
def test_no_damage_of_the_checksums_is_accepted(folder: Path, shards: Path, name: str) -> None:
    root = {"checksums.json": folder, "shards.json": shards}[name]
    for fault in faults(root / name, 150):
        with pytest.raises(DataError) as error:
            find_records(root)
            pytest.fail(f"accepted: {fault}")
        assert str(error.value).startswith(f"{root / name}: "), fault


@pytest.mark.parametrize("name", ["checksums.json", "shards.json"])
@pytest.mark.parametrize("edited", EDITED)
def test_ends_of_lines_of_an_editor_are_no_damage(folder: Path, shards: Path, name: str, edited: str) -> None:
    root = {"checksums.json": folder, "shards.json": shards}[name]
    whole, expected = (root / name).read_bytes(), find_records(root)
    (root / name).write_bytes(EDITED[edited](whole))
    try:
        found = find_records(root)
    finally:
        (root / name).write_bytes(whole)
    for domain, records in found.items():
        assert [str(record.files) for record in records] == [str(record.files) for record in expected[domain]]


# The file checksums.json


def test_readers_of_a_part_ask_the_folders_above(folder: Path) -> None:
    for record in (*read_folder(folder / "real"), *find_records(folder)["real"]):
        assert all(isinstance(file, KnownFile) and file.crc is not None for file in record.files)


def test_a_name_that_leaves_the_folder_is_never_asked_for(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    outside = tmp_path / "outside.png"
    outside.write_bytes(kinds.COLOR["colour.png"])
    files = {"../outside.png": entry(1, 1), str(outside): entry(1, 1)}
    (tmp_path / "set/checksums.json").write_bytes(checksums(None, files))
    known = Known(tmp_path / "set")
    for path in (outside, tmp_path / "set/../outside.png", tmp_path / "set/a.png"):
        assert not isinstance(known.file(path), KnownFile)


def test_what_is_no_checksum_is_refused(tmp_path: Path) -> None:
    """-1 would mean that nothing is known."""
    (tmp_path / "a.png").write_bytes(kinds.COLOR["colour.png"])
    (tmp_path / "checksums.json").write_bytes(checksums(None, {"a.png": {"bytes": 1, "crc32": "-0000001"}}))
    with pytest.raises(DataError, match=r"checksums\.json: expected checksums of 8 hexadecimal digits"):
        Known(tmp_path).file(tmp_path / "a.png")


def test_the_checksums_of_a_domain_are_no_image_of_another_suffix(tmp_path: Path) -> None:
    """They lie beside the images, where `inspect` counts what it skips."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").write_bytes(kinds.COLOR["colour.png"])
    make_checksums(tmp_path / "real")
    assert isinstance(list_records(tmp_path)["real"][0].color, KnownFile)
    assert skipped_files(tmp_path) == {"synthetic": [], "real": []}


def test_a_known_file_is_as_its_path(folder: Path) -> None:
    file = find_records(folder)["real"][0].color
    assert isinstance(file, KnownFile)
    assert file == Path(str(file)) and hash(file) == hash(Path(str(file)))
    again = pickle.loads(pickle.dumps(file))
    assert (again, again.size, again.crc, again.folder) == (file, file.size, file.crc, folder)
    assert pickle.loads(pickle.dumps(file.parent)) == file.parent


def test_the_command_says_what_has_changed(folder: Path, tmp_path: Path) -> None:
    root, count = shutil.copytree(folder, tmp_path / "set"), 4 * len(DEPTH)
    (root / "checksums.json").unlink()
    list_, (first,) = root / "checksums.json", make_checksums(root)
    assert first == f"{list_}: {count} files"
    whole = list_.read_bytes()
    assert whole == (folder / "checksums.json").read_bytes()
    list_.write_bytes(whole.replace(b"real", b"rea1", 1))
    warning, again = make_checksums(root)
    assert warning.startswith("warning: the former list is replaced, and nothing was compared with it: ")
    assert again == first
    (root / "real/color/a.png").write_bytes(kinds.COLOR["colour.jpg"])
    (root / "real/color/b.jpg").rename(root / "real/color/b2.jpg")
    command = [sys.executable, "-m", "vologan_fast.data", "checksums", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = f"{first}; 1 new, 1 changed, 1 gone", "changed: real/color/a.png", "gone: real/color/b.jpg"
    *lines, advice = done.stdout.splitlines()
    assert lines == [*said] and "they are damaged: get them again" in " ".join(advice.split())


def test_many_changes_are_counted(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.png").write_bytes(b"1")
    make_checksums(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    (tmp_path / "new.png").touch()
    assert make_checksums(tmp_path)[-2:] == ["gone: 09.png", "gone: 15 more"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "expected images, found no files"),
        (["step-00000008/state.pt"], "has a checkpoint of a run (step-00000008/state.pt)"),
        (["state.pt"], "has a checkpoint of a run (state.pt)"),
        (None, "expected a folder, found nothing"),
    ],
)
def test_other_folders_are_refused(files: list[str] | None, sentence: str, tmp_path: Path) -> None:
    """A checkpoint has a checksums.json of another kind, which must stay."""
    root = tmp_path / "folder"
    for name in files or []:
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    if files is not None:
        root.mkdir(exist_ok=True)
        (root / "checksums.json").write_bytes(checksums(8, {}))
    with pytest.raises(DataError, match=re.escape(sentence)):
        make_checksums(root)
    assert files is None or (root / "checksums.json").read_bytes() == checksums(8, {})


def test_a_set_inside_of_a_listed_folder_is_compared(folder: Path, tmp_path: Path) -> None:
    """The message names the folder whose list was asked."""
    root = shutil.copytree(folder, tmp_path / "listed/a/set")
    (root / "checksums.json").unlink()
    make_checksums(tmp_path / "listed")
    file = root / "real/color/a.png"
    file.write_bytes(file.read_bytes()[:-1])
    command = re.escape(f"run python -m vologan_fast.data checksums {tmp_path / 'listed'}")
    (record,) = [record for record in find_records(root)["real"] if record.color == file]
    with pytest.raises(DataError, match=f"{command}$"):
        read(record.color)


def test_a_link_to_nothing_is_no_missing_list(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "checksums.json").symlink_to(tmp_path / "not fetched")
    with pytest.raises(DataError, match=r"checksums\.json: no such file"):
        Known(tmp_path).file(tmp_path / "a.png")


def test_links_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "set")
    shutil.move(root / "real", tmp_path / "elsewhere")
    (root / "real").symlink_to(tmp_path / "elsewhere")
    (root / "real/again").symlink_to(root)
    assert make_checksums(root) == [f"{root / 'checksums.json'}: {4 * len(DEPTH)} files; 0 new, 0 changed, 0 gone"]
    assert all(isinstance(file, KnownFile) for record in find_records(root)["real"] for file in record.files)


def test_files_that_are_not_listed_are_counted(trained: Path, tmp_path: Path) -> None:
    config = DataConfig(size=PIXELS, held_out=0.2, synthetic=SPEC, real=SPEC)
    assert not any("checksum" in sentence for sentence in load_dataset(trained, config, 0).warnings())
    if (trained / "checksums.json").exists():
        for part, suffix in (("color", ".jpg"), ("depth", ".exr")):
            shutil.copy(trained / f"real/{part}/0{suffix}", trained / f"real/{part}/new{suffix}")
        (sentence,) = [s for s in load_dataset(trained, config, 0).warnings() if "checksum" in s]
        assert sentence.startswith("2 of 34 files are in no checksums.json")


def test_what_is_converted_has_checksums(tmp_path: Path) -> None:
    """Frames of a second conversion are added. One that breaks is left out, and the checksums before it are written."""
    content = File(".jpg", kinds.COLOR["colour.jpg"]), File(".npy", DEPTH["a.npy"])

    def stop() -> tuple[File, File]:
        raise KeyboardInterrupt

    folder = tmp_path / "real"
    folder.mkdir()
    assert write_frames(folder, [Frame("0", lambda: content)]) == (1, 0, [])
    with pytest.raises(KeyboardInterrupt):
        write_frames(folder, [Frame(name, lambda: content) for name in "01"] + [Frame("2", stop)])
    records = list_records(tmp_path)["real"]
    assert [file.name for record in records for file in record.files] == ["0.jpg", "0.npy", "1.jpg", "1.npy"]
    for record in records:
        for file in record.files:
            assert isinstance(file, KnownFile) and read(file)
    listed = (folder / "checksums.json").read_bytes()
    (folder / "checksums.json").unlink()  # as a kill does before it is written
    assert write_frames(folder, [Frame(name, lambda: content) for name in "10"]) == (0, 2, [])
    assert (folder / "checksums.json").read_bytes() == listed


# Shards of former versions


def test_a_pack_that_a_former_version_began_gets_all_checksums(folder: Path, shards: Path, tmp_path: Path) -> None:
    root = shutil.copytree(shards, tmp_path / "packed")
    first, *lines = (root / "pack.jsonl").read_text().splitlines()
    former = [json.loads(line) for line in lines]
    for line in former:
        del line["entry"]["crc32"], line["crc32"]
    (root / "pack.jsonl").write_text("\n".join([first, *map(json.dumps, former), ""]))
    (root / "shards.json").unlink()
    pack(folder, root, 3, verify=False)
    assert (root / "shards.json").read_bytes() == (shards / "shards.json").read_bytes()


def test_shards_of_a_former_version_are_read_without_comparing(shards: Path, tmp_path: Path) -> None:
    root = shutil.copytree(shards, tmp_path / "packed")
    manifest = json.loads((root / "shards.json").read_text())
    del manifest["crc32"]
    for domain in manifest["domains"].values():
        for shard in domain["shards"]:
            del shard["crc32"]
    (root / "shards.json").write_text(json.dumps(manifest, indent=1))
    found, expected = find_records(root)["real"], find_records(shards)["real"]
    assert found.fingerprint() == expected.fingerprint()  # type: ignore[attr-defined]  # so that runs go on
    for record, known in zip(found, expected, strict=True):
        for file, member in zip(record.files, known.files, strict=True):
            assert isinstance(file, Member) and isinstance(member, Member)
            assert file.crc is None and member.crc is not None
            assert read(file) == read(dataclasses.replace(member))
