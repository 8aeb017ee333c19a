"""Read ScanNet recordings (`.sens`), version 4.

The file is little-endian. It begins with a header:

- version (u32)
- sensor's name: length in bytes (u64), then the bytes
- four 4 × 4 float32 matrices
- colour compression and depth compression (i32 each)
- width and height of colour, width and height of depth (u32 each)
- depth shift (float32), the file units per metre
- number of frames (u64)

Then the frames follow, each with these parts:

- 4 × 4 float32 pose
- two timestamps (u64 each)
- size of colour and size of depth in bytes (u64 each)
- colour, then depth

Colour is JPEG, PNG or raw RGB. Depth is unsigned 16-bit, zlib or raw, with 0 for "not measured". The shift is 1000 in
all of ScanNet, so depth is in millimetres.

Format: SensReader/c++/src/sensorData.h in https://github.com/ScanNet/ScanNet.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vologan_fast.data.convert.writer import (
    MAX_PIXELS,
    MAX_SIDE,
    File,
    Frame,
    Recording,
    color_file,
    encoded_color,
    encoded_integer_depth,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import find_all

EXPECTED = "a .sens file, or a folder with some"
MAX_NAME = 1 << 16
MAX_FRAMES = 1 << 24
_COLOR = {0: "raw", 1: "png", 2: "jpeg"}
_DEPTH = {0: "raw", 1: "zlib"}


@dataclass(frozen=True)
class _Header:
    color: str
    depth: str
    color_size: tuple[int, int]
    """(height, width)."""
    depth_size: tuple[int, int]
    """(height, width)."""
    shift: float
    """File units per metre."""
    frames: int


@dataclass(frozen=True)
class _Place:
    """The place of a frame's images in the file, in bytes. Depth follows colour."""

    offset: int
    color_bytes: int
    depth_bytes: int


def find(source: Path) -> list[Path]:
    return [source] if source.is_file() else find_all(source, "*.sens")


def read(path: Path, name: str) -> Recording:
    """Open a recording. It finds all frames without reading their images. Raises DataError.

    If the file was cut off, the recording has the whole frames before the cut, and a sentence about the others.
    """
    broken = []
    try:
        with path.open("rb") as file:
            reader = _Reader(path, file)
            header = _read_header(reader)
            places: list[_Place] = []
            try:
                while len(places) < header.frames:
                    places.append(_find_frame(reader, len(places)))
            except DataError as error:
                if not places:
                    raise
                broken.append(f"{error}: {header.frames - len(places)} of {header.frames} frames are cut off")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    frames = [
        Frame(f"{name}-{i:06}", functools.partial(_read_frame, path, header, place, i))
        for i, place in enumerate(places)
    ]
    settings = {} if header.shift == 1000 else {"scale": f"{1 / header.shift:.9g}"}
    return Recording(path, name, frames, settings, broken)


class _Reader:
    """A reader that takes pieces from a file, one after the other. A piece beyond the file's end raises DataError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = os.fstat(file.fileno()).st_size

    def skip(self, count: int, what: str) -> None:
        if count > self.left:
            raise DataError(f"{self.path}: {what}: expected {count} bytes, found {self.left} to the end of the file")
        self.left -= count
        self.file.seek(count, os.SEEK_CUR)

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        count = struct.calcsize(form)
        self.skip(count, what)
        self.file.seek(-count, os.SEEK_CUR)
        return struct.unpack(form, self.file.read(count))


def _read_header(reader: _Reader) -> _Header:
    path = reader.path
    (version,) = reader.unpack("<I", "version")
    if version != 4:
        raise DataError(f"{path}: expected a .sens file of version 4, found {version}")
    (length,) = reader.unpack("<Q", "sensor's name")
    if length > MAX_NAME:
        raise DataError(f"{path}: sensor's name: expected at most {MAX_NAME} bytes, found {length}")
    reader.skip(length, "sensor's name")
    reader.skip(4 * 64, "camera matrices")
    color, depth, *sizes, shift, frames = reader.unpack("<2i4IfQ", "header")
    if color not in _COLOR:
        raise DataError(f"{path}: colour compression: expected one of {_COLOR}, found {color}")
    if depth not in _DEPTH:
        raise DataError(f"{path}: depth compression: expected one of {_DEPTH}, found {depth}")
    for what, (width, height) in {"colour": sizes[:2], "depth": sizes[2:]}.items():
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
            raise DataError(
                f"{path}: {what} size: expected sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels, found "
                f"{width} × {height}"
            )
    if not 1e-3 <= shift <= 1e9:  # NaN too
        raise DataError(f"{path}: depth shift: expected file units per metre, such as 1000, found {shift:g}")
    if not 1 <= frames <= MAX_FRAMES:
        raise DataError(f"{path}: expected 1 to {MAX_FRAMES} frames, found {frames} of them")
    return _Header(_COLOR[color], _DEPTH[depth], (sizes[1], sizes[0]), (sizes[3], sizes[2]), shift, frames)


def _find_frame(reader: _Reader, index: int) -> _Place:
    reader.skip(64 + 16, f"frame {index}")
    color_bytes, depth_bytes = reader.unpack("<2Q", f"frame {index}")
    place = _Place(reader.file.tell(), color_bytes, depth_bytes)
    reader.skip(color_bytes, f"frame {index}: colour")
    reader.skip(depth_bytes, f"frame {index}: depth")
    return place


def _read_frame(path: Path, header: _Header, place: _Place, index: int) -> tuple[File, File]:
    try:
        with path.open("rb") as file:
            file.seek(place.offset)
            color, depth = file.read(place.color_bytes), file.read(place.depth_bytes)
    except OSError as error:
        raise DataError(f"{path}: frame {index}: cannot be read: {error.strerror or error}") from None
    return (
        _color(header, color, f"{path}: frame {index}: colour"),
        encoded_integer_depth(_depth(header, depth, f"{path}: frame {index}: depth")),
    )


def _color(header: _Header, stored: bytes, where: str) -> File:
    if header.color == "raw":
        _require_bytes(len(stored), 3 * math.prod(header.color_size), where)
        return encoded_color(np.frombuffer(stored, np.uint8).reshape(*header.color_size, 3))
    file, size = color_file(stored, where)
    if size != header.color_size:
        raise DataError(f"{where}: expected {_words(header.color_size)} pixels, found {_words(size)}")
    return file


def _depth(header: _Header, stored: bytes, where: str) -> npt.NDArray[np.uint16]:
    expected = 2 * math.prod(header.depth_size)
    if header.depth == "zlib":
        inflate = zlib.decompressobj()
        try:
            stored = inflate.decompress(stored, expected + 1)
        except zlib.error as error:
            raise DataError(f"{where}: expected a zlib stream, found a broken one: {error}") from None
        if len(stored) <= expected and not inflate.eof:
            raise DataError(f"{where}: expected a whole zlib stream, found one that ends early")
    _require_bytes(len(stored), expected, where)
    return np.frombuffer(stored, "<u2").astype(np.uint16).reshape(header.depth_size)


def _require_bytes(found: int, expected: int, where: str) -> None:
    if found != expected:
        raise DataError(f"{where}: expected {expected} bytes, found {'more' if found > expected else found}")


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]} × {size[0]}"
