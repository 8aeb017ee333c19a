"""Finds colour files that are not whole, although Pillow reads them without an error.

Pillow leaves the lines black that a PNG lacks. It decodes what lies behind a cut JPEG, such as the zeros of a download
that was not finished.
"""

from __future__ import annotations

import math
import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""The samples per pixel of each colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The first column and row of each pass of an interlaced image, and the steps to the next ones."""
_PIECE = 1 << 16
"""The compressed bytes that are unpacked at a time, so that little memory is used."""


def find_png_damage(data: bytes, ends_black: bool) -> str:
    """Return what is wrong with the bytes of a PNG that Pillow has decoded, in words, or "" if it is whole.

    The chunks must reach to IEND. Those that a reader needs must have their checksums. If the last line `ends_black`
    in the decoded image, or if lines are interlaced, all data is unpacked again to count the lines. Else the last line
    is there, and so are the others before it.
    """
    at, header, packed = len(PNG), b"", []
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(data):
            return "it ends before IEND"
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return f"it ends inside of {_name(kind)}"
        if kind[0] < ord("a"):  # a chunk that a reader needs
            if kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
                return f"it needs an extension, {_name(kind)}"
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                return f"the checksum of {_name(kind)} is wrong"
        if kind == b"IHDR":
            header = data[at + 8 : end - 4]
        if kind == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        at = end
    if len(header) != 13:
        return "its header is broken"
    if not ends_black and not header[12]:
        return ""
    expected, found = _unpacked_size(header), 0
    stream, unpack = b"".join(packed), zlib.decompressobj()
    try:
        for first in range(0, len(stream), _PIECE):
            found += len(unpack.decompress(stream[first : first + _PIECE]))
    except zlib.error as error:
        return f"its lines cannot be unpacked: {error}"
    return f"it has {found} of {expected} bytes of its lines" if found < expected else ""


def _name(kind: bytes) -> str:
    return f"the chunk {kind.decode('latin-1')!r}"


def _unpacked_size(header: bytes) -> int:
    """Return the bytes of all lines of an image. Each line has one byte for its filter."""
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits *= _SAMPLES.get(color, 1)
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
        if columns > 0:
            total += rows * (1 + math.ceil(columns * bits / 8))
    return total


def find_jpeg_damage(data: bytes) -> str:
    """Return what is wrong with the bytes of a JPEG that Pillow has decoded, in words, or "" if nothing is.

    There must be an end marker behind the first scan. The preview in a header has one, too, and does not count.
    `refused_color` of csrc/batch/color_kind.cpp does the same for DALI.
    """
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:
            return "" if data.rfind(b"\xff\xd9", at) >= 0 else "it ends before its end marker"
        if marker == 0xFF:  # a byte that fills
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return ""  # Pillow found another scan, or none
