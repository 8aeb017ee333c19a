"""vologan_fast.depth: sources, batches into the caller's memory, threads, and errors that tell how to go on."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_images import assert_same_bits, depth_image
from depth_writers import Exr, png

from vologan_fast import depth

IMAGES = [np.roll(depth_image(24, 17), i, axis=1) for i in range(9)]
FILES = [Exr({"Z": image}, ["zip", "rle", "none"][i % 3]).bytes() for i, image in enumerate(IMAGES)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for i, file in enumerate(FILES):
        (tmp_path / f"{i}.exr").write_bytes(file)
    return [tmp_path / f"{i}.exr" for i in range(len(FILES))]


def test_a_source_is_a_path_or_bytes(paths: list[Path]) -> None:
    view = np.frombuffer(FILES[0], np.uint8)
    for source in (
        paths[0],
        str(paths[0]),
        np.str_(paths[0]),
        FILES[0],
        bytearray(FILES[0]),
        memoryview(FILES[0]),
        view,
    ):
        assert_same_bits(depth.decode(source), IMAGES[0])
        assert depth.probe(source).format == "exr"


def test_format_follows_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "really_an_exr.png"
    path.write_bytes(FILES[0])
    assert_same_bits(depth.decode(path), IMAGES[0])


def test_paths_of_any_bytes(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/t\xffte \xe2\x82\xac.exr")
    Path(path).write_bytes(FILES[0])
    assert_same_bits(depth.decode(path), IMAGES[0])
    Path(path).write_bytes(b"")
    with pytest.raises(depth.DecodeError) as caught:
        depth.decode(path)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"GIF89a", "a GIF image"),
        (b"PF4\n", "a PFM image of four channels"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "an HTML or XML text"),
        (b"\0\1\2", r"a file that begins with '\\x00\\x01\\x02'"),
        (b"\x89PNG\n", r"a file that begins with '\\x89PNG\\x0a'"),
    ],
)
def test_other_files_are_named_for_what_they_look_like(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "depth.exr"
    path.write_bytes(content)
    with pytest.raises(depth.DecodeError, match=rf"depth\.exr: file: expected an EXR, .* found {found}"):
        depth.decode(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for call in (depth.decode, depth.probe, lambda path: depth.decode_batch([path], np.empty((1, 2, 2), np.float32))):
        with pytest.raises(FileNotFoundError, match=r"absent\.exr"):
            call(tmp_path / "absent.exr")
        with pytest.raises(IsADirectoryError):
            call(tmp_path)
    os.mkfifo(tmp_path / "pipe.exr")
    with pytest.raises(depth.DecodeError, match=r"pipe\.exr: file: expected a regular file"):
        depth.decode(tmp_path / "pipe.exr")
    with pytest.raises(TypeError):
        depth.decode(3)


def test_decode_error_is_a_value_error_that_survives_pickling() -> None:
    with pytest.raises(ValueError, match="<bytes>") as caught:
        depth.decode(b"")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is depth.DecodeError
    assert str(again) == str(caught.value)


def test_batch_makes_its_array(paths: list[Path]) -> None:
    batch = depth.decode_batch(paths)
    assert_same_bits(batch, np.stack(IMAGES))


@pytest.mark.parametrize("threads", [1, 2, 5, 100])
def test_threads_change_nothing(threads: int) -> None:
    out = np.full((len(FILES), 24, 17), 7, np.float32)
    assert depth.decode_batch(FILES, out, threads=threads) is out
    assert_same_bits(out, np.stack(IMAGES))


OUTPUTS = {
    "packed": lambda: np.full((9, 24, 17), 7, np.float32),
    "transposed": lambda: np.full((17, 24, 9), 7, np.float32).T,
    "every other": lambda: np.full((18, 48, 34), 7, np.float32)[::2, ::2, ::2],
    "reversed": lambda: np.full((9, 24, 17), 7, np.float32)[::-1, ::-1, ::-1],
    "Fortran": lambda: np.full((9, 24, 17), 7, np.float32, order="F"),
    "fourth channel of channels_last": lambda: torch.full((9, 4, 24, 17), 7.0).to(memory_format=torch.channels_last)[
        :, 3
    ],
    "cut from a larger tensor": lambda: torch.full((9, 30, 20), 7.0)[:, 3:27, 2:19],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_batch_goes_into_memory_of_any_strides(name: str) -> None:
    out = OUTPUTS[name]()
    assert depth.decode_batch(FILES, out, threads=2) is out
    assert_same_bits(np.asarray(out), np.stack(IMAGES))


def test_batch_writes_nothing_beside_its_output() -> None:
    whole = np.full((9, 28, 21), 7, np.float32)
    depth.decode_batch(FILES, whole[:, 2:26, 2:19])
    whole[:, 2:26, 2:19] = 7
    assert (whole == 7).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((9, 24, 17)), TypeError, "expected float32, found float64"),
        (np.zeros((9, 24, 17), ">f4"), TypeError, "expected float32, found >f4"),
        (torch.zeros(9, 24, 17, dtype=torch.float16), TypeError, "expected a dense float32 tensor"),
        (torch.zeros(9, 24, 17, requires_grad=True), TypeError, "requires_grad"),
        (torch.zeros(9, 24, 17, device="meta"), ValueError, "expected a tensor on the CPU or a GPU, found one on meta"),
        ([[[0.0]]], TypeError, "expected a NumPy array or a torch tensor, found list"),
        (np.zeros((8, 24, 17), np.float32), ValueError, r"expected shape \(9, H, W\)"),
        (np.zeros((9, 24), np.float32), ValueError, r"expected shape \(9, H, W\)"),
        (np.broadcast_to(np.float32(0), (9, 24, 17)), ValueError, "read-only"),
        (np.zeros(9 * 24 * 17 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(9, 24, 17), ValueError, "unaligned"),
        (torch.zeros(1, 24, 17).expand(9, 24, 17), ValueError, "elements that share no memory"),
    ],
)
def test_outputs_that_would_lose_the_result_are_refused(out: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        depth.decode_batch(FILES, out)


def test_image_of_another_size_is_named(paths: list[Path]) -> None:
    paths[4].write_bytes(png(depth_image(3, 5, "uint16")))
    with pytest.raises(depth.DecodeError, match=r"4\.exr: image: expected width × height 17 × 24, found 5 × 3"):
        depth.decode_batch(paths, np.empty((9, 24, 17), np.float32))


@pytest.mark.parametrize("threads", [1, 4])
def test_first_failing_source_is_the_one_reported(paths: list[Path], threads: int) -> None:
    paths[7].write_bytes(FILES[7][:-1])
    paths[3].unlink()
    paths[5].write_bytes(b"")
    for _ in range(10):
        with pytest.raises(FileNotFoundError, match=r"3\.exr"):
            depth.decode_batch(paths, threads=threads)
    sources = [file if i != 6 else file[:-1] for i, file in enumerate(FILES)]
    with pytest.raises(depth.DecodeError, match="source 6"):
        depth.decode_batch(sources, threads=threads)


def test_batch_mixes_formats_and_decoders(tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    path = tmp_path / "piz.exr"
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": IMAGES[1].copy()}).write(str(path))
    integers = depth_image(24, 17, "uint16")
    out = np.zeros((3, 24, 17), np.float32)[:, ::-1]
    depth.decode_batch([FILES[0], path, png(integers)], out)
    assert_same_bits(out, np.stack([IMAGES[0], IMAGES[1], integers.astype(np.float32)]))
    with pytest.raises(depth.DecodeError, match=r"piz\.exr: image: expected width × height 5 × 6, found 17 × 24"):
        depth.decode_batch([path, b""], np.empty((2, 6, 5), np.float32))
    with pytest.raises(depth.DecodeError, match=r"<bytes of source 1>: image: expected width × height 24 × 17"):
        depth.decode_batch([png(integers.T.copy()), path.read_bytes()])
    of_any_bytes = os.fsdecode(os.fsencode(tmp_path) + b"/t\xff.exr")
    path.rename(of_any_bytes)
    assert_same_bits(depth.decode(of_any_bytes), IMAGES[1])
    assert_same_bits(depth.decode(Path(of_any_bytes).read_bytes(), name=of_any_bytes), IMAGES[1])


def test_empty_batches_and_no_threads() -> None:
    out = np.empty((0, 3, 4), np.float32)
    assert depth.decode_batch([], out) is out
    with pytest.raises(ValueError, match="expected at least one"):
        depth.decode_batch([])
    with pytest.raises(ValueError, match="threads: expected at least 1, found 0"):
        depth.decode_batch(FILES, threads=0)


def test_other_python_threads_run_meanwhile() -> None:
    file = Exr({"Z": depth_image(512, 512)}, "zip").bytes()
    out = np.empty((200, 512, 512), np.float32)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    depth.decode_batch([file] * len(out), out, threads=1)
    end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(begin < t < end for t in ticks) > 5


def test_decoding_works_in_a_forked_process() -> None:
    """A DataLoader's workers are forked. A thread pool kept from the parent would be dead there."""
    depth.decode_batch(FILES, threads=4)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(depth.decode_batch, (FILES,), {"threads": 4}).get(timeout=120)
    assert_same_bits(found, np.stack(IMAGES))


def test_sources_without_the_compiled_part_say_what_to_do(tmp_path: Path) -> None:
    """A wheel-installed environment started inside the checkout finds the sources first."""
    package = tmp_path / "vologan_fast"
    package.mkdir()
    for name in ("__init__.py", "depth.py"):
        (package / name).write_text((Path(depth.__file__).parent / name).read_text())
    libraries = Path(np.__file__).parents[1]
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(libraries)!r}]; import vologan_fast.depth"
    result = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ImportError: the depth decoder (vologan_fast._depth) is not compiled" in result.stderr
    assert "pip install -e ." in result.stderr
