"""Colour files of every kind, for tests that compare the loaders."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import picture
from PIL import Image, ImageCms, ImageDraw

EncodeJpeg = Callable[..., bytes]
"""encode(image, source, kind, flags="J", restart=0, factors="") encodes with jpeg_encoder.cpp, which explains them."""


def textured(seed: int, height: int, width: int) -> Image.Image:
    """Return an image with sharp edges, which are different in each colour plane."""
    image = Image.fromarray(picture(seed, height, width))
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(seed)
    for _ in range(20):
        x, y = rng.integers(0, width), rng.integers(0, height)
        draw.line((x, y, x + 9, y + 5), fill=tuple(rng.integers(0, 256, 3).tolist()), width=1)
    return image


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def jpegs(encode: EncodeJpeg, size: int) -> dict[str, bytes]:
    """Return JPEGs of `size` by `size` pixels that all loaders read."""
    image = textured(1, size, size)
    grey, cmyk = image.convert("L"), image.convert("CMYK")
    files = {"grey": encode(grey, "grey", "grey"), "grey, factors 2": encode(grey, "grey", "grey", factors="22")}
    for flags in ("", "J", "A", "JA", "Jp", "Ja", "Jpa"):
        for kind, factors in (("ycc", "111111"), ("ycc", "221111"), ("rgb", "111111"), ("rgb", "221111")):
            files[f"{kind} {factors} {flags}"] = encode(image, "rgb", kind, flags, factors=factors)
    for flags in ("A", "Ap", "Aa"):
        for kind, factors in (("cmyk", "11111111"), ("ycck", "11111111"), ("ycck", "22111122")):
            files[f"{kind} {factors} {flags}"] = encode(cmyk, "cmyk", kind, flags, factors=factors)
    for factors in ("211111", "121111", "411111", "141111", "311111", "212111", "112121", "221211", "111212"):
        for flags in ("J", "Jp"):
            files[f"ycc {factors} {flags}"] = encode(image, "rgb", "ycc", flags, factors=factors)
    for restart in (1, 3, 8):
        files[f"restart {restart}"] = encode(image, "rgb", "ycc", "J", restart, "221111")
    for marker in ("", "J", "A"):
        plain = encode(image, "rgb", "ycc", marker)
        for ids in ((82, 71, 66), (0, 1, 2), (1, 34, 35), (9, 8, 7), (114, 103, 98)):
            files[f"ycc {marker} ids {ids}"] = with_ids(plain, ids)
    for transform in range(4):
        for kind, samples, flags in (("ycc", image, "A"), ("ycc", image, "JA"), ("cmyk", cmyk, "A")):
            source = "cmyk" if kind == "cmyk" else "rgb"
            file = bytearray(encode(samples, source, kind, flags))
            file[file.index(b"Adobe") + 11] = transform
            files[f"{kind} {flags} transform {transform}"] = bytes(file)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"orientation {orientation}"] = saved(image, "JPEG", exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    files["colour profile"] = saved(image, "JPEG", icc_profile=profile)
    files["several pictures"] = saved(image, "MPO", save_all=True, append_images=[textured(2, size, size)])
    plain = encode(image, "rgb", "ycc", "J", factors="221111")
    files["bytes behind"] = plain + b"behind" * 9
    files["another JPEG behind"] = plain + files["grey"]
    files["filling bytes"] = plain[:2] + b"\xff\xff\xff" + plain[2:]
    files["comment"] = plain[:2] + b"\xff\xfe\x00\x07hello" + plain[2:]
    files["quality 1"] = saved(image, "JPEG", quality=1)
    return files


def with_ids(file: bytes, ids: tuple[int, ...]) -> bytes:
    """Replace the numbers of a baseline JPEG's components, which name a colour space in some files."""
    changed = bytearray(file)
    frame, scan = file.index(b"\xff\xc0"), file.index(b"\xff\xda")
    for k, number in enumerate(ids):
        changed[frame + 10 + 3 * k] = changed[scan + 5 + 2 * k] = number
    return bytes(changed)


_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    pixels: np.ndarray,
    bits: int,
    colour: int,
    interlaced: bool,
    extra: bytes = b"",
    behind: bytes = b"",
    lacking: int = 0,
) -> bytes:
    """Write a PNG of (H, W, samples). Samples of fewer than 8 bits are packed.

    `lacking` bytes of the lines are left out, from the end. The compressed stream is whole.
    """
    height, width = pixels.shape[:2]
    lines = b""
    for x, y, across, down in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
        for row in pixels[y::down, x::across]:
            if bits == 16:
                line = row.astype(">u2").tobytes()
            else:
                split = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
                line = np.packbits(split).tobytes()
            lines += b"\0" + line if line else b""
    head = struct.pack(">2I5B", width, height, bits, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(lines[: len(lines) - lacking]) + behind)
        + chunk(b"IEND", b"")
    )


