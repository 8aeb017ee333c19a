"""The profile of one step, combined from several measurements."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vologan_fast.config import Config, Size
from vologan_fast.data import Dataset
from vologan_fast.networks import numerics_of
from vologan_fast.profiling.counts import Counts, moved_by_optimizers
from vologan_fast.profiling.machine import Machine, measure_machine, synchronize
from vologan_fast.profiling.memory import allocated_by_phase, kept_by_phase
from vologan_fast.profiling.parts import DISCRIMINATORS, GENERATORS, IDLE, NEITHER, OF_OPTIONS, PARTS, STEP, WAIT
from vologan_fast.profiling.times import Taken, annotated, cpu_time, device_time, native_share, profile
from vologan_fast.profiling.workload import Workload
from vologan_fast.training.capture import RUNS_BEFORE, CapturedStep
from vologan_fast.training.compilation import uncompiled
from vologan_fast.training.trainer import peak_memory


@dataclass(frozen=True)
class Part:
    """One part of a step. The docstring of `vologan_fast.profiling` defines the numbers."""

    seconds: float
    generators: float
    """Seconds spent for the generators, included in `seconds`."""
    discriminators: float
    """Seconds spent for the discriminators, included in `seconds`."""
    flop: float
    bytes: float
    floor: float
    """Shortest possible time, in seconds."""
    launches: float
    """Launches on a GPU, operations on the CPU."""


@dataclass(frozen=True)
class Profile:
    """The profile of one step, in seconds and bytes."""

    machine: Machine
    step: str
    batch: int
    size: Size
    memory_format: str
    seconds: float
    """Duration of a step without the profiler."""
    profiled_seconds: float
    """Duration of a step under the profiler."""
    wait: float
    """Seconds that the host waits for data."""
    parts: dict[str, Part]
    native_norms: float
    """Share of the norms' operations that run in native code on the CPU."""
    memory: dict[str, int]
    """Phase → peak bytes in it. These are allocated bytes on a GPU, and bytes that autograd keeps on the CPU."""
    peak_memory: int
    """Peak bytes of training in all its phases: allocated on the GPU, or resident in the process."""

    @property
    def total(self) -> Part:
        sums = [sum(getattr(part, name) for part in self.parts.values()) for name in Part.__dataclass_fields__]
        return Part(*sums)


def measure(
    config: Config, dataset: Dataset, device: torch.device, *, steps: int, warm_up: int, trace: Path
) -> Profile:
    """Profile `steps` steps after `warm_up` steps, at least 1, and write their Chrome trace to `trace`.

    If steps are captured as CUDA graphs, there are enough steps before to capture all of them. `steps` is rounded up to
    a multiple of `loss.identity_every`. Raises DataError for a file that cannot be read, and OSError if the trace
    cannot be written.
    """
    period = config.loss.identity_every  # operations are counted in all steps of a period, for their mean
    steps = -(-steps // period) * period
    with Workload(config, dataset, device) as work:
        for _ in range(max(warm_up, _steps_to_capture(config, work))):
            work.run()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            work.run()
        synchronize(device)
        seconds = (time.perf_counter() - began) / steps
        peak = peak_memory(device)

        captured = isinstance(work.step, CapturedStep)
        work.uncapture()
        events = profile(work, steps, trace)
        on_gpu = device.type == "cuda"
        taken = device_time(events) if on_gpu else cpu_time(events)

        counts = Counts()
        work.watch(counts.inside)
        with counts, uncompiled():
            for _ in range(period):
                work.run()
        counts.operations += moved_by_optimizers(work.optimizers, work.networks) * period

        memory = allocated_by_phase(work, period) if on_gpu else kept_by_phase(work, period)

    numerics = numerics_of(config, device)
    machine = measure_machine(device, numerics)
    names = *PARTS, *(name for name in OF_OPTIONS if counts.launches[name])
    parts = {name: _part(name, taken, steps, counts, period, machine) for name in names}
    if on_gpu:
        idle = seconds - sum(part.seconds for part in parts.values())
        parts[IDLE] = Part(idle, generators=0, discriminators=0, flop=0, bytes=0, floor=0, launches=0)
    return Profile(
        machine=machine,
        step=type(work.step).__name__ + ", as a CUDA graph" * captured,
        batch=config.train.batch,
        size=config.data.size,
        memory_format=numerics.layout_name,
        seconds=seconds,
        profiled_seconds=annotated(events, STEP) / steps,
        wait=annotated(events, WAIT) / steps,
        parts=parts,
        native_norms=0.0 if on_gpu else native_share(events),
        memory=memory,
        peak_memory=peak,
    )


def _part(name: str, taken: Taken, steps: int, counts: Counts, period: int, machine: Machine) -> Part:
    of_network = {network: taken.seconds[name, network] / steps for network in (GENERATORS, DISCRIMINATORS, NEITHER)}
    operations = [operation for operation in counts.operations if operation.part == name]
    return Part(
        seconds=sum(of_network.values()),
        generators=of_network[GENERATORS],
        discriminators=of_network[DISCRIMINATORS],
        flop=sum(operation.flop for operation in operations) / period,
        bytes=sum(operation.bytes for operation in operations) / period,
        floor=sum(max(work.flop / machine.multiply, work.bytes / machine.copy) for work in operations) / period,
        launches=taken.launches[name] / steps if taken.launches else counts.launches[name] / period,
    )


def _steps_to_capture(config: Config, work: Workload) -> int:
    """Return the number of steps after which each plan of a step has its CUDA graph. 0 if there are no graphs."""
    if not isinstance(work.step, CapturedStep):
        return 0
    every = config.loss.penalty_every if config.loss.penalty != "none" else 1
    return (RUNS_BEFORE + 1) * math.lcm(config.loss.identity_every, every)
