"""The types between `data/loader.py` and the sources of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vologan_fast.config import Channels, DepthSpec
from vologan_fast.data.pixels import Limits
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Sampler
from vologan_fast.data.skipping import Skipping

Batches = Iterator[tuple[Tensor, ...]]
"""An iterator over batches. Each item holds one tensor per domain, in the order of DOMAINS.

A tensor is (N, C, H, W) channels_last float32 in [0, 1].
"""


@dataclass(frozen=True)
class Plan:
    """The images of each batch, the settings to read them, and the device of the batches."""

    records: Mapping[str, Sequence[Record]]
    """The training images of each domain."""
    specs: Mapping[str, DepthSpec]
    channels: Mapping[str, Channels]
    sampler: Sampler
    threads: int
    """Decoding threads per domain."""
    device: torch.device
    limits: Limits
    """What the files may hold."""
    skipping: Skipping | None
    """The bad images, which others replace. None: a bad image is an error."""
    patience: float
    """Seconds of the longest wait for a file."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.sampler.size

    @property
    def threads_in_words(self) -> str:
        """The number of threads in words, such as "2 threads per domain"."""
        return "1 thread per domain" if self.threads == 1 else f"{self.threads} threads per domain"


class BatchSource(Protocol):
    """A source of the training batches of a plan."""

    @property
    def description(self) -> str:
        """One line for people: the name of the source and its settings."""

    def batches(self, step: int) -> Batches:
        """Yield the batches from global step `step` on, without end. The caller must `close()` the iterator.

        Each batch belongs to the caller. A broken file raises DataError, which names the file. The error comes at the
        step of the broken file, or a few steps earlier.
        """


class FileSource(BatchSource, Protocol):
    """A source that makes batches from image files. It can also decode colour alone, for images that are kept."""

    @property
    def decoder(self) -> str:
        """The name of the colour decoder. Equal names give equal bits."""

    def colors(self, domain: str, records: Sequence[Record]) -> Iterator[Tensor]:
        """Yield the colour of images of a domain, in order, a few at a time: uint8 (n, H, W, 3).

        Raises DataError, which names the file, for a broken file.
        """
