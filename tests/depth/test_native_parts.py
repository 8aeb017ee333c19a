"""Parts of csrc/depth that the Python module cannot reach: scalar twins of SIMD code, and both inflate back ends."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "depth"


def compiled(folder: Path, *sources: Path | str) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "program"
    command = [compiler, "-std=c++20", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-I", SOURCES]
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
