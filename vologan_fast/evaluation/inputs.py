"""The images of an evaluation: what is judged, what baselines are fitted on, and scenes with a known truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from vologan_fast.config import DOMAINS, Channels
from vologan_fast.data import DataError, Dataset, Record, held_out_batches, load_dataset
from vologan_fast.data.checksums import Known
from vologan_fast.data.records import read
from vologan_fast.data.skipping import Skipped

_BATCH = 8


@dataclass(frozen=True)
class Images:
    """The images of one domain."""

    pixels: Tensor
    """(N, C, H, W) in [0, 1], with the channels of the domain."""
    names: list[str]
    """The names of the files, with their folders, without suffix."""


@dataclass(frozen=True)
class Inputs:
    """The images of both domains."""

    judged: dict[str, Images]
    fitted: dict[str, Images]
    """Training images of the run, on which baselines are fitted."""
    record: dict[str, Any]
    """For the record of the evaluation: the data set, the part of it, and checksums."""
    datasets: tuple[Dataset, ...]
    """The data set of the run, and the one that is judged, if it is another."""

    def skipped(self) -> list[Skipped]:
        """Return the bad images that others have replaced so far."""
        return [bad for dataset in self.datasets if dataset.skipping is not None for bad in dataset.skipping.found()]


def load_inputs(of_run: Dataset, data: str | None, seed: int, count: int) -> Inputs:
    """Read at most `count` images of each domain and part, evenly spread.

    `of_run` is the data set of the run. Its held-out images are judged. With `data`, all images of that data set are
    judged instead. Raises DataError, also for less than two images.
    """
    dataset, part, records = of_run, "held-out images", {domain: of_run.held_out[domain] for domain in DOMAINS}
    if data is not None:
        dataset, part = load_dataset(data, of_run.config, seed), "all images"
        records = {d: sorted((*dataset.train[d], *dataset.held_out[d]), key=_name) for d in DOMAINS}
    for domain, found in records.items():
        if len(found) < 2:
            raise DataError(
                f"{dataset.root}: {part} of the {domain} domain: found {len(found)}, expected at least 2; name another "
                "data set with --data, or train with a larger --data.held-out"
            )
    judged = {domain: _read(dataset, domain, _spread(records[domain], count)) for domain in DOMAINS}
    fitted = {domain: _read(of_run, domain, _spread(of_run.train[domain], count)) for domain in DOMAINS}
    record = {
        "data": str(dataset.root),
        "part": part,
        "images": {domain: len(judged[domain].names) for domain in DOMAINS},
        "images_sha256": {domain: _checksum(judged[domain].pixels) for domain in DOMAINS},
        "data_fingerprint": of_run.fingerprint(),
    }
    return Inputs(judged, fitted, record, (of_run,) if data is None else (of_run, dataset))


def load_paired(path: Path, of_run: Dataset, source: str, target: str) -> tuple[Tensor, Tensor]:
    """Read the images of a domain with their truth in the other one, from a file such as the demo's paired_paths.json.

    The file holds {"paired_data": [{"synthetic": {"color_path": …, "depth_path": …}, "real": …, "truth": …}, …]}, with
    paths relative to its folder. The truth of a real image is "synthetic". The truth of a synthetic image is "truth",
    or "real" if the file has no "truth". A path that the channels do not need may be absent. Returns two
    (K, C, H, W), with the channels of both domains. Raises DataError.
    """
    channels, known = of_run.config.channel_sets, Known(path.parent)
    listed = read(known.file(path))
    try:
        scenes = json.loads(listed)["paired_data"]
        truth = "truth" if target == "real" and "truth" in scenes[0] else target
        found = [
            [_record(known, path, scene[kind], channels[domain]) for scene in scenes]
            for kind, domain in ((source, source), (truth, target))
        ]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    except (LookupError, TypeError) as error:
        raise DataError(
            f'{path}: expected {{"paired_data": [{{"{source}": {{"color_path": …, "depth_path": …}}, "{target}": …}}, '
            f"…]}} with at least one scene; {type(error).__name__}: {error}"
        ) from None
    return _read(of_run, source, found[0]).pixels, _read(of_run, target, found[1]).pixels


def load_repeats(path: Path, of_run: Dataset) -> Tensor | None:
    """Read the repeated shots of the scenes of a paired test: (K, N, C, H, W). None if the file lists none.

    A scene of the file may have "repeats", a list of images like its "real" one. Together they are its K shots. All
    scenes have as many. A path that the channels do not need may be absent. Raises DataError.
    """
    known = Known(path.parent)
    scenes = json.loads(read(known.file(path)))["paired_data"]
    counts = sorted({len(scene.get("repeats", ())) for scene in scenes})
    if counts == [0]:
        return None
    if len(counts) > 1:
        raise DataError(f"{path}: repeats: expected as many for each scene, found {counts[0]} to {counts[-1]}")
    shots = [[scene["real"], *scene["repeats"]] for scene in scenes]
    try:
        of_shots = [
            [_record(known, path, of_scene[k], of_run.config.channel_sets["real"]) for of_scene in shots]
            for k in range(1 + counts[0])
        ]
    except (LookupError, TypeError) as error:
        raise DataError(f'{path}: repeats: expected images like "real"; {type(error).__name__}: {error}') from None
    return torch.stack([_read(of_run, "real", records).pixels for records in of_shots])


def _record(known: Known, path: Path, image: dict[str, str], channels: Channels) -> Record:
    """Return an image that the file `path` lists, without a file that the channels do not need. Raises LookupError."""
    return Record(
        known.file(path.parent / image["color_path"]) if channels.color else None,
        known.file(path.parent / image["depth_path"]) if channels.depth else None,
    )


def held_out_images(dataset: Dataset, count: int, step: int = 0) -> dict[str, Images]:
    """Return at most `count` held-out images of each domain, evenly spread. `step` is as in `held_out_batches`."""
    return {domain: _read(dataset, domain, _spread(dataset.held_out[domain], count), step) for domain in DOMAINS}


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    count = min(len(records), count)
    return [records[i * len(records) // count] for i in range(count)]


def _read(dataset: Dataset, domain: str, records: Sequence[Record], step: int = 0) -> Images:
    pixels = torch.cat(list(held_out_batches(dataset, domain, _BATCH, records=tuple(records), step=step)))
    return Images(pixels, [_name(record) for record in records])


def _name(record: Record) -> str:
    source = record.files[0]
    name = str((source if isinstance(source, Path) else PurePath(source.name)).with_suffix(""))
    return name if record.color_file else name.removesuffix(".depth")


def _checksum(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
