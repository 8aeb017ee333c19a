"""Read Record3D recordings (`.r3d`) from the LiDAR or the TrueDepth camera of an iPhone or iPad.

A recording is a ZIP archive. Its member `metadata` is a JSON object, in which `dw` and `dh` are the depth's width and
height. Each frame N has `rgbd/N.jpg` and `rgbd/N.depth` (float32 metres, row by row, LZFSE). It also has `rgbd/N.conf`,
which is not used. Older recordings have no `dw` and `dh`. In them, depth has the colour's aspect ratio.

The members are read by name and never extracted, so no name in the archive becomes a path. A recording that was packed
again on another computer may have backslashes in its names, and all members in one more folder.

Format, described by the app's author: https://github.com/marek-simonik/record3d/issues/93 and /7.
LZFSE: https://github.com/lzfse/lzfse.
"""

from __future__ import annotations

import functools
import json
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast.data.convert.writer import (
    MAX_PIXELS,
    MAX_SIDE,
    File,
    Frame,
    Recording,
    color_file,
    encoded_float_depth,
    missing_library,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import find_all, is_added_by_system
from vologan_fast.words import in_words

EXPECTED = "a .r3d file, or a folder with some"
MAX_MEMBER = 1 << 28
"""The largest size of a member of the archive, in bytes."""
MAX_METADATA = 1 << 25
"""The largest size of the member `metadata`, in bytes. It holds a pose for each frame: about 150 bytes. JSON takes up
to 40 times as much memory."""
MOST_UNPACKED = 20
"""All members together have at most so many times the bytes of the archive. JPEG and LZFSE leave nothing for ZIP to
pack, and only `metadata` shrinks. More is a ZIP bomb, or an archive whose members share their bytes."""
_SMALL = 1 << 20
"""An archive that holds no more bytes than this is no bomb."""


def find(source: Path) -> list[Path]:
    return [source] if source.is_file() else find_all(source, "*.r3d")


def read(path: Path, name: str) -> Recording:
    """Open a recording. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _Members(archive.namelist())
            unpacked, packed = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: expected a .r3d file, which is a ZIP archive, found none: {error}") from None
    if unpacked > max(_SMALL, MOST_UNPACKED * packed):
        raise DataError(
            f"{path}: a ZIP archive of {in_words(packed)} that holds {in_words(unpacked)}; expected at most "
            f"{MOST_UNPACKED} times its size, because images cannot be packed as well"
        )
    size = _depth_size(path, members)
    numbers = sorted(
        int(match[1]) for member in members.names if (match := re.fullmatch(r"rgbd/([0-9]{1,9})\.depth", member))
    )
    if not numbers:
        raise DataError(f"{path}: expected members rgbd/N.jpg and rgbd/N.depth, found none among {len(members.names)}")
    frames = [Frame(f"{name}-{n:06}", functools.partial(_read_frame, path, members, n, size)) for n in numbers]
    return Recording(path, name, frames, {"unit": "m"})


class _Members:
    """The members of an archive by the names that the app gives them."""

    def __init__(self, stored: Sequence[str]) -> None:
        plain = {name.replace("\\", "/"): name for name in stored}
        plain = {name: plain[name] for name in plain if not is_added_by_system(PurePosixPath(name))}
        folders = [name.removesuffix("metadata") for name in plain if PurePosixPath(name).name == "metadata"]
        folder = min(folders, key=len, default="")
        self.names = {name.removeprefix(folder): plain[name] for name in plain if name.startswith(folder)}
        """The stored name of each member."""


def _depth_size(path: Path, members: _Members) -> tuple[int, int] | None:
    """Return (height, width) of depth from the metadata, or None if they are not in it. Raises DataError."""
    try:
        metadata: Any = json.loads(_member(path, members, "metadata", MAX_METADATA))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: metadata: not valid JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: metadata: expected a JSON object, found another value")
    size: list[int] = []
    for key in ("dh", "dw"):
        value = metadata.get(key)
        if type(value) is int and 1 <= value <= MAX_SIDE:
            size.append(value)
        elif value is not None:
            raise DataError(f"{path}: metadata: {key} is {str(value)[:40]}; expected 1 to {MAX_SIDE} pixels")
    if len(size) < 2:
        return None
    if math.prod(size) > MAX_PIXELS:
        raise DataError(f"{path}: metadata: depth of {size[1]} × {size[0]}; expected at most {MAX_PIXELS} pixels")
    return size[0], size[1]


def _member(path: Path, members: _Members, name: str, most: int = MAX_MEMBER) -> bytes:
    """Read a whole member of the archive, of at most `most` bytes. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(members.names[name]) as member:
            content = member.read(most + 1)
    except KeyError:
        raise DataError(f"{path}: expected the member {name}, found none of that name") from None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {name}: cannot be unpacked: {error or 'it ends early'}") from None
    if len(content) > most:
        raise DataError(f"{path}: {name}: expected at most {most} bytes, found more")
    return content


def _read_frame(path: Path, members: _Members, number: int, size: tuple[int, int] | None) -> tuple[File, File]:
    name = f"rgbd/{number}"
    color, color_size = color_file(_member(path, members, f"{name}.jpg"), f"{path}: {name}.jpg")
    depth = _decompressed(_member(path, members, f"{name}.depth"), size, f"{path}: {name}.depth")
    return color, encoded_float_depth(
        depth.reshape(size or _size_like(color_size, depth.size, f"{path}: {name}.depth"))
    )


def _decompressed(packed: bytes, size: tuple[int, int] | None, where: str) -> npt.NDArray[np.float32]:
    """Decompress the depth values. Returns float32 (n,). Raises DataError.

    The number of values n must be the number of pixels of `size`. Without `size`, it is at most MAX_PIXELS.
    """
    try:
        import imagecodecs
    except ImportError:
        raise missing_library("Record3D", "imagecodecs") from None
    most = 4 * (math.prod(size) if size else MAX_PIXELS)
    try:
        raw = imagecodecs.lzfse_decode(packed, out=most + 1)  # one more byte: a longer stream is truncated silently
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{where}: expected an LZFSE stream, found a broken one: {error}") from None
    if len(raw) > most or len(raw) % 4 or (size and len(raw) != most):
        expected = f"{most} bytes for {size[1]} × {size[0]} float32" if size else f"float32, at most {most} bytes"
        raise DataError(f"{where}: expected {expected}, found {'more' if len(raw) > most else len(raw)}")
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _size_like(color_size: tuple[int, int], count: int, where: str) -> tuple[int, int]:
    """Return (height, width) of `count` pixels with the aspect ratio of the colour. Raises DataError if none fits."""
    width = round(math.sqrt(count * color_size[1] / color_size[0]))
    if not width or count % width:
        raise DataError(
            f"{where}: expected depth of the aspect ratio of the colour, {color_size[1]} × {color_size[0]}, found "
            f"{count} values (and neither dw nor dh in metadata)"
        )
    return count // width, width
