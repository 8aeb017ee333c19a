"""Images to the bytes of files, of the kind that came in: JPEG or PNG; EXR, PNG, NPY, NPZ, PFM or TIFF.

Pillow writes colour, and NumPy NPY. Depth in EXR and PNG is written by `deflated.py`, and TIFF here, because Pillow
lacks some of its types. Values of the files are kept where the type can hold them.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from vologan_fast.config import DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import Bytes, metres_per_unit
from vologan_fast.translation.deflated import write_exr, write_png

JPEG_QUALITY = 95
"""The quality of a JPEG whose input has no quality of its own, such as one in grey. It has no chroma subsampling."""


_TIFF_TYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32")
"""The types of depth in TIFF that the project reads."""


@dataclass(frozen=True)
class ColorKind:
    """The kind of a colour file."""

    format: str
    """`JPEG` or `PNG`."""
    options: dict[str, Any]
    """Options of Pillow's encoder: ICC profile, EXIF, and the quality of a JPEG."""

    @property
    def suffix(self) -> str:
        """The suffix of a new file of this kind."""
        return f".{self.format.lower()}"


NEW_COLOR = ColorKind("PNG", {"compress_level": 1})
"""The kind of a colour file that is made of depth alone."""


@dataclass(frozen=True)
class DepthKind:
    """The kind of a depth file."""

    format: str
    """As `write_depth` takes it."""
    type: np.dtype[Any]
    channel: str = "Z"
    """Name of the channel of an EXR, or of the array of an NPZ."""

    @property
    def suffix(self) -> str:
        return f".{self.format}"


def new_depth(spec: DepthSpec) -> DepthKind:
    """Return the kind of a depth file that is made of colour alone, for the resolved settings of its domain.

    Floats are float32 EXR. Integers are 16-bit PNG if that holds near and far, else 32-bit TIFF.
    """
    if spec.values not in ("integer", "8-bit"):
        return DepthKind("exr", np.dtype(np.float32))
    assert spec.near is not None and spec.far is not None
    ends = [limit / metres_per_unit(spec) for limit in (spec.near, spec.far)]
    fits = min(ends) >= 0 and max(ends) <= np.iinfo(np.uint16).max
    return DepthKind("png", np.dtype(np.uint16)) if fits else DepthKind("tiff", np.dtype(np.int32))


def color_kind(image: Image.Image, grey: bool = False) -> ColorKind:
    """Return the kind of the file of an opened image, for colour or for a `grey` picture."""
    options = {"exif": image.info["exif"]} if image.info.get("exif") else {}
    modes = ("L", "LA") if grey else ("RGB", "RGBA", "P")
    if image.info.get("icc_profile") and image.mode in modes:  # a profile of grey is none of colour, nor of CMYK
        options["icc_profile"] = image.info["icc_profile"]
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # With the tables of the file, pixels that have not changed lose next to nothing a second time.
        tables = _tables(image)
        if grey:
            options |= {"qtables": tables[:1]} if image.mode in ("L", "RGB") and tables else {"quality": JPEG_QUALITY}
        elif image.mode == "RGB" and tables and JpegImagePlugin.get_sampling(image) >= 0:
            options |= {"qtables": tables, "subsampling": JpegImagePlugin.get_sampling(image)}
        else:
            options |= {"quality": JPEG_QUALITY, "subsampling": 0}
        return ColorKind("JPEG", options)
    return ColorKind("PNG", NEW_COLOR.options | options)


def _tables(image: JpegImagePlugin.JpegImageFile) -> list[Any]:
    """Return the quantisation table of each component. The last one is for all that follow. Empty if one is absent."""
    if any(table not in image.quantization for *_, table in image.layer):
        return []
    tables = [image.quantization[table] for *_, table in image.layer]
    while tables[1:] and tables[-1] == tables[-2]:
        del tables[-1]
    return tables


