"""The data loader: from a data set to batches of images.

    dataset = load_dataset(path, config.data, seed=0)
    with open_loader(dataset, batch=8) as loader:
        synthetic, real = next(loader)            # each (8, C, H, W) channels_last float32 in [0, 1]

The state of a loader is one integer: the number of batches that were taken from it. A loader that loads this number
continues with the same bits. `loaders/` holds the sources of batches, and `open_loader` chooses one of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import numpy as np
import torch

from vologan_fast.config import DOMAINS, ConfigError, DataConfig
from vologan_fast.data.augmentation import NUMBERS, Augmentation, is_needed, loaded_size
from vologan_fast.data.dataset import Dataset, check_settings, load_dataset
from vologan_fast.data.loaders.host_memory import send
from vologan_fast.data.loaders.native import NativeSource, Replacing, image_batches
from vologan_fast.data.loaders.resident import Job, ResidentSource, keep_images
from vologan_fast.data.loaders.source import Batches, BatchSource, FileSource, Plan
from vologan_fast.data.pixels import Limits
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Sampler, lane_count
from vologan_fast.data.shards.cache import Distant, read_ahead
from vologan_fast.data.shards.index import ShardRecords
from vologan_fast.host import cores
from vologan_fast.words import in_words

__all__ = ["RGBDLoader", "held_out_batches", "load_dataset", "open_loader"]


class RGBDLoader:
    """An endless iterator over training batches of both domains. `open_loader` makes one.

    Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        source: BatchSource,
        sampler: Sampler,
        description: str,
        augmentations: Mapping[str, Augmentation] | None = None,
        bytes_on_disk: int = 0,
    ) -> None:
        """`augmentations` change the batches of each domain. None: none."""
        self._source: BatchSource | None = source
        self._augmentations = augmentations or {}
        self.sampler = sampler
        """The order of the images in the batches, with their flips and shifts."""
        self.bytes_on_disk = bytes_on_disk
        """Size of the packed file with the decoded images, in the cache folder. 0 if there is none."""
        self._description = description
        self._step = 0
        self._batches: Batches | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The steps of an epoch: ceil(images of the longer domain / images per domain and step over all ranks)."""
        return self.sampler.steps_per_epoch

    def describe(self) -> str:
        """Return one line for people: the source of the batches, and why it was chosen."""
        return self._description

    def __iter__(self) -> RGBDLoader:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (synthetic, real), each (batch / world_size, C, H, W) channels_last float32 in [0, 1].

        The tensors belong to the caller. Raises DataError, which names the file, for a broken file. Raises ValueError
        after `close`.
        """
        if self._source is None:
            raise ValueError("the loader is closed")
        if self._batches is None:
            self._batches = self._source.batches(self._step)
        try:
            batches = next(self._batches)
        except BaseException:
            self._batches = None  # a generator ends when it raises, so the next call begins again at the same step
            raise
        synthetic, real = (self._augmented(domain, batch) for domain, batch in zip(DOMAINS, batches, strict=True))
        self._step += 1
        return synthetic, real

    def _augmented(self, domain: str, batch: torch.Tensor) -> torch.Tensor:
        if domain not in self._augmentations:
            return batch
        numbers = torch.from_numpy(self.sampler.numbers(domain, self._step, NUMBERS).astype(np.float32))
        return self._augmentations[domain](batch, send(numbers, batch.device))

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches that were taken. Batches that were decoded ahead do not count."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from the state of another loader of the same data set, batch and seed."""
        self._stop()
        self._step = state["step"]

    def close(self) -> None:
        """End the loader's threads and release the kept images. Batches that were taken stay valid."""
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
    """Open a loader of training batches on `device`.

    `batch` is the number of images per domain and step over all ranks. This rank gets its part of them.
    `local_world_size` is the number of ranks on this machine, which share its cores. `dataset.config.cache` may tell
    the loader to keep decoded images. Then all training images are decoded before this function returns.

    `dataset.config.backend` chooses the source of batches. "auto" takes DALI on a GPU if DALI can be used, and
    otherwise the native loader. "dali" raises ConfigError if DALI cannot be used. Also raises ConfigError if the images
    do not fit into the chosen cache, and DataError for a broken file or a full disk.
    """
    config = dataset.config
    check_settings(config)
    lengths = {domain: len(records) for domain, records in dataset.train.items()}
    shards = {domain: found.lengths() for domain, found in dataset.train.items() if isinstance(found, ShardRecords)}
    size, augment = loaded_size(config.shape, config.augment), config.augment
    sampler = Sampler(seed, lengths, batch, size, augment, rank, world_size, shards)
    threads = _threads(config, local_world_size)
    plan = Plan(
        dataset.train,
        dataset.specs,
        config.channel_sets,
        sampler,
        threads,
        _with_index(torch.device(device)),
        Limits.of(config),
        dataset.skipping,
        config.patience,
    )
    files = _file_source(dataset, plan)
    source: BatchSource = files
    bytes_on_disk = 0
    if dataset.shard_cache is not None:
        source = _FetchingSource(files, dataset, plan, local_world_size)
    description = source.description
    if config.cache != "none":
        used = files.used if isinstance(files, NativeSource) and plan.skipping else None
        job = Job(plan, config.cache_depth == "compact", files, used)
        kept = keep_images(job, config.cache, plan.device, local_world_size, quiet=rank > 0)
        if isinstance(kept, str):
            description = f"{description}; {kept}"
        else:
            source, bytes_on_disk = ResidentSource(plan, kept), kept.bytes_on_disk
            description = source.description
    augmentations = {
        domain: Augmentation(config.shape, augment, channels) for domain, channels in config.channel_sets.items()
    }
    return RGBDLoader(source, sampler, description, augmentations if is_needed(augment) else None, bytes_on_disk)


