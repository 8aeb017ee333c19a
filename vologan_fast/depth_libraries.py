"""Depth in TIFF and NPZ, which `depth` reads through libraries: TIFF through Pillow, NPZ through Python's zipfile.

`describe` and `decode` get the bytes of a whole file. Sizes are checked against the limits before anything is
allocated. Every problem becomes a DecodeError of one sentence.

TIFF: one page with one sample per pixel, of 8, 16 or 32 bits, integer or float. A compression must keep all bits.
Pillow understands some tags in another way than the standard, and leaves out tags that it cannot read. So the tags are
read and checked here. Pillow gets a directory that holds nothing but what was checked. Kinds that it misreads even then
are refused. Images that are turned or inverted by a tag are refused, too.

NPZ: a ZIP archive of NPY files, as `numpy.savez` writes it. The native decoder reads the NPY file, so types, shapes and
errors are those of NPY. Nothing is unpickled. The names decide which array is read, as for the channels of an EXR.
"""

from __future__ import annotations

import enum
import io
import json
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

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
_READ_AS = {"uint32": "int32", "int16": "uint16"}
"""The types that Pillow reads as others of the same bits: it has no uint32, and misreads big-endian int16."""


class _Tag(enum.IntEnum):
    """The tags that say where the samples of a page lie and what they mean, from TIFF 6.0 and libtiff."""

    NewSubfileType = 254
    ImageWidth = 256
    ImageLength = 257
    BitsPerSample = 258
    Compression = 259
    PhotometricInterpretation = 262
    FillOrder = 266
    ImageDescription = 270
    StripOffsets = 273
    Orientation = 274
    SamplesPerPixel = 277
    RowsPerStrip = 278
    StripByteCounts = 279
    Predictor = 317
    TileWidth = 322
    TileLength = 323
    TileOffsets = 324
    TileByteCounts = 325
    SampleFormat = 339
    ImageDepth = 32997


_TAGS = frozenset(_Tag)
_LISTS = (_Tag.StripOffsets, _Tag.StripByteCounts, _Tag.TileOffsets, _Tag.TileByteCounts)
"""The tags with one value for each strip or tile. The others have one value."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""The types of unsigned integers in TIFF and BigTIFF, with struct's letter."""
_ACCEPTED = {
    _Tag.SamplesPerPixel: ((1,), "one sample per pixel", "{} samples: is it colour?"),
    _Tag.ImageDepth: ((1,), "one page", "ImageDepth {}: save the page that holds the depth"),
    _Tag.PhotometricInterpretation: ((1,), "grey in which 0 is black", "PhotometricInterpretation {}"),
    _Tag.FillOrder: ((1,), "FillOrder 1", "FillOrder {}"),
    _Tag.Orientation: ((1, 0), "an upright image", "Orientation {}: turn its pixels"),  # 0 means unknown
    _Tag.NewSubfileType: ((0, 1, 2, 3), "an image", "NewSubfileType {}, a mask"),
}
"""The accepted values of some tags, their meaning, and words for another value.

The first value is the default. The standard has no default for PhotometricInterpretation. Without this tag, Pillow
inverts 8 bits, and other readers do not.
"""
_PREDICTED = (5, 8, 32946, 34925, 50000)
"""The compressions that have predictors: LZW, both numbers of Deflate, LZMA, Zstandard."""
_COMPRESSIONS = (1, 32773, *_PREDICTED)
"""The compressions that are read: none, PackBits and those. JPEG smooths edges, and a cut JPEG is filled with grey."""
_HEADER = 8
"""The bytes of a TIFF's header."""
_LONGEST = 2**31
"""The bytes of the longest TIFF that is read. Places have 32 bits, so there is room for tags behind it."""
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
    if dtype in _READ_AS:
        values = values.view(np.dtype(dtype).newbyteorder(values.dtype.byteorder))
    return np.ascontiguousarray(values, np.float32)


