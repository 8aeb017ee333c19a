"""Images to the bytes of files, of the kind that came in: JPEG or PNG; EXR, PNG, NPY, NPZ, PFM or TIFF.

Pillow and NumPy write them, except for the two formats in `deflated.py`. Values of the files are kept where the type
can hold them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import Bytes
from vologan_fast.translation.deflated import write_exr, write_png

JPEG_QUALITY = 95
"""The quality of a JPEG whose input has no quality of its own, such as one in grey. It has no chroma subsampling."""


@dataclass(frozen=True)
class ColorKind:
    """The kind of a colour file."""

    format: str
    """`JPEG` or `PNG`."""
    options: dict[str, Any]
    """Options of Pillow's encoder: ICC profile, EXIF, and the quality of a JPEG."""


def color_kind(image: Image.Image) -> ColorKind:
    """Return the kind of the file of an opened image."""
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
