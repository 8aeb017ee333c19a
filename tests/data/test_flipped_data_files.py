"""A flipped bit in a data file: kinds with checksums refuse it, or give the same pixels. The others cannot know."""

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from color_files import saved, textured
from PIL import Image

from vologan_fast import depth
from vologan_fast.data import DataError
from vologan_fast.data.demo import make_demo
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import read_color

OpenEXR = pytest.importorskip("OpenEXR")
METRES = np.random.default_rng(0).random((24, 20)).astype(np.float32)
LEVELS = (METRES * 60_000).astype(np.uint16)


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, depth=METRES)
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, METRES)
    return stream.getvalue()


def exr(compression: str) -> bytes:
    stream = io.BytesIO()
    header = {"compression": getattr(OpenEXR, compression), "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": np.round(METRES, 1)}).write(stream)
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(LEVELS).save(stream, "PNG")
    return stream.getvalue()


COLOR = {"colour.png": saved(textured(0, 24, 20), "PNG"), "colour.jpg": saved(textured(0, 24, 20), "JPEG")}
DEPTH = {
    "depth.png": png(),
    "depth.npz": npz(),
    "zip.exr": exr("ZIP_COMPRESSION"),
    "none.exr": exr("NO_COMPRESSION"),
    "depth.npy": npy(),
    "depth.pfm": b"Pf\n20 24\n-1.0\n" + struct.pack(f"<{METRES.size}f", *METRES[::-1].ravel()),
}
GUARDED = ("colour.png", "depth.png", "depth.npz", "zip.exr")
"""Kinds in which each byte that becomes a pixel has a checksum."""


def pixels_of(name: str, data: bytes, path: Path) -> np.ndarray | None:
    """Return what is read, or None for a file that is refused."""
    try:
        if name in COLOR:
            path.write_bytes(data)
            return read_color(path)
        return depth.decode(data)
    except (DataError, depth.DecodeError):
        return None


def wrong(name: str, whole: bytes, count: int, path: Path) -> int:
    """Return in how many of `count` flips, other pixels are read without an error."""
    random_, found = random.Random(name), 0
    expected = pixels_of(name, whole, path)
    assert expected is not None
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        pixels = pixels_of(name, bytes(damaged), path)
        found += pixels is not None and not np.array_equal(pixels, expected, equal_nan=name not in COLOR)
    return found


@pytest.mark.parametrize("name", GUARDED)
def test_kinds_with_checksums_are_never_read_wrongly(name: str, tmp_path: Path) -> None:
    assert wrong(name, (COLOR | DEPTH)[name], 1000, tmp_path / name) == 0


@pytest.mark.parametrize("name", sorted((COLOR | DEPTH).keys() - set(GUARDED)))
def test_the_other_kinds_cannot_know(name: str, tmp_path: Path) -> None:
    """docs/reliability.md says so. If this fails, they know now."""
    assert wrong(name, (COLOR | DEPTH)[name], 300, tmp_path / name) > 0


def flipped(path: Path, read: Callable[[], object], count: int) -> int:
    """Return how often `read` gives no error after a flip in the file."""
    whole, random_, accepted = path.read_bytes(), random.Random(path.name), 0
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        path.write_bytes(damaged)
        try:
            read()
            accepted += 1
        except DataError:
            pass
    path.write_bytes(whole)
    return accepted


def test_an_index_of_a_shard_has_a_checksum(tmp_path: Path) -> None:
    pack(make_demo(tmp_path / "demo", count=4, size=32), tmp_path / "shards", 4)
    for index in (tmp_path / "shards").glob("*.idx"):
        assert flipped(index, lambda: find_records(tmp_path / "shards"), 100) == 0
