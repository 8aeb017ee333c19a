"""Launch shapes of the Triton kernels: every number that is a choice, with its reason.

The choice depends only on size, layout, element size and the device's number of multiprocessors. So a shape always runs
the same kernel on a GPU, and the results are the same bits every time. Nothing is tuned or measured in the middle of a
training run. `bench/static_cost` counts what the compiler makes of each variant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

ONE_LAUNCH = os.environ.get("VOLOGAN_KERNELS_ONE_LAUNCH", "0") == "1"
"""Whether a plane that does not fit a program takes one launch each way, whose programs wait for each other, and not
two. By the model (docs/kernels.md) it is faster. It is off until a GPU has shown that it is right and faster."""
SINGLE_FORWARD = 32 * 1024
"""Values of a tile that the forward holds in registers at once: 32 a thread at 32 warps."""
SINGLE_BACKWARD = 16 * 1024
"""The same for the backward, which holds two tensors. It is half as many with a padding, which adds the indices of nine
places."""
STREAM = 8192
"""Bytes of a tile that streams through 8 warps: two 16-byte loads a thread. A backward with a padding, prelu or gelu
would need more than 128 registers, so its tile has half as many bytes."""
STREAM_WARPS = 8
STREAM_CHANNELS = 32
"""Channels of a channels_last tile: 64 bytes of bfloat16, which DRAM delivers together. With more channels, fewer
programs would share a plane's channels, and each plane would have more parts to merge."""
STREAM_PROGRAMS = 2
"""Programs of a streaming kernel on a multiprocessor. Both together have 64 to 80 KB of tiles on their way (`stages`).
An H200 needs 23 KB: 4.3 TB/s for 700 ns, divided by 132."""
PIPELINE, MOST_STAGES = 48 * 1024, 6
"""Bytes of shared memory for the tiles of a program that are on their way, and the largest number of tiles of a tensor.
Two such programs fit a multiprocessor of every generation from sm_80 on."""
MOST_REGISTERS = 128
"""Registers of a thread. With more, fewer than 2 programs of 8 warps fit a multiprocessor. If the compiler for a GPU
generation would take more, it is limited to this number."""
PIXEL_REGISTERS = 72
"""Registers of a thread of the pixel losses' forward. Left alone, the compiler of Triton 3.7.1 takes from 48 to 95, and
keeps 16 bytes on the stack for bfloat16 on sm_120."""
SECTOR, VECTOR = 32, 16
"""Bytes that the L2 cache delivers together: the best width of a channels_last tile of whole planes. If the planes do
not fit, a tile may be as wide as a thread's load. Then two programs read each sector, and DRAM delivers it once."""
MULTIPROCESSORS = 132
"""Multiprocessors of an H100 or H200. The number stands for the device's own, which the callers pass."""
CACHED = 32 * 2**20
"""Bytes that an L2 cache of 50 MB keeps until they are read again, with one launch each way."""
LEAST_TILES = 4
"""The smallest number of tiles that a program streams. With fewer tiles, the start of a program would take too much of
its time."""
ADD_LANES, ADD_CHANNELS = 16, 32
"""Samples and channels of a tile of sums, which the backward adds up in one launch after the planes of a batch."""
LOGITS_BLOCK, LOGITS_WARPS, LOGITS_PROGRAMS = 2048, 8, 8
"""The adversarial losses: elements that a program reads at once, which are 16 bytes of bfloat16 a thread; its warps;
the programs on a multiprocessor."""


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
    tile_bytes: int

    def length(self, positions: int) -> int:
        """Positions of a part, for a plane of `positions`. The last parts may have fewer positions, or none."""
        return _divide(_divide(positions, self.splits), self.tile.positions) * self.tile.positions

    def stages(self, tensors: int) -> int:
        """Tiles of each tensor that the shared memory holds at once, for a kernel that reads `tensors` tensors."""
        return max(2, min(MOST_STAGES, PIPELINE // (tensors * self.tile_bytes)))

    @property
    def lanes(self) -> int:
        """Parts that a program merges at once: 8 numbers a thread."""
        return max(1, min(_power_of_two(self.splits), 8 * 32 * self.tile.warps // self.tile.channels))


def single_tile(
    positions: int, channels: int, channels_last: bool, itemsize: int, *, backward: bool = False, pad: int = 0
) -> Tile | None:
    """The tile that holds whole planes in registers, or None if they do not fit.

    `itemsize` is in bytes. `backward` and `pad` (the width of the reflection padding) mean that a value needs more
    registers.
    """
    height = _power_of_two(positions)
    most = SINGLE_BACKWARD // (2 if pad else 1) if backward else SINGLE_FORWARD
    if channels_last:
        width = min(SECTOR // itemsize, _power_of_two(channels))
        if height * width > most:
            width = min(VECTOR // itemsize, width)
    else:
        width = min(max(1, 512 // height), _power_of_two(channels))  # tiny planes share a program
    values = height * width
    if values > most:
        return None
    return Tile(height, width, max(4, min(16, values // 512) if backward else min(32, values // 1024)))


def stream(
    planes: int,
    positions: int,
    channels: int,
    channels_last: bool,
    itemsize: int,
    *,
    heavy: bool = False,
    multiprocessors: int = MULTIPROCESSORS,
) -> Stream:
    """Return how to cut planes that do not fit a tile.

    `planes` is N · C. `itemsize` is in bytes. `heavy` stands for a kernel that needs many registers a value.
    `multiprocessors` is the device's count.
    """
    width = min(STREAM_CHANNELS, _power_of_two(channels)) if channels_last else 1
    values = (STREAM // 2 if heavy else STREAM) // itemsize
    tile = Tile(min(values // width, _power_of_two(positions)), width, STREAM_WARPS)
    programs = planes // channels * _divide(channels, width)  # with one part for each plane
    wanted = max(1, STREAM_PROGRAMS * multiprocessors // programs)
    most = max(1, positions // (LEAST_TILES * tile.positions))
    return Stream(tile, min(wanted, most), tile.positions * tile.channels * itemsize)


def persistent(
    planes: int,
    positions: int,
    channels: int,
    channels_last: bool,
    itemsize: int,
    *,
    tensors: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> tuple[Stream, int]:
    """Return how to cut planes for programs that wait for each other, and the number of programs.

    All programs run at once. They work on some units at a time: a unit is the planes of one tile's channels of a
    sample. While a unit is read for the first time, the units before it are read again and written. `tensors` is the
    number of tensors that are read. The units are so few that the cache holds them: twice what is read, and what is
    written.
    """
    cut = stream(planes, positions, channels, channels_last, itemsize, heavy=True, multiprocessors=multiprocessors)
    programs = STREAM_PROGRAMS * multiprocessors
    units = planes // channels * _divide(channels, cut.tile.channels)
    unit_bytes = positions * cut.tile.channels * itemsize
    at_once = max(1, min(CACHED // ((2 * tensors + 1) * unit_bytes), units, programs))
    most = max(1, positions // (LEAST_TILES * cut.tile.positions))
    splits = min(programs // at_once, most)
    return replace(cut, splits=splits), min(units, programs // splits) * splits


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _divide(a: int, b: int) -> int:
    """a / b, rounded up to an integer."""
    return -(-a // b)
