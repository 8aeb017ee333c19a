"""Batches by native code on Python threads. It makes training batches without DALI, and all held-out images.

One native call loads images into their places in the batch, each from its two files (csrc/batch/image_loader.h). The
call releases the GIL. If an image is broken or in a form that native code does not support, Python reads it again step
by step, with Pillow, as pixels.py defines it. The result has the same bits, or an error names the file.

Worker processes (a DataLoader's num_workers) are not used, because they send each batch through shared memory. A
container has 64 MB of it by default, which is less than one batch of 512² images.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vologan_fast import _batch
from vologan_fast.config import CHANNELS, DOMAINS, Channels, DepthSpec, Size, height_and_width
from vologan_fast.data.loaders.host_memory import host_memory, send
from vologan_fast.data.loaders.source import Batches, Plan
from vologan_fast.data.pixels import (
    NO_DEPTH,
    Bytes,
    DepthRule,
    Floats,
    accepted_types,
    check_valid,
    crop_color,
    read_color,
    read_cropped_depth,
)
from vologan_fast.data.records import Record, Source, files_of, place, read
from vologan_fast.data.sampling import Draw
from vologan_fast.data.waiting import PATIENCE, ReadingThreads, result_of

try:
    from vologan_fast import _image_loader
except ImportError:  # it was not built because libjpeg-turbo was absent, or it cannot be loaded
    _image_loader = None  # type: ignore[assignment]

PREFETCH = 2
"""The number of batches that are decoded ahead of the requested one."""
_CHUNK = 4  # colour images that a thread decodes in one call


@dataclass(frozen=True)
class _Pending:
    """A batch whose images are still being decoded."""

    images: torch.Tensor  # (N, H, W, C)
    decoding: list[tuple[Future[None], Sequence[Record]]]
    """For each thread, the images that it decodes."""

    def result(self, device: torch.device, patience: float) -> torch.Tensor:
        """Return the batch, (N, C, H, W) channels_last on `device`. Raises DataError for the first broken image.

        Waits for a file at most `patience` seconds, as `waiting` tells.
        """
        for future, records in self.decoding:
            result_of(future, partial(files_of, records), patience)
        return send(self.images.permute(0, 3, 1, 2), device)


class _Images:
    """A loader for one domain, which loads each image into its place in a batch."""

    def __init__(self, spec: DepthSpec, size: tuple[int, int], device: torch.device, channels: Channels) -> None:
        self._spec = spec
        self._size = size
        self._device = device
        self._memory = _batch.BatchMemory()
        self._channels = channels
        self._rule = DepthRule.of(spec) if channels.depth else NO_DEPTH
        self._native = _image_loader and _image_loader.ImageLoader(
            size, spec.channel or "", *self._rule, accepted_types(spec), channels
        )

    def submit(self, pool: ThreadPoolExecutor, images: Sequence[tuple[Record, Draw | None]], threads: int) -> _Pending:
        """Begin to load the images of a batch. Each of the threads loads an equal share of them."""
        shape = len(images), *self._size, self._channels.number
        if self._device.type == "cuda":
            batch = host_memory(shape, torch.float32, self._device)
        else:
            batch = torch.from_numpy(self._memory.empty(*shape))
        out, share = batch.numpy(), -(-len(images) // threads)
        return _Pending(
            batch,
            [
                (pool.submit(self._load, images[part], out[part]), [record for record, _ in images[part]])
                for part in (slice(first, first + share) for first in range(0, len(images), share))
            ],
        )

    def _load(self, images: Sequence[tuple[Record, Draw | None]], out: Floats) -> None:
        augment = [(draw.flip, draw.top, draw.left) if draw else (False, 0, 0) for _, draw in images]
        missed = self._native.load(*self._find(images), augment, out) if self._native else range(len(images))
        for i in missed:
            self._load_plainly(images[i][0], augment[i], out[i])

    def load_colors(self, records: Sequence[Record], out: Bytes) -> None:
        """Fill `out`, (n, H, W, 3), with the colour of n images. Raises DataError, which names a broken file."""
        files = [place(record.color) for record in records]
        missed = self._native.load_colors(files, out) if self._native else range(len(records))
        for i in missed:
            out[i] = crop_color(read_color(records[i].color), self._size)

    def _load_plainly(self, record: Record, augment: tuple[bool, int, int], out: Floats) -> None:
        color = read_color(record.color) if self._channels.color else None
        depth = None
        if self._channels.depth:
            depth = read_cropped_depth(record, self._spec, self._size, None if color is None else color.shape)
            _batch.normalize(depth, *self._rule)
            check_valid(record.depth, depth)
            depth = depth[None]
        if color is not None:
            color = np.ascontiguousarray(crop_color(color, self._size))[None]
        _batch.pack(color, depth, None, np.array([[0, *augment]], np.int32), out[None])

    def _find(self, images: Sequence[tuple[Record, Draw | None]]) -> tuple[list[Any], list[Any]]:
        """Return the sources of colour and depth for native code. They are None for files that are not needed.

        For a training image they are the places of the files, and its shard is fetched, because training reads all of
        the shard. For a held-out image they are the bytes of the files, because few images of a shard are held out.
        """
        find = [(record, place if draw else read) for record, draw in images]
        colors = [where(record.color) if self._channels.color else None for record, where in find]
        return colors, [where(record.depth) if self._channels.depth else None for record, where in find]


def load_color(source: Source) -> Bytes:
    """Return what `read_color` returns, in two thirds of the time if the file is a JPEG. Raises DataError."""
    color = _image_loader.decode_jpeg(read(source)) if _image_loader else None
    return read_color(source) if color is None else color


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
        plan = self._plan
        domains = {
            domain: _Images(plan.specs[domain], plan.size, plan.device, plan.channels[domain]) for domain in DOMAINS
        }

        def submit(domain: str, step: int) -> _Pending:
            images = [(plan.records[domain][draw.index], draw) for draw in plan.sampler.draw(domain, step)]
            return domains[domain].submit(pool, images, plan.threads)

        with ReadingThreads(plan.threads * len(DOMAINS)) as pool:
            pending: deque[list[_Pending]] = deque()
            for ahead in itertools.count(step):
                pending.append([submit(domain, ahead) for domain in DOMAINS])
                if len(pending) > PREFETCH:
                    yield tuple(batch.result(plan.device, plan.patience) for batch in pending.popleft())

    def colors(self, domain: str) -> Iterator[torch.Tensor]:
        """See `FileSource`."""
        plan, threads = self._plan, self._plan.threads * len(DOMAINS)
        records = plan.records[domain]
        images = _Images(plan.specs[domain], plan.size, plan.device, CHANNELS["rgb"])
        with ReadingThreads(threads) as pool:
            for first in range(0, len(records), _CHUNK * threads):
                part = records[first : first + _CHUNK * threads]
                out = np.empty((len(part), *plan.size, 3), np.uint8)
                shares = [slice(i, i + _CHUNK) for i in range(0, len(part), _CHUNK)]
                list(pool.map(images.load_colors, [part[share] for share in shares], [out[share] for share in shares]))
                yield torch.from_numpy(out)


def image_batches(
    records: Sequence[Record],
    spec: DepthSpec,
    size: Size,
    batch: int,
    threads: int,
    device: torch.device,
    channels: Channels = CHANNELS["rgbd"],
    patience: float = PATIENCE,
) -> Iterator[torch.Tensor]:
    """Yield the records in order, without augmentation, in batches (N, C, H, W), channels_last.

    The last batch holds the remaining images. Raises DataError when the batch with a broken file is reached, or after
    `patience` seconds without a file.
    """
    images = _Images(spec, height_and_width(size), device, channels)
    with ReadingThreads(threads) as pool:
        pending: deque[_Pending] = deque()
        for first in range(0, len(records), batch):
            pending.append(images.submit(pool, [(record, None) for record in records[first : first + batch]], threads))
            if len(pending) > PREFETCH:
                yield pending.popleft().result(device, patience)
        while pending:
            yield pending.popleft().result(device, patience)
