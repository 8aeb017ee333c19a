"""Which image, flipped or not, shifted where: a pure function of (seed, domain, epoch, sample).

Nothing here has state that must be saved. Randomness comes from Philox, a counter-based generator: a key and
a 256-bit counter go in, 256 random bits come out. Key and counter are spelled out from what the bits are for,

    key = (seed, domain)      counter = (position, pass, epoch, purpose)

and only raw 64-bit outputs are used, so that no version of NumPy changes a training run.

An epoch is ceil(longer domain / batch) steps, the same for both domains. Sample k of an epoch of a domain
with n images is entry k mod n of a permutation drawn for (epoch, pass k // n): the shorter domain is
reshuffled and repeated, and every epoch shows every image of the longer one. Rank r of W takes the r-th part
of each batch, so W ranks together see the batches that one process would.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vologan_fast.config import DOMAINS, AugmentConfig

_SPLIT, _ORDER, _AUGMENT = range(3)
"""The last word of the counter: what the bits are for."""

_WORDS = 4
"""64-bit words in one output block."""


@dataclass(frozen=True)
class Draw:
    """One training sample: entry `index` of the domain's training records, flipped left-right if `flip`, then
    zero-padded at the bottom and at the right and cropped back from row `top` and column `left`."""

    index: int
    flip: bool
    top: int
    left: int


@dataclass(frozen=True)
class Sampler:
    """The batches of a training run, as seen by one of its processes."""

    seed: int
    lengths: Mapping[str, int]
    """Training images by domain."""
    batch: int
    """Images per domain and step, over all ranks."""
    size: int
    augment: AugmentConfig
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; expected 0 to world_size - 1 = {self.world_size - 1}")
        if self.batch < 1 or self.batch % self.world_size:
            raise ValueError(f"batch is {self.batch}; expected a positive multiple of world_size = {self.world_size}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-max(self.lengths.values()) // self.batch)

    @property
    def shard(self) -> int:
        """Images per domain and step on this rank."""
        return self.batch // self.world_size

    def draw(self, domain: str, step: int) -> list[Draw]:
        """This rank's samples of one domain at global step `step` (from 0, over all epochs)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.batch + self.rank * self.shard
        bits = _philox(self.seed, domain, _AUGMENT, epoch, 0, first, self.shard)
        samples = range(first, first + self.shard)
        return [self._draw(domain, epoch, k, words) for k, words in zip(samples, bits, strict=True)]

    def _draw(self, domain: str, epoch: int, k: int, words: npt.NDArray[np.uint64]) -> Draw:
        length = self.lengths[domain]
        index = _permutation(self.seed, domain, _ORDER, epoch, k // length, length)[k % length]
        flip, shift, vertical, horizontal = (_uniform(word) for word in words)
        shifted = shift < self.augment.shift
        top = int(vertical * (round(self.augment.shift_height * self.size) + 1)) if shifted else 0
        left = int(horizontal * (round(self.augment.shift_width * self.size) + 1)) if shifted else 0
        return Draw(int(index), flip < self.augment.flip, top, left)


def held_out_indices(seed: int, domain: str, length: int, fraction: float) -> frozenset[int]:
    """Indices of the images that are never trained on: the fraction of `length`, at least one, at most all
    but one."""
    count = min(max(round(length * fraction), 1), length - 1)
    return frozenset(int(i) for i in _permutation(seed, domain, _SPLIT, 0, 0, length)[:count])


@functools.lru_cache(maxsize=4 * len(DOMAINS))
def _permutation(seed: int, domain: str, purpose: int, epoch: int, pass_: int, length: int) -> npt.NDArray[np.intp]:
    words = _philox(seed, domain, purpose, epoch, pass_, 0, -(-length // _WORDS)).ravel()[:length]
    return np.argsort(words, kind="stable")


def _philox(
    seed: int, domain: str, purpose: int, epoch: int, pass_: int, position: int, blocks: int
) -> npt.NDArray[np.uint64]:
    """Blocks `position` to `position + blocks` of the stream that the other arguments name: uint64 (blocks,
    4)."""
    key = np.array([seed % 2**64, DOMAINS.index(domain)], dtype=np.uint64)
    counter = np.array([position, pass_, epoch, purpose], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    return generator.random_raw(blocks * _WORDS).reshape(blocks, _WORDS)


def _uniform(word: np.uint64) -> float:
    """53 of the word's bits as a number in [0, 1)."""
    return (int(word) >> 11) * 2.0**-53
