"""Benchmark of the loader in images per second, beside a torch DataLoader over OpenCV and OpenEXR.

    pytest bench/loader

A second benchmark compares kept decoded images with the loader. With a GPU and DALI, the DALI loader, which loads to
the GPU, is measured as well. Where torchcodec can be loaded, the peer is also measured with its JPEG decoder in place
of OpenCV's.

All sides use two cores: two threads, or two worker processes. The peer is a DataLoader as a careful engineer writes it
today: persistent workers, prefetching, no threads inside the libraries. It augments the images before they go through
shared memory as 8-bit colour and half depth, a third of the bytes of float32. It is measured twice: with its batches as
they arrive, and with its batches converted to the float32 batches of our loader. A test first checks that both give the
same batches.

Each round times the peers and then the loader, so other load on the machine affects all of them. Each side has both
cores for itself. An idle loader decodes ahead until its queue is full, so the clock starts only after the other sides
have come to rest. Batches that were decoded before the clock starts are not counted.
"""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from vologan_fast.config import DOMAINS, AugmentConfig, DataConfig
from vologan_fast.data import Dataset, RGBDLoader, load_dataset, open_loader
from vologan_fast.data.sampling import Draw, Sampler

cv2 = pytest.importorskip("cv2")
OpenEXR = pytest.importorskip("OpenEXR")
try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError):  # OSError: its wheel loads libtorch_cuda.so, which CPU builds of torch lack
    decode_jpeg = None

has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_gpu = pytest.mark.skipif(not (torch.cuda.is_available() and has_dali), reason="needs a GPU and DALI")
needs_torchcodec = pytest.mark.skipif(
    decode_jpeg is None, reason="needs torchcodec, whose wheel on PyPI needs a CUDA build of torch (but no GPU)"
)
DEVICES = {"torch": "cpu", "dali": "cuda"}

SIZE = 512
BATCH = 8
IMAGES = 24
"""Images per domain. Their files stay in the page cache, so decoding is measured, not the disk."""
AHEAD = 5
"""Batches taken before the clock starts. This is more than any loader holds ready."""
REST = 0.5
"""Seconds before a turn. It is several times the time in which any loader fills its queue."""
STEPS = 32
"""Batches per turn, so many that the cold caches at its start do not matter."""
RESIDENT_STEPS = 5 * STEPS
"""Batches per turn of kept images, which then take about as long."""
ROUNDS = 7

Pair = tuple[torch.Tensor, torch.Tensor]
DecodeJpeg = Callable[[Path], np.ndarray]
"""A file's colour: uint8 (S, S, 3)."""


