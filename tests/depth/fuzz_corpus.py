"""Writes the files that csrc/depth/fuzz.cpp begins from: `python tests/depth/fuzz_corpus.py FOLDER`.

There is a file of every kind that is read natively. Each is as small as it can be with more than one chunk, line or
filter, because a few mutated bytes then reach more of the decoder. The files are the same every time, about 50 KB in
all.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from depth_images import depth_image
from depth_writers import Exr, pfm, png

EXR_TYPES = ("float16", "float32", "uint32")


def corpus() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file."""
    for compression in ("none", "rle", "zips", "zip"):
        height, width = (18, 16) if compression == "zip" else (4, 48)  # enough for a chunk to become smaller
        for dtype in EXR_TYPES:
            planes = {"Z": depth_image(height, width, dtype)}
            yield f"{compression}-{dtype}.exr", Exr(planes, compression).bytes()
        mixed = {name: depth_image(height, width, dtype) for name, dtype in zip("ABZ", EXR_TYPES, strict=True)}
        yield f"{compression}-channels.exr", Exr(mixed, compression, origin=(-3, 5)).bytes()
    noise = np.random.default_rng(0).choice(40, (16, 600)).astype(np.float16)
    yield "zip-long.exr", Exr({"Y": noise}, "zip").bytes()  # enough literals to be looked up two by two
    backwards = Exr({"Y": depth_image(34, 3, "float16")}, "zip", line_order=1)
    yield "zip-decreasing.exr", backwards.bytes(order=range(2, -1, -1))
    sampled = {"Z": depth_image(16, 6, "float16"), "BY": depth_image(8, 3, "float16")}
    yield "zip-subsampled.exr", Exr(sampled, "zip", sampling={"BY": (2, 2)}).bytes()
    grey = depth_image(16, 6, "float16")
    yield "zip-grey.exr", Exr({"R": grey, "G": grey, "B": grey, "A": grey[::-1]}, "zip").bytes()
    named = {name: depth_image(4, 3, "float16") for name in ("Color.R", "Depth.V", "Normal.X", "Normal.Y", "Normal.Z")}
    header = {
        "displayWindow": ("box2i", struct.pack("<4i", -2, 1, 5, 9)),
        "name": ("string", b"view layer"),
        "type": ("string", b"scanlineimage"),
    }
    yield "none-layers.exr", Exr(named, "none", attributes=header).bytes()
    for dtype in ("uint8", "uint16"):
        image = depth_image(10, 37, dtype)  # wider than one SIMD register
        for kind in range(5):
            yield f"filter{kind}-{dtype}.png", png(image, kind)
        yield f"filters-{dtype}.png", png(image, [y % 5 for y in range(10)], pieces=3)
        yield f"interlaced-{dtype}.png", png(image, [y % 5 for y in range(10)], interlaced=True)
        for samples in (2, 3, 4):
            pixels = np.repeat(image[..., None], samples, axis=2)
            pixels[..., 3 if samples > 2 else 1 :] = 7  # alpha
            yield f"samples{samples}-{dtype}.png", png(pixels, 4, behind=b"behind")
    ramp = np.arange(35.0).reshape(5, 7)
    for dtype in ("<f2", ">f4", "<f8", "|u1", ">u2", "<u4", "<u8", "|i1", ">i2", "<i4", "<i8"):
        yield f"{dtype[1:]}.npy", npy(ramp.astype(dtype))
    yield "fortran.npy", npy(np.asfortranarray(depth_image(5, 7)))
    yield "little.pfm", pfm(depth_image(5, 7))
    yield "big.pfm", pfm(depth_image(5, 7), "1.0")
    yield "colour.pfm", b"PF\r\n# grey\r\n7 5\r\n-1 \r\n" + np.repeat(depth_image(5, 7), 3).tobytes()


def npy(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in corpus():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
