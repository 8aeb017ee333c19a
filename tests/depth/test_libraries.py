"""Depth in TIFF and NPZ: the values that were written, or one sentence, for every kind of file."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vologan_fast import depth

TYPES = {"uint8": 1, "uint16": 1, "uint32": 1, "int16": 2, "int32": 2, "float32": 3}
"""The types that are read, with TIFF's number of the kind."""


def differences(lines: np.ndarray) -> np.ndarray:
    """Apply TIFF's predictor 2 to unsigned integers."""
    return np.diff(lines, axis=1, prepend=np.zeros_like(lines[:, :1]))


def byte_differences(lines: np.ndarray, order: str) -> np.ndarray:
    """Apply TIFF's predictor 3 to floats: the most significant bytes of a line come first, then differences."""
    split = lines.astype(">f4").view(np.uint8).reshape(*lines.shape, 4).transpose(0, 2, 1).reshape(len(lines), -1)
    return differences(split)


def tiff(
    image: np.ndarray,
    order: str = "<",
    predictor: int = 0,
    tile: int = 0,
    big: bool = False,
    tags: dict[int, int] | None = None,
    pages: int = 1,
) -> bytes:
    """Write a TIFF by hand.

    Samples are deflated if there is a predictor (1: none, 2: differences, 3: of floats). They are in strips of 7 lines
    or in tiles. `tags` replaces or adds tags of one number each. `big` writes a BigTIFF.
    """
    height, width = image.shape[:2]
    samples = 1 if image.ndim == 2 else image.shape[2]

    def coded(part: np.ndarray) -> bytes:
        ordered = part.astype(part.dtype.newbyteorder(order))
        if predictor == 3:
            return zlib.compress(byte_differences(part, order).tobytes())
        if predictor == 2:
            ordered = differences(part).astype(ordered.dtype)
        return zlib.compress(ordered.tobytes()) if predictor else ordered.tobytes()

    if tile:
        padded = np.pad(image, ((0, -height % tile), (0, -width % tile)), mode="edge")
        corners = itertools.product(range(0, height, tile), range(0, width, tile))
        parts = [coded(padded[y : y + tile, x : x + tile]) for y, x in corners]
    else:
        parts = [coded(image[y : y + 7]) for y in range(0, height, 7)]

    file = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    file += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    for page in range(pages):
        fields: dict[int, Any] = {
            256: width,
            257: height,
            258: 8 * image.dtype.itemsize,
            259: 8 if predictor else 1,
            262: 1,
            277: samples,
            339: TYPES.get(image.dtype.name, {"u": 1, "i": 2, "f": 3}[image.dtype.kind]),
        }
        fields |= {317: predictor} if predictor else {}
        fields |= {322: tile, 323: tile, 324: 0, 325: 0} if tile else {273: 0, 278: 7, 279: 0}
        fields |= tags or {}
        entry, word, count, next_ = (20, "Q", "Q", 8) if big else (12, "I", "H", 4)
        data = len(file) + struct.calcsize(f"={count}") + entry * len(fields) + next_
        lists = {}  # of places and of sizes, behind the tags
        sizes = [len(part) for part in parts]
        first = data + 2 * struct.calcsize(f"={word}") * len(parts)
        lists[324 if tile else 273] = [first + sum(sizes[:i]) for i in range(len(parts))]
        lists[325 if tile else 279] = sizes
        body, block = b"", b""
        for tag, value in sorted(fields.items()):
            values = lists.get(tag, [value])
            packed = struct.pack(f"{order}{len(values)}{word}", *values)
            if len(values) > 1:
                packed, block = struct.pack(f"{order}{word}", data + len(block)), block + packed
            body += struct.pack(f"{order}HH{word}", tag, 16 if big else 4, len(values)) + packed
        block = block.ljust(first - data, b"\0")
        end = first + sum(sizes)
        file += struct.pack(f"{order}{count}", len(fields)) + body
        file += struct.pack(f"{order}{word}", end if page < pages - 1 else 0) + block + b"".join(parts)
    return file