@pytest.fixture(scope="module", params=["half", "float"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a data set of 512² images whose foreground has the size of a person (22 %).

    Colour is JPEG of quality 95. Depth is EXR ZIP in [-1, 1], with background -1.
    """
    root = tmp_path_factory.mktemp(request.param)
    dtype = np.float16 if request.param == "half" else np.float32
    for domain in DOMAINS:
        for kind in ("color", "depth"):
            (root / domain / kind).mkdir(parents=True)
        for i in range(IMAGES):
            color, depth = person(len(domain) * 1000 + i)
            Image.fromarray(color).save(root / domain / f"color/{i:03}.jpg", quality=95)
            header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
            OpenEXR.File(header, {"Z": depth.astype(dtype)}).write(str(root / domain / f"depth/{i:03}.exr"))
    return load_dataset(root, DataConfig(size=SIZE, threads=1, augment=AugmentConfig()), seed=0)


def person(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a textured ellipse before an empty background: uint8 (S, S, 3) and float32 (S, S)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    radius = (x / 0.35) ** 2 + (y / 0.8) ** 2
    texture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    color = np.asarray(texture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).copy()
    depth = (radius / 2 - 0.5 + rng.normal(0, 2e-3, radius.shape)).clip(-0.99, 1).astype(np.float32)
    color[radius > 1], depth[radius > 1] = 0, -1
    return color, depth


def by_opencv(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def by_torchcodec(path: Path) -> np.ndarray:
    return decode_jpeg(path).permute(1, 2, 0).numpy()  # a view: torchcodec's planes are interleaved in memory


PEERS = {"peer": by_opencv} if decode_jpeg is None else {"peer": by_opencv, "torchcodec peer": by_torchcodec}


class PeerDataset(torch.utils.data.Dataset):
    """Augmented samples: item k is sample k of both domains, as 8-bit colour (S, S, 3) and half depth (S, S)."""

    def __init__(self, dataset: Dataset, sampler: Sampler, decode: DecodeJpeg) -> None:
        self.train = dataset.train
        self.sampler = sampler
        self.decode = decode

    def __getitem__(self, k: int) -> tuple[np.ndarray, ...]:
        step, place = divmod(k, BATCH)
        arrays: list[np.ndarray] = []
        for domain in DOMAINS:
            draw = self.sampler.draw(domain, step)[place]
            record = self.train[domain][draw.index]
            color = self.decode(record.color)
            depth = OpenEXR.File(str(record.depth), separate_channels=True).channels()["Z"].pixels
            arrays += [augment(color, draw, 0), augment(depth.astype(np.float16, copy=False), draw, -1)]
        return tuple(arrays)


def augment(image: np.ndarray, draw: Draw, background: int) -> np.ndarray:
    if draw.flip:
        image = cv2.flip(image, 1) if image.dtype == np.uint8 else np.ascontiguousarray(image[:, ::-1])
    if draw.top or draw.left:
        shifted = np.full_like(image, background)
        shifted[: SIZE - draw.top, : SIZE - draw.left] = image[draw.top :, draw.left :]
        return shifted
    return image


def one_thread_each(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    OpenEXR.set_global_thread_count(0)


def peer_batches(dataset: Dataset, decode: DecodeJpeg) -> Iterator[list[torch.Tensor]]:
    loader = torch.utils.data.DataLoader(
        PeerDataset(dataset, sampler_of(dataset), decode),
        batch_size=BATCH,
        sampler=range(BATCH * 10_000),
        num_workers=2,
        prefetch_factor=2,
        persistent_workers=True,
        worker_init_fn=one_thread_each,
    )
    return iter(loader)


def to_float32(color: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Convert batches (N, S, S, 3) and (N, S, S) from the workers to (N, 4, S, S), channels_last, in [0, 1]."""
    batch = torch.empty(*color.shape[:3], 4)
    background = depth == -1
    torch.div(color, 255, out=batch[..., :3])
    batch[..., 3] = depth.float().add_(1).div_(2).clamp_(1 / 1024, 1)
    batch[background] = 0
    return batch.permute(0, 3, 1, 2)


def sampler_of(dataset: Dataset) -> Sampler:
    lengths = {domain: len(records) for domain, records in dataset.train.items()}
    return Sampler(0, lengths, BATCH, (SIZE, SIZE), dataset.config.augment)


def peer_float32(dataset: Dataset, decode: DecodeJpeg) -> Iterator[Pair]:
    for batch in peer_batches(dataset, decode):
        yield to_float32(*batch[:2]), to_float32(*batch[2:])


def loader(dataset: Dataset, backend: str) -> Iterator[Pair]:
    config = dataclasses.replace(dataset.config, backend=backend)
    return open_loader(dataclasses.replace(dataset, config=config), BATCH, device=DEVICES[backend])


def resident(dataset: Dataset, cache: str) -> RGBDLoader:
    config = dataclasses.replace(dataset.config, cache=cache)
    return open_loader(dataclasses.replace(dataset, config=config), BATCH)


@pytest.mark.parametrize("decode", [by_opencv, pytest.param(by_torchcodec, marks=needs_torchcodec)])
def test_both_give_the_same_batches(dataset: Dataset, decode: DecodeJpeg) -> None:
    """Colour is the same to the bit. JPEG decoders may round differently (ISO/IEC 10918-2), but OpenCV, torchcodec and
    our loader all call libjpeg-turbo with its default integer transform, which its vector code computes to the bit."""
    for _, ours, peer in zip(range(4), loader(dataset, "torch"), peer_float32(dataset, decode), strict=False):
        for a, b in zip(ours, peer, strict=True):
            assert torch.equal(a[:, :3], b[:, :3])
            assert (a[:, 3] - b[:, 3]).abs().max() < 2**-12  # half depth


@pytest.mark.parametrize("cache", ["host", "disk"])
def test_resident_images_per_second(
    dataset: Dataset,
    cache: str,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Time kept images beside the streaming loader, in turns. Processor time counts all threads of this process."""
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    streaming, ours = loader(dataset, "torch"), resident(dataset, cache)
    for _, expected, found in zip(range(4), streaming, ours, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    wall: dict[str, list[float]] = {name: [] for name in ("streaming", cache)}  # seconds for an image
    core: dict[str, list[float]] = {name: [] for name in wall}

    def take(name: str, batches: Iterator, steps: int) -> None:
        start, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(batches)
        images = 2 * BATCH * steps
        wall[name].append((time.perf_counter() - start) / images)
        core[name].append((time.process_time() - used) / images)

    def take_turn(batches: Iterator) -> None:
        time.sleep(REST)
        for _ in range(AHEAD):
            next(batches)

    def time_streaming() -> None:
        take_turn(streaming)
        take("streaming", streaming, STEPS)
        take_turn(ours)

    kind = dataset.root.name.rstrip("0123456789")
    benchmark.group = f"EXR {kind}, {RESIDENT_STEPS} batches of 2 × {BATCH} images"
    benchmark.pedantic(take, args=(cache, ours, RESIDENT_STEPS), setup=time_streaming, rounds=ROUNDS)
    rates = {name: 1 / statistics.median(times) for name, times in wall.items()}
    costs = {name: 1e3 * statistics.median(times) for name, times in core.items()}
    benchmark.extra_info["images_per_second"] = {name: round(rate) for name, rate in rates.items()}
    benchmark.extra_info["core_ms_per_image"] = {name: round(cost, 3) for name, cost in costs.items()}
    ours.close()
    with capsys.disabled():
        against = f"{rates[cache] / rates['streaming']:.1f} × streaming ({rates['streaming']:.0f})"
        one_image = ", ".join(f"{cost:.2f} {name}" for name, cost in costs.items())
        print(f"\nEXR {kind}: {cache} {rates[cache]:.0f} images/s = {against}; ms of a core for one image: {one_image}")


@pytest.mark.parametrize("backend", ["torch", pytest.param("dali", marks=needs_gpu)])
def test_images_per_second(
    dataset: Dataset, backend: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    peers: dict[str, Iterator] = {}
    for name, decode in PEERS.items():
        peers |= {name: peer_batches(dataset, decode), f"{name}, to float32": peer_float32(dataset, decode)}
    ours = loader(dataset, backend)
    seconds: dict[str, list[float]] = {name: [] for name in peers}

    def take(batches: Iterator, steps: int) -> None:
        for _ in range(steps):
            next(batches)
        if DEVICES[backend] == "cuda":
            torch.cuda.synchronize()

    def take_turn(batches: Iterator) -> None:
        time.sleep(REST)
        take(batches, AHEAD)

    def time_peers() -> None:
        for name, batches in peers.items():
            take_turn(batches)
            start = time.perf_counter()
            take(batches, STEPS)
            seconds[name].append(time.perf_counter() - start)
        take_turn(ours)

    kind = dataset.root.name.rstrip("0123456789")
    benchmark.group = f"EXR {kind}, {STEPS} batches of 2 × {BATCH} images"
    benchmark.pedantic(take, args=(ours, STEPS), setup=time_peers, rounds=ROUNDS)
    images = 2 * BATCH * STEPS
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    rate = images / benchmark.stats.stats.median
    benchmark.extra_info["images_per_second"] = {backend: round(rate)} | {n: round(r) for n, r in rates.items()}
    with capsys.disabled():
        against = ", ".join(f"{rate / r:.2f} × {name} ({r:.0f})" for name, r in rates.items())
        print(f"\nEXR {kind}: {backend} {rate:.0f} images/s = {against}")
