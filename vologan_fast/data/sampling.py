"""The order of the training images, and their flips and shifts.

All of this is a pure function of (seed, domain, epoch, sample). Nothing here has state that must be saved.
Randomness comes from Philox, a counter-based generator. A key and a 256-bit counter give 256 random bits:

    key = (seed, domain)      counter = (position, pass, epoch, purpose)

Only the raw 64-bit outputs are used. Therefore no version of NumPy changes a training run.

An epoch has ceil(images of the longer domain / batch) steps, and both domains have the same steps. Take sample k of
an epoch, in a domain with n images. It is entry k mod n of a permutation that is drawn for (epoch, pass k // n).
So the shorter domain is reshuffled and repeated, and every epoch shows every image of the longer domain. Rank r
of W takes the r-th part of each batch. Together, W ranks get the same batches as one process.

Images in shards have another order, because a permutation of all images would need all shards all the time:

- The shards are put in a random order, and the images of each shard are shuffled. This gives one row of images.
- The row is cut into L lanes of nearly equal length.
- Each place in the batch belongs to one lane, and takes the next image of this lane.

So a batch mixes images of L shards, and L shards are in use at a time. If W divides L, the ranks read different
shards. The only exceptions are shards that a cut between two lanes divides. The order depends on (seed, domain, epoch,
batch), not on W.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vologan_fast.config import DOMAINS, AugmentConfig

LANES = 64
"""The largest number of lanes, and therefore of shards that are read at the same time."""

_SPLIT, _ORDER, _AUGMENT, _SHARDS, _PACK, _CHANGE = range(6)
"""The purpose of the random bits: the last word of the counter."""

_WORDS = 4
"""64-bit words in one output block."""


@dataclass(frozen=True)
class Draw:
    """One training sample: an image and its augmentation.

    `index` is the place of the image in the domain's training records. If `flip` is true, the image is first flipped
    left-right. Then it is padded with zeros at the bottom and at the right. Last, it is cropped to its former size
    from row `top` and column `left`.
    """

    index: int
    flip: bool
    top: int
    left: int


@dataclass(frozen=True)
class Sampler:
    """The order of the training images for one process of a run.

    Raises ValueError if the rank is not in 0 to world_size - 1, or if the batch is not a positive multiple of
    world_size.
    """

    seed: int
    lengths: Mapping[str, int]
    """The number of training images of each domain."""
    batch: int
    """Images per domain and step, over all ranks."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""
    augment: AugmentConfig
    rank: int = 0
    world_size: int = 1
    shards: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """For each domain in shards: the number of training images in each shard, in the order of the images."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; expected 0 to world_size - 1 = {self.world_size - 1}")
        if self.batch < 1 or self.batch % self.world_size:
            raise ValueError(f"batch is {self.batch}; expected a positive multiple of world_size = {self.world_size}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-max(self.lengths.values()) // self.batch)

    @property
    def part(self) -> int:
        """Images per domain and step on this rank."""
        return self.batch // self.world_size

    def draw(self, domain: str, step: int) -> list[Draw]:
        """Return this rank's samples of one domain at global step `step`. Steps count from 0, over all epochs."""
        return [Draw(index, bool(flip), top, left) for index, flip, top, left in self.rows(domain, step).tolist()]

    def rows(self, domain: str, step: int) -> npt.NDArray[np.int32]:
        """Return the samples of `draw` as int32 (N, 4). The columns are index, flip, top and left."""
        epoch, first = self._place(step)
        bits = _philox(self.seed, domain, _AUGMENT, epoch, 0, first, self.part)
        flip, shift, vertical, horizontal = _uniform(bits).T
        augment, shifted = self.augment, shift < self.augment.shift
        rows = np.empty((self.part, 4), np.int32)
        rows[:, 0] = self.drawn(domain, step)
        rows[:, 1] = flip < augment.flip
        rows[:, 2] = vertical * (round(augment.shift_height * self.size[0]) + 1) * shifted
        rows[:, 3] = horizontal * (round(augment.shift_width * self.size[1]) + 1) * shifted
        return rows

    def numbers(self, domain: str, step: int, count: int) -> npt.NDArray[np.float64]:
        """Return `count` more random numbers in [0, 1) for each sample of `draw`: (N, count)."""
        epoch, first = self._place(step)
        blocks = -(-count // _WORDS)
        bits = _philox(self.seed, domain, _CHANGE, epoch, 0, first * blocks, self.part * blocks)
        return _uniform(bits.reshape(self.part, blocks * _WORDS)[:, :count])

    def drawn(self, domain: str, step: int) -> npt.NDArray[np.intp]:
        """Return the image indices of the samples of `draw`: (N,)."""
        epoch, first = self._place(step)
        return self.indices(domain, epoch, first, first + self.part)

    def _place(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the number of this rank's first sample of the step in this epoch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.batch + self.rank * self.part

    def indices(self, domain: str, epoch: int, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return the image indices of samples `first` to `last` (excluded) of an epoch, counted over all ranks."""
        length = self.lengths[domain]
        parts = []
        while first < last:
            pass_, start = divmod(first, length)
            part = self._order(domain, epoch, pass_)[start : start + last - first]
            parts.append(part)
            first += len(part)
        return np.concatenate(parts)

    def _order(self, domain: str, epoch: int, pass_: int) -> npt.NDArray[np.intp]:
        if domain in self.shards:
            return _order_in_lanes(self.seed, domain, epoch, pass_, self.shards[domain], self.batch)
        return _permutation(self.seed, domain, _ORDER, epoch, pass_, self.lengths[domain])


def held_out_indices(seed: int, domain: str, length: int, fraction: float) -> npt.NDArray[np.intp]:
    """Return the indices of the held-out images, which are never trained on, in ascending order.

    They are a `fraction` of the `length` images, rounded. At least one image is held out, and at least one is left.
    """
    count = held_out_count(length, fraction)
    return np.sort(_permutation(seed, domain, _SPLIT, 0, 0, length)[:count])


def held_out_count(length: int, fraction: float) -> int:
    """Return how many of `length` ≥ 2 images are held out."""
    return min(max(round(length * fraction), 1), length - 1)


def shuffled(seed: int, domain: str, length: int) -> npt.NDArray[np.intp]:
    """Return the order in which the domain's images are packed into shards, as a permutation of `length` indices."""
    return _permutation(seed, domain, _PACK, 0, 0, length)


def lane_count(batch: int) -> int:
    """Return the number of lanes for images in shards: the largest divisor of the batch that is at most LANES.

    As a divisor of the batch, it gives each lane the same number of places in the batch.
    """
    return max(lanes for lanes in range(1, LANES + 1) if batch % lanes == 0)


@functools.lru_cache(maxsize=4 * len(DOMAINS))
def _permutation(seed: int, domain: str, purpose: int, epoch: int, pass_: int, length: int) -> npt.NDArray[np.intp]:
    words = _philox(seed, domain, purpose, epoch, pass_, 0, -(-length // _WORDS)).ravel()[:length]
    return np.argsort(words, kind="stable")


@functools.lru_cache(maxsize=4 * len(DOMAINS))
def _order_in_lanes(
    seed: int, domain: str, epoch: int, pass_: int, shards: tuple[int, ...], batch: int
) -> npt.NDArray[np.intp]:
    length = sum(shards)
    place = np.empty(len(shards), np.intp)
    place[_permutation(seed, domain, _SHARDS, epoch, pass_, len(shards))] = np.arange(len(shards))
    words = _philox(seed, domain, _ORDER, epoch, pass_, 0, -(-length // _WORDS)).ravel()[:length]
    row = np.lexsort((words, np.repeat(place, shards)))
    # The pass may begin in the middle of a batch. Each lane gets as many images as its places in the batches will take.
    lane = np.arange(pass_ * length, (pass_ + 1) * length) % batch * lane_count(batch) // batch
    order = np.empty(length, np.intp)
    order[np.argsort(lane, kind="stable")] = row
    return order


def _philox(
    seed: int, domain: str, purpose: int, epoch: int, pass_: int, position: int, blocks: int
) -> npt.NDArray[np.uint64]:
    """Return blocks `position` to `position + blocks` of a random stream: uint64 (blocks, 4).

    The other arguments name the stream.
    """
    key = np.array([seed % 2**64, DOMAINS.index(domain)], dtype=np.uint64)
    counter = np.array([position, pass_, epoch, purpose], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    return generator.random_raw(blocks * _WORDS).reshape(blocks, _WORDS)


def _uniform(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Convert the upper 53 bits of each word to a number in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
