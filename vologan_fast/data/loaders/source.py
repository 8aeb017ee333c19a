"""What a loader is to the training loop: the seam between `data/loader.py` and the ways to make batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vologan_fast.config import DepthSpec
from vologan_fast.data.records import Record
from vologan_fast.data.sampling import Sampler

Batches = Iterator[tuple[Tensor, ...]]
"""Batches of all DOMAINS, each (N, 4, S, S) channels_last float32 in [0, 1]."""


@dataclass(frozen=True)
class Plan:
    """Which images make which batch, how they are read, and where the batches go."""

    records: Mapping[str, Sequence[Record]]
    """The training images of each domain."""
    specs: Mapping[str, DepthSpec]
    sampler: Sampler
    threads: int
    """Decoding threads per domain."""
    device: torch.device

    @property
    def size(self) -> int:
        """S, the side of an image in pixels."""
        return self.sampler.size

    @property
    def threads_in_words(self) -> str:
        """For descriptions: "2 threads per domain"."""
        return "1 thread per domain" if self.threads == 1 else f"{self.threads} threads per domain"


class BatchSource(Protocol):
    """Makes the training batches of a plan."""

    @property
    def description(self) -> str:
        """One line for people: who makes the batches, and how."""

    def batches(self, step: int) -> Batches:
        """The batches from global step `step` on, without end; `close()` the iterator.

        Each batch belongs to whoever takes it. Raises DataError, naming the file, when the step is reached to which a
        broken file belongs, or soon before.
        """


class FileSource(BatchSource, Protocol):
    """Makes batches from image files. It can also decode colour for images that are kept decoded."""

    @property
    def decoder(self) -> str:
        """The name of what decodes colour. Equal names give equal bits."""

    def colors(self, domain: str) -> Iterator[Tensor]:
        """The colour of all images of a domain, in order and some at a time: uint8 (n, S, S, 3).

        Raises DataError naming the file where one is broken.
        """
