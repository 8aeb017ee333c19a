"""Batches by Pillow and the depth decoder: for platforms without DALI, and for held-out images.

Files are decoded on threads: Pillow, the decoder, and the native code that does with their pixels what pixels.py says,
release the GIL. Worker processes (a DataLoader's num_workers) would send each batch through shared memory instead, of
which a container has 64 MB by default: less than one batch of 512² images.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vologan_fast import _batch
from vologan_fast.config import DOMAINS, DepthSpec
from vologan_fast.data.pixels import DepthRule, Floats, check_valid, read_color, read_square_depth, square_color
from vologan_fast.data.records import Record, fetch_whole
from vologan_fast.data.sampling import Draw, Sampler

PREFETCH = 2
"""Batches that are decoded ahead of the one that is asked for."""


@dataclass(frozen=True)
class _Pending:
    """A batch whose images are being decoded into it."""

    images: torch.Tensor  # (N, S, S, 4)
    decoding: list[Future[None]]

    def result(self, device: torch.device) -> torch.Tensor:
        """(N, 4, S, S) channels_last on `device`. Raises DataError for the first image that is broken."""
        for future in self.decoding:
            future.result()
        return self.images.permute(0, 3, 1, 2).to(device, non_blocking=True)


def _submit(
    pool: ThreadPoolExecutor,
    images: Sequence[tuple[Record, Draw | None]],
    spec: DepthSpec,
    size: int,
    device: torch.device,
    memory: _batch.BatchMemory,
) -> _Pending:
    if device.type == "cuda":
        batch = torch.empty(len(images), size, size, 4, pin_memory=True)
    else:
        batch = torch.from_numpy(memory.empty(len(images), size))

    rule = DepthRule.of(spec)

    def decode(image: tuple[Record, Draw | None], out: Floats) -> None:
        record, draw = image
        if draw is not None:
            fetch_whole(record.color)  # training reads all of a shard, while few of its images are held out
        color = read_color(record.color)
        depth = read_square_depth(record, spec, size, color.shape)
        _batch.normalize(depth, rule.gain, rule.offset, rule.background, rule.invalid)
        check_valid(record.depth, depth)
        augment = (0, draw.flip, draw.top, draw.left) if draw else (0, 0, 0, 0)
        square = np.ascontiguousarray(square_color(color, size))
        _batch.pack(square[None], depth[None], None, np.array([augment], np.int32), out[None])

    return _Pending(batch, [pool.submit(decode, *job) for job in zip(images, batch.numpy(), strict=True)])


def torch_batches(
    records: Mapping[str, Sequence[Record]],
    specs: Mapping[str, DepthSpec],
    sampler: Sampler,
    step: int,
    threads: int,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Training batches of all DOMAINS from global step `step` on, without end; `close()` it.

    Raises DataError when the step is reached to which a broken file belongs.
    """

    memory = _batch.BatchMemory()

    def submit(domain: str, step: int) -> _Pending:
        images = [(records[domain][draw.index], draw) for draw in sampler.draw(domain, step)]
        return _submit(pool, images, specs[domain], sampler.size, device, memory)

    pool = ThreadPoolExecutor(threads * len(DOMAINS), thread_name_prefix="vologan-data")
    try:
        pending: deque[list[_Pending]] = deque()
        for ahead in itertools.count(step):
            pending.append([submit(domain, ahead) for domain in DOMAINS])
            if len(pending) > PREFETCH:
                yield tuple(batch.result(device) for batch in pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def image_batches(
    records: Sequence[Record], spec: DepthSpec, size: int, batch: int, threads: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The records in order, without augmentation: (N, 4, S, S) channels_last, the last batch as long as what
    is left.

    Raises DataError when the batch is reached to which a broken file belongs.
    """
    memory = _batch.BatchMemory()
    with ThreadPoolExecutor(threads, thread_name_prefix="vologan-data") as pool:
        pending: deque[_Pending] = deque()
        try:
            for first in range(0, len(records), batch):
                images = [(record, None) for record in records[first : first + batch]]
                pending.append(_submit(pool, images, spec, size, device, memory))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result(device)
            while pending:
                yield pending.popleft().result(device)
        finally:
            pool.shutdown(cancel_futures=True)
