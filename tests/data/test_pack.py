"""Packing: every byte arrives, other tools can read the tars, and an interruption loses no finished shard."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import MakeDataset, needs_dali
from editors import EDITED
from PIL import Image

from vologan_fast.data import DataError
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pack import pack
from vologan_fast.data.records import read

COMMAND = [sys.executable, "-m", "vologan_fast.data", "pack"]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def checksums(root: Path) -> dict[str, list[str]]:
    """Return the checksums of colour and depth of all images, sorted."""
    return {
        domain: sorted(
            hashlib.sha256(read(record.color)).hexdigest() + hashlib.sha256(read(record.depth)).hexdigest()
            for record in records
        )
        for domain, records in find_records(root).items()
    }


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_every_byte_arrives(make_dataset: MakeDataset, tmp_path: Path, shard_size: int) -> None:
    root = make_dataset(synthetic=7, real=4)
    said = pack(root, tmp_path / "packed", shard_size)
    assert checksums(tmp_path / "packed") == checksums(root)
    assert f"11 images in {-(-7 // shard_size) + -(-4 // shard_size)} shards" in said
    assert not list((tmp_path / "packed").glob("*.partial"))


def test_the_tars_are_webdataset_s_and_say_nothing_of_their_maker(make_dataset: MakeDataset, tmp_path: Path) -> None:
    pack(make_dataset(), tmp_path / "packed", 3)
    with tarfile.open(tmp_path / "packed/synthetic-000000.tar") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    for color, depth in zip(names[::2], names[1::2], strict=True):
        assert color.endswith(".jpg") and depth == color.removesuffix(".jpg") + ".depth.npy"
    assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)


def test_equal_sources_give_equal_shards(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root = make_dataset()
    pack(root, tmp_path / "a", 3)
    pack(root, tmp_path / "b", 3)
    pack(root, tmp_path / "c", 3, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    assert checksums(tmp_path / "a") == checksums(tmp_path / "c")


def test_suffixes_follow_the_contents(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """The suffixes in a tar follow the contents, because a manifest may list files with any names."""
    root = make_dataset(synthetic=2, real=2)
    Image.fromarray(np.ones((64, 64), np.uint16)).save(root / "synthetic/000.npy", "PNG")
    pack(root, tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed/shards.json").read_bytes())
    kinds = {(kind["format"], kind["samples"]) for kind in manifest["domains"]["synthetic"]["depth"]}
    assert kinds == {("png", 1), ("npy", 1)}
    names = {record.depth.name.split(".", 1)[1] for record in find_records(tmp_path / "packed")["synthetic"]}
    assert names == {"depth.png", "depth.npy"}


def test_the_index_is_that_of_dali_s_tool(make_dataset: MakeDataset, tmp_path: Path) -> None:
    tool = pytest.importorskip("wds2idx")
    pack(make_dataset(), tmp_path / "packed")
    for tar in (tmp_path / "packed").glob("*.tar"):
        creator = tool.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False)
        creator.create_index()
        creator.close()
        assert (tmp_path / "theirs.idx").read_bytes() == tar.with_suffix(".idx").read_bytes()


@needs_dali
def test_dali_s_own_reader_reads_the_shards(make_dataset: MakeDataset, tmp_path: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    pack(make_dataset(synthetic=7), tmp_path / "packed", 3)
    tars = sorted((tmp_path / "packed").glob("synthetic-*.tar"))

    @pipeline_def(batch_size=7, num_threads=1, device_id=None)
    def pipeline():
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=["jpg;png", "depth.exr;depth.npy;depth.pfm;depth.png"],
            )
        )

    pipe = pipeline()
    pipe.build()
    color, depth = pipe.run()
    expected = find_records(tmp_path / "packed")["synthetic"]
    for i, record in enumerate(expected):
        assert np.array(color.at(i)).tobytes() == read(record.color)
        assert np.array(depth.at(i)).tobytes() == read(record.depth)


def test_packing_again_keeps_what_is_there_and_mends_what_is_broken(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root, packed = make_dataset(), tmp_path / "packed"
    pack(root, packed, 3)
    before, times = contents(packed), {path: path.stat().st_mtime_ns for path in packed.glob("*.tar")}
    assert "5 of them were there already" in pack(root, packed, 3)
    assert {path: path.stat().st_mtime_ns for path in packed.glob("*.tar")} == times
    tar = packed / "synthetic-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    (packed / "real-000000.idx").unlink()
    assert "3 of them" in pack(root, packed, 3)
    after = contents(packed)
    del before["pack.jsonl"], after["pack.jsonl"]
    assert after == before


def test_an_image_that_changed_is_packed_again(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root, packed = make_dataset(), tmp_path / "packed"
    pack(root, packed, 3)
    shutil.copy(root / "real/000.jpg", root / "real/001.jpg")
    assert "4 of them" in pack(root, packed, 3)
    assert checksums(packed) == checksums(root)


def test_shards_of_images_that_are_gone_go_as_well(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root, packed = make_dataset(real=7), tmp_path / "packed"
    pack(root, packed, 3)
    assert (packed / "real-000002.tar").is_file()
    manifest = json.loads((root / "training_paths.json").read_text())
    manifest["real_data"] = manifest["real_data"][:4]
    (root / "training_paths.json").write_text(json.dumps(manifest))
    pack(root, packed, 3)
    assert {path.name for path in packed.glob("real-*.tar")} == {"real-000000.tar", "real-000001.tar"}
    assert checksums(packed) == checksums(root)
    assert not (packed / "real-000002.idx").exists()


def test_a_killed_run_goes_on(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root, packed = make_dataset(synthetic=150, real=150, height=96, width=96), tmp_path / "packed"
    pack(root, tmp_path / "expected", 4)
    process = subprocess.Popen([*COMMAND, str(root), str(packed), "--shard-size", "4"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(packed.glob("*.tar"))) < 30 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    tars = list(packed.glob("*.tar"))
    assert 30 <= len(tars) < 76
    for tar in tars:  # whole, or not there
        assert tar.read_bytes() == (tmp_path / "expected" / tar.name).read_bytes()
    with pytest.raises(DataError, match="not finished"):
        find_records(packed)
    with (packed / "pack.jsonl").open("ab") as log:
        log.write(b'{"made_of": "half a li')
    said = subprocess.run([*COMMAND, str(root), str(packed), "--shard-size", "4"], check=True, capture_output=True)
    assert int(said.stdout.split(b"; ")[1].split()[0]) >= len(tars) - 1  # the line of the last shard may be missing
    found, expected = contents(packed), contents(tmp_path / "expected")
    del found["pack.jsonl"], expected["pack.jsonl"]
    assert found == expected


@pytest.mark.parametrize("edited", EDITED)
def test_ends_of_lines_of_an_editor_pack_nothing_again(make_dataset: MakeDataset, tmp_path: Path, edited: str) -> None:
    """The log can be appended to, and read again."""
    root, packed = make_dataset(synthetic=7, real=4), tmp_path / "packed"
    pack(root, packed, 3)
    log = packed / "pack.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for kept in (len(lines), len(lines) - 2):
        log.write_bytes(EDITED[edited](b"".join(lines[:kept])))
        assert f"{kept - 1} of them" in pack(root, packed, 3)
        assert f"{len(lines) - 1} of them" in pack(root, packed, 3)
    assert checksums(packed) == checksums(root)


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # no file may become longer
from vologan_fast.data.__main__ import main
sys.exit(main())
"""


