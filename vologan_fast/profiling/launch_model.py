"""A model of the time of a kernel launch that moves data: bytes, latency, bytes in flight and instructions.

The model takes what is known about a launch without a GPU (`Work`) and the numbers of a GPU (`gpus.Gpu`). A kernel
takes the longest of these times, and then the time between two kernels:

- *bandwidth*: its bytes from and to DRAM, at the rate of a large copy; all that it reads, at the rate of L2;
- *latency*: a program works on one tile after the other. For a tile it waits until its loads have arrived, and then
  computes. If it asks for only a part of a tile before it needs the first value, it waits several times. If it asks for
  several tiles, it waits a fraction of the latency for each, and the computing overlaps with the waiting. Programs that
  do not fit on the GPU at once run in rounds. What a program does before its first tile and after its last comes on
  top, because most programs do it at the same time;
- *issue*: the instructions of all warps, of which each scheduler of a multiprocessor issues one a cycle.

The latency follows Little's law: bytes in flight = bandwidth · latency. An H200 must have 4.3 TB/s · 700 ns = 3 MB in
flight, which is 23 kB on each multiprocessor.

**Left out**:

- the hit rate of L2: `Work` says what comes from L2. `KEPT` is the share of L2 that is assumed to hold it;
- pages and refreshes of DRAM, and writes that wait;
- the bandwidth of shared memory and registers, and instructions that take more than a cycle to issue;
- an uneven end, where a few programs still run;
- changes of the clock;
- the time of the host.

So the model says where a kernel waits, and roughly for how long. It is no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from vologan_fast.profiling.gpus import Gpu

KEPT = 0.68
"""Share of L2 that holds bytes for a second reading, an assumption: 34 of the 50 MiB of an H200. The rest is taken by
what else is read and written, and by an imperfect replacement."""
START = 1e-6
"""Seconds in which the programs of a kernel start, and the last writes arrive. An assumption."""
BARRIER = 1.5e-6
"""Seconds of a barrier of all programs of a launch. It is assumed. Zhang et al. ("A Study of Single and Multi-device
Synchronization Methods in Nvidia GPUs", arXiv 2004.05371) measured such barriers on older GPUs; they took 1 to 3 µs."""
CYCLES = 1.5
"""Cycles that an instruction of one warp takes, on average, if nothing else runs: some wait for the one before. An
assumption."""


@dataclass(frozen=True)
class Work:
    """What a launch does."""

    programs: int
    resident: int
    """Programs that fit on a multiprocessor at once."""
    warps: int
    """Warps of a program."""
    tiles: int
    """Tiles that a program works on, one after the other."""
    tile_bytes: float
    """Bytes that a program reads for a tile."""
    in_flight: float
    """Bytes that a program has asked for before it needs the first of them."""
    instructions: float
    """Instructions of a warp for a tile."""
    ahead: bool
    """Whether the loads for later tiles are on their way while a program computes."""
    outside: float = 0
    """Round trips to L2 of a program, before its first tile and after its last."""
    instructions_outside: float = 0
    """Instructions of a warp there."""
    merged: int = 0
    """Bytes that the launch reads from L2 before the tiles: the sums of other programs."""
    dram_read: int = 0
    l2_read: int = 0
    written: int = 0
    """Bytes that the whole launch reads from DRAM and from L2, and writes."""
    barriers: int = 0
    """Barriers of all programs. The programs must fit on the GPU at once then."""


def seconds(work: Work, gpu: Gpu) -> float:
    """The modelled time of a launch, with the time until the next one can start."""
    tiles = max(_bandwidth(work, gpu), _latency(work, gpu), _issue(work, gpu))
    return tiles + _outside(work, gpu) + START + work.barriers * BARRIER + gpu.gap


def bytes_in_flight(work: Work, gpu: Gpu) -> float:
    """Bytes in flight on a multiprocessor, on average over all of them."""
    return min(work.resident, work.programs / gpu.multiprocessors) * work.in_flight


def moving(work: Work, gpu: Gpu) -> float:
    """The time of all bytes of a launch at the rate of a large copy in DRAM: its floor."""
    return (work.dram_read + work.l2_read + work.written) / gpu.copy


def _bandwidth(work: Work, gpu: Gpu) -> float:
    return max((work.dram_read + work.written) / gpu.copy, (work.dram_read + work.l2_read) / gpu.l2_copy)


def _latency(work: Work, gpu: Gpu) -> float:
    read = work.dram_read + work.l2_read
    far = work.dram_read / read if read else 0
    latency = far * gpu.dram_latency + (1 - far) * gpu.l2_latency
    waiting = work.tile_bytes / work.in_flight * latency if work.in_flight else 0
    computing = work.instructions * CYCLES / gpu.clock
    return _rounds(work, gpu) * work.tiles * (max(waiting, computing) if work.ahead else waiting + computing)


def _outside(work: Work, gpu: Gpu) -> float:
    waiting = _rounds(work, gpu) * work.outside * gpu.l2_latency
    computing = _rounds(work, gpu) * work.instructions_outside * CYCLES / gpu.clock
    return max(waiting, work.merged / gpu.l2_copy) + computing


def _rounds(work: Work, gpu: Gpu) -> int:
    return -(-work.programs // (gpu.multiprocessors * work.resident))


def _issue(work: Work, gpu: Gpu) -> float:
    issued = work.programs * work.tiles * work.warps * work.instructions
    return issued / (gpu.multiprocessors * gpu.schedulers * gpu.clock)