@contextmanager
def _open_tiff(data: bytes, name: str, limits: _depth.Limits) -> Iterator[tuple[Image.Image, str]]:
    """Check the tags of a TIFF and open it. Yields the image, which is not loaded yet, and the type of its samples.

    Errors of Pillow in the `with` block become DecodeErrors, too.
    """
    if len(data) > _LONGEST:
        raise _refusal(name, f"at most {_LONGEST} bytes", str(len(data)))
    page = _read_page(data, name)
    dtype = _check_kind(page, name)
    told = np.dtype(_READ_AS.get(dtype, dtype))
    checked = {
        _Tag.BitsPerSample: (8 * told.itemsize,),
        _Tag.PhotometricInterpretation: (1,),
        _Tag.SamplesPerPixel: (1,),
        _Tag.SampleFormat: ({"u": 1, "i": 2, "f": 3}[told.kind],),
        **_check_layout(page, told.itemsize, len(data), name, limits),
    }
    try:
        with Image.open(io.BytesIO(_with_page(data, page.order, checked)), formats=("TIFF",)) as image:
            yield image, dtype
    except _depth.DecodeError:
        raise
    except UnidentifiedImageError:
        raise _refusal(name, "a whole image of a kind that Pillow reads", "another") from None
    except Exception as error:  # OSError, SyntaxError, KeyError, struct.error and others, depending on the damage
        raise _refusal(name, "a whole image that Pillow reads", str(error)) from None


def _refusal(name: str, expected: str, found: str) -> _depth.DecodeError:
    return _depth.DecodeError(f"{name}: TIFF: expected {expected}, found {found}")


class _Page(NamedTuple):
    """The first directory of a TIFF."""

    order: str
    """The byte order, as struct's letter."""
    tags: dict[_Tag, tuple[int, ...]]
    description: bytes
    """The tag ImageDescription, which is the only one that holds text."""
    next: int
    """The place of the next directory, or 0."""

    def get(self, tag: _Tag, default: int) -> int:
        """Return the value of a tag, or the default if the tag is absent."""
        return self.tags[tag][0] if tag in self.tags else default


def _read_page(data: bytes, name: str) -> _Page:
    """Read the tags of the first page that are in `_Tag`. Raises DecodeError if the file ends before."""
    order = "<" if data[:2] == b"II" else ">"
    tags: dict[_Tag, tuple[int, ...]] = {}
    description = b""
    try:
        big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        # A directory is a count of entries, the entries, and the place of the next directory. An entry is a tag, a
        # type, a count, and the values, or their place if they need more bytes than a place has.
        count_type, word, entry, place = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
        (directory,) = struct.unpack_from(order + word, data, place)
        (count,) = struct.unpack_from(order + count_type, data, directory)
        first = directory + struct.calcsize(f"={count_type}")
        (next_,) = struct.unpack_from(order + word, data, first + entry * count)
        for at in range(first, first + entry * count, entry):
            number, type_, length = struct.unpack_from(f"{order}HH{word}", data, at)
            if number not in _TAGS:
                continue
            tag, is_text = _Tag(number), number == _Tag.ImageDescription
            letter = "s" if is_text else _NUMBERS.get(type_)
            if letter is None or length == 0:
                raise _refusal(name, f"unsigned integers in the tag {tag.name}", f"{length} values of type {type_}")
            values = at + entry - place
            if length * struct.calcsize(letter) > place:
                (values,) = struct.unpack_from(order + word, data, values)
            found = struct.unpack_from(f"{order}{length}{letter}", data, values)
            if is_text:
                (description,) = found
            elif tag not in _LISTS and len(set(found)) > 1:
                raise _refusal(name, f"one value of the tag {tag.name}", ", ".join(map(str, found[:9])))
            else:
                tags[tag] = found
    except (struct.error, OverflowError):  # a place or a size is beyond the file
        raise _refusal(name, "a whole directory of tags", f"one that ends behind the {len(data)} bytes") from None
    return _Page(order, tags, description, next_)


def _check_kind(page: _Page, name: str) -> str:
    """Return the NumPy type of the samples. Raises DecodeError for kinds that are no depth or that Pillow misreads."""
    for tag, (accepted, expected, found) in _ACCEPTED.items():
        if (value := page.get(tag, accepted[0])) not in accepted:
            raise _refusal(name, expected, found.format(value))
    bits, format_ = page.get(_Tag.BitsPerSample, 1), page.get(_Tag.SampleFormat, 1)
    dtype = _TIFF_TYPES.get((bits, format_))
    if dtype is None:
        kind = {1: "unsigned integers", 2: "signed integers", 3: "floats"}.get(format_, f"SampleFormat {format_}")
        raise _refusal(name, f"one of {', '.join(_TIFF_TYPES.values())}", f"{kind} of {bits} bits")
    compression, predictor = page.get(_Tag.Compression, 1), page.get(_Tag.Predictor, 1)
    if compression not in _COMPRESSIONS:
        expected = "no compression, or PackBits, LZW, Deflate, LZMA or Zstandard"
        raise _refusal(name, expected, {6: "JPEG", 7: "JPEG"}.get(compression, f"Compression {compression}"))
    if page.order == ">" and compression != 1 and bits > 16:
        raise _refusal(name, f"little-endian or uncompressed {dtype}", "big-endian compressed, which Pillow misreads")
    if predictor != 1 and compression not in _PREDICTED:
        raise _refusal(name, f"Predictor 1 with Compression {compression}", f"{predictor}: readers disagree about it")
    if page.next or _pages_of_one_directory(page) > 1:
        raise _refusal(name, "one page", "several: save the page that holds the depth")
    return dtype


