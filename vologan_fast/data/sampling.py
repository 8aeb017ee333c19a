"""Which image, flipped or not, shifted where: a pure function of (seed, domain, epoch, sample).

Nothing here has state that must be saved. Randomness comes from Philox, a counter-based generator: a key and
a 256-bit counter go in, 256 random bits come out. Key and counter are spelled out from what the bits are for,

    key = (seed, domain)      counter = (position, pass, epoch, purpose)

and only raw 64-bit outputs are used, so that no version of NumPy changes a training run.

An epoch is ceil(longer domain / batch) steps, the same for both domains. Sample k of an epoch of a domain
with n images is entry k mod n of a permutation drawn for (epoch, pass k // n): the shorter domain is
reshuffled and repeated, and every epoch shows every image of the longer one. Rank r of W takes the r-th part
of each batch, so W ranks together see the batches that one process would.

Where images are in shards, a permutation of all of them would want all shards all the time. There the images are laid
in a row, shard after shard in an order that is drawn, those of a shard shuffled, and the row is cut into L lanes of
nearly equal length. The batch is cut likewise: a place in the batch belongs to a lane, and takes what comes next there.
So a batch mixes images of L shards, L shards are in use at a time, and where W divides L, ranks read different shards,
except those that a cut between lanes goes through. The order depends on (seed, domain, epoch, batch), not on W.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vologan_fast.config import DOMAINS, AugmentConfig

LANES = 64
"""At most as many shards are read side by side."""

_SPLIT, _ORDER, _AUGMENT, _SHARDS, _PACK = range(5)
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
    shards: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of domains that are in shards: training images of each, in the order of the images."""

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
        """This rank's samples of one domain at global step `step` (from 0, over all epochs)."""
        return [Draw(index, bool(flip), top, left) for index, flip, top, left in self.rows(domain, step).tolist()]

    def rows(self, domain: str, step: int) -> npt.NDArray[np.int32]:
        """The same as numbers: (N, 4), each row index, flip, top, left."""
        epoch, first = self._place(step)
        bits = _philox(self.seed, domain, _AUGMENT, epoch, 0, first, self.part)
        flip, shift, vertical, horizontal = _uniform(bits).T
        augment, shifted = self.augment, shift < self.augment.shift
        rows = np.empty((self.part, 4), np.int32)
        rows[:, 0] = self.drawn(domain, step)
        rows[:, 1] = flip < augment.flip
        rows[:, 2] = vertical * (round(augment.shift_height * self.size) + 1) * shifted
        rows[:, 3] = horizontal * (round(augment.shift_width * self.size) + 1) * shifted
        return rows

    def drawn(self, domain: str, step: int) -> npt.NDArray[np.intp]:
        """The indices of `draw`."""
        epoch, first = self._place(step)
        return self.indices(domain, epoch, first, first + self.part)

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch, and this rank's first sample in it."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.batch + self.rank * self.part

    def indices(self, domain: str, epoch: int, first: int, last: int) -> npt.NDArray[np.intp]:
        """Which images samples `first` to `last` (not included) of an epoch are, over all ranks."""
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
    """Indices, ascending, of the images that are never trained on: the fraction of `length`, at least one, at
    most all but one."""
    count = min(max(round(length * fraction), 1), length - 1)
    return np.sort(_permutation(seed, domain, _SPLIT, 0, 0, length)[:count])


def shuffled(seed: int, domain: str, length: int) -> npt.NDArray[np.intp]:
    """The order in which the domain's images are packed into shards."""
    return _permutation(seed, domain, _PACK, 0, 0, length)


def lane_count(batch: int) -> int:
    """Lanes of shard sets: a divisor of the batch, so that all are as long."""
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
    # The pass begins anywhere in a batch: each lane gets as much of the row as its places in the batches will take.
    lane = np.arange(pass_ * length, (pass_ + 1) * length) % batch * lane_count(batch) // batch
    order = np.empty(length, np.intp)
    order[np.argsort(lane, kind="stable")] = row
    return order


def _philox(
    seed: int, domain: str, purpose: int, epoch: int, pass_: int, position: int, blocks: int
) -> npt.NDArray[np.uint64]:
    """Blocks `position` to `position + blocks` of the stream that the other arguments name: uint64 (blocks,
    4)."""
    key = np.array([seed % 2**64, DOMAINS.index(domain)], dtype=np.uint64)
    counter = np.array([position, pass_, epoch, purpose], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    return generator.random_raw(blocks * _WORDS).reshape(blocks, _WORDS)


def _uniform(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """53 bits of each word as a number in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
