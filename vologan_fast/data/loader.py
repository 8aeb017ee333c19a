"""A data set becomes batches.

    dataset = load_dataset(path, config.data, seed=0)
    with open_loader(dataset, batch=8) as loader:
        synthetic, real = next(loader)            # each (8, 4, S, S) channels_last float32 in [0, 1]

The loader has one integer of state, the number of batches that were taken from it. A loader that is given the same
number continues with the same bits. `loaders/` holds the sources of batches; `open_loader` chooses one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import numpy as np
import torch

from vologan_fast.config import DOMAINS, ConfigError, DataConfig
from vologan_fast.data.dataset import Dataset, check_settings, load_dataset
from vologan_fast.data.loaders.free_memory import in_words
from vologan_fast.data.loaders.native import NativeSource, image_batches
from vologan_fast.data.loaders.resident import Job, ResidentSource, keep_images
from vologan_fast.data.loaders.source import Batches, BatchSource, FileSource, Plan
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Sampler, lane_count
from vologan_fast.data.shards.cache import Distant, read_ahead
from vologan_fast.data.shards.index import ShardRecords

__all__ = ["RGBDLoader", "held_out_batches", "load_dataset", "open_loader"]


class RGBDLoader:
    """Endless training batches of both domains; `open_loader` makes one.

    Close it, or use it in a `with` statement.
    """

    def __init__(self, source: BatchSource, sampler: Sampler, description: str) -> None:
        self._source: BatchSource | None = source
        self.sampler = sampler
        """Says which image makes which part of which batch, and how it is flipped and shifted."""
        self._description = description
        self._step = 0
        self._batches: Batches | None = None

    @property
    def steps_per_epoch(self) -> int:
        """ceil(images of the longer domain / images per step over all ranks)."""
        return self.sampler.steps_per_epoch

    def describe(self) -> str:
        """One line that says what makes the batches, and why it was chosen."""
        return self._description

    def __iter__(self) -> RGBDLoader:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(synthetic, real), each (batch / world_size, 4, S, S) channels_last float32 in [0, 1].

        The tensors belong to the caller. Raises DataError naming the file where one is broken, and ValueError after
        `close`.
        """
        if self._source is None:
            raise ValueError("the loader is closed")
        if self._batches is None:
            self._batches = self._source.batches(self._step)
        try:
            synthetic, real = next(self._batches)
        except BaseException:
            self._batches = None  # a generator that has raised is over: begin again at the same step
            raise
        self._step += 1
        return synthetic, real

    def state_dict(self) -> dict[str, int]:
        """The number of batches that were taken; batches decoded ahead do not count."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where a loader of the same data set, batch and seed stood."""
        self._stop()
        self._step = state["step"]

    def close(self) -> None:
        """End the loader's threads and let go of kept images. Batches that were taken stay valid."""
        self._stop()
        self._source = None

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]  # a generator
            self._batches = None

    def __enter__(self) -> RGBDLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_loader(
    dataset: Dataset,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
    local_world_size: int = 1,
) -> RGBDLoader:
    """Open training batches on `device`.

    `batch` counts the images per domain and step over all ranks; this rank gets its part of them. `local_world_size`
    ranks share this machine's cores. With a `config.cache`, all training images are decoded before this returns.

    Raises ConfigError if `config.backend` is "dali" and DALI cannot be used; "auto" takes the native loader then, and
    on the CPU. Raises ConfigError where the images do not fit into the cache that is asked for, and DataError for a
    broken file or a full disk.
    """
    config = dataset.config
    check_settings(config)
    lengths = {domain: len(records) for domain, records in dataset.train.items()}
    shards = {domain: found.lengths() for domain, found in dataset.train.items() if isinstance(found, ShardRecords)}
    sampler = Sampler(seed, lengths, batch, config.size, config.augment, rank, world_size, shards)
    threads = _threads(config, local_world_size)
    plan = Plan(dataset.train, dataset.specs, sampler, threads, _with_index(torch.device(device)))
    files = _file_source(dataset, plan)
    source: BatchSource = files
    if dataset.shard_cache is not None:
        source = _FetchingSource(files, dataset, plan, local_world_size)
    description = source.description
    if config.cache != "none":
        job = Job(plan, config.cache_depth == "compact", files)
        kept = keep_images(job, config.cache, plan.device, local_world_size, quiet=rank > 0)
        if isinstance(kept, str):
            description = f"{description}; {kept}"
        else:
            source = ResidentSource(plan, kept)
            description = source.description
    return RGBDLoader(source, sampler, description)


