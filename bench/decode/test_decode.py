"""Benchmark of decoding depth files to float32 on one core, beside OpenEXR and OpenCV: pytest bench/decode

All decoders read the same file from its path, with one thread, and return a new float32 array. If a decoder's result is
wrong, its row fails and shows no speed. Libraries that are not installed have no row.

There are two scenes at 512². `person` is a smooth body on 22 % of the image, in front of a constant background as in
VoloGAN's data. `room` is a rendered interior from the real test data, and is skipped without them.
`--benchmark-json FILE` saves every round.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import person

from vologan_fast import depth

sys.path.append(str(Path(__file__).parents[2] / "tests" / "depth"))
from depth_writers import Exr, png


def installed(name: str) -> Any:
    """Return the module, or None without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


OpenEXR, cv2 = installed("OpenEXR"), installed("cv2")

WORKLOADS = ["EXR ZIP float", "EXR ZIP half", "EXR ZIPS half", "EXR RLE half", "EXR NONE half", "PNG 16-bit"]


@pytest.fixture(scope="session", params=["person", "room"])
def scene(request: pytest.FixtureRequest) -> tuple[str, np.ndarray]:
    if request.param == "person":
        image = person()
    else:
        default = Path(__file__).parents[3] / "shared" / "data"
        path = Path(os.environ.get("VOLOGAN_TEST_DATA", default)) / "vologan512" / "synthetic" / "0003.exr"
        if not path.exists():
            pytest.skip(f"no {path} (set VOLOGAN_TEST_DATA)")
        image = depth.decode(path)
    return request.param, image


def write(path: Path, workload: str, image: np.ndarray) -> np.ndarray:
    """Write the image in the format of the workload, and return the expected result of decoding.

    The libraries that the peers belong to write the files, because their files are what users have. Without them, the
    writers of the tests do so.
    """
    if workload == "PNG 16-bit":
        integers = np.round((image + 1) * 2000).astype(np.uint16)
        if cv2:
            assert cv2.imwrite(str(path), integers)
        else:
            path.write_bytes(png(integers))
        return integers.astype(np.float32)
    _, compression, kind = workload.split()
    plane = image.astype(np.float16 if kind == "half" else np.float32)
    if OpenEXR:
        names = {"NONE": "NO"}.get(compression, compression) + "_COMPRESSION"
        header = {"compression": getattr(OpenEXR, names), "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"Z": plane}).write(str(path))
    else:
        path.write_bytes(Exr({"Z": plane}, compression.lower()).bytes())
    return plane.astype(np.float32)


def by_openexr(path: str) -> np.ndarray:
    file = OpenEXR.File(path, separate_channels=True, num_threads=0)
    return file.parts[0].channels["Z"].pixels.astype(np.float32)


def by_opencv(path: str) -> np.ndarray:
    return cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(np.float32)


DECODERS: dict[str, Callable[[str], np.ndarray]] = {"vologan_fast": depth.decode}
if OpenEXR:
    DECODERS["OpenEXR"] = by_openexr
if cv2:
    DECODERS["OpenCV"] = by_opencv

# The wheel of OpenCV 5 is built without EXR.
PEERS = {workload: "OpenCV" if workload.startswith("PNG") else "OpenEXR" for workload in WORKLOADS}
PAIRS = [(workload, name) for workload in WORKLOADS for name in ("vologan_fast", PEERS[workload]) if name in DECODERS]


@pytest.mark.parametrize(("workload", "decoder"), PAIRS)
def test_decode(
    benchmark: Any,
    tmp_path: Path,
    rates: dict[str, dict[str, tuple[float, float]]],
    scene: tuple[str, np.ndarray],
    workload: str,
    decoder: str,
    record: Any,
) -> None:
    if cv2:
        cv2.setNumThreads(1)
    name, image = scene
    side = "ours" if decoder == "vologan_fast" else decoder
    group, case = "decode to float32, one core", f"{workload}, {name}"
    record(group, case, side)
    path = tmp_path / ("depth.png" if workload == "PNG 16-bit" else "depth.exr")
    expected = write(path, workload, image)
    np.testing.assert_array_equal(DECODERS[decoder](str(path)), expected)

    benchmark.group = f"{workload}, {name}"
    benchmark.pedantic(DECODERS[decoder], args=(str(path),), rounds=100, warmup_rounds=5)
    if not benchmark.disabled:
        record(group, case, side, milliseconds=1e3 * benchmark.stats.stats.median)
        rates.setdefault(benchmark.group, {})[decoder] = (benchmark.stats.stats.median, benchmark.stats.stats.min)
