"""Depth files written by hand, byte by byte, so that tests can write files that no library writes.

Nothing here is shared with the decoder: the layouts follow the formats' specifications, in plain Python.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COMPRESSIONS = {"none": 0, "rle": 1, "zips": 2, "zip": 3, "piz": 4}
_EXR_TYPES = {"uint32": 0, "float16": 1, "float32": 2}


@dataclass
class Exr:
    """An EXR file in parts that a test can bend before `bytes()` puts them together."""

    planes: dict[str, np.ndarray]
    compression: str = "zip"
    origin: tuple[int, int] = (0, 0)
    line_order: int = 0
    sampling: dict[str, tuple[int, int]] = field(default_factory=dict)
    version: int = 2
    attributes: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Added to the header, or in place of the attribute of the same name."""
    channel_list: bytes | None = None

    def window(self) -> tuple[int, int, int, int]:
        full = next(p for n, p in self.planes.items() if self.sampling.get(n, (1, 1)) == (1, 1))
        (x, y), (height, width) = self.origin, full.shape
        return x, y, x + width - 1, y + height - 1

    def header(self) -> bytes:
        channels = self.channel_list
        if channels is None:
            channels = b"".join(
                exr_channel(name, _EXR_TYPES[plane.dtype.name], self.sampling.get(name, (1, 1)))
                for name, plane in sorted(self.planes.items())
            )
        window = struct.pack("<4i", *self.window())
        attributes = {
            "channels": ("chlist", channels + b"\0"),
            "compression": ("compression", bytes([COMPRESSIONS[self.compression]])),
            "dataWindow": ("box2i", window),
            "displayWindow": ("box2i", window),
            "lineOrder": ("lineOrder", bytes([self.line_order])),
            "pixelAspectRatio": ("float", struct.pack("<f", 1)),
            "screenWindowCenter": ("v2f", struct.pack("<2f", 0, 0)),
            "screenWindowWidth": ("float", struct.pack("<f", 1)),
            **self.attributes,
        }
        return (
            b"\x76\x2f\x31\x01"
            + struct.pack("<I", self.version)
            + b"".join(exr_attribute(name, type_, value) for name, (type_, value) in attributes.items())
            + b"\0"
        )

    def chunks(self) -> list[tuple[int, bytes]]:
        """Return the first line and the stored bytes of each chunk, from top to bottom."""
        _, first, _, last = self.window()
        lines = 16 if self.compression == "zip" else 1
        chunks = []
        for y in range(first, last + 1, lines):
            raw = b"".join(self._line(v) for v in range(y, min(y + lines, last + 1)))
            packed = {"none": bytes, "rle": rle, "zips": zip_, "zip": zip_}[self.compression](raw)
            chunks.append((y, packed if len(packed) < len(raw) else raw))
        return chunks

    def _line(self, y: int) -> bytes:
        line = b""
        for name, plane in sorted(self.planes.items()):
            step = self.sampling.get(name, (1, 1))[1]
            if y % step == 0:
                line += plane[(y - self.origin[1]) // step].tobytes()
        return line

    def bytes(self, order: Sequence[int] | None = None, chunks: Iterable[tuple[int, bytes]] | None = None) -> bytes:
        """Return the file. Its chunks lie in the file in the `order` of their indices."""
        header = self.header()
        chunks = list(self.chunks() if chunks is None else chunks)
        offsets, body = [0] * len(chunks), b""
        for i in range(len(chunks)) if order is None else order:
            offsets[i] = len(header) + 8 * len(chunks) + len(body)
            y, packed = chunks[i]
            body += struct.pack("<2i", y, len(packed)) + packed
        return header + struct.pack(f"<{len(chunks)}Q", *offsets) + body

    def offset_table(self) -> int:
        """Return the position in the file where the offsets begin."""
        return len(self.header())


def exr_attribute(name: str, type_: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + type_.encode() + b"\0" + struct.pack("<i", len(value)) + value


def exr_channel(name: str, type_: int, sampling: tuple[int, int] = (1, 1)) -> bytes:
    return name.encode() + b"\0" + struct.pack("<iB3x2i", type_, 0, *sampling)


def predicted(raw: bytes) -> bytes:
    """Put bytes of even index before those of odd index, then take differences to the byte before, plus 128."""
    split = np.frombuffer(raw[0::2] + raw[1::2], np.uint8).astype(int)
    return bytes([split[0], *(np.diff(split) + 128) % 256])


def zip_(raw: bytes) -> bytes:
    return zlib.compress(predicted(raw))


class DeflateBits:
    """A deflate stream, bit by bit."""

    def __init__(self) -> None:
        self.bits = ""

    def number(self, value: int, count: int) -> DeflateBits:
        self.bits += f"{value:0{count}b}"[::-1]
        return self

    def code(self, bits: str) -> DeflateBits:
        self.bits += bits
        return self

    def stream(self, inflated: bytes) -> bytes:
        """Return the zlib stream."""
        bits = self.bits + "0" * (-len(self.bits) % 8)
        blocks = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
        return b"\x78\x9c" + blocks + zlib.adler32(inflated).to_bytes(4, "big")


def fixed_code(symbol: int) -> str:
    """Return the code of a literal or length in a block of fixed codes."""
    if symbol < 144:
        return f"{0x30 + symbol:08b}"
    if symbol < 256:
        return f"{0x190 + symbol - 144:09b}"
    return f"{symbol - 256:07b}" if symbol < 280 else f"{0xC0 + symbol - 280:08b}"


_LENGTH_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]


def one_literal_stream(raw: bytes) -> bytes:
    """Return a dynamic block that repeats one literal.

    It has 288 and 32 code lengths, codes of 1 bit, and no code for distances.
    """
    (literal,) = set(raw)
    assert literal in range(11, 107)
    bits = DeflateBits().number(1, 1).number(2, 2).number(31, 5).number(31, 5).number(15, 4)
    for symbol in _LENGTH_ORDER:
        bits.number(1 if symbol in (1, 18) else 0, 3)  # the length 1 is written as "0", zeros as "1"
    for zeros in (literal, None, 138, 255 - literal - 138, None, 63):
        bits.code("0") if zeros is None else bits.code("1").number(zeros - 11, 7)
    for _ in raw:
        bits.code("0")
    return bits.code("1").stream(raw)


def one_distance_stream(literal: int, matches: int, bit: str = "0") -> tuple[bytes, bytes]:
    """Return a dynamic block of one byte and matches, and the bytes that it inflates to.

    The only distance is 1, and its code is `bit`.
    """
    assert literal in range(11, 107)
    bits = DeflateBits().number(1, 1).number(2, 2).number(29, 5).number(0, 5).number(15, 4)
    for symbol in _LENGTH_ORDER:
        bits.number({18: 1, 1: 2, 2: 2}.get(symbol, 0), 3)  # zeros are written as "0", 1 as "10", 2 as "11"
    for zeros in (literal, 2, 138, 255 - literal - 138, 2, 28, 1, 1):
        bits.code({1: "10", 2: "11"}[zeros]) if zeros <= 2 else bits.code("0").number(zeros - 11, 7)
    bits.code("10")
    for _ in range(matches):
        bits.code("0" + bit)
    raw = bytes([literal]) * (1 + 258 * matches + 3)
    for _ in range(3):
        bits.code("10")
    return bits.code("11").stream(raw), raw


def rle(raw: bytes) -> bytes:
    """Encode runs of three or more bytes as (n − 1, byte), and all other bytes as (−n, bytes)."""
    data, out, literal, i = predicted(raw), b"", b"", 0

    def flush(literal: bytes) -> bytes:
        parts = (literal[k : k + 127] for k in range(0, len(literal), 127))
        return b"".join(bytes([256 - len(part)]) + part for part in parts)

    while i < len(data):
        end = i
        while end < len(data) and data[end] == data[i] and end - i < 128:
            end += 1
        if end - i >= 3:
            out, literal = out + flush(literal) + bytes([end - i - 1, data[i]]), b""
        else:
            literal += data[i:end]
        i = end
    return out + flush(literal)


def png_chunk(type_: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + type_ + data + struct.pack(">I", zlib.crc32(type_ + data))


PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""The colour type of pixels with 1 to 4 samples."""
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""The first column and row of each pass of an interlaced PNG, and its steps across and down."""


def png(
    image: np.ndarray,
    filters: int | Sequence[int] = 0,
    *,
    pieces: int = 1,
    extra: bytes = b"",
    behind: bytes = b"",
    interlaced: bool = False,
    **ihdr: Any,
) -> bytes:
    """Return a PNG of (H, W), or of (H, W, samples), whose line y is filtered by `filters[y]`.

    Its stream, with the bytes `behind` it, is cut into `pieces` IDAT chunks. `extra` stands before IDAT. `ihdr`
    replaces `bits`, `colour`, `interlace`, `width` or `height` in the header.
    """
    if image.ndim == 2:
        image = image[..., None]
    height, width, samples = image.shape
    step = image.dtype.itemsize * samples
    stream = b""
    for x, y, across, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = image[y::down, x::across].astype(image.dtype.newbyteorder(">"))
        if not part.size:
            continue
        lines = np.frombuffer(part.tobytes(), np.uint8).reshape(len(part), -1)
        above = np.zeros_like(lines[0])
        for i, line in enumerate(lines):
            kind = filters if isinstance(filters, int) else filters[i % len(filters)]
            stream += bytes([kind]) + _png_filter(kind, line, above, step)
            above = line
    packed = zlib.compress(stream) + behind
    cuts = [len(packed) * i // pieces for i in range(pieces + 1)]
    fields = {"width": width, "height": height, "bits": 8 * image.dtype.itemsize, "colour": PNG_COLOURS[samples]}
    fields |= {"interlace": int(interlaced), **ihdr}
    head = struct.pack(">2I5B", *(fields[k] for k in ("width", "height", "bits", "colour")), 0, 0, fields["interlace"])
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + b"".join(png_chunk(b"IDAT", packed[a:b]) for a, b in itertools.pairwise(cuts))
        + png_chunk(b"IEND", b"")
    )


def _png_filter(kind: int, line: np.ndarray, above: np.ndarray, step: int) -> bytes:
    x, b = line.astype(int), above.astype(int)
    a = np.concatenate([np.zeros(step, int), x[:-step]])
    c = np.concatenate([np.zeros(step, int), b[:-step]])
    p = a + b - c
    near_a, near_b, near_c = abs(p - a), abs(p - b), abs(p - c)
    paeth = np.where((near_a <= near_b) & (near_a <= near_c), a, np.where(near_b <= near_c, b, c))
    prediction = [0 * x, a, b, (a + b) // 2, paeth][kind]
    return ((x - prediction) % 256).astype(np.uint8).tobytes()


def pfm(image: np.ndarray, scale: str = "-1.0", kind: str = "Pf") -> bytes:
    order = ">" if float(scale) > 0 else "<"
    return f"{kind}\n{image.shape[1]} {image.shape[0]}\n{scale}\n".encode() + image[::-1].astype(f"{order}f4").tobytes()
