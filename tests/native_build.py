"""Builds of small C++ programs over csrc/, for tests that Python modules cannot do, or that need sanitisers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = CSRC / "depth"
DECODER = tuple(
    SOURCES / f"{name}.cpp"
    for name in ("batch", "channel", "checksums", "chunk_batch", "decode", "exr", "inflate", "png", "raw", "rows")
)


def compiled(folder: Path, *sources: Path | str, sanitize: str = "address,undefined") -> Path:
    """Compile the sources with these options and with sanitisers that end the program. Return the program's path."""
    program = folder / "program"
    compile_with(f"-fsanitize={sanitize}", "-fno-sanitize-recover", "-O1", "-o", program, *sources)
    return program


def compile_with(*arguments: Path | str, folder: Path | None = None) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-std=c++20", "-I", SOURCES, *arguments]
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if built.returncode != 0 and ("No such file" in built.stderr or "cannot find -l" in built.stderr):
        pytest.skip(f"not installed here: {built.stderr.splitlines()[0]}")
    assert built.returncode == 0, built.stderr


def compiled_for_arm(folder: Path, *sources: Path | str) -> list[Path | str]:
    """Compile the sources with these options for ARM. Return the command that runs the program in an emulator."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user")
    program = folder / "program"
    subprocess.run([compiler, "-std=c++20", "-O1", "-static", "-I", SOURCES, "-o", program, *sources], check=True)
    return [emulator, program]
