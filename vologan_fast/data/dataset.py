"""A data set: the images of two domains in a folder or a bucket, split into training and held-out images.

    dataset = load_dataset(path, config.data, seed=0)

`manifest` finds the images in a folder, and `shards/remote` finds the images in a bucket. `depth_spec` finds the
meaning of their depth values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vologan_fast.config import DOMAINS, ConfigError, DataConfig, DepthSpec, size_in_words
from vologan_fast.data.checksums import unlisted
from vologan_fast.data.depth_spec import readable_sample, resolve_depth
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import find_records, find_test_records, require_files
from vologan_fast.data.pixels import MOST_PIXELS, Limits
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import held_out_indices
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.index import HELD_OUT, Indices, ShardRecords
from vologan_fast.data.shards.remote import find_remote_records, is_url
from vologan_fast.data.skipping import Skipping
from vologan_fast.files import absolute_path, cache_folder


@dataclass(frozen=True)
class Dataset:
    """The images of two domains, split into training and held-out images, with the settings to read their depth."""

    root: Path | str
    """A folder, or a URL such as s3://bucket/prefix."""
    config: DataConfig
    """The settings, with both DepthSpecs resolved. A run records them, so that it can be continued."""
    train: Mapping[str, Sequence[Record]]
    """The training images of each domain."""
    held_out: Mapping[str, Sequence[Record]]
    """The other images of each domain, which are never trained on."""
    depth: Mapping[str, str]
    """For each domain: a line that describes its depth files, or "not read"."""
    not_native: str
    """The reason why DALI cannot read all depth files. It is empty if DALI can read them."""
    shard_cache: ShardCache | None = None
    """The cache for shards from a bucket. None if the images are on this machine."""
    given: frozenset[str] = frozenset()
    """The domains whose held-out images the data set names. Those of the others are drawn by the seed."""
    skipping: Skipping | None = None
    """The bad images that were found so far, which others replace. None: a bad image is an error."""

    def describe(self) -> list[str]:
        """Return lines for people that describe the data set."""
        return [
            f"{domain}: {len(self.train[domain])} training and {len(self.held_out[domain])} held-out images; "
            f"depth: {self.depth[domain]}"
            for domain in DOMAINS
        ]

    def warnings(self) -> list[str]:
        """Return sentences about what works in training but not later, and about files without a checksum."""
        parts = ((domain, len(self.held_out[domain]), domain in self.given) for domain in DOMAINS)
        few = [sentence for part in parts for sentence in few_held_out(*part)]
        found = (*self.train.values(), *self.held_out.values())
        return few + unlisted(record for part in found if not isinstance(part, ShardRecords) for record in part)

    def fingerprint(self) -> str:
        """Return a SHA-256 checksum (hexadecimal) of the training images and their order.

        The sampler's image indices refer to this order. Held-out images that the data set names enter it, too. Those
        that are drawn follow from the training images. Images in shards enter the checksum by the checksums of the
        shards, and images in folders by their names.
        """
        return self._checksum(self.given)

    def has_fingerprint(self, recorded: str) -> bool:
        """Return whether a checkpoint has recorded this data set.

        Older versions have recorded a checksum of the training images alone.
        """
        return recorded in (self._checksum(self.given), self._checksum(()))

    def _checksum(self, given: Collection[str]) -> str:
        digest = hashlib.sha256()
        parts = sorted(self.train.items()) + [(f"{domain} held out", self.held_out[domain]) for domain in sorted(given)]
        for name, records in parts:
            if isinstance(records, ShardRecords):
                digest.update(f"{name} {records.fingerprint()}\n".encode())
                continue
            for record in records:
                names = (os.path.relpath(str(file), self.root) for file in record.files)
                digest.update(f"{name} {' '.join(names)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def spec(self, domain: str) -> DepthSpec:
        """Return the settings by which the depth of a domain's files is read."""
        spec: DepthSpec = getattr(self.config, domain)
        return spec

    @property
    def specs(self) -> dict[str, DepthSpec]:
        """The depth settings of both domains, as `spec` returns them."""
        return {domain: self.spec(domain) for domain in DOMAINS}


def load_dataset(path: str | os.PathLike[str], config: DataConfig, seed: int) -> Dataset:
    """Find the images in a folder or a bucket, split them by the seed, and resolve the depth settings.

    If the data set names images for tests, they are the held-out ones, and nothing is split.

    `path` is a folder in one of the layouts of `manifest`, or the URL of shards, such as s3://bucket/prefix. Raises
    DataError, which names the file, for data that cannot be used. Raises ConfigError for settings that cannot be used,
    and for a URL if the package that reads it is not installed.
    """
    check_settings(config)
    root, cache = _root(path), None
    given: Mapping[str, Sequence[Record]] = {}
    if isinstance(root, str):
        cache = ShardCache(cache_folder("shards"), int(config.shard_cache * 1e9))
        found: Mapping[str, Sequence[Record]] = find_remote_records(root, cache, config.patience)
        given = find_remote_records(root, cache, config.patience, HELD_OUT)
    else:
        found, given = find_records(root), find_test_records(root)
    for part in (found, given):
        for domain, records in part.items():
            require_files(records, config.channel_sets[domain])
    train, held_out, depth, not_native = {}, {}, {}, ""
    specs: dict[str, Any] = {}
    for domain, records in found.items():
        if domain not in given and len(records) < 2:
            raise DataError(
                f"{root}: the {domain} domain has 1 image; expected at least 2, to train on one and hold out the other"
            )
        if domain in given:
            train[domain], held_out[domain] = records, given[domain]
        else:
            held = held_out_indices(seed, domain, len(records), config.held_out)
            train[domain] = _select(records, np.setdiff1d(np.arange(len(records)), held, assume_unique=True))
            held_out[domain] = _select(records, held)
        channels = config.channel_sets[domain]
        if not channels.depth:
            depth[domain] = "not read"
            continue
        spec, limits = getattr(config, domain), Limits.of(config)
        sample = readable_sample(records, spec, limits) if config.on_error == "skip" else records
        resolved = resolve_depth(domain, sample, spec, channels.color > 0, limits)
        specs[domain] = resolved.spec
        depth[domain] = resolved.description
        not_native = not_native or resolved.not_native or _not_native(root, domain, records)
    return Dataset(
        root,
        dataclasses.replace(config, **specs),
        train,
        held_out,
        depth,
        not_native,
        cache,
        frozenset(given),
        Skipping(str(root), config.max_skipped) if config.on_error == "skip" else None,
    )


def few_held_out(domain: str, count: int, given: bool) -> list[str]:
    """Return a sentence if a domain has too few held-out images for `evaluate`, else nothing.

    `given` says whether the data set names them.
    """
    if count >= 2:
        return []
    more = "add images for tests" if given else "choose a larger --data.held-out, or add images"
    return [f"the {domain} domain has {count} held-out image; evaluate needs at least 2: {more}"]


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the data set's name in a form that is valid in any working folder. Raises DataError for an empty name.

    A run records this name.
    """
    root = _root(path)
    return root if isinstance(root, str) else str(root.resolve())


def _root(path: str | os.PathLike[str]) -> Path | str:
    name = os.fspath(path)
    if not name:  # perhaps an unset shell variable; Path("") would be the working folder
        raise DataError("the data set's name is empty; expected a folder or s3://BUCKET/PREFIX")
    return name if is_url(name) else absolute_path(name)


def _select(records: Sequence[Record], indices: Indices) -> Sequence[Record]:
    return records[indices] if isinstance(records, ShardRecords) else tuple(records[i] for i in indices)


def _not_native(root: Path | str, domain: str, records: Sequence[Record]) -> str:
    """Return the reason why DALI cannot read all depth files in shards, or "" if it can.

    shards.json describes every depth file, and so this also covers files outside the sample of `resolve_depth`.
    """
    kinds = records.kinds if isinstance(records, ShardRecords) else ()
    return next((f"{root}: {domain}: {kind.not_native}" for kind in kinds if kind.not_native), "")


def check_settings(config: DataConfig) -> None:
    """Raise ConfigError for settings of `data` that are invalid for every data set."""
    if min(config.shape) < 1:
        raise ConfigError(f"data.size is {size_in_words(config.size)}; expected at least 1 pixel")
    if config.shard_cache <= 0:
        raise ConfigError(f"data.shard_cache is {config.shard_cache}; expected gigabytes, more than 0")
    if not 1 <= config.max_pixels <= MOST_PIXELS:
        raise ConfigError(f"data.max_pixels is {config.max_pixels}; expected 1 to {MOST_PIXELS}")
    if config.max_skipped < 0:
        raise ConfigError(f"data.max_skipped is {config.max_skipped}; expected 0 or more")
    if not config.patience > 0:
        raise ConfigError(f"data.patience is {config.patience}; expected seconds, more than 0")
    if config.threads < 0:
        raise ConfigError(f"data.threads is {config.threads}; expected 0 (all cores) or more")
    augment = config.augment
    fractions = {
        "held_out": config.held_out,
        "max_nan": config.max_nan,
        "augment.flip": augment.flip,
        "augment.shift": augment.shift,
        "augment.shift_height": augment.shift_height,
        "augment.shift_width": augment.shift_width,
        "augment.crop": augment.crop,
        "augment.scale": augment.scale,
        "augment.jitter": augment.jitter,
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"data.{name} is {value}; expected 0 to 1")
    if augment.jitter and not any(channels.color for channels in config.channel_sets.values()):
        raise ConfigError(f"data.augment.jitter is {augment.jitter}; expected 0 for images without colour")
    if config.cache_depth == "compact" and config.cache in ("none", "auto"):
        raise ConfigError(
            f"data.cache_depth is compact and data.cache {config.cache}; expected exact, or one of host, device, disk: "
            "batches must not depend on what fits"
        )
