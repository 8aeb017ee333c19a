"""Batches by native code on Python threads. It makes training batches without DALI, and all held-out images.

One native call loads images into their places in the batch, each from its two files (csrc/batch/image_loader.h). The
call releases the GIL. If an image is broken or in a form that native code does not support, Python reads it again step
by step, with Pillow, as pixels.py defines it. The result has the same bits, or an error names the file.

Worker processes (a DataLoader's num_workers) are not used, because they send each batch through shared memory. A
container has 64 MB of it by default, which is less than one batch of 512² images.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vologan_fast import _batch
from vologan_fast.config import CHANNELS, DOMAINS, Channels, DepthSpec, Size, height_and_width
from vologan_fast.data.errors import DataError
from vologan_fast.data.loaders.host_memory import host_memory, send
from vologan_fast.data.loaders.source import Batches, Plan
from vologan_fast.data.pixels import (
    DEFAULT,
    NO_DEPTH,
    Bytes,
    DepthRule,
    Floats,
    Limits,
    accepted_types,
    check_valid,
    crop_color,
    read_color,
    read_cropped_depth,
)
from vologan_fast.data.records import Record, Source, files_of, place, read
from vologan_fast.data.sampling import Draw
from vologan_fast.data.skipping import Skipping
from vologan_fast.data.waiting import PATIENCE, ReadingThreads, Stalled, result_of

try:
    from vologan_fast import _image_loader
except ImportError:  # it was not built because libjpeg-turbo was absent, or it cannot be loaded
    _image_loader = None  # type: ignore[assignment]

_Wanted = tuple[int, Draw | None]
"""The place of an image in a list, and its augmentation. None: it is a held-out image, and has none."""
PREFETCH = 2
"""The number of batches that are decoded ahead of the requested one."""
_CHUNK = 4  # colour images that a thread decodes in one call


@dataclass(frozen=True)
class _Pending:
    """A batch whose images are still being decoded."""

    images: torch.Tensor  # (N, H, W, C)
    decoding: list[tuple[Future[None], Sequence[Record]]]
    """For each thread, the images that it decodes."""
    step: int
    replacing: Replacing | None

    def result(self, device: torch.device, patience: float) -> torch.Tensor:
        """Return the batch, (N, C, H, W) channels_last on `device`. Raises DataError for the first broken image.

        Waits for a file at most `patience` seconds, as `waiting` tells. Raises _Replaced if the image of such a file is
        replaced from now on. Then its thread never ends, so all batches must be made again, by other threads.
        """
        for future, records in self.decoding:
            try:
                result_of(future, partial(files_of, records), patience)
            except Stalled as stalled:
                record = next((r for r in records if stalled.file in [str(file) for file in r.files]), None)
                if self.replacing is None or record is None:
                    raise
                self.replacing.skip(record, self.step, stalled)
                raise _Replaced from stalled
        return send(self.images.permute(0, 3, 1, 2), device)


class _Replaced(Exception):
    """An image whose file does not come is replaced from now on."""


@dataclass(frozen=True)
class Replacing:
    """Where the bad images of a list are noted."""

    skipping: Skipping
    split: str
    """"train" or "held_out"."""
    domain: str

    def skip(self, record: Record, step: int, error: DataError) -> None:
        """See `Skipping.skip`."""
        self.skipping.skip(record, self.split, self.domain, step, error)

    def used(self, records: Sequence[Record], index: int, step: int) -> int:
        """See `Skipping.used`."""
        return self.skipping.used(records, index, step)


class _Images:
    """A loader for one list of images of a domain, which loads each image into its place in a batch."""

    def __init__(
        self,
        records: Sequence[Record],
        spec: DepthSpec,
        size: tuple[int, int],
        device: torch.device,
        channels: Channels,
        limits: Limits,
        replacing: Replacing | None,
    ) -> None:
        """`replacing` says what to do with bad images. None: they are errors."""
        self._records = records
        self._replacing = replacing
        self._limits = limits
        self._spec = spec
        self._size = size
        self._device = device
        self._memory = _batch.BatchMemory()
        self._channels = channels
        self._rule = DepthRule.of(spec) if channels.depth else NO_DEPTH
        self._native = _image_loader and _image_loader.ImageLoader(
            size, spec.channel or "", *self._rule, accepted_types(spec), channels, limits.pixels, limits.nan
        )

    def submit(self, pool: ThreadPoolExecutor, images: Sequence[_Wanted], step: int, threads: int) -> _Pending:
        """Begin to load the images of a batch. Each of the threads loads an equal share of them.

        `step` is the one that uses them, counted from 1.
        """
        shape = len(images), *self._size, self._channels.number
        if self._device.type == "cuda":
            batch = host_memory(shape, torch.float32, self._device)
        else:
            batch = torch.from_numpy(self._memory.empty(*shape))
        out, share = batch.numpy(), -(-len(images) // threads)
        return _Pending(
            batch,
            [
                (pool.submit(self._load, images[part], step, out[part]), self._read_by(images[part], step))
                for part in (slice(first, first + share) for first in range(0, len(images), share))
            ],
            step,
            self._replacing,
        )

    def _read_by(self, images: Sequence[_Wanted], step: int) -> list[Record]:
        """Return the images that are read, which may be others than the wanted ones."""
        places = [index for index, _ in images]
        if self._replacing is not None:
            places = [self._replacing.used(self._records, index, step) for index in places]
        return [self._records[index] for index in places]

    def _load(self, images: Sequence[_Wanted], step: int, out: Floats) -> None:
        if self._replacing is None:
            self._load_together(images, out)
        else:
            for i, (index, draw) in enumerate(images):
                self.load_good(index, draw, step, out[i : i + 1])

    def load_good(self, index: int, draw: Draw | None, step: int, out: Floats) -> int:
        """Fill `out`, (1, H, W, C), with an image, or with the one that takes its place, and return its place.

        Raises DataError if there are too many bad images.
        """
        assert self._replacing is not None
        while True:
            used = self._replacing.used(self._records, index, step)
            try:
                self._load_together([(used, draw)], out)
                return used
            except DataError as error:
                self._replacing.skip(self._records[used], step, error)

    def _load_together(self, images: Sequence[_Wanted], out: Floats) -> None:
        augment = [(draw.flip, draw.top, draw.left) if draw else (False, 0, 0) for _, draw in images]
        missed = self._native.load(*self._find(images), augment, out) if self._native else range(len(images))
        for i in missed:
            self._load_plainly(self._records[images[i][0]], augment[i], out[i])

    def load_colors(self, first: int, out: Bytes) -> None:
        """Fill `out`, (n, H, W, 3), with the colour of n images from `first` on.

        Raises DataError, which names a broken file.
        """
        records = self._records[first : first + len(out)]
        files = [place(record.color) for record in records]
        missed = self._native.load_colors(files, out) if self._native else range(len(records))
        for i in missed:
            out[i] = crop_color(read_color(records[i].color, self._limits), self._size)

    def _load_plainly(self, record: Record, augment: tuple[bool, int, int], out: Floats) -> None:
        color = read_color(record.color, self._limits) if self._channels.color else None
        depth = None
        if self._channels.depth:
            shape = None if color is None else color.shape
            depth = read_cropped_depth(record, self._spec, self._size, shape, self._limits)
            _batch.normalize(depth, *self._rule)
            check_valid(record.depth, depth)
            depth = depth[None]
        if color is not None:
            color = np.ascontiguousarray(crop_color(color, self._size))[None]
        _batch.pack(color, depth, None, np.array([[0, *augment]], np.int32), out[None])

    def _find(self, images: Sequence[_Wanted]) -> tuple[list[Any], list[Any]]:
        """Return the sources of colour and depth for native code. They are None for files that are not needed.

        For a training image they are the places of the files, and its shard is fetched, because training reads all of
        the shard. For a held-out image they are the bytes of the files, because few images of a shard are held out.
        """
        find = [(self._records[index], place if draw else read) for index, draw in images]
        colors = [where(record.color) if self._channels.color else None for record, where in find]
        return colors, [where(record.depth) if self._channels.depth else None for record, where in find]


def load_color(source: Source, limits: Limits = DEFAULT) -> Bytes:
    """Return what `read_color` returns, in two thirds of the time if the file is a JPEG. Raises DataError."""
    color = _image_loader.decode_jpeg(read(source), limits.pixels) if _image_loader else None
    return read_color(source, limits) if color is None else color


def jpeg_decoder() -> str:
    """Return the name of the JPEG decoder: "libjpeg-turbo" and its version, or "Pillow" without the native loader."""
    return "Pillow" if _image_loader is None else str(_image_loader.jpeg_backend)


class NativeSource:
    """Training batches from files, by native code on Python threads. `why` is the reason for the choice."""

    def __init__(self, plan: Plan, why: str) -> None:
        self._plan = plan
        self.decoder = jpeg_decoder()
        self.description = f"native loader, JPEG by {self.decoder}, {plan.threads_in_words} ({why})"

    def batches(self, step: int) -> Batches:
        """See `BatchSource`."""
        while True:
            try:
                with contextlib.closing(self._batches(step)) as batches:
                    for batch in batches:
                        yield batch
                        step += 1
            except _Replaced:
                pass  # again from this step on

    def _batches(self, step: int) -> Generator[tuple[torch.Tensor, ...]]:
        plan = self._plan
        domains = {domain: self._images(domain, plan.records[domain], plan.channels[domain]) for domain in DOMAINS}

        def submit(domain: str, step: int) -> _Pending:
            images = [(draw.index, draw) for draw in plan.sampler.draw(domain, step)]
            return domains[domain].submit(pool, images, step + 1, plan.threads)

        with ReadingThreads(plan.threads * len(DOMAINS)) as pool:
            pending: deque[list[_Pending]] = deque()
            for ahead in itertools.count(step):
                pending.append([submit(domain, ahead) for domain in DOMAINS])
                if len(pending) > PREFETCH:
                    yield tuple(batch.result(plan.device, plan.patience) for batch in pending.popleft())

    def colors(self, domain: str, records: Sequence[Record]) -> Iterator[torch.Tensor]:
        """See `FileSource`."""
        plan, threads = self._plan, self._plan.threads * len(DOMAINS)
        images, count = self._images(domain, records, CHANNELS["rgb"]), len(records)
        with ReadingThreads(threads) as pool:
            for first in range(0, count, _CHUNK * threads):
                out = np.empty((min(_CHUNK * threads, count - first), *plan.size, 3), np.uint8)
                shares = range(0, len(out), _CHUNK)
                list(pool.map(images.load_colors, [first + i for i in shares], [out[i : i + _CHUNK] for i in shares]))
                yield torch.from_numpy(out)

    def used(self, domain: str) -> list[int]:
        """Return the place of the image that is used for each image of a domain: itself unless it is bad.

        All images are read for this, on all threads, as before the first step. Raises DataError if too many are bad.
        """
        plan, threads = self._plan, self._plan.threads * len(DOMAINS)
        images = self._images(domain, plan.records[domain], plan.channels[domain])

        def used(index: int) -> int:
            out = np.empty((1, *plan.size, plan.channels[domain].number), np.float32)
            return images.load_good(index, None, 0, out)

        with ThreadPoolExecutor(threads, thread_name_prefix="vologan-data") as pool:
            return list(pool.map(used, range(len(plan.records[domain]))))

    def _images(self, domain: str, records: Sequence[Record], channels: Channels) -> _Images:
        plan = self._plan
        replacing = None if plan.skipping is None else Replacing(plan.skipping, "train", domain)
        return _Images(records, plan.specs[domain], plan.size, plan.device, channels, plan.limits, replacing)


def image_batches(
    records: Sequence[Record],
    spec: DepthSpec,
    size: Size,
    batch: int,
    threads: int,
    device: torch.device,
    channels: Channels = CHANNELS["rgbd"],
    limits: Limits = DEFAULT,
    replacing: Replacing | None = None,
    step: int = 0,
    patience: float = PATIENCE,
) -> Iterator[torch.Tensor]:
    """Yield the records in order, without augmentation, in batches (N, C, H, W), channels_last.

    The last batch holds the remaining images. Raises DataError when the batch with a broken file is reached, or with
    `replacing`, when too many are bad, and after `patience` seconds without a file. `step` is the present one, counted
    from 1.
    """
    done = 0

    def from_here() -> Generator[torch.Tensor]:
        images = _Images(records, spec, height_and_width(size), device, channels, limits, replacing)
        with ReadingThreads(threads) as pool:
            pending: deque[_Pending] = deque()
            for first in range(done, len(records), batch):
                wanted = [(index, None) for index in range(first, min(first + batch, len(records)))]
                pending.append(images.submit(pool, wanted, step, threads))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result(device, patience)
            while pending:
                yield pending.popleft().result(device, patience)

    while done < len(records):
        try:
            with contextlib.closing(from_here()) as batches:
                for found in batches:
                    yield found
                    done += batch
        except _Replaced:
            pass  # again from this batch on
