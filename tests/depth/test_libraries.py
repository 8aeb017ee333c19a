"""Depth in TIFF and NPZ: the values that were written, or one sentence, for every kind of file."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
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


Tags = Mapping[int, int | bytes | Sequence[int] | None]


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
    tags: Tags | None = None,
    pages: int = 1,
    rows: int = 7,
    short: bool = False,
) -> bytes:
    """Write a TIFF by hand.

    Samples are deflated if there is a predictor (1: none, 2: differences, 3: of floats). They are in strips of `rows`
    lines or in tiles. `tags` replaces or adds tags, or takes away those that are None. `big` writes a BigTIFF. Tags are
    of 16 bits if `short`, where they fit.
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
        parts = [coded(image[y : y + rows]) for y in range(0, height, rows)]

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
        fields |= {322: tile, 323: tile, 324: 0, 325: 0} if tile else {273: 0, 278: rows, 279: 0}
        fields = {tag: value for tag, value in (fields | dict(tags or {})).items() if value is not None}
        entry, word, count, next_ = (20, "Q", "Q", 8) if big else (12, "I", "H", 4)
        data = len(file) + struct.calcsize(f"={count}") + entry * len(fields) + next_
        lists = {}  # of places and of sizes, behind the tags
        sizes = [len(part) for part in parts]
        extra = sum(len(v) if isinstance(v, bytes) else 8 * len(v) for v in fields.values() if not isinstance(v, int))
        first = data + 2 * struct.calcsize(f"={word}") * len(parts) + extra
        lists[324 if tile else 273] = [first + sum(sizes[:i]) for i in range(len(parts))]
        lists[325 if tile else 279] = sizes
        body, block = b"", b""
        for tag, value in sorted(fields.items()):
            values = lists[tag] if value == 0 and tag in lists else value
            values = [values] if isinstance(values, int) else values
            letter = "H" if short and max(values) < 2**16 else word
            type_ = 2 if isinstance(values, bytes) else {"H": 3, "I": 4, "Q": 16}[letter]
            packed = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{letter}", *values)
            if len(packed) > struct.calcsize(f"={word}"):
                packed, block = struct.pack(f"{order}{word}", data + len(block)), block + packed
            packed = packed.ljust(struct.calcsize(f"={word}"), b"\0")
            body += struct.pack(f"{order}HH{word}", tag, type_, len(values)) + packed
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
    """Pillow misreads big-endian compressed samples of 32 bits."""
    image = image_of(dtype)
    predictors = (0, 1, 3) if dtype == "float32" else (0, 1, 2)
    for order, predictor, tile, big in itertools.product("<>", predictors, (0, 16), (False, True)):
        read = values_or_sentence(tiff(image, order, predictor, tile, big), image)
        misread = order == ">" and predictor > 0 and image.itemsize == 4
        assert read != misread, (order, predictor, tile, big)


