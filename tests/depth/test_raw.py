"""NPY and PFM: the same values as NumPy and OpenCV read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import pfm

from vologan_fast import depth

CODES = ["f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def npy_with_header(header: str, samples: bytes = bytes(16)) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + samples


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", CODES)
def test_every_type_order_and_shape_equals_numpy(code: str, order: str) -> None:
    dtype = np.dtype(order + code)
    image = depth_image(9, 21) if dtype.kind == "f" else np.arange(-90, 99).reshape(9, 21) * 7
    with np.errstate(over="ignore"):
        image = image.astype(dtype)
    for array in (
        image,
        np.asfortranarray(image),
        image[:, :, None],
        image[None],
        np.asfortranarray(image[:, :, None]),
    ):
        assert_same_bits(depth.decode(npy(array)), image.astype(np.float32))
    assert depth.probe(npy(image)).channels == (depth.Channel("Y", dtype.newbyteorder("=").name),)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(version: tuple[int, int]) -> None:
    image = depth_image(4, 6)
    assert_same_bits(depth.decode(npy(image, version)), image)


def test_npy_doubles_beyond_float32_become_infinite() -> None:
    values = np.array([[1e300, -1e300, 1e-300, np.nan]])
    with np.errstate(over="ignore"):
        assert_same_bits(depth.decode(npy(values)), values.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4), np.float32), r"expected shape \(H, W\), .* found \(2, 3, 4\)"),
        (np.zeros(5, np.float32), r"found \(5\)"),
        (np.float32(1), r"found \(\)"),
        (np.zeros((0, 3), np.float32), "at least one pixel, found 3 × 0"),
        (np.zeros((2, 2), bool), r"expected a type of <f2 .* found '\|b1'"),
        (np.zeros((2, 2), np.complex64), "found '<c8'"),
        (np.zeros((2, 2), [("a", "f4"), ("b", "f4")]), "found a structured type"),
    ],
)
def test_npy_arrays_that_are_no_depth(array: np.ndarray, message: str) -> None:
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(npy(array))


def test_npy_pickles_are_refused() -> None:
    with pytest.raises(depth.DecodeError, match=r"found '\|O'"):
        stream = io.BytesIO()
        np.save(stream, np.array([[{}]], object), allow_pickle=True)
        depth.decode(stream.getvalue())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "found its end"),
        ("{'descr': '<f4', 'fortran_order': False}", "expected 'descr', 'fortran_order' and 'shape', found not all"),
        ("{'descr': '<f4', 'descr': '<f4'}", "each once, found 'descr'"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 2)}", "expected 'False', found '0"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 2)}", "expected a size, found '-2"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 2)}", "expected a size"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "expected at most"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)} + 1", "expected nothing behind the dictionary"),
        ("{'descr': '<f4, 'fortran_order': False, 'shape': (2, 2)}", "NPY header"),
        ("__import__('os')", "expected '{'"),
    ],
)
def test_npy_headers_that_do_not_parse(header: str, message: str) -> None:
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(npy_with_header(header))


def test_npy_of_an_unknown_version() -> None:
    with pytest.raises(depth.DecodeError, match="expected version 1, 2 or 3, found 4"):
        depth.decode(b"\x93NUMPY\4\0" + bytes(20))


@pytest.mark.parametrize("scale", ["-1.0", "1.0", "-1", "0.5", "-2e-3"])
def test_pfm_of_either_byte_order_bottom_row_first(scale: str) -> None:
    image = depth_image(7, 5)
    assert_same_bits(depth.decode(pfm(image, scale)), image)


def test_pfm_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    image = depth_image(33, 20)
    encoded, file = cv2.imencode(".pfm", image)
    assert encoded
    assert_same_bits(depth.decode(file.tobytes()), image)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (pfm(np.zeros((2, 2)), kind="PF"), r"expected 'Pf' \(grey\), found 'PF' \(colour\)"),
        (b"Pf\n2 2\n0\n" + bytes(16), "expected a scale other than 0, found '0'"),
        (b"Pf\n2 2\nnan\n" + bytes(16), "expected a scale other than 0, found 'nan'"),
        (b"Pf\n2 x\n-1\n" + bytes(16), "expected a height, found 'x'"),
        (b"Pf\n-2 2\n-1\n" + bytes(16), "expected at least one pixel, found -2 × 2"),
        (b"Pf\n99999999999 99999999999\n-1\n" + bytes(16), "expected at most"),
        (b"Pf\n2 2\n-1\n" + bytes(15), "samples: expected 16 bytes for 2 × 2, found 15"),
        (b"Pf\n2 2\n-1\n" + bytes(17), "samples: expected 16 bytes for 2 × 2, found 17"),
        (b"Pf\n2 2\n-1", "expected a scale, found its end"),
        (b"Pf\n" + b" " * 1000, "expected a width, found its end"),
    ],
)
def test_pfm_that_is_no_depth(file: bytes, message: str) -> None:
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(file)
