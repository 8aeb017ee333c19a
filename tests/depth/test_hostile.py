"""Broken and hostile files: always one DecodeError, and never a crash, a wrong picture or uninitialised memory.

The fuzzer (csrc/depth/fuzz.cpp, run by `make fuzz`) runs the decoder under address and undefined-behaviour sanitisers,
too.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import COMPRESSIONS, Exr, exr_channel, pfm, png, png_chunk, predicted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vologan_fast import depth

pytestmark = pytest.mark.usefixtures("exr_decoder")

IMAGE = depth_image(18, 5, "float16")


def saved_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, IMAGE)
    return stream.getvalue()


SMALL_FILES = {
    **{name: Exr({"A": IMAGE, "Z": IMAGE}, name).bytes() for name in ("none", "rle", "zips", "zip")},
    "png8": png(depth_image(9, 5, "uint8"), [y % 5 for y in range(9)]),
    "png16": png(depth_image(9, 5, "uint16"), [y % 5 for y in range(9)], pieces=2),
    "interlaced": png(depth_image(9, 5, "uint16"), [0, 1, 2, 3, 4], interlaced=True),
    "rgb": png(np.repeat(depth_image(9, 5, "uint8")[..., None], 3, axis=2), 4),
    "npy": saved_npy(),
    "pfm": pfm(depth_image(9, 5)),
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_truncation_at_every_byte(kind: str) -> None:
    whole = SMALL_FILES[kind]
    depth.decode(whole)
    for length in range(len(whole)):
        with pytest.raises(depth.DecodeError):
            depth.decode(whole[:length])


def decode_twice(file: bytes, shape: tuple[int, int]) -> None:
    """Decode twice, into memory of different contents. An element that was not written would differ."""
    first, second = np.full((1, *shape), 123.0, np.float32), np.full((1, *shape), -456.0, np.float32)
    depth.decode_batch([file], first, threads=1)
    depth.decode_batch([file], second, threads=1)
    np.testing.assert_array_equal(first, second)


def decode_or_refuse(file: bytes) -> None:
    limits = depth.Limits(max_pixels=10**6, max_bytes=10**7)
    try:
        info = depth.probe(file, limits=limits)
        if info.decoder == "native":
            decode_twice(file, (info.height, info.width))
    except depth.DecodeError as error:
        assert "expected" in str(error) and "found" in str(error)


mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 2, 127, 128, 254, 255]) | st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", SMALL_FILES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=mutations, cut=st.floats(0, 1), insert=st.binary(max_size=9))
def test_mutated_files(kind: str, changes: list[tuple[float, int]], cut: float, insert: bytes) -> None:
    file = bytearray(SMALL_FILES[kind])
    for place, value in changes:
        file[int(place * len(file))] = value
    decode_or_refuse(bytes(file))
    at = int(cut * len(file))
    decode_or_refuse(bytes(file[:at] + insert + file[at:]))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\x76\x2f\x31\x01", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"Pf\n", b""]), st.binary(max_size=400)
)
def test_random_bytes(magic: bytes, rest: bytes) -> None:
    decode_or_refuse(magic + rest)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 400))
def test_random_png_streams_behind_valid_checksums(stream: bytes, height: int) -> None:
    """With a valid CRC, any stream reaches the inflater and the filters."""
    head = struct.pack(">2I5B", 3, height, 8, 0, 0, 0, 0)
    for data in (stream, zlib.compress(stream)):
        decode_or_refuse(
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
        )


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["rle", "zips", "zip"]),
    st.binary(min_size=1, max_size=80),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 40),
)
def test_random_exr_chunks(compression: str, data: bytes, compress: bool, height: int, width: int) -> None:
    exr = Exr({"Z": np.zeros((height, width), np.float16)}, compression)
    packed = zlib.compress(data * 40) if compress else data
    decode_or_refuse(exr.bytes(chunks=[(y, packed) for y, _ in exr.chunks()]))


def refused(file: bytes, message: str, **limits: int) -> None:
    for read in (depth.decode, depth.probe):
        if read is depth.decode or "chunk" not in message:
            with pytest.raises(depth.DecodeError, match=message):
                read(file, limits=depth.Limits(**limits))


def window(x0: int, y0: int, x1: int, y1: int) -> dict[str, tuple[str, bytes]]:
    return {"dataWindow": ("box2i", struct.pack("<4i", x0, y0, x1, y1))}


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((0, 0, -1, 4), "data window: expected at least one pixel, found 0 × 5"),
        ((0, 10, 4, 5), "data window: expected at least one pixel, found 5 × -4"),
        ((2**31 - 1, 0, -(2**31), 0), "data window: expected at least one pixel"),
        ((-(2**31), -(2**31), 2**31 - 1, 2**31 - 1), "data window: expected at most 268435456 pixels"),
        ((0, 0, 2**14 - 1, 2**14 - 1), "offset table: expected"),
        ((0, 0, 2**24 - 1, 15), "chunks: expected at least .* bytes for 16777216 × 16"),
        ((-(2**31), 0, -(2**31) + 4, 17), "chunk 0 .*: expected an offset from"),
    ],
)
def test_windows_that_the_file_cannot_fill(corners: tuple[int, int, int, int], message: str) -> None:
    # Wide as the claim is, nothing of that size may be allocated: the test would fail on its memory.
    exr = Exr({"Z": IMAGE[:16]}, attributes=window(*corners))
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(exr.bytes())


def offsets_edited(exr: Exr, edit: Callable[[list[int], int], None]) -> bytes:
    """Return the file after `edit(offsets, file size)` has changed its offset table in place."""
    file, count, at = bytearray(exr.bytes()), len(exr.chunks()), exr.offset_table()
    offsets = list(struct.unpack_from(f"<{count}Q", file, at))
    edit(offsets, len(file))
    struct.pack_into(f"<{count}Q", file, at, *offsets)
    return bytes(file)


def test_offset_tables_that_lie() -> None:
    exr = Exr({"Z": IMAGE}, "zips")
    begin = exr.offset_table() + 8 * 18

    def put(index: int, value: Callable[[list[int], int], int]) -> bytes:
        return offsets_edited(exr, lambda offsets, size: offsets.__setitem__(index, value(offsets, size)))

    refused(put(3, lambda o, n: 0), r"chunk 3 \(lines 3 to 3\): expected an offset .* not written to its end")
    refused(put(3, lambda o, n: begin - 1), f"chunk 3 .*: expected an offset from {begin}")
    refused(put(3, lambda o, n: n - 7), "chunk 3 .*: expected an offset")
    refused(put(3, lambda o, n: 2**64 - 1), "chunk 3 .*: expected an offset")
    refused(put(3, lambda o, n: 2**63), "chunk 3 .*: expected an offset")
    refused(put(3, lambda o, n: o[4]), r"chunk 3 .*: expected line number 3, found 4")


def test_chunks_that_overlap_are_refused() -> None:
    """Two lines that share bytes: the second chunk's header lies inside the first one's samples."""
    exr = Exr({"Z": np.zeros((2, 40), np.uint32)}, "none")
    first = exr.offset_table() + 16
    file = bytearray(exr.header() + struct.pack("<2Q", first, first + 40) + bytes(500))
    struct.pack_into("<2i", file, first, 0, 160)
    struct.pack_into("<2i", file, first + 40, 1, 160)
    with pytest.raises(depth.DecodeError, match=r"offset table: expected a chunk at \d+ or later, found one at"):
        depth.decode(bytes(file))


@pytest.mark.parametrize("compression", ["none", "rle", "zips", "zip"])
def test_chunk_sizes_that_lie(compression: str) -> None:
    exr = Exr({"Z": np.zeros((32, 64), np.float32)}, compression)
    good = exr.bytes()
    at = struct.unpack_from("<Q", good, exr.offset_table())[0] + 4
    for size in (0, -1, -(2**31), 2**31 - 1, 1):
        file = bytearray(good)
        struct.pack_into("<i", file, at, size)
        with pytest.raises(depth.DecodeError, match=r"chunk 0 \(lines 0 to (0|15)\): expected"):
            depth.decode(bytes(file))


@pytest.mark.parametrize("compression", ["rle", "zips", "zip"])
def test_chunks_larger_than_their_lines_are_refused(compression: str) -> None:
    exr = Exr({"Z": IMAGE}, compression)
    chunks = [(y, bytes(1000)) for y, _ in exr.chunks()]
    refused(exr.bytes(chunks=chunks), "chunk 0 .*: expected at most .* bytes, found 1000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: zlib.compress(predicted(raw[:-2])), "found a stream that ends early"),
        (lambda raw: zlib.compress(predicted(raw + b"\0\0")), "found a stream that goes on"),
        (lambda raw: zlib.compress(predicted(raw)) + b"\0", "found bytes behind the stream's end"),
        (lambda raw: zlib.compress(predicted(raw))[:-4] + b"\0\0\0\0", "found a corrupt stream"),
        (lambda raw: zlib.compress(bytes(10**7)), "expected"),
    ],
)
def test_zip_streams_of_another_length(change: Callable[[bytes], bytes], message: str) -> None:
    image = np.zeros((16, 64), np.float16)
    exr = Exr({"Z": image}, "zip")
    refused(exr.bytes(chunks=[(0, change(image.tobytes()))]), f"chunk 0 .*{message}")


def test_rle_runs_of_another_length() -> None:
    exr = Exr({"Z": np.zeros((1, 64), np.float16)}, "rle")
    for runs, found in [
        (b"\x7e\0", "runs that end early"),
        (b"\x7f\0\0\0", "runs that go on"),
        (b"\x7e\0\xff", "a run that ends early"),
        (b"\x80" + bytes(126), "a run that ends early"),
    ]:
        refused(exr.bytes(chunks=[(0, runs)]), f"chunk 0 .*: expected rle data of 128 bytes, found {found}")
    depth.decode(exr.bytes(chunks=[(0, b"\x7f\0")]))


def test_wrong_line_numbers_are_refused() -> None:
    exr = Exr({"Z": IMAGE}, "zip")
    (_, first), (_, second) = exr.chunks()
    refused(
        exr.bytes(chunks=[(0, first), (17, second)]), r"chunk 1 \(lines 16 to 17\): expected line number 16, found 17"
    )


def test_missing_last_chunk_is_refused() -> None:
    exr = Exr({"Z": IMAGE}, "zip")
    refused(exr.bytes()[: exr.offset_table() + 16], "offset table: expected 32 bytes|chunk")


def test_channel_lists_that_lie() -> None:
    def with_list(channel_list: bytes) -> bytes:
        return Exr({"Z": IMAGE}, channel_list=channel_list).bytes()

    refused(with_list(exr_channel("Z", 1) * 2), "list: expected one channel 'Z', found two")
    refused(with_list(b""), "list: expected a channel, found none")
    refused(with_list(exr_channel("Z", 3)), "'Z': expected type 0 .uint., 1 .half. or 2 .float., found 3")
    refused(with_list(exr_channel("Z", -1)), "'Z': expected type 0")
    refused(with_list(exr_channel("Z", 1, (0, 1))), "'Z': expected a sampling of at least 1, found 0 × 1")
    refused(with_list(exr_channel("Z", 1, (1, -2))), "'Z': expected a sampling")
    refused(with_list(exr_channel("Z", 1)[:-3]), "'Z': expected 16 bytes")
    refused(with_list(exr_channel("Z", 1) + b"\0more"), "list: expected its end")
    refused(with_list(exr_channel("x" * 256, 1)), "expected a name of at most 255 bytes")


@pytest.mark.parametrize("name", ["channels", "compression", "dataWindow"])
def test_attributes_that_are_absent_twice_or_of_another_type(name: str) -> None:
    header = Exr({"Z": IMAGE}).bytes()
    refused(
        header.replace(name.encode() + b"\0", name.encode()[:-1] + b"_\0", 1),
        f"expected attribute '{name}', found none",
    )
    refused(Exr({"Z": IMAGE}, attributes={name: ("string", b"12345678")}).bytes(), f"attribute '{name}': expected type")
    twice = name.encode() + b"\0string\0" + struct.pack("<i", 0)
    refused(header[:8] + twice + header[8:], f"attribute '{name}': expected it once, found it twice")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "version: expected 2, found 3"),
        ({"version": 0x2002}, "version flags: expected none above 0x1000, found 0x2002"),
        (
            {"attributes": {"displayWindow": ("box2i", struct.pack("<4i", 0, 0, 4, -1))}},
            "display window: expected 1 to 268435456 pixels a side, found 5 × 0",
        ),
        (
            {"attributes": {"displayWindow": ("box2i", struct.pack("<4i", -(2**31), 0, 2**31 - 1, 0))}},
            "display window: expected 1 to 268435456 pixels a side, found 4294967296 × 1",
        ),
        ({"attributes": {"compression": ("compression", b"\0\0")}}, "'compression': expected 1 bytes, found 2 bytes"),
        ({"attributes": {"dataWindow": ("box2i", bytes(15))}}, "'dataWindow': expected 16 bytes, found 15 bytes"),
    ],
)
def test_header_fields_out_of_range(fields: dict, message: str) -> None:
    refused(Exr({"Z": IMAGE}, **fields).bytes(), message)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"attributes": {"compression": ("compression", b"\x2a")}}, "compression number 42"),
        ({"attributes": {"type": ("string", b"deepscanline")}}, "the type 'deepscanline'"),
        ({"attributes": {"type": ("string", b"tiledimage")}}, "the type 'tiledimage'"),
    ],
)
def test_kinds_that_nobody_knows_are_left_to_openexr(fields: dict, found: str) -> None:
    """OpenEXR 3.5 reads these three. Whoever cannot read them must say so."""
    pytest.importorskip("OpenEXR")
    file = Exr({"Z": IMAGE}, **fields).bytes()
    assert depth.probe(file).reason == found
    try:
        assert_same_bits(depth.decode(file), IMAGE.astype(np.float32))
    except depth.DecodeError as error:
        assert "OpenEXR library: expected" in str(error)


def test_attribute_sizes_that_lie() -> None:
    head = b"\x76\x2f\x31\x01\2\0\0\0name\0string\0"
    for size in (-1, -905969648, -(2**31)):
        message = f"attribute 'name': expected a size of at least 0 bytes, found {size}"
        refused(head + struct.pack("<i", size) + bytes(100), message)
    refused(head + struct.pack("<i", 2**31 - 1) + bytes(100), "attribute 'name': expected 2147483647 bytes")


def test_a_header_of_very_many_channels_is_refused_before_their_names_are_read() -> None:
    channels = b"".join(exr_channel(f"c{i}", 1) for i in range(8193))
    refused(Exr({"Z": IMAGE[:1, :1]}, channel_list=channels).bytes(), "channel list: expected at most 8192 channels")


def test_limits_hold_for_every_format() -> None:
    for file in SMALL_FILES.values():
        refused(file, "expected at most 44 pixels", max_pixels=44)
        refused(file, "expected at most 44 bytes", max_bytes=44)
    many = Exr({f"c{i}": IMAGE for i in range(100)}, "none").bytes()
    refused(many, "data window: expected at most 17999 bytes decoded|file: expected at most", max_bytes=17999)
    piz = Exr({"Z": IMAGE}, "zip", attributes={"compression": ("compression", bytes([COMPRESSIONS["piz"]]))})
    refused(piz.bytes(), "expected at most 80 pixels", max_pixels=80)


def test_names_from_the_file_are_escaped_in_messages() -> None:
    attributes = {"bell\x07\x1b": ("string", b""), "compression": ("\n\n", b"\0")}
    with pytest.raises(depth.DecodeError, match=r"found type '\\x0a\\x0a'"):
        depth.decode(Exr({"Z": IMAGE}, attributes=attributes).bytes())