def npz(write: Callable[..., None] = np.savez_compressed, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    write(stream, **arrays)
    return stream.getvalue()


def image_of(dtype: str, height: int = 37, width: int = 53) -> np.ndarray:
    if dtype == "float32":
        return depth_image(height, width)
    limits = np.iinfo(dtype)
    return np.random.default_rng(1).integers(limits.min, limits.max, (height, width), dtype, endpoint=True)


def values_or_sentence(file: bytes, image: np.ndarray) -> bool:
    """Decode, and check the values. Returns False if the file was refused."""
    try:
        info = depth.probe(file)
        found = depth.decode(file)
    except depth.DecodeError as error:
        assert "expected" in str(error) and "found" in str(error) and "\n" not in str(error)
        return False
    assert_same_bits(found, image.astype(np.float32))
    assert (info.width, info.height) == image.shape[::-1]
    assert info.channels[0].dtype == image.dtype.name
    return True


@pytest.mark.parametrize("dtype", TYPES)
def test_tiff_of_every_layout_has_the_values_that_were_written(dtype: str) -> None:
    """Pillow misreads big-endian compressed samples, and does not read big-endian uint32 and big-endian BigTIFF."""
    image = image_of(dtype)
    predictors = (0, 1, 3) if dtype == "float32" else (0, 1, 2)
    for order, predictor, tile, big in itertools.product("<>", predictors, (0, 16), (False, True)):
        read = values_or_sentence(tiff(image, order, predictor, tile, big), image)
        small = dtype in ("uint8", "uint16")
        misread = order == ">" and (big or dtype == "uint32" or (predictor > 0 and not small))
        assert read != misread, (order, predictor, tile, big)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_tiff_of_pillow(dtype: str, compression: str) -> None:
    image, stream = image_of(dtype), io.BytesIO()
    Image.fromarray(image).save(stream, "TIFF", compression=compression)
    assert values_or_sentence(stream.getvalue(), image)
    assert depth.probe(stream.getvalue()).decoder == "Pillow"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("image", "tags", "said"),
    [
        (np.zeros((8, 8, 3), np.uint8), {}, "one sample per pixel, found 3 samples: is it colour?"),
        (np.zeros((8, 8)), {}, "float32, found floats of 64 bits"),
        (np.zeros((8, 8), np.float16), {}, "found floats of 16 bits"),
        (np.zeros((8, 8), np.int8), {}, "found signed integers of 8 bits"),
        (np.zeros((8, 8), np.uint16), {258: 12}, "found unsigned integers of 12 bits"),
        (np.zeros((8, 8), np.uint16), {262: 0}, "grey in which 0 is black, found PhotometricInterpretation 0"),
        (np.zeros((8, 8), np.uint8), {262: 3}, "found PhotometricInterpretation 3"),
        (np.zeros((8, 8), np.uint16), {274: 6}, "an upright image, found Orientation 6"),
        (np.zeros((8, 8), np.uint8), {266: 2}, "FillOrder 1, found FillOrder 2"),
        (np.zeros((8, 8), np.uint16), {259: 99}, "a kind that Pillow reads, found another"),
        (np.zeros((8, 8), np.uint16), {257: 0}, "expected"),
        (np.zeros((8, 8), np.uint16), {256: 2**31, 257: 2**31}, "at most"),
    ],
)
def test_tiff_that_is_no_depth_is_refused(image: np.ndarray, tags: dict[int, int], said: str, order: str) -> None:
    for call in (depth.probe, depth.decode):
        with pytest.raises(depth.DecodeError, match=said):
            call(tiff(image, order, tags=tags))


def test_tiff_of_several_pages_is_refused() -> None:
    image = image_of("uint16", 8, 8)
    assert values_or_sentence(tiff(image), image)
    with pytest.raises(depth.DecodeError, match="expected one page, found several"):
        depth.decode(tiff(image, pages=2))


@pytest.mark.filterwarnings("ignore:.*Corrupt EXIF data")
@pytest.mark.parametrize("predictor", [0, 3])
def test_cut_tiff_is_refused(predictor: int) -> None:
    image = image_of("float32", 9, 8)
    whole = tiff(image, predictor=predictor)
    assert [length for length in range(len(whole)) if values_or_sentence(whole[:length], image)] == []


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [*TYPES, "float16", "float64", "int64"])
def test_npz_of_numpy(dtype: str, write: Callable[..., None]) -> None:
    image = image_of("int16").astype(dtype)
    for arrays in ({"arr_0": image}, {"depth": image, "rgb": np.zeros((5, 5, 3), np.uint8)}, {"DEPTH": image[None]}):
        assert values_or_sentence(npz(write, **arrays), image)
    several = npz(write, b=image, a=image + 1)
    assert depth.probe(several).channel is None
    assert_same_bits(depth.decode(several, "a"), (image + 1).astype(np.float32))
    assert [channel.name for channel in depth.probe(several).channels] == ["b", "a"]
    with pytest.raises(depth.DecodeError, match="channels: expected one whose name says depth, found 'b', 'a'"):
        depth.decode(several)
    with pytest.raises(depth.DecodeError, match="channels: expected 'c', found 'b', 'a'"):
        depth.decode(several, "c")


