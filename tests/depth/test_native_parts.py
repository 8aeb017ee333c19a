"""Parts of csrc/depth that the Python module cannot reach.

These are the scalar twins of SIMD code, each inflater alone, and teams of more than one thread.
"""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from depth_images import depth_image
from depth_writers import Exr, one_distance_stream, one_literal_stream, pfm, png, png_chunk
from native_build import DECODER, SOURCES, compile_with, compiled, compiled_for_arm


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> list[Path | str]:
    """Compile the decoder of files, for test programs that need it."""
    folder = tmp_path_factory.mktemp("decoder")
    compile_with("-c", *DECODER, folder=folder)
    return [*folder.glob("*.o"), "-pthread"]


def test_simd_equals_scalar(tmp_path: Path) -> None:
    program = compiled(tmp_path, Path(__file__).with_name("rows_test.cpp"), SOURCES / "rows.cpp")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_simd_equals_scalar_on_arm(tmp_path: Path) -> None:
    command = compiled_for_arm(tmp_path, Path(__file__).with_name("rows_test.cpp"), SOURCES / "rows.cpp")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == ["neon", "scalar"]


def test_no_allocation_for_an_image_like_the_one_before(tmp_path: Path, decoder: list[Path | str]) -> None:
    program = tmp_path / "program"
    compile_with("-o", program, Path(__file__).with_name("allocations_test.cpp"), *decoder)
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


INFLATERS = [
    pytest.param((SOURCES / "inflate.cpp",), id="inflate.cpp"),
    pytest.param(
        (SOURCES / "inflate.cpp", "-DVOLOGAN_PLAIN_LOOPS"), id="inflate.cpp, plain loops", marks=pytest.mark.slow
    ),
    pytest.param((Path(__file__).with_name("inflate_team.cpp"),), id="team_inflate.h"),
]


@pytest.mark.parametrize("sources", INFLATERS)
def test_each_inflater_is_exact(tmp_path: Path, sources: tuple[Path | str, ...]) -> None:
    program = compiled(tmp_path, Path(__file__).with_name("inflate_test.cpp"), SOURCES / "checksums.cpp", *sources)
    check_inflater([program])


def test_the_inflater_is_exact_on_arm(tmp_path: Path) -> None:
    sources = (SOURCES / name for name in ("inflate.cpp", "checksums.cpp"))
    check_inflater(compiled_for_arm(tmp_path, Path(__file__).with_name("inflate_test.cpp"), *sources))


