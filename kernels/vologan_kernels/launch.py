"""Launch shapes of the Triton kernels: every number that is a choice, with its reason.

Chosen by size, layout and element size alone, so that a shape always runs the same kernel: nothing is tuned or measured
in the middle of somebody's training, and results are the same bits every time. `bench/static_cost` counts what the
compiler makes of each variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

SINGLE_FORWARD = 32 * 1024
"""Values of a tile that the forward holds in registers at once: 32 a thread at 32 warps."""
SINGLE_BACKWARD = 16 * 1024
"""The backward holds two tensors. Half as many where padding adds the indices of nine places."""
STREAM = 4096
"""Bytes of a tile that streams through 4 warps: two 16-byte loads a thread. Half as many in the backward of a padding
or of prelu, which would need more than 128 registers."""
STREAM_CHANNELS = 64
"""Channels of a channels_last tile: 128 bytes of bfloat16, the line of the L2 cache."""
MOST_REGISTERS = 128
"""A thread's: more, and fewer than 4 programs of 4 warps fit a multiprocessor. The compiler is held to it where one
generation would take more."""
SECTOR = 32
"""Bytes of DRAM that come together: the least width of a channels_last tile."""
PROGRAMS = 132 * 8
"""Programs that fill a large GPU: 132 multiprocessors (H100, H200) with 8 of 4 warps each."""
LEAST_TILES = 4
"""Tiles that a program streams at least: fewer would not pay for its prologue."""
MOST_SPLITS = 128
"""Parts of a plane, which one program merges."""
MERGE_CHANNELS = 32
"""Of a program that merges them. Were they merged by every part for itself, without this launch, the parts of one 128²
plane would read 10 times the plane's bytes of each other's statistics (`bench/static_cost/count_bytes.py`)."""
LOGITS_BLOCK, LOGITS_WARPS = 2048, 8
"""Elements that a program of the adversarial losses reads at once: 16 bytes of bfloat16 a thread."""
CACHED = 20 * 2**20
"""Bytes read of which the second reading still finds most in an L2 cache of 50 MB, beside what is written."""
MOST_GROUPS = 4
"""Groups of planes that a tensor is walked through in. Each takes three launches, and saves the reading of CACHED bytes
from DRAM: 5 µs at an H200's 4.3 TB/s, about what three launches of a CUDA graph take, and a tenth of what they take
from Python. A batch of large images would take dozens; it goes at once. An estimate, not yet measured."""


@dataclass(frozen=True)
class Tile:
    positions: int
    channels: int
    warps: int


@dataclass(frozen=True)
class Stream:
    """A large plane: cut into `splits` parts, each read by a program of its own, tile by tile."""

    tile: Tile
    splits: int

    def length(self, positions: int) -> int:
        """Positions of a part; the last parts may have fewer, or none."""
        return _divide(_divide(positions, self.splits), self.tile.positions) * self.tile.positions


def single_tile(
    positions: int, channels: int, channels_last: bool, itemsize: int, *, backward: bool = False, pad: int = 0
) -> Tile | None:
    """The tile that holds whole planes in registers; None where they do not fit."""
    height = _power_of_two(positions)
    if channels_last:
        width = min(SECTOR // itemsize, _power_of_two(channels))
    else:
        width = min(max(1, 512 // height), _power_of_two(channels))  # tiny planes share a program
    values = height * width
    most = SINGLE_BACKWARD // (2 if pad else 1) if backward else SINGLE_FORWARD
    if values > most:
        return None
    return Tile(height, width, max(4, min(16, values // 512) if backward else min(32, values // 1024)))


def stream(
    planes: int, positions: int, channels: int, channels_last: bool, itemsize: int, *, heavy: bool = False
) -> Stream:
    """How planes that do not fit are cut. `planes` is N · C; `heavy`: a kernel that needs many registers a value."""
    width = min(STREAM_CHANNELS, _power_of_two(channels)) if channels_last else 1
    values = (STREAM // 2 if heavy else STREAM) // itemsize
    tile = Tile(min(values // width, _power_of_two(positions)), width, 4)
    wanted = max(1, PROGRAMS * width // planes)
    most = max(1, positions // (LEAST_TILES * tile.positions))
    return Stream(tile, min(wanted, most, MOST_SPLITS))


def groups(n: int, c: int, bytes_per_plane: int, tile_channels: int) -> Iterator[tuple[int, int, int, int]]:
    """(first sample, samples, first channel, channels) of pieces whose second reading comes from the cache.

    One piece where there would be more than MOST_GROUPS.
    """
    samples = max(1, min(n, CACHED // (bytes_per_plane * c)))
    channels = c if samples > 1 or bytes_per_plane * c <= CACHED else max(1, CACHED // bytes_per_plane)
    if channels < c:
        channels = max(tile_channels, channels // tile_channels * tile_channels)
    if _divide(n, samples) * _divide(c, channels) > MOST_GROUPS:
        samples, channels = n, c
    for first in range(0, n, samples):
        for channel in range(0, c, channels):
            yield first, min(samples, n - first), channel, min(channels, c - channel)


def is_channels_last(layout: torch.memory_format) -> bool:
    return layout == torch.channels_last


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _divide(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