def _pages_of_one_directory(page: _Page) -> int:
    """Return the number of pages that ImageJ and tifffile put behind one directory. Their description has it."""
    text = page.description
    try:
        if text.startswith(b"ImageJ=") and (images := re.search(rb"^images=(\d+)", text, re.MULTILINE)):
            return int(images[1])
        *pages, height, width = (n for n in json.loads(text.rstrip(b"\0"))["shape"] if n != 1)
        fits = (height, width) == (page.get(_Tag.ImageLength, 0), page.get(_Tag.ImageWidth, 0))
        return int(math.prod(pages)) if fits else 1
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return 1


def _check_layout(page: _Page, item: int, length: int, name: str, limits: _depth.Limits) -> dict[_Tag, tuple[int, ...]]:
    """Return the tags that say where the samples lie. Raises DecodeError if a strip or tile is not in the file.

    `item` is the size of a sample and `length` that of the file, in bytes.
    """
    width, height = page.get(_Tag.ImageWidth, 0), page.get(_Tag.ImageLength, 0)
    _check_size(width, height, item, name, limits)
    tiled = _Tag.TileOffsets in page.tags
    if tiled and _Tag.StripOffsets in page.tags:
        raise _refusal(name, "strips or tiles", "both")
    if tiled:
        block, places, counts = "tile", _Tag.TileOffsets, _Tag.TileByteCounts
        across, down = page.get(_Tag.TileWidth, 0), page.get(_Tag.TileLength, 0)
        size = {_Tag.TileWidth: (across,), _Tag.TileLength: (down,)}
    else:
        block, places, counts = "strip", _Tag.StripOffsets, _Tag.StripByteCounts
        across, down = width, min(page.get(_Tag.RowsPerStrip, height), height)
        size = {_Tag.RowsPerStrip: (down,)}
    _check_size(across, down, item, f"{name}: TIFF: {block}", limits)
    columns, rows = -(-width // across), -(-height // down)
    offsets = page.tags.get(places, ())
    if len(offsets) != columns * rows:
        raise _refusal(name, f"{columns * rows} values of {places.name}, one for each {block}", str(len(offsets)))
    last = across * item * (down if tiled else height - down * (rows - 1))  # the last strip may be shorter
    needed = [across * item * down] * (columns * rows - 1) + [last]
    raw = page.get(_Tag.Compression, 1) == 1
    lengths = page.tags.get(counts, needed if raw else ())
    if len(lengths) != len(offsets):
        raise _refusal(name, f"{len(offsets)} values of {counts.name}, one for each {block}", str(len(lengths)))
    for i, (offset, count, least) in enumerate(zip(offsets, lengths, needed, strict=True)):
        if offset == 0 or count == 0:
            raise _refusal(name, "samples everywhere", f"that {block} {i} is absent (a sparse file)")
        if raw and count < least:
            raise _refusal(name, f"{least} bytes in {block} {i}", str(count))
        if offset < _HEADER or offset + count > length:
            raise _refusal(name, f"{block} {i} in the file of {length} bytes", f"it at {offset} with {count} bytes")
    return {
        _Tag.ImageWidth: (width,),
        _Tag.ImageLength: (height,),
        _Tag.Compression: (page.get(_Tag.Compression, 1),),
        _Tag.Predictor: (page.get(_Tag.Predictor, 1),),
        places: tuple(offsets),
        counts: tuple(lengths),
        **size,
    }


def _with_page(data: bytes, order: str, tags: dict[_Tag, tuple[int, ...]]) -> bytes:
    """Return the file with these tags as its only page, which is written behind the samples."""
    at = len(data) + len(data) % 2
    behind = at + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        field = packed if len(numbers) == 1 else struct.pack(f"{order}I", behind + len(values))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + field
        values += packed if len(numbers) > 1 else b""
    header = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, at)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return b"".join((header, data[_HEADER:], bytes(at - len(data)), directory, values))


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
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required additional", UserWarning)
                shape, _, dtype = read(file)  # warns of a header by Python 2, which is read rightly
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
