"""Launch shapes of the Triton kernels: every number that is a choice, with its reason.

The choice depends only on size, layout and element size, so a shape always runs the same kernel. Nothing is tuned or
measured in the middle of a training run, and the results are the same bits every time. `bench/static_cost` counts what
the compiler makes of each variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SINGLE_FORWARD = 32 * 1024
"""Values of a tile that the forward holds in registers at once: 32 a thread at 32 warps."""
SINGLE_BACKWARD = 16 * 1024
"""The same for the backward, which holds two tensors. It is half as many with a padding, which adds the indices of nine
places."""
STREAM = 4096
"""Bytes of a tile that streams through 4 warps: two 16-byte loads a thread. A backward with a padding or with prelu
would need more than 128 registers, so its tile has half as many bytes."""
STREAM_CHANNELS = 64
"""Channels of a channels_last tile: 128 bytes of bfloat16, which is one line of the L2 cache."""
MOST_REGISTERS = 128
"""Registers of a thread. With more, fewer than 4 programs of 4 warps fit a multiprocessor. If the compiler for a GPU
generation would take more, it is limited to this number."""
PIXEL_REGISTERS = 72
"""Registers of a thread of the pixel losses' forward. Left alone, the compiler of Triton 3.7.1 takes from 48 to 95, and
keeps 16 bytes on the stack for bfloat16 on sm_120."""
SECTOR = 32
"""Bytes that DRAM delivers together: the smallest useful width of a channels_last tile."""
PROGRAMS = 132 * 8
"""Programs that fill a large GPU: 132 multiprocessors (H100, H200) with 8 programs of 4 warps each."""
LEAST_TILES = 4
"""The smallest number of tiles that a program streams. With fewer tiles, the start of a program would take too much of
its time."""
MOST_SPLITS = 128
"""The largest number of parts of a plane, because one program merges them all."""
MERGE_CHANNELS = 32
"""Channels of a program that merges the parts. Without this launch every program would have to merge them for itself.
Then the parts of one 128² plane would read 10 times the plane's bytes in statistics of each other
(`bench/static_cost/count_bytes.py`)."""
LOGITS_BLOCK, LOGITS_WARPS = 2048, 8
"""Elements that a program of the adversarial losses reads at once: 16 bytes of bfloat16 a thread."""
CACHED = 20 * 2**20
"""Bytes of a piece of work. A second reading finds most of them in an L2 cache of 50 MB, which also holds the bytes
that are written."""
MOST_GROUPS = 4
"""The largest number of groups of planes that a tensor is divided into. Each group takes three launches, and saves the
reading of CACHED bytes from DRAM, which takes 5 µs at an H200's 4.3 TB/s. Three launches take about as long from a CUDA
graph, and ten times as long from Python. A batch of large images would have dozens of groups, so it is not divided.
This number is an estimate and not yet measured."""


@dataclass(frozen=True)
class Tile:
    """A block of values (positions, channels) that a program of `warps` warps reads at once."""

    positions: int
    channels: int
    warps: int


@dataclass(frozen=True)
class Stream:
    """How a large plane is cut: into `splits` parts. Each part has its own program, which reads it tile by tile."""

    tile: Tile
    splits: int

    def length(self, positions: int) -> int:
        """Positions of a part, for a plane of `positions`. The last parts may have fewer positions, or none."""
        return _divide(_divide(positions, self.splits), self.tile.positions) * self.tile.positions


def single_tile(
    positions: int, channels: int, channels_last: bool, itemsize: int, *, backward: bool = False, pad: int = 0
) -> Tile | None:
    """The tile that holds whole planes in registers, or None if they do not fit.

    `itemsize` is in bytes. `backward` and `pad` (the width of the reflection padding) mean that a value needs more
    registers.
    """
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
    """Return how to cut planes that do not fit a tile.

    `planes` is N · C. `itemsize` is in bytes. `heavy` stands for a kernel that needs many registers a value.
    """
    width = min(STREAM_CHANNELS, _power_of_two(channels)) if channels_last else 1
    values = (STREAM // 2 if heavy else STREAM) // itemsize
    tile = Tile(min(values // width, _power_of_two(positions)), width, 4)
    wanted = max(1, PROGRAMS * width // planes)
    most = max(1, positions // (LEAST_TILES * tile.positions))
    return Stream(tile, min(wanted, most, MOST_SPLITS))


def groups(n: int, c: int, bytes_per_plane: int, tile_channels: int) -> Iterator[tuple[int, int, int, int]]:
    """(first sample, samples, first channel, channels) of groups of planes that fit the cache.

    There is one group for the whole tensor if there would be more than MOST_GROUPS.
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


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _divide(a: int, b: int) -> int:
    """a / b, rounded up to an integer."""
    return -(-a // b)