def _file_source(dataset: Dataset, plan: Plan) -> FileSource:
    """DALI where it is wanted and can be used, else the native loader."""
    why_native = _why_native(dataset, plan.device)
    if not why_native:
        from vologan_fast.data.loaders.dali import DaliSource

        return DaliSource(plan)
    if dataset.config.backend == "dali":
        raise ConfigError(f"data.backend is dali, but {why_native}")
    return NativeSource(plan, why_native)


def _why_native(dataset: Dataset, device: torch.device) -> str:
    """Why the native loader is taken; empty where DALI is."""
    if dataset.config.backend == "torch":
        return "as asked for"
    if dataset.config.backend == "auto" and device.type == "cpu":
        return "DALI is for GPUs"
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed"
    from vologan_fast.data.loaders import dali

    if reason := dali.load_operators():
        return f"DALI {dali.VERSION} is installed, but {reason}"
    if dataset.not_native:
        return f"DALI's depth operator does not read {dataset.not_native}"
    return ""


class _FetchingSource:
    """A source whose shards are fetched from a bucket ahead of use."""

    def __init__(self, source: BatchSource, dataset: Dataset, plan: Plan, processes: int) -> None:
        """`processes` of this machine share the cache. Raises ConfigError where the shards of a batch do not fit."""
        assert dataset.shard_cache is not None
        self._source, self._sampler, self._cache = source, plan.sampler, dataset.shard_cache
        self._shards = {d: records for d, records in dataset.train.items() if isinstance(records, ShardRecords)}
        self.description = f"{source.description}; shards from {dataset.root} are kept in {self._cache.folder}"
        self._cache.share = self._cache.limit // processes
        self._check_room()

    def _check_room(self) -> None:
        sampler, cache = self._sampler, self._cache
        needed = 0
        for records in self._shards.values():  # each lane reads one shard, and the next one is on its way
            sizes = sorted((shard.size for shard in records.shards), reverse=True)
            needed += sum(sizes[: 2 * (-(-lane_count(sampler.batch) // sampler.world_size) + 1)])
        if needed > cache.share:
            raise ConfigError(
                f"data.shard_cache: {in_words(cache.share)} are there for each process ({cache.folder}); expected "
                f"{in_words(needed)} or more for the shards that a batch of {sampler.batch} is taken from"
            )

    def batches(self, step: int) -> Batches:
        """See `BatchSource`."""
        batches = self._source.batches(step)
        return read_ahead(batches, self._cache, self._shards_of, step, self._sampler.steps_per_epoch)

    def _shards_of(self, step: int) -> Iterator[Distant]:
        for domain, records in self._shards.items():
            for i in np.unique(records.shard[self._sampler.drawn(domain, step)]).tolist():
                yield records.shards[i]


def held_out_batches(
    dataset: Dataset,
    domain: str,
    batch: int,
    device: str | torch.device = "cpu",
    records: Sequence[Record] | None = None,
) -> Iterator[torch.Tensor]:
    """The domain's held-out images, or other `records` of the domain, in order and without augmentation.

    Yields (N, 4, S, S) channels_last float32 in [0, 1]; the last batch may be short. Draws no random number.
    Raises DataError naming the file where one is broken.
    """
    config = dataset.config
    images = dataset.held_out[domain] if records is None else records
    return image_batches(images, dataset.spec(domain), config.size, batch, _threads(config), torch.device(device))


def _with_index(device: torch.device) -> torch.device:
    """The device with its number: DALI needs "cuda:0" where torch takes "cuda"."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _threads(config: DataConfig, processes: int = 1) -> int:
    """Decoding threads per domain, for each of the `processes` that share the cores."""
    if config.threads:
        return config.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (len(DOMAINS) * processes))