def pngs(size: int) -> dict[str, bytes]:
    """Return PNGs of `size` by `size` pixels that all loaders read. Names of 16-bit ones begin with "16"."""
    rng = np.random.default_rng(0)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    kinds = [(0, bits) for bits in (1, 2, 4, 8, 16)] + [(3, bits) for bits in (1, 2, 4, 8)]
    kinds += [(colour, bits) for colour in (2, 4, 6) for bits in (8, 16)]
    files = {}
    for colour, bits in kinds:
        pixels = rng.integers(0, 2**bits, (size, size, samples[colour]), np.uint16)
        palette = chunk(b"PLTE", rng.bytes(3 * 2**bits)) if colour == 3 else b""
        first = b"".join(struct.pack(">H", value) for value in pixels[0, 0].tolist())
        extras = {
            "": b"",
            "gAMA": chunk(b"gAMA", struct.pack(">I", 20000)),
            "sRGB": chunk(b"sRGB", b"\0"),
            "cHRM": chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000)),
            "sBIT": chunk(b"sBIT", bytes([1]) * (3 if colour == 3 else samples[colour])),
            "eXIf": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        }
        behind = {"bKGD": chunk(b"bKGD", b"\0" if colour == 3 else bytes(2 if colour in (0, 4) else 6))}
        if colour in (0, 2, 3):
            behind["tRNS"] = chunk(b"tRNS", bytes(range(2**bits)) if colour == 3 else first)
        for interlaced in (False, True):
            for name, extra in extras.items():
                files[f"{bits} bits, colour {colour}, {interlaced}, {name}"] = png(
                    pixels, bits, colour, interlaced, extra + palette
                )
            for name, extra in behind.items():
                files[f"{bits} bits, colour {colour}, {interlaced}, {name}"] = png(
                    pixels, bits, colour, interlaced, palette + extra
                )
    pixels = np.asarray(textured(1, size, size))
    files["bytes behind the stream"] = png(pixels, 8, 2, False, behind=b"xx")
    files["bytes behind the file"] = png(pixels, 8, 2, False) + b"xx"
    files["animated"] = saved(textured(1, size, size), "PNG", save_all=True, append_images=[textured(2, size, size)])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files["colour profile PNG"] = saved(textured(1, size, size), "PNG", icc_profile=profile)
    return files


def pngs_that_are_not_whole(size: int) -> dict[str, tuple[bytes, str]]:
    """Return PNGs that Pillow reads without an error, or nearly all, each with words of the error.

    The lines of most kinds end early, although their stream and the file are whole.
    """
    rng = np.random.default_rng(0)
    files = {}
    for colour, bits, samples in ((0, 1, 1), (0, 16, 1), (2, 8, 3), (2, 16, 3), (3, 4, 1), (4, 8, 2), (6, 8, 4)):
        palette = chunk(b"PLTE", rng.bytes(3 * 2**bits)) if colour == 3 else b""
        for black, interlaced, lacking in itertools.product((False, True), (False, True), (1, size, 1 + size // 8)):
            pixels = rng.integers(0, 2**bits, (size, size, samples), np.uint16) * (not black)
            name = f"PNG, {bits} bits, colour {colour}, {black}, {interlaced}, {lacking} bytes of lines lack"
            files[name] = (
                png(pixels, bits, colour, interlaced, palette, lacking=lacking),
                "(bytes of its lines|truncated)",
            )
    plain = saved(textured(1, size, size), "PNG")
    data = plain.index(b"IDAT") + 4
    end = data + int.from_bytes(plain[data - 8 : data - 4], "big")
    files["PNG without IEND"] = plain[:-12], "it ends before IEND"
    files["PNG, IEND cut"] = plain[:-2], "it ends before IEND"
    files["PNG, wrong checksum"] = plain[:end] + b"abcd" + plain[end + 4 :], "the checksum of the chunk 'IDAT' is wrong"
    files["PNG of Apple"] = plain[:8] + chunk(b"CgBI", bytes(4)) + plain[8:], "an extension, the chunk 'CgBI'"
    return files


def refused(encode: EncodeJpeg, size: int) -> dict[str, tuple[bytes, str]]:
    """Return colour files that no loader reads, each with words of the error."""
    image = textured(1, size, size)
    cmyk, plain, png_ = image.convert("CMYK"), saved(image, "JPEG", quality=90), saved(image, "PNG")
    broken = bytearray(png_)
    broken[-40] ^= 1
    files = {f"{k} without a marker": encode(cmyk, "cmyk", k, "") for k in ("cmyk", "ycck")}
    files |= {"progressive without a marker": encode(cmyk, "cmyk", "cmyk", "p")}
    kinds = {name: (file, "a CMYK JPEG without Adobe's marker") for name, file in files.items()}
    for format_ in ("WEBP", "BMP", "TIFF", "JPEG2000", "GIF", "PPM"):
        kinds[format_] = saved(image, format_), "not a JPEG or PNG image"
    for cut in (2, 10, 300):
        kinds[f"JPEG, cut by {cut}"] = plain[:-cut], "cannot be decoded"
    kinds["progressive JPEG, cut"] = saved(image, "JPEG", progressive=True)[:-200], "cannot be decoded"
    kinds["PNG, cut"] = png_[:-500], "cannot be decoded"
    kinds["PNG, broken"] = bytes(broken), "cannot be decoded"
    kinds |= {
        name: (file, f"cannot be decoded: .*{said}") for name, (file, said) in pngs_that_are_not_whole(size).items()
    }
    kinds["empty"] = b"", "not a JPEG or PNG image"
    kinds["headers alone"] = plain[:30], "cannot be decoded"
    return kinds
