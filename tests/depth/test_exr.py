"""EXR: the same bits as the OpenEXR library reads, for every kind that it writes and some that it does not write."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_images import SPECIAL, assert_same_bits, depth_image
from depth_writers import Exr, exr_attribute, exr_channel

from vologan_fast import depth

OpenEXR = pytest.importorskip("OpenEXR")
pytestmark = pytest.mark.usefixtures("exr_decoder")

NATIVE = ["no", "rle", "zips", "zip"]
OTHERS = ["piz", "pxr24", "b44", "b44a", "dwaa", "dwab"]
DTYPES = ["float16", "float32", "uint32"]


def read_by_openexr(source: Path | bytes, channel: str) -> np.ndarray:
    stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    planes = OpenEXR.File(stream, separate_channels=True).parts[0].channels
    return planes[channel].pixels.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", NATIVE + OTHERS)
def test_every_compression_type_and_size_equals_openexr(
    openexr_file: Callable[..., Path], compression: str, dtype: str
) -> None:
    heights = [1, 2, 15, 16, 17, 33] if compression in NATIVE else [1, 33]
    for width in [1, 2, 3, 15, 16, 17, 511, 512, 513]:
        for height in heights:
            path = openexr_file({"Z": depth_image(height, width, dtype)}, compression)
            assert_same_bits(depth.decode(path), read_by_openexr(path, "Z"))
            info = depth.probe(path)
            assert info.decoder == ("native" if compression in NATIVE else "OpenEXR")
            assert (info.width, info.height) == (width, height)
            assert info.channels == (depth.Channel("Z", dtype),)


def test_every_half_becomes_the_same_float(openexr_file: Callable[..., Path]) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(256, 256)
    path = openexr_file({"Z": halves}, "zip")
    assert_same_bits(depth.decode(path), halves.astype(np.float32))


@pytest.mark.parametrize("compression", NATIVE)
def test_noise_is_stored_uncompressed_and_read_back(openexr_file: Callable[..., Path], compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (35, 77), np.uint32)
    path = openexr_file({"Z": noise}, compression)
    assert path.stat().st_size > noise.nbytes
    assert_same_bits(depth.decode(path), noise.astype(np.float32))


@pytest.mark.parametrize("compression", [*NATIVE, "piz"])
def test_one_channel_of_many_types(openexr_file: Callable[..., Path], compression: str) -> None:
    planes = {
        name: np.roll(depth_image(37, 21, dtype), i)
        for i, (name, dtype) in enumerate(
            [("A", "float16"), ("B", "float16"), ("Z", "float32"), ("id", "uint32"), ("z.front", "float16")]
        )
    }
    path = openexr_file(planes, compression)
    for name in planes:
        assert_same_bits(depth.decode(path, name), read_by_openexr(path, name))
    assert_same_bits(depth.decode(path), read_by_openexr(path, "Z"))


@pytest.mark.parametrize("origin", [(-5, -7), (100, 3), (-(2**20), 2**20)])
@pytest.mark.parametrize("compression", [*NATIVE, "piz"])
def test_data_window_anywhere(openexr_file: Callable[..., Path], compression: str, origin: tuple[int, int]) -> None:
    image = depth_image(35, 18)
    corners = np.array(origin, np.int32), np.array(origin, np.int32) + np.array([17, 34], np.int32)
    path = openexr_file({"Z": image}, compression, dataWindow=corners)
    assert_same_bits(depth.decode(path), image)
    assert depth.probe(path).data_window == (*corners[0], *corners[1])


@pytest.mark.parametrize("compression", NATIVE)
def test_lines_written_from_the_bottom_up(openexr_file: Callable[..., Path], compression: str) -> None:
    image = depth_image(50, 19)
    path = openexr_file({"Z": image}, compression, lineOrder=OpenEXR.DECREASING_Y)
    assert_same_bits(depth.decode(path), image)


@pytest.mark.parametrize("compression", ["none", "rle", "zips", "zip"])
def test_chunks_in_any_order_in_the_file(compression: str) -> None:
    image = depth_image(50, 19, "float16")
    exr = Exr({"Z": image}, compression, line_order=2)
    order = np.random.default_rng(1).permutation(len(exr.chunks())).tolist()
    assert_same_bits(depth.decode(exr.bytes(order)), image.astype(np.float32))


@pytest.mark.parametrize("compression", ["none", "rle", "zips", "zip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_files_written_by_hand_are_read_alike_by_openexr(compression: str, dtype: str) -> None:
    """The writer whose files other tests change is itself sound."""
    image = depth_image(33, 20, dtype)
    file = Exr({"Z": image, "A": depth_image(33, 20, "float16")}, compression, origin=(3, -9)).bytes()
    assert_same_bits(read_by_openexr(file, "Z"), image.astype(np.float32))
    assert_same_bits(depth.decode(file), image.astype(np.float32))


@pytest.mark.parametrize("compression", ["none", "rle", "zips", "zip"])
def test_full_channel_beside_subsampled_ones(compression: str) -> None:
    luminance, chroma = depth_image(34, 22), depth_image(17, 11, "float16")
    exr = Exr(
        {"RY": chroma, "BY": chroma, "Y": luminance},
        compression,
        origin=(-4, -6),
        sampling={"RY": (2, 2), "BY": (2, 2)},
    )
    assert_same_bits(depth.decode(exr.bytes(), "Y"), luminance)
    with pytest.raises(depth.DecodeError, match=r"'RY': expected a sample for each pixel, found one for 2 × 2"):
        depth.decode(exr.bytes(), "RY")


def test_channels_out_of_order_are_sorted_as_openexr_sorts_them() -> None:
    planes = {"A": depth_image(5, 6), "Z": 2 * depth_image(5, 6)}
    exr = Exr(planes, "none", channel_list=exr_channel("Z", 2) + exr_channel("A", 2))
    assert_same_bits(depth.decode(exr.bytes(), "A"), read_by_openexr(exr.bytes(), "A"))
    assert_same_bits(depth.decode(exr.bytes(), "A"), planes["A"])


def test_unknown_attributes_are_skipped() -> None:
    image = depth_image(4, 4)
    attributes = {"comment": ("string", b"x" * 300), "a" * 31: ("mystery", b""), "type": ("string", b"scanlineimage")}
    assert_same_bits(depth.decode(Exr({"Z": image}, attributes=attributes).bytes()), image)
    long = Exr({"Z": image}, version=0x402, attributes={"n" * 255: ("string", b"")})
    assert_same_bits(depth.decode(long.bytes()), image)


def test_tiles_go_through_openexr(openexr_file: Callable[..., Path]) -> None:
    image = depth_image(70, 90)
    path = openexr_file({"Z": image}, "zip", type=OpenEXR.tiledimage, tiles=OpenEXR.TileDescription())
    assert depth.probe(path).reason == "tiles"
    assert_same_bits(depth.decode(path), image)
    assert_same_bits(depth.decode(path.read_bytes()), image)


def write_parts(path: Path, parts: dict[str, dict[str, np.ndarray]], width: int, height: int) -> None:
    display = (np.array([0, 0], np.int32), np.array([width - 1, height - 1], np.int32))
    header = {
        "displayWindow": display,
        "type": OpenEXR.scanlineimage,
        "compression": OpenEXR.ZIP_COMPRESSION,
    }
    OpenEXR.File([OpenEXR.Part({"name": name, **header}, planes) for name, planes in parts.items()]).write(str(path))


def test_parts_that_share_a_channel_name_are_told_apart_by_the_part(tmp_path: Path) -> None:
    left, right, small = depth_image(20, 30), 2 * depth_image(20, 30), depth_image(5, 6)
    path = tmp_path / "parts.exr"
    write_parts(path, {"left": {"Z": left}, "right": {"Z": right, "B": right}, "small": {"A": small}}, 30, 20)
    assert depth.probe(path).reason == "several parts"
    with pytest.raises(depth.DecodeError, match=r"found several that the names allow: 'left.Z', 'right.Z'; the file"):
        depth.decode(path)
    assert_same_bits(depth.decode(path, "left.Z"), left)
    assert_same_bits(depth.decode(path, "right.Z"), right)
    assert_same_bits(depth.decode(path, "right.B"), right)
    assert depth.probe(path, "A").data_window == (0, 0, 5, 4)
    assert_same_bits(depth.decode(path, "A"), small)
    assert_same_bits(depth.decode_batch([path], channel="A")[0], small)


def test_all_parts_together_keep_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "parts.exr"
    zeros = np.zeros((100, 100), np.float32)
    write_parts(path, {"a": {"Z": zeros}, "b": {"Z": zeros}}, 100, 100)
    assert_same_bits(depth.decode(path, "a.Z", limits=depth.Limits(max_bytes=80_000)), zeros)
    with pytest.raises(depth.DecodeError, match=r"parts\.exr: data window: expected at most 39999 bytes decoded"):
        depth.decode(path, "a.Z", limits=depth.Limits(max_bytes=79_999))


def test_kinds_for_openexr_without_openexr_say_what_to_install(
    openexr_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = openexr_file({"Z": depth_image(20, 20)}, "piz")
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(depth.DecodeError, match=r"image\.exr: .* found piz compression.*pip install OpenEXR"):
        depth.decode(path)


def test_broken_file_for_openexr_is_a_decode_error(openexr_file: Callable[..., Path]) -> None:
    file = openexr_file({"Z": depth_image(40, 40)}, "piz").read_bytes()
    with pytest.raises(depth.DecodeError, match="OpenEXR library"):
        depth.decode(file[:-40])


LENIENT: dict[str, dict[str, Any]] = {
    "a comment twice": {"attributes": {"comment": ("string", b"one")}, "prefix": ("comment", "string", b"two")},
    "the same data window twice": {"prefix": ("dataWindow", "box2i", struct.pack("<4i", 0, 0, 5, 4))},
    "no line order": {"without": "lineOrder"},
    "no display window": {"without": "displayWindow"},
    "no pixel aspect ratio": {"without": "pixelAspectRatio"},
    "an unknown line order": {"attributes": {"lineOrder": ("lineOrder", b"\7")}},
    "a long name without its flag": {"attributes": {"n" * 200: ("string", b"x")}},
    "a part's name": {"attributes": {"name": ("string", b"beauty")}},
}


@pytest.mark.parametrize("oddity", LENIENT)
def test_oddities_that_are_no_damage_are_read(oddity: str) -> None:
    image = depth_image(5, 6)
    change = dict(LENIENT[oddity])
    prefix, without = change.pop("prefix", None), change.pop("without", None)
    exr = Exr({"Z": image}, "zip", **change)
    header = exr.header()
    bent = header if prefix is None else header[:8] + exr_attribute(*prefix) + header[8:]
    if without:
        bent = bent.replace(without.encode() + b"\0", without.encode()[:-1] + b"_\0", 1)
    file = bent + exr.bytes()[len(header) :]
    at = len(bent)  # of the offset table, which moves with what is added before it
    chunks = [offset + len(bent) - len(header) for (offset,) in struct.iter_unpack("<Q", file[at : at + 8])]
    assert_same_bits(depth.decode(file[:at] + struct.pack("<Q", *chunks) + file[at + 8 :]), image)


def test_deep_samples_are_refused() -> None:
    with pytest.raises(depth.DecodeError, match="expected one sample for each pixel, found deep samples"):
        depth.decode(Exr({"Z": depth_image(4, 4)}, version=0x802).bytes())


def test_special_values_survive_every_lossless_compression() -> None:
    image = np.tile(SPECIAL, (17, 1))
    for compression in ["none", "rle", "zips", "zip"]:
        assert_same_bits(depth.decode(Exr({"Z": image}, compression).bytes()), image)


def test_uint_beyond_the_mantissa_rounds_to_nearest() -> None:
    values = np.array([[2**24 + 1, 2**24 + 3, 2**32 - 1, 0]], np.uint32)
    expected = np.array([[2.0**24, 2.0**24 + 4, 2.0**32, 0]], np.float32)
    assert_same_bits(depth.decode(Exr({"Z": values}, "none").bytes()), expected)
    assert struct.pack("<I", 2**24 + 1) in Exr({"Z": values}, "none").bytes()
