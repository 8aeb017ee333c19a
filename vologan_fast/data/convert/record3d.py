"""Record3D recordings (`.r3d`): an iPhone's or iPad's LiDAR or TrueDepth camera.

A ZIP archive with `metadata`, a JSON object whose `dw` and `dh` are the depth's size, and for each frame N
`rgbd/N.jpg`, `rgbd/N.depth` (float32 metres, row by row, LZFSE) and `rgbd/N.conf`, which is not used. Older recordings
have no `dw`, `dh`: there depth has the colour's aspect ratio. Format, in the words of the app's author:
https://github.com/marek-simonik/record3d/issues/93 and /7; LZFSE: https://github.com/lzfse/lzfse.

Members are read by name and never extracted, so no name in the archive becomes a path.
"""

from __future__ import annotations

import functools
import json
import math
import re
import zipfile
import zlib
from pathlib import Path
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

EXPECTED = "a .r3d file, or a folder with some"
MAX_MEMBER = 1 << 28
"""Bytes of one member of the archive; metadata holds a pose for each frame and is the largest."""


def find(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.rglob("*.r3d"))


def read(path: Path, name: str) -> Recording:
    """Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: expected a .r3d file, which is a ZIP archive, found none: {error}") from None
    size = _depth_size(path)
    numbers = sorted(
        int(match[1]) for member in members if (match := re.fullmatch(r"rgbd/([0-9]{1,9})\.depth", member))
    )
    if not numbers:
        raise DataError(f"{path}: expected members rgbd/N.jpg and rgbd/N.depth, found none among {len(members)}")
    frames = [Frame(f"{name}-{n:06}", functools.partial(_read_frame, path, n, size)) for n in numbers]
    return Recording(path, name, frames, {"unit": "m"})


def _depth_size(path: Path) -> tuple[int, int] | None:
    """(height, width) from the metadata; None where it does not say."""
    try:
        metadata: Any = json.loads(_member(path, "metadata"))
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


def _member(path: Path, name: str) -> bytes:
    """A member of the archive, whole. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            content = member.read(MAX_MEMBER + 1)
    except KeyError:
        raise DataError(f"{path}: expected the member {name}, found none of that name") from None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {name}: cannot be unpacked: {error or 'it ends early'}") from None
    if len(content) > MAX_MEMBER:
        raise DataError(f"{path}: {name}: expected at most {MAX_MEMBER} bytes, found more")
    return content


def _read_frame(path: Path, number: int, size: tuple[int, int] | None) -> tuple[File, File]:
    name = f"rgbd/{number}"
    color, color_size = color_file(_member(path, f"{name}.jpg"), f"{path}: {name}.jpg")
    depth = _decompressed(_member(path, f"{name}.depth"), size, f"{path}: {name}.depth")
    return color, encoded_float_depth(
        depth.reshape(size or _size_like(color_size, depth.size, f"{path}: {name}.depth"))
    )


def _decompressed(packed: bytes, size: tuple[int, int] | None, where: str) -> npt.NDArray[np.float32]:
    """The depth values, as many as `size` says."""
    try:
        import imagecodecs
    except ImportError:
        raise missing_library("Record3D", "imagecodecs") from None
    most = 4 * (math.prod(size) if size else MAX_PIXELS)
    try:
        raw = imagecodecs.lzfse_decode(packed, out=most + 1)  # one more: a longer stream is cut there in silence
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{where}: expected an LZFSE stream, found a broken one: {error}") from None
    if len(raw) > most or len(raw) % 4 or (size and len(raw) != most):
        expected = f"{most} bytes for {size[1]} × {size[0]} float32" if size else f"float32, at most {most} bytes"
        raise DataError(f"{where}: expected {expected}, found {'more' if len(raw) > most else len(raw)}")
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _size_like(color_size: tuple[int, int], count: int, where: str) -> tuple[int, int]:
    """(height, width) of `count` pixels with the aspect ratio of the colour."""
    width = round(math.sqrt(count * color_size[1] / color_size[0]))
    if not width or count % width:
        raise DataError(
            f"{where}: expected depth of the aspect ratio of the colour, {color_size[1]} × {color_size[0]}, found "
            f"{count} values (and neither dw nor dh in metadata)"
        )
    return count // width, width
