"""Depth in TIFF and NPZ, which `depth` reads through libraries: TIFF through Pillow, NPZ through Python's zipfile.

`describe` and `decode` get the bytes of a whole file. Sizes are checked against the limits before anything is
allocated. Every problem becomes a DecodeError of one sentence.

TIFF: one page with one sample per pixel, of 8, 16 or 32 bits, integer or float, with any compression that Pillow reads.
Pillow misreads some kinds of files. Big-endian compressed float32 is an example. Such kinds are refused, and so are
images that are turned or inverted by a tag.

NPZ: a ZIP archive of NPY files, as `numpy.savez` writes it. The native decoder reads the NPY file, so types, shapes and
errors are those of NPY. Nothing is unpickled. The names decide which array is read, as for the channels of an EXR.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vologan_fast import _depth

Floats = npt.NDArray[np.float32]

READERS = {"tiff": "Pillow", "npz": "zipfile"}
"""The library that reads each format."""

_TIFF_TYPES = {
    (8, 1): "uint8",
    (16, 1): "uint16",
    (32, 1): "uint32",
    (16, 2): "int16",
    (32, 2): "int32",
    (32, 3): "float32",
}
"""The types that Pillow reads rightly, by bits per sample and SampleFormat (1 unsigned, 2 signed, 3 float)."""
_TAG = ExifTags.Base
_TIFF_TAGS = {
    _TAG.SamplesPerPixel: ("one sample per pixel", "{} samples: is it colour?"),
    _TAG.PhotometricInterpretation: ("grey in which 0 is black", "PhotometricInterpretation {}"),
    _TAG.FillOrder: ("FillOrder 1", "FillOrder {}"),
    _TAG.Orientation: ("an upright image", "Orientation {}: turn its pixels"),
}
"""The tags that must be 1: the meaning of 1, and words for another value."""
_HEADER_BYTES = 1 << 16
"""More bytes than the header of a plain NPY file has."""


def describe(format_: str, data: bytes, name: str, channel: str | None, limits: _depth.Limits) -> dict[str, Any]:
    """Return the fields width, height, compression, channels, chosen and why of `depth.Info`, from a file's headers.

    `channels` holds the name and the NumPy type of each channel, and `chosen` is the index of the one that is read. The
    size is that of the chosen channel, or of the first one. Raises DecodeError, which names the file `name`.
    """
    if format_ == "npz":
        return _describe_npz(data, channel, name, limits)
    with _open_tiff(data, name, limits) as (image, dtype):
        compression = str(image.info.get("compression", "raw")).removeprefix("tiff_").replace("raw", "none")
        choice = _depth.choose_array(["Y"], channel)
        return _fields(image.width, image.height, compression, [("Y", dtype)], choice)


def _fields(
    width: int, height: int, compression: str, channels: list[tuple[str, str]], choice: tuple[int | None, str]
) -> dict[str, Any]:
    chosen, why = choice
    sizes = {"width": width, "height": height}
    return {**sizes, "compression": compression, "channels": channels, "chosen": chosen, "why": why}


def _need(choice: tuple[int | None, str], name: str) -> int:
    """Return the index of the channel to read. Raises DecodeError if none could be chosen."""
    chosen, why = choice
    if chosen is None:
        raise _depth.DecodeError(f"{name}: channels: {why}")
    return chosen


def decode(format_: str, data: bytes, channel: str | None, name: str, limits: _depth.Limits) -> Floats:
    """Return the depth of a file as float32 (height, width), in its own units. Raises DecodeError.

    `channel` is the name of an array of an NPZ, or "Y" for TIFF.
    """
    if format_ == "npz":
        return _decode_npz(data, channel, name, limits)
    with _open_tiff(data, name, limits) as (image, dtype):
        _need(_depth.choose_array(["Y"], channel), name)
        values = np.asarray(image)
    if values.dtype == np.int32 and dtype == "uint32":
        values = values.view(np.uint32)  # Pillow has no unsigned type of 32 bits
    return np.ascontiguousarray(values, np.float32)


@contextmanager
def _open_tiff(data: bytes, name: str, limits: _depth.Limits) -> Iterator[tuple[Image.Image, str]]:
    """Check the tags of a TIFF and open it. Yields the image, which is not loaded yet, and the type of its samples.

    Errors of Pillow in the `with` block become DecodeErrors, too.
    """
    try:
        tags = _read_tags(data, name)
        dtype = _check_tags(tags, name)
        _check_size(tags[_TAG.ImageWidth], tags[_TAG.ImageLength], np.dtype(dtype).itemsize, name, limits)
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            yield image, dtype
    except _depth.DecodeError:
        raise
    except UnidentifiedImageError:
        raise _refusal(name, "a whole image of a kind that Pillow reads", "another") from None
    except Exception as error:  # OSError, SyntaxError, KeyError, struct.error and others, depending on the damage
        raise _refusal(name, "a whole image that Pillow reads", str(error)) from None


def _refusal(name: str, expected: str, found: str) -> _depth.DecodeError:
    return _depth.DecodeError(f"{name}: TIFF: expected {expected}, found {found}")


def _read_tags(data: bytes, name: str) -> ImageFileDirectory_v2:
    """Return the tags of the first page. Its attribute `next` is the place of the second page, or 0."""
    big = 43 in data[2:4]
    if big and data.startswith(b"MM"):
        raise _refusal(name, "little-endian BigTIFF", "big-endian BigTIFF, which Pillow does not read")
    tags = ImageFileDirectory_v2(data[: 16 if big else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _check_tags(tags: ImageFileDirectory_v2, name: str) -> str:
    """Return the NumPy type of the samples. Raises DecodeError for kinds that are no depth or that Pillow misreads."""
    for tag, (expected, found) in _TIFF_TAGS.items():
        if tags.get(tag, 1) != 1:
            raise _refusal(name, expected, found.format(tags[tag]))
    bits, format_ = (tags.get(tag, (1,))[0] for tag in (_TAG.BitsPerSample, _TAG.SampleFormat))
    dtype = _TIFF_TYPES.get((bits, format_))
    if dtype is None:
        kind = {1: "unsigned integers", 2: "signed integers", 3: "floats"}.get(format_, f"SampleFormat {format_}")
        raise _refusal(name, f"one of {', '.join(_TIFF_TYPES.values())}", f"{kind} of {bits} bits")
    if tags.prefix == b"MM" and tags.get(_TAG.Compression, 1) != 1 and dtype not in ("uint8", "uint16"):
        raise _refusal(name, f"little-endian or uncompressed {dtype}", "big-endian compressed, which Pillow misreads")
    if tags.next:
        raise _refusal(name, "one page", "several: save the page that holds the depth")
    return dtype


def _check_size(width: int, height: int, item: int, name: str, limits: _depth.Limits) -> None:
    size = f"{width} × {height}"
    if width < 1 or height < 1:
        raise _depth.DecodeError(f"{name}: image: expected at least one pixel, found {size}")
    if width * height > limits.max_pixels:
        raise _depth.DecodeError(f"{name}: image: expected at most {limits.max_pixels} pixels, found {size}")
    if width * height * item > limits.max_bytes:
        raise _depth.DecodeError(
            f"{name}: image: expected at most {limits.max_bytes} bytes decoded, found {size} of {item} bytes each"
        )


@contextmanager
def _open_npz(data: bytes, name: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an NPZ. Yields the archive and its arrays by name.

    Errors of zipfile in the `with` block become DecodeErrors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy") and not info.filename.startswith("__MACOSX/")
            }
            if not arrays:
                found = f"a ZIP archive of {len(archive.infolist())} other files"
                raise _depth.DecodeError(f"{name}: NPZ: expected NPY arrays, found {found}")
            yield archive, arrays
    except _depth.DecodeError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, RuntimeError (encrypted) and others
        raise _depth.DecodeError(f"{name}: NPZ: expected a whole ZIP archive, found {error or 'a cut one'}") from None


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type of an array. Raises DecodeError."""
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise _depth.DecodeError(f"{where}: NPY header: expected one that NumPy reads, found {error}") from None
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, limits: _depth.Limits) -> bytes:
    """Return the NPY file of an array. Raises DecodeError if it is larger than the limits or than its header says."""
    shape, dtype = _read_header(archive, info, where)
    most = min(limits.max_bytes, 2 * math.prod(shape) * dtype.itemsize + _HEADER_BYTES)
    if info.file_size > most:
        raise _depth.DecodeError(f"{where}: expected at most {most} bytes unpacked, found {info.file_size}")
    return archive.read(info)