def check_inflater(command: list[Path | str]) -> None:
    """Compare the inflater in a build of inflate_test.cpp with zlib."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 3, 40_000)).astype(np.uint16).tobytes()
    whole = [b"", b"a", bytes(100_000), b"ab" * 3000, rng.bytes(5000), smooth, bytes(16384) + rng.bytes(3)]
    whole += [bytes(range(n)) * 700 for n in range(2, 20)]  # near matches of every distance
    whole += [rng.choice(17, 90_000, p=np.arange(1, 18) / 153).astype(np.uint8).tobytes()]  # literals two by two
    whole += [np.minimum(rng.geometric(0.05, 60_000), 255).astype(np.uint8).tobytes()]  # codes of many lengths
    cases = []  # packed, expected size, expected answers
    for raw in whole:
        for level, strategy in itertools.product((0, 1, 9), (0, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)):
            packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
            packed = packer.compress(raw) + packer.flush()
            cases.append((packed, len(raw), {str(zlib.crc32(raw))}))
            if not raw:
                continue
            cases.append((packed, len(raw) + 1, {"a stream that ends early"}))
            cases.append((packed, len(raw) - 1, {"a stream that goes on"}))
            cases.append((packed, len(raw) // 2, {"a stream that goes on"}))
            cases.append((packed + b"\0", len(raw), {"bytes behind the stream's end"}))
            cases.append((packed[:-4] + b"oops", len(raw), {"a corrupt stream"}))
    broken = {"a corrupt stream", "a stream that ends early", "a stream that goes on"}
    for size in range(1, 700):  # where the stream's tail begins
        raw = rng.choice(40, size).astype(np.uint8).tobytes()
        cases.append((zlib.compress(raw, size % 10), size, {str(zlib.crc32(raw))}))
    packed = zlib.compress(smooth[:300])
    cases += [(packed[:length], 300, broken) for length in range(len(packed))]
    cases.append((b"\x78\x9c" + b"\xff" * 50, 100, broken))

    records = b"".join(struct.pack("<2I", len(packed), size) + packed for packed, size, _ in cases)
    result = subprocess.run(command, input=records, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    answers = result.stdout.decode().splitlines()
    assert len(answers) == len(cases)
    for answer, (packed, size, expected) in zip(answers, cases, strict=True):
        assert answer in expected, f"{len(packed)} bytes to {size}: {answer}, not {expected}"


def test_threads_of_a_team_agree(tmp_path: Path, decoder: list[Path | str]) -> None:
    """Several threads decode each file, sound or broken, as a warp does: without a race, and as one thread does."""
    planes = {"A": depth_image(18, 7, "float16"), "Z": depth_image(18, 7)}
    files = [Exr(planes, compression).bytes() for compression in ("none", "rle", "zips", "zip")]
    image = np.tile(depth_image(16, 24, "float16"), (1, 2))  # long matches
    files.append(Exr({"Z": image}, "zip").bytes())
    raw = image.tobytes()
    for level, strategy in ((0, 0), (9, zlib.Z_FIXED), (9, zlib.Z_RLE), (6, zlib.Z_HUFFMAN_ONLY)):
        packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        stream = packer.compress(bytes(len(raw) // 2) + raw[::2][: len(raw) // 4]) + packer.flush()
        files.append(Exr({"Z": image}, "zip").bytes(chunks=[(0, stream)]))
    matches, expanded = one_distance_stream(65, 2)
    for stream, size in ((one_literal_stream(b"A" * 80), 80), (matches, len(expanded))):
        files.append(Exr({"Z": np.zeros((1, size // 4), np.float32)}, "zips").bytes(chunks=[(0, stream)]))
    rng = np.random.default_rng(0)
    for exr in (Exr(planes, "rle"), Exr(planes, "zips"), Exr({"Z": image}, "zip")):
        chunks = [(y, bytearray(packed)) for y, packed in exr.chunks()]
        for _, packed in chunks[::2]:
            for place in rng.integers(2, len(packed), 3):
                packed[place] ^= 1 << int(rng.integers(8))
        files.append(exr.bytes(chunks=chunks))
    paths = []
    for i, file in enumerate(files):
        paths.append(tmp_path / f"{i}.exr")
        paths[-1].write_bytes(file)
    test = Path(__file__).with_name("team_test.cpp")
    program = compiled(tmp_path, test, *decoder, sanitize="thread")
    result = subprocess.run([program, *paths], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{len(files)} files, ")
    assert not result.stdout.endswith(", 0 chunks with problems\n")


def test_gpu_memory_is_laid_out_and_copied(tmp_path: Path, decoder: list[Path | str]) -> None:
    """gpu_decoder.cpp runs over a CUDA in the CPU's memory, so AddressSanitizer checks its addresses and copies."""
    headers = next((path for root in sys.path for path in Path(root).glob("nvidia/*/include/cuda_runtime_api.h")), None)
    if headers is None:
        pytest.skip("the headers of CUDA are not installed (pip install nvidia-cuda-runtime)")
    paths = []
    for name, file in {
        "half.exr": Exr({"Z": depth_image(37, 21, "float16")}, "zip"),
        "wide.exr": Exr({"A": depth_image(17, 1200), "Z": depth_image(17, 1200)}, "zip"),
        "runs.exr": Exr({"Z": depth_image(9, 5)}, "rle"),
    }.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(file.bytes())
    test = Path(__file__).with_name("gpu_decoder_test.cpp")
    program = compiled(tmp_path, test, SOURCES / "gpu_decoder.cpp", *decoder, "-I", headers.parent)
    result = subprocess.run([program, *paths], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
