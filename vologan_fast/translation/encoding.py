"""Images to the bytes of files, of the kind that came in: JPEG or PNG; EXR, PNG, NPY, NPZ, PFM or TIFF.

Public libraries write them: Pillow, NumPy and OpenEXR. Values of the files are kept where the type can hold them.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from vologan_fast.data.damage import PNG
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import Bytes

JPEG_QUALITY = 95
"""The quality of a JPEG whose input has no quality of its own, such as one in grey. It has no chroma subsampling."""


@dataclass(frozen=True)
class ColorKind:
    """The kind of a colour file."""

    format: str
    """`JPEG` or `PNG`."""
    options: dict[str, Any]
    """Options of Pillow's encoder: ICC profile, EXIF, and the quality of a JPEG."""


def read_color_kind(data: bytes) -> ColorKind:
    """Return the kind of a colour file. It can be read."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        options = {"exif": image.info["exif"]} if image.info.get("exif") else {}
        if image.info.get("icc_profile") and image.mode in ("RGB", "RGBA", "P"):  # not the profile of grey or CMYK
            options["icc_profile"] = image.info["icc_profile"]
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            # With the tables of the file, pixels that have not changed lose next to nothing a second time.
            tables = image.mode == "RGB" and JpegImagePlugin.get_sampling(image) >= 0
            if tables:
                options |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
            else:
                options |= {"quality": JPEG_QUALITY, "subsampling": 0}
            return ColorKind("JPEG", options)
        return ColorKind("PNG", options | {"compress_level": 1})


def write_color(file: BinaryIO, color: Bytes, kind: ColorKind) -> None:
    """Write colour (H, W, 3) to a file of this kind. With a file of the system, Pillow releases the GIL."""
    Image.fromarray(color).save(file, kind.format, **kind.options)


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
            _write_exr(file, depth, channel)
        case "png":
            if depth.dtype not in (np.uint8, np.uint16):
                raise DataError(f"PNG: expected depth of 8 or 16 bits, found {depth.dtype}")
            _write_png(file, depth)
        case "npy":
            np.save(file, depth)
        case "npz":
            np.savez_compressed(file, **{channel: depth})  # type: ignore[arg-type]
        case "tiff":
            Image.fromarray(depth).save(file, "TIFF", compression="tiff_deflate")
        case "pfm":
            file.write(f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode())
            file.write(np.ascontiguousarray(depth[::-1], "<f4").tobytes())
        case _:
            raise DataError(
                f"depth files of the format {format_} cannot be written; expected exr, png, npy, npz, pfm or tiff"
            )


def _write_png(file: BinaryIO, depth: np.ndarray[Any, Any]) -> None:
    """Write a grey PNG in which each row is the difference to the row above it.

    Pillow's encoder tries all filters, which takes twice the time, and holds the GIL meanwhile.
    """
    height, width = depth.shape
    rows = depth.astype(depth.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # the filter's number
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8 * depth.itemsize, 0, 0, 0, 0)
    file.write(PNG)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")):
        checksum = zlib.crc32(content, zlib.crc32(kind))
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))


def _write_exr(file: BinaryIO, depth: np.ndarray[Any, Any], channel: str) -> None:
    try:
        import OpenEXR
    except ImportError as error:
        raise DataError("writing EXR needs the OpenEXR library: pip install 'vologan-fast[exr]'") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {channel: np.ascontiguousarray(depth)}).write(file)
