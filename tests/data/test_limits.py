"""Small files that would take much: images of many pixels, and ZIP bombs. And disks that are too small."""

import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from color_files import chunk
from datasets import BACKENDS, MakeDataset
from PIL import Image
from recordings import record3d_file
from test_loader import take

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset, open_loader
from vologan_fast.data.convert import record3d
from vologan_fast.data.loaders.native import load_color
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import Limits, read_color

SIDE = 13_000


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG of 13,000 × 13,000 pixels: half a megabyte, and half a gigabyte when it is decoded."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    Image.new("RGB", (SIDE, SIDE)).save(path)
    assert path.stat().st_size < 600_000
    return path


LIMITED = """
import resource, runpy, sys
import torch, vologan_fast.data.loader, vologan_fast.data.inspection, vologan_fast.report.inspection
module, room, *arguments = sys.argv[1:]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(room), used + int(room)))
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def limited(module: str, *arguments: object, room: int = 600 << 20) -> subprocess.CompletedProcess[str]:
    """Run a command that may take only so many bytes of address space more than its libraries."""
    command = [sys.executable, "-c", LIMITED, module, str(room), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_small_file_of_many_pixels_takes_no_memory(make_dataset: MakeDataset, bomb: Path) -> None:
    """`inspect` reads it in a process that has no room for its pixels, and says why it is refused."""
    root = make_dataset()
    for name in ("real/000.jpg", "synthetic/000.jpg"):
        (root / name).write_bytes(bomb.read_bytes())
    done = limited("vologan_fast.data", "inspect", root, "--data.size", "64", "--picture", "None")
    assert done.returncode == 1, done.stderr
    assert (
        done.stdout.count(f"an image of {SIDE} × {SIDE} pixels; expected at most {1 << 26} pixels (--data.max-pix") >= 2
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["colour", "depth"])
def test_one_limit_for_colour_and_depth_in_all_loaders(make_dataset: MakeDataset, backend: str, kind: str) -> None:
    """The limit is exact: 64 × 64 pixels pass, and one pixel less is an error that names the file."""
    root = make_dataset()
    first = load_dataset(root, DataConfig(size=64), 5).train["real"][0]
    shape = (64, 32) if kind == "colour" else (32, 64)
    for image in sorted(root.glob("*/*.jpg")):
        if kind == "depth":
            Image.open(image).resize((32, 32)).save(image)
        else:
            np.save(image.with_suffix(".npy"), np.load(image.with_suffix(".npy"))[::2, ::2])
    settings: dict[str, Any] = {"size": 32, "backend": backend, "max_pixels": 64 * 64}
    with open_loader(load_dataset(root, DataConfig(**settings), 5), 2) as loader:
        take(loader, 2)
    named = first.color if kind == "colour" else first.depth
    with pytest.raises(DataError, match=r"64 × 64 pixels; expected at most 4095|expected at most 4095 pixels") as error:
        load_dataset(root, DataConfig(**{**settings, "max_pixels": 64 * 64 - 1}), 5)
    assert str(error.value).startswith(f"{root}/") and named is not None and shape
    data = load_dataset(root, DataConfig(**settings), 5)
    from dataclasses import replace

    data = replace(data, config=replace(data.config, max_pixels=64 * 64 - 1))
    with open_loader(data, 2) as loader, pytest.raises(DataError, match="expected at most 4095 pixels"):
        take(loader, 4)


@pytest.mark.parametrize("kind", ["colour", "depth"])
def test_pack_has_the_same_limit(make_dataset: MakeDataset, tmp_path: Path, kind: str) -> None:
    root = make_dataset()
    for image in sorted(root.glob("*/*.jpg")):
        if kind == "depth":
            Image.open(image).resize((32, 32)).save(image)
        else:
            np.save(image.with_suffix(".npy"), np.load(image.with_suffix(".npy"))[::2, ::2])
    command = [sys.executable, "-m", "vologan_fast.data", "pack", str(root), str(tmp_path / "packed"), "--max-pixels"]
    refused = subprocess.run([*command, str(64 * 64 - 1)], capture_output=True, text=True)
    suffix = "jpg" if kind == "colour" else "npy"
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert re.match(rf"error: {root}/\w+/\d+\.{suffix}: .* at most 4095 pixels", refused.stderr)
    subprocess.run([*command, str(64 * 64)], check=True, capture_output=True)  # the same folder


def test_headers_that_lie_about_the_size(tmp_path: Path) -> None:
    """The size in the header counts, whatever data follow."""
    for name, content in {
        "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])),
        "jpg": _jpeg_of(60_000, 60_000),
    }.items():
        path = tmp_path / f"a.{name}"
        path.write_bytes(content + bytes(99))
        for read in (read_color, load_color):
            with pytest.raises(DataError, match=f"^{path}: "):
                read(path)  # type: ignore[operator]
            with pytest.raises(DataError, match=f"^{path}: "):
                read(path, Limits(1 << 27))  # type: ignore[operator]


def _jpeg_of(height: int, width: int) -> bytes:
    """Return a whole JPEG whose header says another size."""
    import io

    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


# Recordings


def test_a_zip_bomb_in_a_recording_is_refused(tmp_path: Path) -> None:
    """A member of 200 MB of zeros, packed to 200 kB, and many members that are the same bytes."""
    record3d_file(tmp_path / "a.r3d")
    with zipfile.ZipFile(tmp_path / "a.r3d", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rgbd/7.jpg", bytes(200_000_000))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a\.r3d: a ZIP archive of .* MB that holds 200 MB; expected at most 20 times"):
        record3d.read(tmp_path / "a.r3d", "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 50_000  # kB: nothing was unpacked

    with zipfile.ZipFile(tmp_path / "b.r3d", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata", "{}")
        archive.writestr("rgbd/0.depth", os.urandom(1000) + bytes(99_000))
        info = archive.getinfo("rgbd/0.depth")
        for i in range(1, 400):  # entries of the directory that share the bytes of the first
            other = zipfile.ZipInfo(f"rgbd/{i}.depth")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(other, name, getattr(info, name))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    with pytest.raises(DataError, match=r"b\.r3d: a ZIP archive of .* that holds 40 MB; expected at most 20 times"):
        record3d.read(tmp_path / "b.r3d", "b")


def test_metadata_of_a_recording_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON of n bytes becomes objects of up to 40 n bytes. Random numbers keep ZIP from packing it well."""
    rng = np.random.default_rng(0)
    numbers = b",".join(b"%d" % n for n in rng.integers(0, 1 << 62, 2_000_000))
    with zipfile.ZipFile(tmp_path / "a.r3d", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata", b'{"poses":[' + numbers + b"]}")
        archive.writestr("rgbd/0.depth", b"")
    with pytest.raises(DataError, match=r"a\.r3d: metadata: expected at most 33554432 bytes, found more"):
        record3d.read(tmp_path / "a.r3d", "a")