def write_color(file: BinaryIO, color: Bytes, kind: ColorKind) -> None:
    """Write colour (H, W, 3) or grey (H, W) to a file of this kind. With a file of the system, Pillow releases the GIL.

    (H, W, 4) means colour without the last byte of each pixel. Pillow writes this as JPEG without a copy.
    """
    if color.ndim == 2:
        image = Image.fromarray(color)
    elif color.shape[2] == 4 and kind.format == "JPEG":
        image = Image.frombuffer("RGBX", color.shape[1::-1], color, "raw", "RGBX", 0, 1)
    else:
        image = Image.fromarray(np.ascontiguousarray(color[..., :3]))
    image.save(file, kind.format, **kind.options)


def encode_depth(depth: np.ndarray[Any, Any], format_: str, channel: str = "Z") -> bytes:
    """Return the bytes that `write_depth` writes."""
    file = io.BytesIO()
    write_depth(file, depth, format_, channel)
    return file.getvalue()


def write_depth(file: BinaryIO, depth: np.ndarray[Any, Any], format_: str, channel: str = "Z") -> None:
    """Write depth (h, w), in file units and in the file's type, as `exr`, `png`, `npy`, `npz`, `pfm` or `tiff`.

    Raises DataError if the type does not exist in the format.
    """
    match format_:
        case "exr":
            if depth.dtype not in (np.float16, np.float32, np.uint32):
                raise DataError(f"EXR: expected depth of float16, float32 or uint32, found {depth.dtype}")
            write_exr(file, depth, channel)
        case "png":
            if depth.dtype not in (np.uint8, np.uint16):
                raise DataError(f"PNG: expected depth of 8 or 16 bits, found {depth.dtype}")
            write_png(file, depth)
        case "npy":
            np.save(file, depth)
        case "npz":
            _write_npz(file, depth, channel)
        case "tiff":
            if depth.dtype not in _TIFF_TYPES:
                raise DataError(f"TIFF: expected depth of {', '.join(_TIFF_TYPES)}, found {depth.dtype}")
            _write_tiff(file, depth)
        case "pfm":
            file.write(f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode())
            file.write(np.ascontiguousarray(depth[::-1], "<f4").tobytes())
        case _:
            raise DataError(
                f"depth files of the format {format_} cannot be written; expected exr, png, npy, npz, pfm or tiff"
            )


def _write_npz(file: BinaryIO, depth: np.ndarray[Any, Any], channel: str) -> None:
    """Write one array of any name. `np.savez` takes names as Python's arguments, so some cannot be used."""
    with zipfile.ZipFile(file, "w") as archive:
        array = zipfile.ZipInfo(f"{channel}.npy")  # of 1980, so that the same depth gives the same bytes
        array.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(array, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, depth, allow_pickle=False)


def _write_tiff(file: BinaryIO, depth: np.ndarray[Any, Any]) -> None:
    """Write a little-endian TIFF 6.0 of one strip, packed by deflate."""
    height, width = depth.shape
    packed = zlib.compress(np.ascontiguousarray(depth, depth.dtype.newbyteorder("<")).data, 1)
    start = 8  # bytes of the header
    tags = {
        256: width,
        257: height,
        258: 8 * depth.itemsize,  # BitsPerSample
        259: 8,  # Compression: deflate
        262: 1,  # PhotometricInterpretation: 0 is black
        273: start,  # StripOffsets
        277: 1,  # SamplesPerPixel
        278: height,  # RowsPerStrip
        279: len(packed),  # StripByteCounts
        339: {"u": 1, "i": 2, "f": 3}[depth.dtype.kind],  # SampleFormat
    }
    padding = bytes(len(packed) % 2)  # the directory begins at an even place
    file.write(struct.pack("<2sHI", b"II", 42, start + len(packed) + len(padding)) + packed + padding)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())  # 4: 32 bits
    file.write(struct.pack("<H", len(tags)) + entries + bytes(4))
