"""PNG: the values that Pillow and OpenCV read, for every filter, and a clear error for kinds that are no depth."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import png, png_chunk
from PIL import Image

from vologan_fast import depth


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("filter_", [0, 1, 2, 3, 4, "each in turn"])
def test_every_filter_equals_pillow(dtype: str, filter_: int | str) -> None:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (23, 37), endpoint=True).astype(dtype)
    for image in (noise, depth_image(23, 37, dtype), depth_image(5, 1, dtype), depth_image(1, 5, dtype)):
        filters = filter_ if isinstance(filter_, int) else [y % 5 for y in range(len(image))]
        file = png(image, filters)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), image)
        assert_same_bits(depth.decode(file), image.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_files_of_pillow_and_opencv(dtype: str) -> None:
    cv2 = pytest.importorskip("cv2")
    image = depth_image(480, 641, dtype)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    for file in (stream.getvalue(), cv2.imencode(".png", image)[1].tobytes()):
        assert_same_bits(depth.decode(file), image.astype(np.float32))


def test_probe_says_what_it_is() -> None:
    info = depth.probe(png(depth_image(6, 7, "uint16")))
    assert (info.format, info.compression, info.width, info.height) == ("png", "deflate", 7, 6)
    assert info.channels == (depth.Channel("Y", "uint16"),)
    assert info.decoder == "native"


def test_stream_in_many_idat_chunks_and_optional_chunks_between() -> None:
    image = depth_image(40, 50, "uint16")
    extra = png_chunk(b"tEXt", b"unit\0millimetres") + png_chunk(b"tRNS", b"\0\0")
    assert_same_bits(depth.decode(png(image, 4, pieces=17, extra=extra)), image.astype(np.float32))


@pytest.mark.parametrize(("mode", "found"), [("RGB", "8-bit RGB"), ("RGBA", "8-bit RGB with alpha")])
def test_colour_is_refused_with_its_kind(tmp_path: Path, mode: str, found: str) -> None:
    path = tmp_path / "colour.png"
    Image.new(mode, (8, 8)).save(path)
    with pytest.raises(depth.DecodeError, match=rf"colour\.png: IHDR: expected a grey PNG .* found {found}"):
        depth.decode(path)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ({"bits": 4}, "4-bit grey"),
        ({"bits": 1}, "1-bit grey"),
        ({"colour": 3}, "8-bit palette"),
        ({"colour": 4}, "8-bit grey with alpha"),
        ({"colour": 9}, "8-bit unknown"),
        ({"interlace": 1}, "8-bit grey, interlaced"),
        ({"width": 0}, "0 × 4"),
        ({"height": 2**31 - 1}, f"4 × {2**31 - 1}"),
    ],
)
def test_other_headers_are_refused(header: dict[str, int], found: str) -> None:
    with pytest.raises(depth.DecodeError, match=f"IHDR: expected .*, found {found}"):
        depth.decode(png(depth_image(4, 4, "uint8"), **header))


def test_every_flipped_bit_is_noticed() -> None:
    file = png(depth_image(4, 5, "uint16"), 4, extra=png_chunk(b"gAMA", b"\0\0\0\0"))
    for position in range(len(file)):
        for bit in range(8):
            broken = bytearray(file)
            broken[position] ^= 1 << bit
            with pytest.raises(depth.DecodeError):
                depth.decode(broken)


def test_stream_of_another_length_is_refused() -> None:
    image = depth_image(6, 5, "uint16")
    for height, found in [(7, "a stream that ends early"), (5, "a stream that goes on")]:
        with pytest.raises(depth.DecodeError, match=f"IDAT: expected zlib data of {height * 11} bytes, found {found}"):
            depth.decode(png(image, height=height))


def test_unknown_filter_names_the_line() -> None:
    stream = zlib.compress(b"\0\1\2" + b"\5\3\4")
    file = png(np.zeros((2, 2), np.uint8))
    before, after = file[:33], file[-12:]
    with pytest.raises(depth.DecodeError, match="IDAT, line 1: expected a filter from 0 to 4, found 5"):
        depth.decode(before + png_chunk(b"IDAT", stream) + after)


def test_order_of_chunks_is_checked() -> None:
    file = png(depth_image(4, 4, "uint8"), pieces=2)
    signature, ihdr, idat, end = file[:8], file[8:33], file[33:-12], file[-12:]
    first_size = int.from_bytes(idat[:4], "big") + 12
    text = png_chunk(b"tEXt", b"a\0b")
    for broken, message in [
        (signature + idat + end, "first chunk: expected IHDR"),
        (signature + ihdr + end, "IDAT: expected zlib data of 20 bytes"),
        (signature + ihdr + idat, "chunk: expected 8 bytes"),
        (signature + ihdr + ihdr + idat + end, "chunks: expected IDAT, IEND and optional ones, found 'IHDR'"),
        (signature + ihdr + idat[:first_size] + text + idat[first_size:] + end, "IDAT: expected chunks in a row"),
    ]:
        with pytest.raises(depth.DecodeError, match=message):
            depth.decode(broken)