# Disks


def test_pack_says_beforehand_that_there_is_no_room(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Two files of the set have holes, so that they are larger than the disk. Nothing is written."""
    root = make_dataset()
    size = 1 << 43
    for name in ("real/000.npy", "real/001.npy"):
        try:
            os.truncate(root / name, size)
        except OSError:
            pytest.skip("this file system has no files of 8 TB")
    with pytest.raises(DataError, match=r"target: .*B are free; expected room for 1\.76e\+04 GB, the size of 2 shards"):
        pack(root, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["pack.jsonl"]


def test_pack_counts_what_it_will_write(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """The size is that of the tars, to the byte, and shards that are there do not count again."""
    from vologan_fast.data import pack as packing

    root = make_dataset(synthetic=9, real=5)
    counted = []
    original = packing._require_room

    def counting(target: Path, jobs: Any) -> None:
        counted.append(sum(map(packing._tar_bytes, jobs)))
        original(target, jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_require_room", counting)
        pack(root, tmp_path / "target", shard_size=4)
        tars = sorted((tmp_path / "target").glob("*.tar"))
        assert counted == [sum(tar.stat().st_size for tar in tars)]
        pack(root, tmp_path / "target", shard_size=4)
        lost = tars[0].stat().st_size
        tars[0].unlink()
        pack(root, tmp_path / "target", shard_size=4)
    assert counted[1:] == [0, lost]