def _read_headers(
    archive: zipfile.ZipFile, arrays: dict[str, zipfile.ZipInfo], name: str
) -> dict[str, tuple[tuple[int, ...] | None, str]]:
    """Return the shape and the NumPy type of each array. They are None and "unknown" where a header is broken."""
    headers: dict[str, tuple[tuple[int, ...] | None, str]] = {}
    for array, info in arrays.items():
        try:
            shape, dtype = _read_header(archive, info, f"{name}:{array}")
            headers[array] = (shape, dtype.name)
        except Exception:  # of zipfile, zlib and NumPy; the array that is chosen raises it again
            headers[array] = (None, "unknown")
    return headers


def _choose_array(
    headers: dict[str, tuple[tuple[int, ...] | None, str]], channel: str | None
) -> tuple[int | None, str]:
    """Return the index of the array to read, and the reason.

    Arrays of no or one dimension, such as `depth_scale`, have no part in the choice if another array has more.
    """
    names = list(headers)
    images = [array for array, (shape, _) in headers.items() if shape is None or len(shape) > 1]
    if channel is not None or not images:
        return _depth.choose_array(names, channel)
    chosen, why = _depth.choose_array(images, None)
    return None if chosen is None else names.index(images[chosen]), why


def _describe_npz(data: bytes, channel: str | None, name: str, limits: _depth.Limits) -> dict[str, Any]:
    with _open_npz(data, name) as (archive, arrays):
        headers = _read_headers(archive, arrays, name)
        choice = _choose_array(headers, channel)
        names = list(arrays)
        images = [array for array, (shape, _) in headers.items() if shape and len(shape) > 1]
        sized = names[choice[0]] if choice[0] is not None else (images or names)[0]
        npy = _read_array(archive, arrays[sized], f"{name}:{sized}", limits)
        info = _depth.probe(npy, None, limits, f"{name}:{sized}")
    types = {array: dtype for array, (_, dtype) in headers.items()} | {sized: info["channels"][0][1]}
    return _fields(info["width"], info["height"], "zip", list(types.items()), choice)


def _decode_npz(data: bytes, channel: str | None, name: str, limits: _depth.Limits) -> Floats:
    with _open_npz(data, name) as (archive, arrays):
        chosen = _need(_choose_array(_read_headers(archive, arrays, name), channel), name)
        array = list(arrays)[chosen]
        npy = _read_array(archive, arrays[array], f"{name}:{array}", limits)
    return _depth.decode(npy, None, limits, f"{name}:{array}")
