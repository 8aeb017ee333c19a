"""Benchmark of `translate` in images per second, beside a plain loop and beside the network alone.

    pytest bench/translate

The plain loop is one Python thread, as somebody writes it in an afternoon: OpenCV reads and writes colour and 16-bit
PNG, OpenEXR reads and writes EXR, NumPy does the arithmetic, and eager PyTorch runs the network. It writes the same
images, with background and missing depth restored. A test first checks this. It does not sync its files to the disk.
`translate` does, and its time includes this.

There are two networks. With the one that changes nothing, files and arithmetic are all of the work. With the generator
of the demo preset, the network is most of it. Then the network alone is timed, too: the same tensors, without files.
PyTorch uses two threads on every side. OpenCV and OpenEXR use one.

The sides take turns, so other load on the machine affects all of them. The images come from a folder of real RGB-D
images of 512 × 512, if there is one: $VOLOGAN_IMAGES or ../shared/data/vologan512. Otherwise they come from the demo
data. They are written again as JPEG of quality 95 and depth of one kind, and linked under a few hundred names, so
their files stay in the page cache.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from vologan_fast import depth as depth_files
from vologan_fast.config import PRESETS, DepthSpec, GeneratorConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.data.manifest import list_records
from vologan_fast.data.pixels import read_color
from vologan_fast.networks import UNetGenerator
from vologan_fast.networks.generator import Generator
from vologan_fast.translation.images import prepare
from vologan_fast.translation.inputs import find_inputs
from vologan_fast.translation.job import translate_files
from vologan_fast.translation.translator import Translator

cv2 = pytest.importorskip("cv2")
OpenEXR = pytest.importorskip("OpenEXR")

IMAGES = Path(os.environ.get("VOLOGAN_IMAGES", Path(__file__).parents[3] / "shared/data/vologan512"))
SIZE = 512
CORES = 2
KINDS = {
    "EXR half": DepthSpec("normalized", None, -1.0, 1.0, (), -1.0),
    "PNG 16 bits": DepthSpec("mm", None, 0.5, 4.0, (0.0,), 65535.0),
}
COUNTS = {"identity": 160, "generator": 8}
"""Images per turn."""
ROUNDS = {"identity": 5, "generator": 3}


class Identity(Generator):
    """A network that changes nothing."""

    config = GeneratorConfig()
    size_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def root(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of one domain: color/*.jpg and depth/*.exr or *.png."""
    folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
    source = IMAGES if IMAGES.is_dir() else make_demo(folder / "demo", count=24, size=SIZE)
    for name in ("color", "depth"):
        (folder / "in" / name).mkdir(parents=True)
    records = [record for domain in list_records(source).values() for record in domain]
    suffix = ".exr" if kind.startswith("EXR") else ".png"
    for i, record in enumerate(records):
        color, depth = read_color(record.color), depth_files.decode(record.depth)
        color_file, depth_file = (folder / "in" / name for name in (f"color/{i:04}.jpg", f"depth/{i:04}{suffix}"))
        Image.fromarray(color).save(color_file, quality=95)
        if suffix == ".exr":
            write_exr(depth_file, depth.astype(np.float16), "Z")
        else:
            seen = np.isfinite(depth) & (depth >= -1) & (depth <= 1)
            millimetres = np.where(depth == -1, 65535, np.where(seen, 2250 + 1750 * depth, 0))
            Image.fromarray(millimetres.astype(np.uint16)).save(depth_file)
        for copy in range(i + len(records), max(COUNTS.values()), len(records)):
            for file in (color_file, depth_file):
                os.link(file, file.with_name(f"{copy:04}{file.suffix}"))
    return folder / "in"


def write_exr(path: Path, depth: np.ndarray, channel: str) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {channel: depth}).write(str(path))


