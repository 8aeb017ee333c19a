"""The chunk decoder, which GPUs run: normalising, packing, and many images in one batch.

test_exr.py and test_hostile.py run with both decoders. They test that the chunk decoder decodes and refuses the same
files as the decoder of files.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from depth_images import assert_same_bits, depth_image
from depth_writers import DeflateBits, Exr, fixed_code, one_distance_stream, one_literal_stream, predicted
from hypothesis import given, settings
from hypothesis import strategies as st

from vologan_fast import _depth, depth
from vologan_fast.data.pixels import BACKGROUND, DepthRule, normalize_depth

LIMITS = depth.Limits()
RULE = DepthRule(gain=0.5, offset=0.5, background=-1.0, floor=0.0, invalid=(65504.0, 0.1))


def decode_chunks(files: list[bytes], out: np.ndarray, rule: DepthRule | None = None) -> list[bool | Exception]:
    fields = rule and (*rule[:-1], list(rule.invalid))
    return _depth.decode_chunks(files, out, None, fields, LIMITS)


def exr(image: np.ndarray, compression: str = "zip") -> bytes:
    return Exr({"Z": image}, compression).bytes()


@pytest.mark.parametrize(
    "rule", [RULE, DepthRule(0.25, -1.0, math.nan, math.nan, ()), DepthRule(2.0, 0.0, math.inf, math.nan, (1e10,))]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint32"])
def test_depth_is_normalised_as_numpy_does_it(dtype: str, rule: DepthRule) -> None:
    image = depth_image(37, 29, dtype)
    out = np.empty((1, 37, 29), np.float32)
    assert decode_chunks([exr(image)], out, rule) == [True]
    assert_same_bits(out[0], normalize_depth(image.astype(np.float32), rule))


TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


def as_torch(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@pytest.mark.parametrize("dtype", TYPES)
def test_depth_goes_into_the_fourth_channel(dtype: torch.dtype) -> None:
    """Background sets the colour to 0, too. Nothing else is touched."""
    image = depth_image(18, 23)
    whole = np.full((2, 20, 25, 4), 7, np.float32).astype(TYPES[dtype])
    colour = as_torch(whole).clone()
    assert decode_chunks([exr(image), exr(image, "none")], whole[:, 1:19, 1:24], RULE) == [True, True]
    expected = colour.clone()
    for rgbd in expected[:, 1:19, 1:24]:
        normalised = torch.from_numpy(normalize_depth(image, RULE))
        rgbd[..., 3] = normalised.clamp(min=0).to(dtype)
        rgbd[normalised == BACKGROUND] = 0
    assert torch.equal(as_torch(whole), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_half_and_its_neighbours_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        middles = (halves + np.nextafter(halves.astype(np.float16), np.float16(np.inf)).astype(np.float32)) / 2
    bits = np.random.default_rng(0).integers(0, 2**32, 65536, np.uint32).view(np.float32)
    near = [np.nextafter(middles, np.float32(sign)) for sign in (-np.inf, np.inf)]
    image = np.concatenate([halves, middles, *near, bits]).reshape(-1, 512)
    out = np.zeros((1, *image.shape), TYPES[dtype])
    assert decode_chunks([exr(image, "none")], out) == [True]
    found, expected = as_torch(out[0]), torch.from_numpy(image).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    number = ~expected.isnan()
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(found.view(kind)[number], expected.view(kind)[number])


def test_planes_of_any_strides() -> None:
    image = depth_image(33, 20)
    for out in (np.zeros((33, 20, 1), np.float32).T.swapaxes(1, 2), np.zeros((1, 66, 40), np.float32)[:, ::-2, ::-2]):
        assert decode_chunks([exr(image)], out) == [True]
        assert_same_bits(np.ascontiguousarray(out[0]), image)


def test_a_broken_image_touches_no_other() -> None:
    images = [depth_image(48, 21, "float16") for _ in range(3)]
    writer = Exr({"Z": images[1]}, "zip")
    chunks = writer.chunks()
    chunks[1] = (16, chunks[1][1][:-4] + b"oops")
    chunks[2] = (32, zlib.compress(b""))
    broken = writer.bytes(chunks=chunks)
    out = np.full((3, 48, 21), 7, np.float32)
    found = decode_chunks([exr(images[0]), broken, exr(images[2], "rle")], out)
    assert found[0] is True and found[2] is True
    assert isinstance(found[1], depth.DecodeError)
    message = "<bytes of source 1>: chunk 1 (lines 16 to 31): expected zip data of 672 bytes, found a corrupt stream"
    assert str(found[1]) == message
    for i in (0, 2):
        assert_same_bits(out[i], images[i].astype(np.float32))
    assert_same_bits(out[1, :16], images[1][:16].astype(np.float32))
    assert (out[1, 16:] == 7).all()


def test_files_that_cannot_be_parsed_leave_the_batch_as_it_was() -> None:
    image = depth_image(20, 20)
    truncated = Exr({"Z": image}, "zip").bytes()[:-1]
    out = np.full((4, 20, 20), 7, np.float32)
    found = decode_chunks([b"", truncated, exr(depth_image(5, 20)), exr(image)], out)
    assert [type(result) for result in found] == [depth.DecodeError] * 3 + [bool]
    assert (out[:3] == 7).all()
    assert_same_bits(out[3], image)


def test_errors_are_those_of_the_decoder_of_files() -> None:
    image = np.zeros((16, 64), np.float16)
    raw = image.tobytes()
    packed = zlib.compress(predicted(raw))
    for compression, chunk in [
        ("zip", zlib.compress(predicted(raw[:-2]))),
        ("zip", zlib.compress(predicted(raw + b"\0\0"))),
        ("zip", packed + b"\0"),
        ("zip", packed[:-4] + b"\0\0\0\0"),
        ("zip", b"\x78"),
        ("zip", bytes(3000)),
        ("rle", b"\x7e\0"),
        ("rle", b"\x7f\0\0\0"),
        ("rle", b"\x7e\0\xff"),
    ]:
        writer = Exr({"Z": image}, compression)
        file = writer.bytes(chunks=[(y, chunk) for y, _ in writer.chunks()])
        (error,) = decode_chunks([file], np.empty((1, 16, 64), np.float32))
        with pytest.raises(depth.DecodeError) as expected:
            depth.decode_batch([file], np.empty((1, 16, 64), np.float32))
        assert str(error) == str(expected.value)


def test_images_without_valid_depth_are_told_apart() -> None:
    images = [np.full((17, 5), value, np.float32) for value in (-1, math.nan, 65504, 0.3)]
    images.append(images[0].copy())
    images[-1][16, 4] = 0.3
    out = np.empty((5, 17, 5), np.float32)
    assert decode_chunks([exr(image) for image in images], out, RULE) == [False, False, False, True, True]


def test_chunks_beyond_a_block_s_own_memory() -> None:
    """One batch has small chunks in shared memory and large chunks in global memory."""
    wide, narrow = depth_image(33, 1200), depth_image(33, 1200, "float16")
    out = np.empty((2, 33, 1200), np.float32)
    assert decode_chunks([exr(wide), exr(narrow)], out) == [True, True]
    assert_same_bits(out, np.stack([wide, narrow.astype(np.float32)]))


def inflated_by_chunks(stream: bytes, raw: bytes) -> None:
    """Decode the stream as the only chunk of an image. Both decoders must inflate it to `raw`."""
    assert len(stream) < len(raw) and len(raw) % 4 == 0
    writer = Exr({"Z": np.zeros((1, len(raw) // 4), np.float32)}, "zips")
    file = writer.bytes(chunks=[(0, stream)])
    out = np.empty((1, 1, len(raw) // 4), np.float32)
    (found,) = decode_chunks([file], out)
    assert not isinstance(found, Exception), found
    split = np.cumsum(np.frombuffer(raw, np.uint8).astype(int) - 128) + 128
    expected = split.astype(np.uint8).reshape(2, -1).T.ravel().view(np.float32).reshape(1, -1)
    assert_same_bits(out[0], expected)
    assert_same_bits(depth.decode(file), expected)


@pytest.mark.parametrize("length_symbol", [285, 286, 287])
@pytest.mark.parametrize("distance_symbol", [0, 1, 2, 3])
def test_matches_that_overlap_and_symbols_that_rfc_1951_leaves_out(length_symbol: int, distance_symbol: int) -> None:
    start = b"abcd"
    raw = start + (start[-1 - distance_symbol :] * 258)[:258] + b"xy"
    bits = DeflateBits().number(1, 1).number(1, 2)
    for byte in start:
        bits.code(fixed_code(byte))
    bits.code(fixed_code(length_symbol)).code(f"{distance_symbol:05b}")
    for byte in b"xy":
        bits.code(fixed_code(byte))
    inflated_by_chunks(bits.code(fixed_code(256)).stream(raw), raw)


@pytest.mark.parametrize("distance_symbol", [29, 30, 31])
def test_the_farthest_distances(distance_symbol: int) -> None:
    bits = DeflateBits().number(1, 1).number(1, 2).code(fixed_code(97)).code(fixed_code(98))
    for _ in range(96):
        bits.code(fixed_code(285)).code("00001")
    bits.code(fixed_code(285)).code(f"{distance_symbol:05b}").number(0, 13)
    raw = b"ab" * (1 + 96 * 129)
    raw += raw[-24577:][:258]
    inflated_by_chunks(bits.code(fixed_code(256)).stream(raw), raw)


def test_dynamic_block_of_one_literal_without_distances() -> None:
    inflated_by_chunks(one_literal_stream(b"A" * 40), b"A" * 40)


@pytest.mark.parametrize("bit", ["0", "1"])
def test_dynamic_block_of_one_distance(bit: str) -> None:
    """The code of the only distance has 1 bit, which may be 0 or 1."""
    inflated_by_chunks(*one_distance_stream(65, 14, bit))


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"\0", b"ab", b"\x80\x81\x7f", b"xyz" * 50, bytes(300)]) | st.binary(max_size=40)),
    level=st.integers(0, 9),
    strategy=st.sampled_from([0, zlib.Z_FIXED, zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED]),
    window=st.integers(9, 15),
    flush=st.sampled_from([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH]),
)
def test_every_kind_of_block(data: list[bytes], level: int, strategy: int, window: int, flush: int) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, window, 9, strategy)
    raw = b"".join(data) + bytes(2000)
    raw = raw[: len(raw) // 4 * 4]
    stream = packer.compress(raw[:100]) + packer.flush(flush) + packer.compress(raw[100:]) + packer.flush()
    if len(stream) < len(raw):
        inflated_by_chunks(stream, raw)
