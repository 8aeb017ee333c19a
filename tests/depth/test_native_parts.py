"""Parts of csrc/depth that the Python module cannot reach: scalar twins of SIMD code, and both inflate back ends."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from depth_images import depth_image
from depth_writers import Exr, pfm, png, png_chunk

SOURCES = Path(__file__).parents[2] / "csrc" / "depth"


SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover")


def compiled(folder: Path, *sources: Path | str, options: Sequence[str] = SANITIZED) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "program"
    command = [compiler, "-std=c++20", *options, "-I", SOURCES]
    built = subprocess.run([*command, "-o", program, *sources], capture_output=True, text=True, check=False)
    if built.returncode != 0 and ("No such file" in built.stderr or "cannot find -l" in built.stderr):
        pytest.skip(f"not installed here: {built.stderr.splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    return program


def test_simd_equals_scalar(tmp_path: Path) -> None:
    program = compiled(tmp_path, Path(__file__).with_name("rows_test.cpp"), SOURCES / "rows.cpp")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_simd_equals_scalar_on_arm(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user")
    program = tmp_path / "program"
    sources = (Path(__file__).with_name("rows_test.cpp"), SOURCES / "rows.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-static", "-I", SOURCES, "-o", program, *sources], check=True)
    result = subprocess.run([emulator, program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == ["neon", "scalar"]


DECODER = [SOURCES / f"{name}.cpp" for name in ("batch", "decode", "exr", "png", "raw", "rows")]


def test_no_allocation_for_an_image_like_the_one_before(tmp_path: Path) -> None:
    program = compiled(
        tmp_path,
        Path(__file__).with_name("allocations_test.cpp"),
        *DECODER,
        SOURCES / "inflate_libdeflate.cpp",
        "-ldeflate",
        options=["-O0"],
    )
    files: dict[str, bytes] = {}
    for dtype in ("float16", "float32", "uint32"):
        plane = depth_image(70, 53, dtype)
        planes = {"Z": plane, "A name too long to be kept inside of a std::string": plane}
        for compression in ("none", "rle", "zips", "zip"):
            exr = Exr(planes, compression, version=2 | 0x400, attributes={"owner of the image": ("string", b"nobody")})
            files[f"{dtype} {compression}.exr"] = exr.bytes()
            files[f"{dtype} {compression}, chunks out of order.exr"] = exr.bytes(order=range(len(exr.chunks()))[::-1])
    for dtype in ("uint8", "uint16"):
        image = depth_image(70, 53, dtype)
        extra = png_chunk(b"tEXt", b"unit\0millimetres")
        files |= {f"{dtype} filter {i}.png": png(image, i, pieces=1 + i, extra=extra) for i in range(5)}
    for dtype in ("float16", "float32", "float64", "uint16", "uint32"):
        for byte_order, array_order in itertools.product("<>", "CF"):
            image = depth_image(70, 53, dtype).astype(np.dtype(dtype).newbyteorder(byte_order), order=array_order)
            stream = io.BytesIO()
            np.save(stream, image)
            files[f"{dtype} {'big' if byte_order == '>' else 'little'} {array_order}.npy"] = stream.getvalue()
    files |= {f"{scale}.pfm": pfm(depth_image(70, 53), scale) for scale in ("1.0", "-1.0")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    result = subprocess.run([program, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("backend", ["libdeflate", "zlib"])
def test_inflate_is_exact_with_either_library(tmp_path: Path, backend: str) -> None:
    program = compiled(
        tmp_path,
        Path(__file__).with_name("inflate_test.cpp"),
        SOURCES / f"inflate_{backend}.cpp",
        "-ldeflate" if backend == "libdeflate" else "-lz",
    )
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 3, 40_000)).astype(np.uint16).tobytes()
    whole = [b"a", bytes(100_000), b"ab" * 3000, rng.bytes(5000), smooth, bytes(16384) + rng.bytes(3)]
    cases = []  # packed, expected size, expected answers
    for raw in whole:
        for level in (0, 1, 6, 9):
            packed = zlib.compress(raw, level)
            cases.append((packed, len(raw), {str(zlib.crc32(raw))}))
            cases.append((packed, len(raw) + 1, {"a stream that ends early"}))
            cases.append((packed, len(raw) - 1, {"a stream that goes on"}))
            cases.append((packed, len(raw) // 2, {"a stream that goes on"}))
            cases.append((packed + b"\0", len(raw), {"bytes behind the stream's end"}))
            cases.append((packed[:-4] + b"oops", len(raw), {"a corrupt stream"}))
    broken = {"a corrupt stream", "a stream that ends early", "a stream that goes on"}
    packed = zlib.compress(smooth[:300])
    cases += [(packed[:length], 300, broken) for length in range(len(packed))]
    cases.append((b"\x78\x9c" + b"\xff" * 50, 100, broken))

    records = b"".join(struct.pack("<2I", len(packed), size) + packed for packed, size, _ in cases)
    result = subprocess.run([program], input=records, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    answers = result.stdout.decode().splitlines()
    assert len(answers) == len(cases)
    for answer, (packed, size, expected) in zip(answers, cases, strict=True):
        assert answer in expected, f"{len(packed)} bytes to {size}: {answer}, not {expected}"