@torch.inference_mode()
def plain_loop(network: nn.Module, spec: DepthSpec, root: Path, out: Path, names: list[tuple[str, str]]) -> None:
    for folder in ("color", "depth"):
        (out / folder).mkdir(parents=True)
    unit = {"mm": 1000.0, "normalized": 1.0}[spec.unit]
    near, span = spec.near * unit, (spec.far - spec.near) * unit
    for color_name, depth_name in names:
        color = cv2.cvtColor(cv2.imread(str(root / color_name)), cv2.COLOR_BGR2RGB)
        if depth_name.endswith(".exr"):
            with OpenEXR.File(str(root / depth_name), separate_channels=True) as file:
                ((channel, plane),) = file.channels().items()
                depth = plane.pixels
        else:
            depth = cv2.imread(str(root / depth_name), cv2.IMREAD_UNCHANGED)
        background = depth == spec.background
        missing = ~np.isfinite(depth) | np.isin(depth, spec.invalid)
        z = ((depth.astype(np.float32) - near) / span).clip(1 / 1024, 1)
        z[background | missing] = 0
        rgb = color.astype(np.float32) / 255
        rgb[background] = 0
        x = torch.from_numpy(np.concatenate([rgb.transpose(2, 0, 1), z[None]]))
        y = network(x[None])[0].numpy()
        new_color = (y[:3].transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        new_color[background] = color[background]
        new_depth = y[3] * span + near
        if depth.dtype.kind == "u":
            new_depth = np.rint(new_depth)
        new_depth = new_depth.astype(depth.dtype)
        new_depth[y[3] < 1 / 2048] = spec.invalid[0] if spec.invalid else np.nan
        new_depth[background] = depth[background]
        bgr = cv2.cvtColor(new_color, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / color_name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        if depth_name.endswith(".exr"):
            write_exr(out / depth_name, new_depth, channel)
        else:
            cv2.imwrite(str(out / depth_name), new_depth)


def network_alone(model: Translator, images: list[Tensor]) -> None:
    with torch.inference_mode():
        for image in images:
            model(image[None])


def translator(name: str, kind: str) -> Translator:
    config = PRESETS["demo"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=KINDS[kind], real=KINDS[kind]))
    torch.manual_seed(0)
    network = UNetGenerator(config.generator) if name == "generator" else Identity()
    return Translator(network, config, "s2t", Path(__file__))  # type: ignore[arg-type]


@pytest.mark.parametrize("network", COUNTS)
def test_images_per_second(
    kind: str,
    root: Path,
    network: str,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cv2.setNumThreads(1)
    OpenEXR.set_global_thread_count(0)
    torch.set_num_threads(CORES)
    model, inputs = translator(network, kind), list(find_inputs(str(root), "synthetic"))[: COUNTS[network]]
    names = [(image.color, image.depth) for image in inputs]
    images = [prepare(model, read_color(i.record.color), decode(i.record.depth, kind)).image for i in inputs[:8]]
    sides: dict[str, Callable[[], object]] = {
        "plain loop": lambda: plain_loop(model, model.source, root, tmp_path / "plain", names),
        "translate": lambda: translate_files(model, inputs, tmp_path / "ours", threads=CORES),
    }
    if network == "generator":
        sides["network alone"] = lambda: network_alone(model, images)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    core: dict[str, list[float]] = {name: [] for name in sides}

    def turn(name: str) -> None:
        start, used = time.perf_counter(), time.process_time()
        sides[name]()
        seconds[name].append((time.perf_counter() - start) / len(names))
        core[name].append((time.process_time() - used) / len(names))

    def others() -> None:
        for folder in ("plain", "ours"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        for name in sides:
            os.sync()  # the files of the side before are not written in the time of the next one
            if name != "translate":
                turn(name)
        os.sync()

    others()
    turn("translate")
    check_same_images(tmp_path, root, kind, names[:24], network)
    for times in (*seconds.values(), *core.values()):
        times.clear()  # the first round warms up
    benchmark.group = f"translate, {kind}, {network}, {len(names)} images"
    benchmark.pedantic(turn, args=("translate",), setup=others, rounds=ROUNDS[network])
    rates = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    cost = {name: round(1e3 * statistics.median(times), 2) for name, times in core.items()}
    benchmark.extra_info["images_per_second"] = {name: round(rate, 2) for name, rate in rates.items()}
    benchmark.extra_info["core_ms_per_image"] = cost
    with capsys.disabled():
        print(f"\n{kind}, {network}: translate {rates['translate']:.1f} images/s")
        for name in sides:
            if name != "translate":
                ratios = [a / b for a, b in zip(seconds[name], seconds["translate"], strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"  = {spread} × {name} ({rates[name]:.1f})")
        print(f"  ms of a core for one image: {cost}")


def decode(path: Path, kind: str) -> np.ndarray:
    depth = depth_files.decode(path)
    return depth.astype(np.float16 if kind.startswith("EXR") else np.uint16)


def check_same_images(tmp_path: Path, root: Path, kind: str, names: list[tuple[str, str]], network: str) -> None:
    """Check that both sides wrote the same depth, to a unit of the last place, and the same colour.

    Colour differs where the two JPEG encoders round differently. With the network that changes nothing, the depth of
    both is that of the input.
    """
    for color, depth in names:
        plain, ours = (read_color(tmp_path / side / color).astype(int) for side in ("plain", "ours"))
        assert np.abs(plain - ours).mean() < 0.5
        plain, ours = (decode(tmp_path / side / depth, kind) for side in ("plain", "ours"))
        assert_equal_depth(plain, ours)
        if network == "identity":
            assert_equal_depth(ours, decode(root / depth, kind))


def assert_equal_depth(a: np.ndarray, b: np.ndarray) -> None:
    assert np.array_equal(np.isnan(a), np.isnan(b))
    whole = np.isfinite(a)
    step = np.maximum(np.spacing(np.abs(a[whole])), 2**-11) if a.dtype == np.float16 else 1
    assert (np.abs(a[whole].astype(np.float64) - b[whole]) <= step).all()