def zip_of(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return stream.getvalue()


def test_what_macos_adds_to_an_npz_is_left_out() -> None:
    image = image_of("uint16", 8, 8)
    npy = io.BytesIO()
    np.save(npy, image)
    files = {"__MACOSX/._arr_0_npy": bytes(20), "arr_0_npy": npy.getvalue()}
    assert values_or_sentence(zip_of(**files), image)


def test_npz_that_is_no_depth_is_refused() -> None:
    broken = bytearray(npz(depth=np.arange(3000.0).reshape(30, 100)))
    broken[500] ^= 255
    npy = io.BytesIO()
    np.save(npy, np.zeros((4, 4), np.float32))
    for file, said in [
        (npz(depth=np.zeros((2, 3, 4))), ":depth: NPY header: expected shape"),
        (npz(depth=np.array([[{}]], object)), "found '|O', pickled objects".replace("|", r"\|")),
        (npz(depth=np.zeros((2, 2), "f4,f4")), "a structured type|one number per pixel"),
        (zip_of(metadata=b"{}"), "expected NPY arrays, found a ZIP archive of 1 other files"),
        (zip_of(depth_npy=b"text"), "NPY header: expected one that NumPy reads"),
        (zip_of(depth_npy=npy.getvalue()[:-4]), "samples: expected 64 bytes for 4 × 4, found 60"),
        (zip_of(depth_npy=npy.getvalue() + bytes(10**6)), "expected at most 65664 bytes unpacked, found 1000192"),
        (bytes(broken), "expected a whole ZIP archive, found"),
        (npz(depth=np.zeros((9, 9)))[:-30], "expected a whole ZIP archive, found"),
    ]:
        for call in (depth.decode, depth.probe):
            with pytest.raises(depth.DecodeError, match=said):
                call(file)


def test_limits_hold_before_anything_is_unpacked() -> None:
    limits = depth.Limits(max_pixels=10**4, max_bytes=10**5)
    zeros = np.zeros((1000, 1000), np.uint8)
    for file in (npz(depth=zeros), tiff(zeros, predictor=1)):
        assert len(file) < 10**5
        for call in (depth.probe, depth.decode):
            with pytest.raises(depth.DecodeError, match="expected at most"):
                call(file, limits=limits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["plain tiff", "predictor", "tiles", "npz"])
@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.floats(0, 1),
    insert=st.binary(max_size=5),
)
def test_mutated_files_give_values_or_one_sentence(
    kind: str, changes: list[tuple[float, int]], cut: float, insert: bytes
) -> None:
    image = image_of("float32", 9, 8)
    options: dict[str, Any] = {"plain tiff": {}, "predictor": {"predictor": 3}, "tiles": {"tile": 16}}.get(kind, {})
    file = bytearray(npz(depth=image) if kind == "npz" else tiff(image, **options))
    for place, value in changes:
        file[int(place * len(file))] = value
    at = int(cut * len(file))
    for bent in (bytes(file), bytes(file[:at] + insert + file[at:])):
        for call in (depth.probe, depth.decode):
            try:
                call(bent, limits=depth.Limits(max_pixels=10**6, max_bytes=10**7))
            except depth.DecodeError as error:
                assert "expected" in str(error) and "found" in str(error)


def test_batches_may_mix_them_with_other_files(tmp_path: Any) -> None:
    image = image_of("uint16")
    npy = io.BytesIO()
    np.save(npy, image)
    sources = []
    for name, content in {"a.tif": tiff(image), "b.npz": npz(depth=image), "c.npy": npy.getvalue()}.items():
        (tmp_path / name).write_bytes(content)
        sources += [tmp_path / name, content]
    for first in range(len(sources)):
        batch = depth.decode_batch(sources[first:])
        assert (batch == image).all()
    with pytest.raises(depth.DecodeError, match=r"b\.npz: image: expected width × height 53 × 36, found 53 × 37"):
        depth.decode_batch(sources[2:3], np.empty((1, 36, 53), np.float32))
