"""NPY and PFM: the same values as NumPy and OpenCV read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import pfm
from hypothesis import given, settings
from hypothesis import strategies as st

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
        image[None, None],
        image[None, :, :, None],
        np.asfortranarray(image[None, :, :, None, None]),
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
        (np.zeros((1, 2, 3, 4), np.float32), r"found \(1, 2, 3, 4\)"),
        (np.zeros((2, 2), bool), r"expected a type of <f2 .* found '\|b1', a mask of booleans"),
        (np.zeros((2, 2), np.complex64), "found '<c8'"),
        (np.zeros((2, 2), [("a", "f4"), ("b", "f4")]), "found a structured type: save the field"),
    ],
)
def test_npy_arrays_that_are_no_depth(array: np.ndarray, message: str) -> None:
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(npy(array))


def test_npy_pickles_are_refused() -> None:
    with pytest.raises(depth.DecodeError, match=r"found '\|O', pickled objects"):
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


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (2, 2), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2, 2)}',
        "{'descr': u'<f4', u'fortran_order': False, 'shape': (2L, 2L), }",
        "{'descr':'<f4','fortran_order':False,'shape':(2,2,),}\n\n",
        "\n{ 'descr' :\t'<f4' , 'fortran_order' : False , 'shape' : ( 2 , 2 ) }   ",
        "{'descr': 'f4', 'fortran_order': False, 'shape': (2, 2)}",
        "{'descr': '=f4', 'fortran_order': False, 'shape': (2, 2)}",
        "{'descr': '|f4', 'fortran_order': False, 'shape': (2, 2)}",
        "{'descr': 'float32', 'fortran_order': False, 'shape': (2, 2)}",
    ],
)
def test_npy_headers_of_other_writers_are_read_as_numpy_reads_them(header: str) -> None:
    image = np.array([[1, 2], [3, 4]], "<f4")
    file = npy_with_header(header, image.tobytes())
    assert_same_bits(np.load(io.BytesIO(file)), image)
    assert_same_bits(depth.decode(file), image)


def test_bytes_behind_the_samples_are_ignored_but_not_a_second_image() -> None:
    image = depth_image(4, 6)
    for file, second in ((npy(image), npy(image[:1])), (pfm(image), pfm(image[:1]))):
        for behind in (b"\n", b"\r\n", bytes(3), b"a note"):
            assert_same_bits(depth.decode(file + behind), image)
        with pytest.raises(depth.DecodeError, match="expected one image in the file, found a second one"):
            depth.decode(file + second)
        with pytest.raises(depth.DecodeError, match="found 192, enough for several such images"):
            depth.decode(file + bytes(96))


def test_npy_of_an_unknown_version() -> None:
    with pytest.raises(depth.DecodeError, match="expected version 1, 2 or 3, found 4"):
        depth.decode(b"\x93NUMPY\4\0" + bytes(20))


@pytest.mark.parametrize("scale", ["-1.0", "1.0", "-1", "+1", "+1.0", "1e0", "-1E+0", "-1.", "0.5", "-2e-3", "-1,000"])
def test_pfm_of_either_byte_order_bottom_row_first(scale: str) -> None:
    """The magnitude of the scale is ignored, as in Pillow."""
    image = depth_image(7, 5)
    order = "<" if scale.startswith("-") else ">"
    file = f"Pf\n5 7\n{scale}\n".encode() + image[::-1].astype(f"{order}f4").tobytes()
    assert_same_bits(depth.decode(file), image)


LINE_ENDS = ["\n", "\r\n", "\r", " ", "\t", " \n", " \r\n"]


@settings(max_examples=150, deadline=None)
@given(
    ends=st.tuples(*[st.sampled_from(LINE_ENDS)] * 4),
    comment=st.sampled_from(["", "# made by hand\n", "#\r\n# two lines\n"]),
    colour=st.booleans(),
    behind=st.sampled_from([b"", b"\n", b"\r\n"]),
    first=st.sampled_from([b"\n\n\n\n", b"\r\n\r\n", b"    ", b"#  #", b"\0\0\x80\x3f"]),
)
def test_pfm_headers_of_other_programs(
    ends: tuple[str, ...], comment: str, colour: bool, behind: bytes, first: bytes
) -> None:
    """Any white space may separate the words. The samples may begin with bytes that look like white space, too."""
    image = depth_image(3, 5).astype("<f4")
    image[-1, 0] = np.frombuffer(first, "<f4")[0]
    a, b, c, end = ends
    samples = np.repeat(image[::-1, :, None], 3 if colour else 1, axis=2).tobytes()
    header = f"{'PF' if colour else 'Pf'}{a}{comment if a[-1] in chr(10) else ''}5{b}3{c}-1.0{end}".encode()
    if behind and first[:1] in b" \r\n#":  # not even the number of bytes tells where the samples begin
        if not end.endswith("\n"):
            return  # then a line end may seem to follow
        with pytest.raises(depth.DecodeError, match="expected one line end behind the scale"):
            depth.decode(header + samples + behind)
    else:
        assert_same_bits(depth.decode(header + samples + behind), image)
    for more in ("\n", "# a comment\n", " # a comment\r\n"):
        with pytest.raises(depth.DecodeError, match="expected one line end behind the scale"):
            depth.decode(header + b"\n" * (end[-1] != "\n") + more.encode() + samples)


def test_pfm_of_colour_is_refused_unless_it_is_grey() -> None:
    pixels = np.repeat(depth_image(3, 5)[..., None], 3, axis=2)
    pixels[1, 4, 1] = 123
    file = b"PF\n5 3\n-1\n" + pixels[::-1].astype("<f4").tobytes()
    with pytest.raises(depth.DecodeError, match=r"expected one depth per pixel, .* found colour: .* column 4 of row 1"):
        depth.decode(file)


def test_pfm_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    image = depth_image(33, 20)
    encoded, file = cv2.imencode(".pfm", image)
    assert encoded
    assert_same_bits(depth.decode(file.tobytes()), image)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (pfm(np.zeros((2, 2)), kind="PF"), "samples: expected 48 bytes for 2 × 2, found 16"),
        (pfm(np.zeros((2, 2)), kind="PF4"), "found a PFM image of four channels"),
        (b"Pf\n2 2\n0\n" + bytes(16), "expected a scale other than 0, found 0"),
        (b"Pf\n2 2\nnan\n" + bytes(16), "expected a scale other than 0, found nan"),
        (b"Pf\n2 x\n-1\n" + bytes(16), "expected a height, found 'x'"),
        (b"Pf\n-2 2\n-1\n" + bytes(16), "expected at least one pixel, found -2 × 2"),
        (b"Pf\n99999999999 99999999999\n-1\n" + bytes(16), "expected at most"),
        (b"Pf\n2 2\n-1\n" + bytes(15), "samples: expected 16 bytes for 2 × 2, found 15"),
        (b"Pf\n2 2\n-1\n" + bytes(32), "samples: expected 16 bytes for 2 × 2, found 32, enough for several"),
        (b"Pf\n2 2\n-1" + b"\1" * 99, "expected a scale other than 0 with white space behind it, found '-1"),
        (b"Pf\n2 2\n-1", "expected a scale other than 0, found its end"),
        (b"Pf\n" + b" " * 1000, "expected a width, found its end"),
    ],
)
def test_pfm_that_is_no_depth(file: bytes, message: str) -> None:
    with pytest.raises(depth.DecodeError, match=message):
        depth.decode(file)