READ = {
    254: [None, 0, 1, 2],
    262: [None, 1],
    266: [None, 1],
    270: [
        *(None, b"a text\0", b"ImageJ=1.53\nimages=1\n\0", b"{}\0", b"[1]\0", b"1", b"\xff"),
        *(
            b'{"shape": [11, 13]}\0',
            b'{"shape": [1, 11, 13, 1]}\0',
            b'{"shape": [33, 26]}\0',
            b'{"shape": [null, "a"]}',
        ),
        *(b'{"shape": [1e999, 11, 13]}\0', b'{"shape": [[1], "a", 11, 13]}\0', b"ImageJ=\nimages=" + b"9" * 9999),
    ],
    274: [None, 0, 1],
    277: [None, 1],
    284: [None, 1, 2],
    317: [None, 1],
    32997: [None, 1],
    # Tags that say nothing of the samples: wrong ones are no reason to refuse a file.
    305: [None, b"a program\0"],
    330: [None, 8],
    338: [None, 0, 9],
    34665: [None, 10**6],
    42113: [None, b"-9999\0"],
}
"""Values of tags that change nothing. None is an absent tag."""
REFUSED = {
    254: [4, 5],
    262: [0, 2, 3, 4, 5, 6, 8, 32803, 32844],
    266: [2, 0],
    270: [b"ImageJ=1.53\nimages=3\nslices=3\n\0", b'{"shape": [3, 11, 13]}\0', b'{"shape": [2, 1, 11, 13, 1]}\0'],
    274: [2, 3, 4, 5, 6, 7, 8],
    277: [0, 2, 3, 4],
    339: [4, 5, [1, 3]],
    258: [None, 1, 12, 24, [8, 16]],
    259: [2, 6, 7, 34887, 50001],
    32997: [3],
}
"""Values of tags that no depth has."""
LAYOUTS = st.fixed_dictionaries(
    {
        "order": st.sampled_from("<>"),
        "predictor": st.sampled_from([0, 1]),
        "tile": st.sampled_from([0, 16]),
        "big": st.booleans(),
        "short": st.booleans(),
        "rows": st.sampled_from([1, 4, 11, 2**16]),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(list(TYPES)),
    layout=LAYOUTS,
    tags=st.fixed_dictionaries({tag: st.sampled_from(values) for tag, values in READ.items()}),
    bad=st.none() | st.sampled_from([{tag: value} for tag, values in REFUSED.items() for value in values]),
)
def test_tags_of_a_tiff_mean_what_the_standard_says(
    dtype: str, layout: dict[str, Any], tags: dict[int, Any], bad: dict[int, Any] | None
) -> None:
    """Pillow takes PlanarConfiguration 2 and absent tags in ways of its own, and drops tags that it cannot read."""
    image = image_of(dtype, 11, 13)
    if not layout["predictor"] and not layout["tile"]:
        tags = {**tags, 279: 0 if layout["short"] else None}  # without compression, the sizes are known
    read = values_or_sentence(tiff(image, tags={**tags, **(bad or {})}, **layout), image)
    misread = layout["order"] == ">" and layout["predictor"] and image.itemsize == 4
    assert read == (bad is None and not misread)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", TYPES)
def test_tiff_whose_samples_are_not_all_there_is_refused(dtype: str, order: str) -> None:
    """Pillow gives 0 for a strip or tile that is not listed, and other bytes for one that is elsewhere."""
    image = image_of(dtype, 32, 48)
    for predictor, tile in itertools.product((0, 1), (0, 16)):
        if predictor and order == ">" and image.itemsize == 4:
            continue
        kind: dict[str, Any] = {"order": order, "predictor": predictor, "tile": tile, "rows": 6}
        assert values_or_sentence(tiff(image, **kind), image)
        places, sizes = (324, 325) if tile else (273, 279)
        n = 6
        size = 16 * 16 * image.itemsize if tile else 48 * 6 * image.itemsize
        wrong: list[Tags] = [
            {places: [500, 0, 500, 500, 500, 500], sizes: [4, 0, 4, 4, 4, 4]},  # as GDAL's SPARSE_OK
            {places: [500, 0, 500, 500, 500, 500]},
            {places: None},
            {places: [500] * (n - 1)},
            {places: [500] * (n + 1)},
            {places: [500] * (n - 1) + [10**6]},
            {places: [4] * n},
            {sizes: [size] * (n - 1)},
            {sizes: [size] * (n - 1) + [10**6]},
            {sizes: [0] * n},
            {sizes: [1] * n},
            {256: 49 + 16},
            {257: 37 + 16},
            {256: 2**31},
            {317: 7},
        ]
        wrong += [{322: None}, {323: 0}, {322: 2**31}, {273: [500] * n}] if tile else [{278: 0}, {278: 1}, {278: None}]
        for tags in wrong:
            assert not values_or_sentence(tiff(image, tags=tags, **kind), image), (tags, kind)
    assert not values_or_sentence(tiff(image, order, tags={317: 2}), image)


def test_compressed_strips_of_a_tiff_that_end_early_are_refused() -> None:
    image = image_of("uint16", 14, 64)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "TIFF", compression=compression)
        whole = stream.getvalue()
        with Image.open(io.BytesIO(whole)) as opened:
            (size,) = opened.tag_v2[279]
        assert whole.count(field := struct.pack("<HHII", 279, 4, 1, size)) == 1
        assert values_or_sentence(whole, image)
        for cut in (size // 2, size // 4, size // 8):
            assert not values_or_sentence(whole.replace(field, struct.pack("<HHII", 279, 4, 1, size - cut)), image)


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
        (np.zeros((8, 8), np.uint16), {259: 99}, "LZMA or Zstandard, found Compression 99"),
        (np.zeros((8, 8), np.uint8), {259: 7}, "LZMA or Zstandard, found JPEG"),
        (np.zeros((8, 8), np.uint8), {273: [150, 0]}, "samples everywhere, found that strip 1 is absent"),
        (np.zeros((8, 8), np.uint8), {273: [500]}, "2 values of StripOffsets, one for each strip, found 1"),
        (np.zeros((8, 8), np.uint8), {277: b"1"}, "unsigned integers in the tag SamplesPerPixel, found 1 values"),
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


@pytest.mark.parametrize("predictor", [0, 3])
def test_cut_tiff_is_refused(predictor: int) -> None:
    """Most writers put the tags behind the samples. Pillow reads the tags before the cut, without SampleFormat."""
    image = image_of("float32", 9, 8)
    whole = tiff(image, predictor=predictor)
    behind = whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + whole[8:200]
    for file, end in ((whole, len(whole)), (behind, len(whole) + 2 + 12 * (10 + (predictor > 0)) + 4)):
        assert [n for n in range(len(file)) if values_or_sentence(file[:n], image)] == list(range(end, len(file)))


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


@pytest.mark.filterwarnings("error")
def test_npz_of_python_2_is_read_without_a_warning() -> None:
    """Python 2 writes sizes as 8L."""
    image = image_of("uint16", 8, 8)
    npy = io.BytesIO()
    np.save(npy, image)
    old = npy.getvalue().replace(b"(8, 8), }  ", b"(8L, 8L), }")
    assert len(old) == len(npy.getvalue())
    assert values_or_sentence(zip_of(depth_npy=old), image)


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
