"""The operators fn.vologan.* compared with their NumPy definitions, value by value and pixel by pixel."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from vologan_fast.config import DepthSpec
from vologan_fast.data.loaders.dali import decodes_on_gpu, load_operators
from vologan_fast.data.pixels import DepthRule, crop_depth, normalize_depth


@pytest.fixture(autouse=True, scope="module")
def operators() -> None:
    assert load_operators() == ""


def run_operator(
    files: Sequence[Path], color_shape: tuple[int, int], rule: DepthRule, size: int, device: str = "cpu"
) -> np.ndarray:
    """Run the depth operator on N files, for colour of the given shape. Returns (N, size, size)."""

    @pipeline_def(batch_size=len(files), num_threads=2, device_id=None if device == "cpu" else 0)
    def pipeline():
        names = [np.frombuffer(str(file).encode(), np.uint8) for file in files]
        paths = fn.external_source(lambda i: names, batch=True)
        return fn.vologan.depth(
            fn.io.file.read(paths),
            paths,
            types.Constant([*color_shape, 3], dtype=types.INT64),
            device=device,
            **arguments(rule, size),
        )

    (depth,) = pipeline().run()
    return np.array((depth if device == "cpu" else depth.as_cpu()).as_tensor())[..., 0]


def arguments(rule: DepthRule, size: int) -> dict[str, Any]:
    return rule._asdict() | {"height": size, "width": size, "invalid": list(rule.invalid)}


@pytest.fixture(scope="module")
def npy(tmp_path_factory: pytest.TempPathFactory):
    """Return npy(array), which saves an array and returns its path."""
    path = tmp_path_factory.mktemp("depth") / "depth.npy"

    def write(depth: np.ndarray) -> Path:
        np.save(path, depth)
        return path

    return write


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)  # each example builds a pipeline
@given(
    values=st.lists(st.floats(width=32), min_size=64, max_size=64),
    near=st.floats(-100, 100),
    span=st.floats(0.001, 1000),
    invalid=st.lists(finite, max_size=3),
    background=st.none() | finite | st.just(math.inf),
)
def test_the_pixel_rule_gives_the_same_bits(
    npy, values: list[float], near: float, span: float, invalid: list[float], background: float | None
) -> None:
    depth = np.array(values, np.float32).reshape(8, 8)
    depth[0, :3] = near + span / 2, near, near + span  # something is valid
    if background is not None:
        depth[1, 0] = background
    depth[1, 1 : 1 + len(invalid)] = invalid
    rule = DepthRule.of(DepthSpec("m", None, near, near + span, tuple(invalid), background))
    expected = normalize_depth(depth, rule)
    if (expected > 0).any():
        found = run_operator([npy(depth)], (8, 8), rule, 8)[0]
        assert np.array_equal(found.view(np.int32), expected.view(np.int32))


PAPER = DepthRule.of(DepthSpec("normalized", None, -1.0, 1.0, (), -1.0))


SHAPES = [  # shape of the colour, shape of the depth, size of the square
    ((512, 512), (512, 512), 512),
    ((480, 640), (480, 640), 512),
    ((1440, 1920), (192, 256), 100),
    ((640, 480), (320, 240), 333),
    ((33, 50), (66, 100), 7),
    ((9, 9), (3, 3), 2),
]


@pytest.mark.parametrize(("color", "depth", "size"), SHAPES)
def test_the_same_pixels_are_gathered(npy, color: tuple[int, int], depth: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, depth).astype(np.float32)
    expected = normalize_depth(crop_depth(image, color, size), PAPER)
    assert np.array_equal(run_operator([npy(image)], color, PAPER, size)[0], expected)


def test_real_files_of_all_compressions(real_images: Path) -> None:
    from vologan_fast import depth as depth_files

    files = sorted((real_images / "vologan512" / "synthetic").glob("*.exr"))
    native = [file for file in files if depth_files.probe(file).decoder == "native"]
    found = run_operator(native, (512, 512), PAPER, 512)
    assert len(native) > 15
    for file, depth in zip(native, found, strict=True):
        assert np.array_equal(depth, normalize_depth(depth_files.decode(file), PAPER))


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (None, "expected .*, found"),
        (np.zeros((8, 4), np.float32), "depth of 4 × 8 pixels does not fit the colour of 8 × 8"),
        (np.full((8, 8), np.nan, np.float32), "no valid depth"),
    ],
)
def test_errors_name_the_file(npy, tmp_path: Path, depth: np.ndarray | None, said: str) -> None:
    good, bad = npy(np.ones((8, 8), np.float32)), tmp_path / "bad.npy"
    if depth is None:
        bad.write_bytes(good.read_bytes()[:90])
    else:
        np.save(bad, depth)
    with pytest.raises(RuntimeError, match=f"{bad}: .*{said}"):
        run_operator([good, bad], (8, 8), PAPER, 8)


@pytest.fixture
def on_gpu() -> None:
    if not decodes_on_gpu():
        pytest.skip("the DALI plugin was built without CUDA")


def write_exr(path: Path, planes: dict[str, np.ndarray], compression: str = "ZIP") -> Path:
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, planes).write(str(path))
    return path


@pytest.fixture
def depth_files(tmp_path: Path, npy) -> list[Path]:
    """Write EXR files of each kind that the GPU decodes, and files for the CPU: another size and other formats."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-1, 2, (72, 72)) / 64, axis=1).astype(np.float32)
    smooth[rng.random(smooth.shape) < 0.2] = -1
    smooth[0, :5] = np.nan, np.inf, 1e10, 65504, 0.1
    files = [npy(smooth)]
    for compression, dtype in itertools.product(("NO", "RLE", "ZIPS", "ZIP"), (np.float16, np.float32, np.uint32)):
        with np.errstate(invalid="ignore", over="ignore"):
            planes = {"A": smooth.astype(np.float16), "Z": smooth.astype(dtype)}
        files.append(write_exr(tmp_path / f"{compression}-{np.dtype(dtype).name}.exr", planes, compression))
    files.append(write_exr(tmp_path / "small.exr", {"Z": smooth[::2, ::2].copy()}))
    files.append(tmp_path / "depth.png")
    Image.fromarray(rng.integers(0, 5000, (72, 72), np.uint16)).save(files[-1])
    return files


