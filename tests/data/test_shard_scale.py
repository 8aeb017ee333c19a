"""Many small images in shards: memory does not grow, and four ranks cover an epoch exactly.

bench/shards.py does the same with more images.
"""

import gc
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vologan_fast.config import DOMAINS, DataConfig
from vologan_fast.data import Dataset, RGBDLoader, load_dataset, open_loader
from vologan_fast.data.pack import pack
from vologan_fast.data.shards.index import ShardRecords

COUNTS = {"synthetic": 5000, "real": 700}
BATCH = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Make a data set of 8 × 8 images that repeat a few files, in shards of 64."""
    root = tmp_path_factory.mktemp("many")
    manifest = {}
    for domain in DOMAINS:
        (root / "source").mkdir(exist_ok=True)
        items = []
        for i in range(10):
            names = {"color_path": f"{domain}-{i}.png", "depth_path": f"{domain}-{i}.npy"}
            Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(root / "source" / names["color_path"])
            np.save(root / "source" / names["depth_path"], np.full((8, 8), i / 10, np.float32))
            items.append(names)
        manifest[f"{domain}_data"] = [items[i % 10] for i in range(COUNTS[domain])]
    (root / "source" / "training_paths.json").write_text(json.dumps(manifest))
    pack(root / "source", root / "packed", 64)
    return load_dataset(root / "packed", DataConfig(size=8, backend="torch", threads=1), seed=0)


def drawn(loader: RGBDLoader, steps: range) -> np.ndarray:
    """Return the indices of the synthetic images that the loader's rank gets: (steps, images)."""
    return np.array([[draw.index for draw in loader.sampler.draw("synthetic", step)] for step in steps])


def test_four_ranks_see_every_image_of_an_epoch_once(many: Dataset) -> None:
    records = many.train["synthetic"]
    assert isinstance(records, ShardRecords) and len(records) == 4000
    names = {str(record.color) for record in records}
    assert len(names) == 4000
    loaders = [open_loader(many, BATCH, rank=rank, world_size=4) for rank in range(4)]
    for epoch in range(3):
        steps = range(epoch * 100, (epoch + 1) * 100)
        assert loaders[0].steps_per_epoch == 100
        of_rank = [drawn(loader, steps) for loader in loaders]
        together = np.concatenate([indices.ravel() for indices in of_rank])
        assert np.array_equal(np.sort(together), np.arange(4000))
        shards = [set(records.shard[indices].ravel().tolist()) for indices in of_rank]
        assert sum(map(len, shards)) <= 79 + 3  # there are 79 shards, and each of 3 cuts between ranks can divide one


def test_a_run_that_stops_in_mid_epoch_goes_on_without_repeats_or_gaps(many: Dataset) -> None:
    """Two processes begin the run, and four processes continue it."""
    seen = []
    for world, steps in ((2, range(37)), (4, range(37, 100))):
        for rank in range(world):
            with open_loader(many, BATCH, rank=rank, world_size=world) as loader:
                loader.load_state_dict({"step": steps.start})
                next(loader)
                assert loader.state_dict() == {"step": steps.start + 1}
                seen.append(drawn(loader, steps).ravel())
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(4000))


@pytest.mark.slow
def test_memory_stays_flat_over_an_epoch(many: Dataset) -> None:
    with open_loader(many, BATCH) as loader:
        for _ in range(20):
            next(loader)
        tracemalloc.start()
        try:
            sizes = []
            for _ in range(4):
                for _ in range(45):  # through the end of an epoch
                    next(loader)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert max(sizes) - sizes[0] < 300_000, sizes  # room for the order of another epoch: 8 bytes per image and domain


def test_images_cost_numbers_and_no_objects(many: Dataset) -> None:
    root = many.root
    tracemalloc.start()
    try:
        data = load_dataset(root, many.config, seed=0)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    images = sum(len(records) for part in (data.train, data.held_out) for records in part.values())
    assert images == 5700 and kept / images < 150
