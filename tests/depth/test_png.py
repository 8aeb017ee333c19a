"""PNG: the values that Pillow and OpenCV read, for every filter, and a clear error for kinds that are no depth."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import png, png_chunk
from hypothesis import given, settings
from hypothesis import strategies as st
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


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "uint16"]),
    samples=st.integers(1, 4),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    interlaced=st.booleans(),
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    pieces=st.integers(1, 3),
    behind=st.binary(max_size=6),
    order=st.sampled_from(["C", "F", "backwards"]),
)
def test_grey_in_every_form_equals_opencv(
    dtype: str, samples: int, order: str, height: int, width: int, filters: list[int], **form: Any
) -> None:
    """Grey alone, with opaque alpha, as RGB, as RGB with alpha; interlaced or not; bytes behind the stream or none."""
    cv2 = pytest.importorskip("cv2")
    grey = np.random.default_rng(width).integers(0, np.iinfo(dtype).max, (height, width), endpoint=True).astype(dtype)
    pixels = np.repeat(grey[..., None], samples, axis=2)
    if samples in (2, 4):
        pixels[..., -1] = np.iinfo(dtype).max
    file = png(pixels, filters, **form)
    read = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read if read.ndim == 2 else read[..., 0], grey)
    assert depth.probe(file).channels == (depth.Channel("Y", dtype),)
    out = np.full((1, height, width), np.nan, np.float32, order="F" if order == "F" else "C")
    target = out[:, ::-1, ::-1] if order == "backwards" else out
    depth.decode_batch([file], target, threads=1)
    assert_same_bits(np.ascontiguousarray(target[0]), grey.astype(np.float32))


def test_colours_that_differ_and_alpha_that_varies_are_refused() -> None:
    grey = depth_image(6, 7, "uint16")
    for samples in (3, 4):
        pixels = np.repeat(grey[..., None], samples, axis=2)
        pixels[..., 3:] = 7
        pixels[-1, -1, 2] ^= 1
        for interlaced in (False, True):
            with pytest.raises(depth.DecodeError, match=r"IDAT: expected a grey PNG .* found red, green and blue that"):
                depth.decode(png(pixels, 4, interlaced=interlaced))
    for samples in (2, 4):
        pixels = np.repeat(grey[..., None], samples, axis=2)
        pixels[..., -1] = 65535
        pixels[2, 3, -1] = 65534
        with pytest.raises(depth.DecodeError, match=r"IDAT: expected a grey PNG .* found alpha that differs"):
            depth.decode(png(pixels, 1))


@pytest.mark.parametrize(
    "extra",
    [
        png_chunk(b"gAMA", b"\0\0\xb1\x8f")[:-1] + b"?",  # a wrong CRC
        png_chunk(b"tEXt", b"a\0b")[:-4] + bytes(4),
        png_chunk(b"PLTE", bytes(6)),
        png_chunk(b"sBIT", b"\x0c") + png_chunk(b"tRNS", b"\0\0") + png_chunk(b"vpAg", bytes(9)),
    ],
)
def test_optional_chunks_do_not_matter(extra: bytes) -> None:
    image = depth_image(6, 7, "uint16")
    assert_same_bits(depth.decode(png(image, 4, extra=extra)), image.astype(np.float32))


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ({"bits": 4}, "4-bit grey, which has only 16 levels"),
        ({"bits": 1}, "1-bit grey, which has only 2 levels: a mask"),
        ({"bits": 3}, "3-bit samples, which PNG does not have"),
        ({"colour": 3}, "8-bit palette, which holds colours"),
        ({"colour": 9}, "8-bit unknown colour type 9"),
        ({"interlace": 2}, "2"),
        ({"width": 0}, "0 × 4"),
        ({"height": 2**31 - 1}, f"4 × {2**31 - 1}"),
    ],
)
def test_other_headers_are_refused(header: dict[str, int], found: str) -> None:
    with pytest.raises(depth.DecodeError, match=f"IHDR: expected .*, found {found}"):
        depth.decode(png(depth_image(4, 4, "uint8"), **header))


def test_apple_s_own_png_is_named() -> None:
    file = png(depth_image(4, 4, "uint8"))
    with pytest.raises(depth.DecodeError, match="first chunk: expected IHDR, found 'CgBI', Apple's own kind"):
        depth.decode(file[:8] + png_chunk(b"CgBI", b"\x50\0\x20\6") + file[8:])


@pytest.mark.parametrize("form", [{}, {"interlaced": True}, {"samples": 3}])
def test_every_flipped_bit_is_noticed(form: dict[str, Any]) -> None:
    """A changed optional chunk may go unnoticed, as long as the depth is the same."""
    image = depth_image(4, 5, "uint16")
    pixels = np.repeat(image[..., None], form.pop("samples", 1), axis=2)
    file = png(pixels, 4, extra=png_chunk(b"gAMA", b"\0\0\0\0"), **form)
    optional = range(file.index(b"gAMA"), file.index(b"gAMA") + 12)
    for position in range(len(file)):
        for bit in range(8):
            broken = bytearray(file)
            broken[position] ^= 1 << bit
            try:
                assert_same_bits(depth.decode(broken), image.astype(np.float32))
                assert position in optional
            except depth.DecodeError:
                pass


def test_stream_of_another_length_is_refused() -> None:
    image = depth_image(6, 5, "uint16")
    for height, found in [(7, "a stream that ends early"), (5, "a stream that goes on")]:
        with pytest.raises(depth.DecodeError, match=f"IDAT: expected zlib data of {height * 11} bytes, found {found}"):
            depth.decode(png(image, height=height))


def test_unknown_filter_names_the_line() -> None:
    stream = zlib.compress(b"\0\1\2" + b"\5\3\4")
    file = png(np.zeros((2, 2), np.uint8))
    before, after = file[:33], file[-12:]
    with pytest.raises(depth.DecodeError, match=r"IDAT, line 1: expected a filter from 0 to 4, found 5"):
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
