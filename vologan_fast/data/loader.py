"""A folder becomes a data set, a data set becomes batches.

    dataset = load_dataset(path, config.data, seed=0)
    with open_loader(dataset, batch=8) as loader:
        synthetic, real = next(loader)            # each (8, 4, S, S) channels_last float32 in [0, 1]

The loader has one integer of state, the number of batches that were taken from it; a loader that is given the
same number continues with the same bits.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vologan_fast.config import DOMAINS, ConfigError, DataConfig, DepthSpec
from vologan_fast.data.depth_spec import resolve_depth
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import Record, find_records
from vologan_fast.data.resident import CHUNK, Decoder, Job, keep_images, resident_batches
from vologan_fast.data.sampling import Sampler, held_out_indices
from vologan_fast.data.torch_loader import image_batches, torch_batches

Batches = Iterator[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Dataset:
    """Images of two domains, split into training and held-out ones, and how their depth is to be read."""

    root: Path
    config: DataConfig
    """With both DepthSpecs resolved: what a run must record to be continued."""
    train: Mapping[str, tuple[Record, ...]]
    held_out: Mapping[str, tuple[Record, ...]]
    depth: Mapping[str, str]
    """A line about each domain's depth files."""
    not_native: str
    """Why DALI cannot read all depth files; empty where it can."""

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

    @property
    def specs(self) -> dict[str, DepthSpec]:
        return {domain: self.spec(domain) for domain in DOMAINS}


def load_dataset(path: str | os.PathLike[str], config: DataConfig, seed: int) -> Dataset:
    """Finds the images under `path` (manifest.py says where), splits them by the seed, and resolves the depth
    settings.

    Raises DataError, naming the file, for data that cannot be used, and ConfigError for settings that cannot.
    """
    _check(config)
    root = Path(path)
    train, held_out, depth, not_native = {}, {}, {}, ""
    specs: dict[str, Any] = {}
    for domain, records in find_records(root).items():
        if len(records) < 2:
            raise DataError(
                f"{root}: the {domain} domain has 1 image; expected at least 2, to train on one and hold out the other"
            )
        held = held_out_indices(seed, domain, len(records), config.held_out)
        train[domain] = tuple(record for i, record in enumerate(records) if i not in held)
        held_out[domain] = tuple(record for i, record in enumerate(records) if i in held)
        resolved = resolve_depth(domain, records, getattr(config, domain))
        specs[domain] = resolved.spec
        depth[domain] = resolved.description
        not_native = not_native or resolved.not_native
    return Dataset(root, dataclasses.replace(config, **specs), train, held_out, depth, not_native)


def _check(config: DataConfig) -> None:
    if config.size < 1:
        raise ConfigError(f"data.size is {config.size}; expected at least 1 pixel")
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

    Raises ConfigError if `config.backend` is "dali" and DALI cannot be used; "auto" then takes the torch
    loader. Raises ConfigError where the images do not fit into the cache that is asked for, and DataError for a
    broken file or a full disk.
    """
    config = dataset.config
    _check(config)
    device = _with_index(torch.device(device))
    lengths = {domain: len(records) for domain, records in dataset.train.items()}
    sampler = Sampler(seed, lengths, batch, config.size, config.augment, rank, world_size)
    threads = _threads(config, local_world_size)
    why_not = "" if config.backend == "torch" else _why_not_dali(dataset)
    if config.backend == "dali" and why_not:
        raise ConfigError(f"data.backend is dali, but {why_not}")
    if config.backend == "torch" or why_not:
        reason = why_not or "as asked for"
        streams = _stream_torch(dataset, sampler, threads, device)
        description = f"torch loader, CPU, {_count(threads)} per domain ({reason})"
        decoder = Decoder("Pillow", threads, None)
    else:
        from vologan_fast.data import dali_loader

        name = f"DALI {dali_loader.VERSION}, {'GPU' if device.type == 'cuda' else 'CPU'}"
        streams = _stream_dali(dataset, sampler, threads, device)
        description = f"{name}, {_count(threads)} per domain"

        def colors(records: Sequence[Record]) -> Iterator[torch.Tensor]:
            return dali_loader.dali_colors(records, config.size, CHUNK, threads * len(DOMAINS), device)

        decoder = Decoder(name, threads, colors)
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


def _stream_torch(dataset: Dataset, sampler: Sampler, threads: int, device: torch.device) -> Callable[[int], Batches]:
    def start(step: int) -> Batches:
        return torch_batches(dataset.train, dataset.specs, sampler, step, threads, device)

    return start


def _stream_dali(dataset: Dataset, sampler: Sampler, threads: int, device: torch.device) -> Callable[[int], Batches]:
    from vologan_fast.data import dali_loader

    def start(step: int) -> Batches:
        native_pack = device.type == "cpu"
        return dali_loader.dali_batches(dataset.train, dataset.specs, sampler, step, threads, device, native_pack)

    return start


def held_out_batches(
    dataset: Dataset,
    domain: str,
    batch: int,
    device: str | torch.device = "cpu",
    records: tuple[Record, ...] | None = None,
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


def _why_not_dali(dataset: Dataset) -> str:
    """Why the data set cannot be loaded by DALI here; empty where it can."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed: the same batches come from Pillow and the depth decoder"
    from vologan_fast.data import dali_loader

    if reason := dali_loader.load_operators():
        return f"DALI {dali_loader.VERSION} is installed, but {reason}"
    if dataset.not_native:
        return f"DALI's depth operator does not read {dataset.not_native}"
    return ""
