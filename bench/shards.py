"""Benchmark of a data set in many small shards: start-up, memory over an epoch, coverage by four ranks, resuming.

    python bench/shards.py                      # 100,000 images in one domain, 10,000 in the other: a minute
    python bench/shards.py --images 1000000     # six minutes, 2.3 GB of disk

The images are 8 × 8 and repeat twenty files. So the benchmark measures the handling of images, not their decoding.
Memory is the resident set of the process (VmRSS). torch and the loader's threads take most of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vologan_fast.config import DOMAINS, DataConfig
from vologan_fast.data import RGBDLoader, load_dataset, open_loader
from vologan_fast.data.pack import pack
from vologan_fast.data.shards.index import ShardRecords

RANKS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="of the synthetic domain; the real one has a tenth")
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        counts = dict(zip(DOMAINS, (arguments.images, arguments.images // 10), strict=True))
        write_source(root / "source", counts)
        start = time.perf_counter()
        print(pack(root / "source", root / "packed", arguments.shard_size).removeprefix(f"{root}/"), end=", ")
        print(f"packed in {time.perf_counter() - start:.1f} s")

        before = resident()
        start = time.perf_counter()
        dataset = load_dataset(root / "packed", DataConfig(size=8, backend=arguments.backend), seed=0)
        print(f"load_dataset: {time.perf_counter() - start:.2f} s, {resident() - before:.0f} MB")
        start = time.perf_counter()
        with open_loader(dataset, arguments.batch) as loader:
            next(loader)
            print(f"first batch: {time.perf_counter() - start:.2f} s ({loader.describe()})")
            read_epoch(loader, arguments.batch)
        start = time.perf_counter()
        check_coverage(dataset.train["synthetic"], loader, dataset, arguments.batch)
        print(f"epochs 0 and 1 of {RANKS} ranks are checked in {time.perf_counter() - start:.1f} s")


def write_source(root: Path, counts: dict[str, int]) -> None:
    root.mkdir()
    rng = np.random.default_rng(0)
    manifest = {}
    for domain, count in counts.items():
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / f"{domain}-{i}.png")
            np.save(root / f"{domain}-{i}.npy", rng.uniform(-1, 1, (8, 8)).astype(np.float32))
        files = [
            {f"{kind}_path": f"{domain}-{i}.{s}" for kind, s in (("color", "png"), ("depth", "npy"))} for i in range(20)
        ]
        manifest[f"{domain}_data"] = [files[i % 20] for i in range(count)]
    (root / "training_paths.json").write_text(json.dumps(manifest))


def read_epoch(loader: RGBDLoader, batch: int) -> None:
    steps = loader.steps_per_epoch
    memory = []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        next(loader)
        if step % (steps // 5) == 0:
            memory.append(f"{resident():.0f}")
    seconds = time.perf_counter() - start
    print(
        f"one epoch, {steps} steps: {2 * batch * steps / seconds:.0f} images/s; MB after each fifth: "
        f"{', '.join(memory)}"
    )


def check_coverage(records, loader: RGBDLoader, dataset, batch: int) -> None:
    assert isinstance(records, ShardRecords)
    steps = loader.steps_per_epoch
    ranks = [open_loader(dataset, batch, rank=rank, world_size=RANKS)._sampler for rank in range(RANKS)]
    for epoch in range(2):
        drawn = [
            np.concatenate([[draw.index for draw in rank.draw("synthetic", epoch * steps + s)] for s in range(steps)])
            for rank in ranks
        ]
        # The last batch may have more places than the epoch has images left. These images start another pass.
        whole = np.concatenate(drawn).reshape(RANKS, steps, -1).transpose(1, 0, 2).ravel()[: len(records)]
        assert np.array_equal(np.sort(whole), np.arange(len(records)))
        shards = [set(records.shard[of_rank[: -(batch // RANKS)]].tolist()) for of_rank in drawn]
        shared = sum(map(len, shards)) - len(set().union(*shards))
        assert shared <= RANKS - 1
        by_rank = [len(of_rank) for of_rank in shards]
        print(f"epoch {epoch}: each of {len(records)} images once; shards by rank {by_rank}, {shared} shared")
    half = steps // 2
    again = open_loader(dataset, batch, rank=1, world_size=RANKS)._sampler
    assert all(again.draw("synthetic", s) == ranks[1].draw("synthetic", s) for s in range(half, steps))


def resident() -> float:
    """Return the resident set of this process, in MB."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    main()