@pytest.mark.gpu
def test_a_gpu_decodes_to_the_same_bits(on_gpu: None, depth_files: list[Path]) -> None:
    rule = DepthRule(0.25, 0.5, -1.0, 0.0, (65504.0, float(np.float32(0.1))))
    expected, found = (run_operator(depth_files, (72, 72), rule, 72, device) for device in ("cpu", "mixed"))
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ZIP-float16.exr", "ZIPS-uint32.exr"])
def test_errors_of_a_gpu_name_the_file(on_gpu: None, depth_files: list[Path], name: str) -> None:
    path = next(file for file in depth_files if file.name == name)
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 255  # in the last chunk
    path.write_bytes(whole)
    said = []
    for device in ("cpu", "mixed"):
        with pytest.raises(RuntimeError, match=rf"{path}: chunk \d+ .*: expected .*, found") as error:
            run_operator(depth_files, (72, 72), PAPER, 72, device)
        said.append(next(line for line in str(error.value).splitlines() if str(path) in line))
    assert said[0] == said[1]


@pytest.mark.gpu
def test_a_gpu_refuses_depth_of_which_none_is_valid(on_gpu: None, depth_files: list[Path], tmp_path: Path) -> None:
    path = write_exr(tmp_path / "empty.exr", {"Z": np.full((72, 72), -1, np.float16)})
    with pytest.raises(RuntimeError, match=f"{path}: no valid depth"):
        run_operator([depth_files[1], path], (72, 72), PAPER, 72, "mixed")


def read_places(places: Sequence[tuple[Path, int, int, int]]) -> list[bytes]:
    @pipeline_def(batch_size=len(places), num_threads=2, device_id=None)
    def pipeline():
        paths = [np.frombuffer(str(path).encode(), np.uint8) for path, *_ in places]
        spans = np.array([span for _, *span in places], np.int64)
        return fn.vologan.read(
            fn.external_source(lambda i: paths, batch=True), fn.external_source(lambda i: spans, batch=True)
        )

    (data,) = pipeline().run()
    return [np.array(data.at(i)).tobytes() for i in range(len(places))]


def test_files_and_parts_of_files_are_read(tmp_path: Path) -> None:
    file, empty = tmp_path / "ü.bin", tmp_path / "empty"
    content = np.random.default_rng(0).bytes(100_000)
    file.write_bytes(content)
    empty.touch()
    places = [(file, 0, -1), (file, 0, 1), (file, 99_999, 1), (file, 512, 70_000), (file, 100_000, 0), (empty, 0, -1)]
    expected = [content, content[:1], content[-1:], content[512:70_512], b"", b""]
    assert read_places([(*place, -1) for place in places]) == expected
    assert read_places([(*place, crc32(data)) for place, data in zip(places, expected, strict=True)]) == expected
    for place, data in zip(places, expected, strict=True):
        with pytest.raises(RuntimeError, match=f"{place[0]}: these are not the bytes that were recorded"):
            read_places([(*place, crc32(data) ^ 1)])


@pytest.mark.parametrize(
    ("offset", "size", "said"),
    [
        (0, 11, "expected 11 bytes from 0 on, found a file of 10"),
        (10, 1, "found a file of 10"),
        (11, -1, "found a file of 10"),
        (-1, 2, "found a file of 10"),
        (5, -2, "found a file of 10"),
        (2**63 - 1, 2**63 - 1, "found a file of 10"),
        (None, None, "No such file"),
    ],
)
def test_a_part_that_is_not_there_is_refused(tmp_path: Path, offset: int | None, size: int | None, said: str) -> None:
    file = tmp_path / "ten"
    if offset is not None:
        file.write_bytes(bytes(10))
    with pytest.raises(RuntimeError, match=f"{file}: .*{said}"):
        read_places([(file, offset or 0, -1 if size is None else size, -1)])