def _file_source(dataset: Dataset, plan: Plan) -> FileSource:
    """Return DALI as the source of batches if the settings allow it and it can be used, else the native loader.

    Raises ConfigError if the settings require DALI and it cannot be used.
    """
    why_native = _why_native(dataset, plan.device)
    if not why_native:
        from vologan_fast.data.loaders.dali import DaliSource

        return DaliSource(plan)
    if dataset.config.backend == "dali":
        raise ConfigError(f"data.backend is dali, but {why_native}")
    return NativeSource(plan, why_native)


def _why_native(dataset: Dataset, device: torch.device) -> str:
    """Return the reason why the native loader is used, or "" if DALI is used."""
    if dataset.config.backend == "torch":
        return "as asked for"
    if dataset.skipping is not None:
        return "DALI does not skip bad images"
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
    """A source of batches from shards in a bucket. The shards are fetched before they are needed."""

    def __init__(self, source: BatchSource, dataset: Dataset, plan: Plan, processes: int) -> None:
        """Raises ConfigError if the shards of a batch do not fit. `processes` on this machine share the cache."""
        assert dataset.shard_cache is not None
        self._source, self._sampler, self._cache = source, plan.sampler, dataset.shard_cache
        self._shards = {d: records for d, records in dataset.train.items() if isinstance(records, ShardRecords)}
        self.description = f"{source.description}; shards from {dataset.root} are kept in {self._cache.folder}"
        self._cache.share = self._cache.limit // processes
        self._check_room()

    def _check_room(self) -> None:
        sampler, cache = self._sampler, self._cache
        needed = 0
        for records in self._shards.values():  # each lane reads one shard while its next shard is fetched
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
    step: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield batches of the domain's held-out images, or of other `records`, in order and without augmentation.

    Each batch is (N, C, H, W) channels_last float32 in [0, 1]. The last batch may be shorter. No random number is
    drawn. Raises DataError, which names the file, for a broken file. With `data.on_error` "skip", the next good one of
    the records takes its place, and `dataset.skipping` notes that it is bad since `step`, counted from 1.
    """
    config = dataset.config
    replacing = None if dataset.skipping is None else Replacing(dataset.skipping, "held_out", domain)
    images = dataset.held_out[domain] if records is None else records
    return image_batches(
        images,
        dataset.spec(domain),
        config.shape,
        batch,
        _threads(config),
        torch.device(device),
        config.channel_sets[domain],
        Limits.of(config),
        replacing,
        step,
        config.patience,
    )


def _with_index(device: torch.device) -> torch.device:
    """Return the device with its index. DALI needs "cuda:0" where torch accepts "cuda"."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _threads(config: DataConfig, processes: int = 1) -> int:
    """Return the number of decoding threads per domain, for each of the `processes` that share the cores."""
    if config.threads:
        return config.threads
    return max(1, cores() // (len(DOMAINS) * processes))
