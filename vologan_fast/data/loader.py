"""A folder becomes a data set, a data set becomes batches.

    dataset = load_dataset(path, config.data, seed=0)
    with open_loader(dataset, batch=8) as loader:
        synthetic, real = next(loader)            # each (8, 4, S, S) channels_last float32 in [0, 1]

The loader has one integer of state, the number of batches that were taken from it; a loader that is given the
same number continues with the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from vologan_fast.config import DOMAINS, ConfigError, DataConfig, DepthSpec
from vologan_fast.data.depth_spec import resolve_depth
from vologan_fast.data.errors import DataError
from vologan_fast.data.free_memory import in_words
from vologan_fast.data.manifest import find_records
from vologan_fast.data.records import Record
from vologan_fast.data.resident import CHUNK, Decoder, Job, keep_images, resident_batches
from vologan_fast.data.sampling import Sampler, held_out_indices, lane_count
from vologan_fast.data.shard_cache import ShardCache, read_ahead, shard_folder
from vologan_fast.data.shards import Indices, ShardRecords
from vologan_fast.data.torch_loader import image_batches, jpeg_decoder, torch_batches

S3_SCHEME = "s3://"

Batches = Iterator[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Dataset:
    """Images of two domains, split into training and held-out ones, and how their depth is to be read."""

    root: Path | str
    """Folder, or s3://bucket/prefix."""
    config: DataConfig
    """With both DepthSpecs resolved: what a run must record to be continued."""
    train: Mapping[str, Sequence[Record]]
    held_out: Mapping[str, Sequence[Record]]
    depth: Mapping[str, str]
    """A line about each domain's depth files."""
    not_native: str
    """Why DALI cannot read all depth files; empty where it can."""
    shard_cache: ShardCache | None = None
    """Of shards that are not on this machine."""

    def describe(self) -> list[str]:
        """Lines that tell a person what was found."""
        return [
            f"{domain}: {len(self.train[domain])} training and {len(self.held_out[domain])} held-out images; "
            f"depth: {self.depth[domain]}"
            for domain in DOMAINS
        ]

    def spec(self, domain: str) -> DepthSpec:
        spec: DepthSpec = getattr(self.config, domain)
        return spec

    def fingerprint(self) -> str:
        """Identifies the training images and their order, which the sampler's numbers refer to: those in shards by
        their bytes, others by their names."""
        digest = hashlib.sha256()
        for domain, records in sorted(self.train.items()):
            if isinstance(records, ShardRecords):
                digest.update(f"{domain} {records.fingerprint()}\n".encode())
                continue
            for record in records:
                assert isinstance(record.color, Path) and isinstance(record.depth, Path)
                names = (os.path.relpath(file, self.root) for file in (record.color, record.depth))
                digest.update(f"{domain} {' '.join(names)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @property
    def specs(self) -> dict[str, DepthSpec]:
        return {domain: self.spec(domain) for domain in DOMAINS}


def load_dataset(path: str | os.PathLike[str], config: DataConfig, seed: int) -> Dataset:
    """Finds the images in the folder `path` (manifest.py says where) or under s3://bucket/prefix, splits them by the
    seed, and resolves the depth settings.

    Raises DataError, naming the file, for data that cannot be used, and ConfigError for settings that cannot.
    """
    _check(config)
    root, cache = _root(path), None
    if isinstance(root, str):
        from vologan_fast.data.s3 import find_remote_records

        cache = ShardCache(shard_folder(), int(config.shard_cache * 1e9))
        found: Mapping[str, Sequence[Record]] = find_remote_records(root, cache)
    else:
        found = find_records(root)
    train, held_out, depth, not_native = {}, {}, {}, ""
    specs: dict[str, Any] = {}
    for domain, records in found.items():
        if len(records) < 2:
            raise DataError(
                f"{root}: the {domain} domain has 1 image; expected at least 2, to train on one and hold out the other"
            )
        held = held_out_indices(seed, domain, len(records), config.held_out)
        train[domain] = _select(records, np.setdiff1d(np.arange(len(records)), held, assume_unique=True))
        held_out[domain] = _select(records, held)
        resolved = resolve_depth(domain, records, getattr(config, domain))
        specs[domain] = resolved.spec
        depth[domain] = resolved.description
        not_native = not_native or resolved.not_native or _not_native(root, domain, records)
    return Dataset(root, dataclasses.replace(config, **specs), train, held_out, depth, not_native, cache)


def absolute(path: str | os.PathLike[str]) -> str:
    """The data set's name from any folder: what a run records."""
    root = _root(path)
    return root if isinstance(root, str) else str(root.resolve())


def _root(path: str | os.PathLike[str]) -> Path | str:
    name = os.fspath(path)
    if not name:  # of a shell's variable that is not set; Path would take it for the folder that one is in
        raise DataError("the data set's name is empty; expected a folder or s3://BUCKET/PREFIX")
    return name if name.startswith(S3_SCHEME) else Path(name)


def _select(records: Sequence[Record], indices: Indices) -> Sequence[Record]:
    return records[indices] if isinstance(records, ShardRecords) else tuple(records[i] for i in indices)


def _not_native(root: Path | str, domain: str, records: Sequence[Record]) -> str:
    """Of a data set in shards it is known whether a file outside the sample is of a kind that DALI cannot read."""
    kinds = records.kinds if isinstance(records, ShardRecords) else ()
    return next((f"{root}: {domain}: {kind.not_native}" for kind in kinds if kind.not_native), "")


def _check(config: DataConfig) -> None:
    if config.size < 1:
        raise ConfigError(f"data.size is {config.size}; expected at least 1 pixel")
    if config.shard_cache <= 0:
        raise ConfigError(f"data.shard_cache is {config.shard_cache}; expected gigabytes, more than 0")
    if config.threads < 0:
        raise ConfigError(f"data.threads is {config.threads}; expected 0 (all cores) or more")
    augment = config.augment
    fractions = {
        "held_out": config.held_out,
        "augment.flip": augment.flip,
        "augment.shift": augment.shift,
        "augment.shift_height": augment.shift_height,
        "augment.shift_width": augment.shift_width,
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"data.{name} is {value}; expected 0 to 1")
    if config.cache_depth == "compact" and config.cache in ("none", "auto"):
        raise ConfigError(
            f"data.cache_depth is compact and data.cache {config.cache}; expected exact, or one of host, device, disk: "
            "batches must not depend on what fits"
        )


class RGBDLoader:
    """Endless training batches of both domains; `open_loader` makes one. Close it, or use it in a `with`
    statement."""

    def __init__(self, sampler: Sampler, start: Callable[[int], Batches], description: str) -> None:
        self._sampler = sampler
        self._start = start
        self._description = description
        self._step = 0
        self._batches: Batches | None = None
        self._closed = False

    @property
    def steps_per_epoch(self) -> int:
        """ceil(images of the longer domain / images per step over all ranks)."""
        return self._sampler.steps_per_epoch

    def describe(self) -> str:
        """One line: who loads, and if it is not DALI, why."""
        return self._description

    def __iter__(self) -> RGBDLoader:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(synthetic, real), each (batch / world_size, 4, S, S) channels_last float32 in [0, 1]. They belong
        to the caller. Raises DataError naming the file where one is broken."""
        if self._closed:
            raise ValueError("the loader is closed")
        if self._batches is None:
            self._batches = self._start(self._step)
        try:
            synthetic, real = next(self._batches)
        except BaseException:
            self._batches = None  # a generator that has raised is over: begin again at the same step
            raise
        self._step += 1
        return synthetic, real

    def state_dict(self) -> dict[str, int]:
        """Batches taken so far; those decoded ahead do not count."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where a loader of the same data set, batch and seed stood."""
        self._stop()
        self._step = state["step"]

    def close(self) -> None:
        """Ends the loader's threads and lets go of kept images; batches that were taken stay valid."""
        self._stop()
        self._closed = True
        self._start = _nothing

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


def _nothing(step: int) -> Batches:
    return iter(())


def open_loader(
    dataset: Dataset,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
    local_world_size: int = 1,
) -> RGBDLoader:
    """Training batches on `device`; `batch` images per domain and step over all ranks, of which this one gets
    its part. `local_world_size` ranks share this machine's cores.

    With a `config.cache` all training images are decoded before this returns (resident.py).

    Raises ConfigError if `config.backend` is "dali" and DALI cannot be used; "auto" takes the torch loader then, and on
    the CPU. Raises ConfigError where the images do not fit into the cache that is asked for, and DataError for a
    broken file or a full disk.
    """
    config = dataset.config
    _check(config)
    device = _with_index(torch.device(device))
    lengths = {domain: len(records) for domain, records in dataset.train.items()}
    shards = {domain: found.lengths() for domain, found in dataset.train.items() if isinstance(found, ShardRecords)}
    sampler = Sampler(seed, lengths, batch, config.size, config.augment, rank, world_size, shards)
    threads = _threads(config, local_world_size)
    why_torch = _why_torch(dataset, device)
    if config.backend == "dali" and why_torch:
        raise ConfigError(f"data.backend is dali, but {why_torch}")
    if why_torch:
        streams = _stream_torch(dataset, sampler, threads, device)
        description = f"torch loader, JPEG by {jpeg_decoder()}, {_count(threads)} per domain ({why_torch})"
        decoder = Decoder("Pillow", threads, None)
    else:
        from vologan_fast.data import dali_loader

        name = f"DALI {dali_loader.VERSION}, {'GPU' if device.type == 'cuda' else 'CPU'}"
        streams = _stream_dali(dataset, sampler, threads, device)
        description = f"{name}, {_count(threads)} per domain"

        def colors(records: Sequence[Record]) -> Iterator[torch.Tensor]:
            return dali_loader.dali_colors(records, config.size, CHUNK, threads * len(DOMAINS), device)

        decoder = Decoder(name, threads, colors)
    if dataset.shard_cache is not None:
        streams = _fetch_ahead(dataset, dataset.shard_cache, sampler, local_world_size, streams)
        description = f"{description}; shards from {dataset.root} are kept in {dataset.shard_cache.folder}"
    if config.cache == "none":
        return RGBDLoader(sampler, streams, description)

    job = Job(dataset.train, dataset.specs, config.size, config.cache_depth == "compact", decoder)
    kept = keep_images(job, config.cache, device, local_world_size, quiet=rank > 0)
    if isinstance(kept, str):
        return RGBDLoader(sampler, streams, f"{description}; {kept}")

    images = kept.images

    def start(step: int) -> Batches:
        return resident_batches(images, sampler, step, threads * len(DOMAINS), device)

    return RGBDLoader(sampler, start, f"resident {kept.description}")


def _fetch_ahead(
    dataset: Dataset, cache: ShardCache, sampler: Sampler, processes: int, streams: Callable[[int], Batches]
) -> Callable[[int], Batches]:
    """The batches, whose shards are fetched before they are read. Raises ConfigError where they do not fit."""
    shards = {domain: records for domain, records in dataset.train.items() if isinstance(records, ShardRecords)}
    cache.share = cache.limit // processes
    needed = 0
    for records in shards.values():  # each lane reads one shard, and the next one is on its way
        sizes = sorted((shard.size for shard in records.shards), reverse=True)
        needed += sum(sizes[: 2 * (-(-lane_count(sampler.batch) // sampler.world_size) + 1)])
    if needed > cache.share:
        raise ConfigError(
            f"data.shard_cache: {in_words(cache.share)} are there for each process ({cache.folder}); expected "
            f"{in_words(needed)} or more for the shards that a batch of {sampler.batch} is taken from"
        )

    def shards_of(step: int) -> Iterator[Any]:
        for domain, records in shards.items():
            for i in np.unique(records.shard[sampler.drawn(domain, step)]).tolist():
                yield records.shards[i]

    def start(step: int) -> Batches:
        return read_ahead(streams(step), cache, shards_of, step, sampler.steps_per_epoch)

    return start


def _stream_torch(dataset: Dataset, sampler: Sampler, threads: int, device: torch.device) -> Callable[[int], Batches]:
    def start(step: int) -> Batches:
        return torch_batches(dataset.train, dataset.specs, sampler, step, threads, device)

    return start


def _stream_dali(dataset: Dataset, sampler: Sampler, threads: int, device: torch.device) -> Callable[[int], Batches]:
    from vologan_fast.data import dali_loader

    def start(step: int) -> Batches:
        return dali_loader.dali_batches(dataset.train, dataset.specs, sampler, step, threads, device)

    return start


def held_out_batches(
    dataset: Dataset,
    domain: str,
    batch: int,
    device: str | torch.device = "cpu",
    records: Sequence[Record] | None = None,
) -> Iterator[torch.Tensor]:
    """The domain's held-out images (or any other `records` of the domain) in order and without augmentation.

    Yields (N, 4, S, S) channels_last float32 in [0, 1]; the last batch may be short. Consumes no randomness.
    Raises DataError naming the file where one is broken.
    """
    config = dataset.config
    images = dataset.held_out[domain] if records is None else records
    return image_batches(images, dataset.spec(domain), config.size, batch, _threads(config), torch.device(device))


def _with_index(device: torch.device) -> torch.device:
    """ "cuda" as "cuda:0": DALI wants to know which."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _threads(config: DataConfig, processes: int = 1) -> int:
    """Decoding threads per domain, for each of the `processes` that share the cores."""
    if config.threads:
        return config.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (len(DOMAINS) * processes))


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _why_torch(dataset: Dataset, device: torch.device) -> str:
    """Why the torch loader is taken; empty where DALI is."""
    if dataset.config.backend == "torch":
        return "as asked for"
    if dataset.config.backend == "auto" and device.type == "cpu":
        return "DALI is for GPUs"
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed: the same batches come from Pillow and the depth decoder"
    from vologan_fast.data import dali_loader

    if reason := dali_loader.load_operators():
        return f"DALI {dali_loader.VERSION} is installed, but {reason}"
    if dataset.not_native:
        return f"DALI's depth operator does not read {dataset.not_native}"
    return ""