def test_a_disk_that_takes_no_more_is_one_sentence(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root, packed = make_dataset(synthetic=7, real=4), tmp_path / "packed"
    command = [sys.executable, "-c", FULL_DISK, "pack", str(root), str(packed), "--shard-size", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {packed}") and done.stderr.count("\n") == 1
    assert "cannot be written: File too large; the shards that are done are kept" in done.stderr
    assert [path.name for path in packed.iterdir()] == ["pack.jsonl"]
    pack(root, packed, 3)
    assert checksums(packed) == checksums(root)


def refusal(*arguments: object) -> str:
    with pytest.raises(DataError) as error:
        pack(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_with_something_else_is_left_alone(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root = make_dataset()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    assert refusal(root, other) == (
        f"{other}: exists and is not empty; expected a new folder, or one that pack was stopped in"
    )
    assert "exists and is not empty" in refusal(root, other / "thesis.tex")
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    pack(root, tmp_path / "packed", 3)
    assert "holds shards that were packed otherwise" in refusal(root, tmp_path / "packed", 4)
    assert "--shard-size is 0" in refusal(root, tmp_path / "new", 0)


def test_only_one_process_packs_into_a_folder(make_dataset: MakeDataset, tmp_path: Path) -> None:
    import fcntl

    pack(make_dataset(), tmp_path / "packed")
    with (tmp_path / "packed/pack.jsonl").open() as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert "another process" in refusal(tmp_path / "set", tmp_path / "packed")


@pytest.mark.parametrize("file", ["real/002.jpg", "real/002.npy"])
def test_an_image_that_is_none_is_named(make_dataset: MakeDataset, tmp_path: Path, file: str) -> None:
    root = make_dataset()
    good = (root / file).read_bytes()
    (root / file).write_bytes(b"nothing of the kind")
    assert refusal(root, tmp_path / "packed").startswith(f"{root / file}: ")
    (root / file).write_bytes(good)
    pack(root, tmp_path / "packed")  # continues
    assert checksums(tmp_path / "packed") == checksums(root)


def test_shards_can_be_packed_into_other_shards(make_dataset: MakeDataset, tmp_path: Path) -> None:
    root = make_dataset()
    pack(root, tmp_path / "small", 2)
    pack(tmp_path / "small", tmp_path / "large", 5)
    assert checksums(tmp_path / "large") == checksums(root)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(make_dataset: MakeDataset, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written: Permission denied" in refusal(make_dataset(), tmp_path / "closed/packed")


def test_logs_that_pack_has_not_written_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Also those that would have other files removed, or false numbers written into shards.json."""
    packed = tmp_path / "packed"
    pack(make_dataset(), packed)
    log = packed / "pack.jsonl"
    first, line, *_ = log.read_text().splitlines()

    def refused(**changes: object) -> None:
        item = json.loads(line)
        del item["crc32"]
        item["entry"] |= {name: value for name, value in changes.items() if name in item["entry"]}
        item["depth"][0] |= {name: value for name, value in changes.items() if name in item["depth"][0]}
        log.write_text(f"{first}\n{line}\n{json.dumps(item)}\n")
        with pytest.raises(DataError, match="line 3 is no line of pack, or damaged; remove this line"):
            pack(make_dataset(), packed)

    (packed / "mine.tar").touch()
    for file in ("mine.tar", "shards.json", "../synthetic-000000.tar", 5):
        refused(file=file)
    refused(samples="3")
    refused(bytes=1.5)
    refused(types=[[1]])
    refused(format=None)
    whole = f"{first}\n{line}\n".encode()
    # A flip, in the settings or in a shard's line. One in the name "crc32" makes it a setting.
    for place in range(0, whole.rindex(b', "crc32"'), 25):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"is no line of pack, or damaged|were packed otherwise"):
            pack(make_dataset(), packed)
    log.write_bytes(whole.replace(b'"seed"', b'"sEed"', 1))
    advice = f"line 1 is no line of pack, or damaged; if pack has made {packed}, remove it and pack again"
    assert refusal(make_dataset(), packed) == f"{log}: {advice}"
    log.write_text(f"{first}\n")
    os.truncate(log, 1 << 40)
    with pytest.raises(DataError, match="expected at most"):
        pack(make_dataset(), packed)
    assert (packed / "mine.tar").exists() and (packed / "synthetic-000000.tar").exists()
