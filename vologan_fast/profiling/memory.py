"""The peak memory in each phase of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from vologan_fast.profiling.saved_tensors import SavedTensors
from vologan_fast.profiling.workload import Workload
from vologan_fast.training.places import AVERAGE, OPTIMIZE_DISCRIMINATORS, OPTIMIZE_GENERATORS, PHASE


def allocated_by_phase(work: Workload, steps: int) -> dict[str, int]:
    """Run some steps on a GPU, and return the most bytes that are allocated in each phase, and before the first."""
    peaks = {"before a step": torch.cuda.memory_allocated(work.device)}

    @contextlib.contextmanager
    def watch(place: str) -> Iterator[None]:
        phase = _phase(place)
        if phase is None:
            yield
            return
        torch.cuda.reset_peak_memory_stats(work.device)
        yield
        peaks[phase] = max(peaks.get(phase, 0), torch.cuda.max_memory_allocated(work.device))

    work.watch(watch)
    for _ in range(steps):
        work.run()
    return peaks


def kept_by_phase(work: Workload, steps: int) -> dict[str, int]:
    """Run some steps, and return the most bytes that autograd keeps in each phase."""
    kept = SavedTensors(work.networks)
    peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def watch(place: str) -> Iterator[None]:
        phase = _phase(place)
        if phase is None or phase == _OPTIMISATION:
            yield
            return
        kept.peak = kept.now
        yield
        peaks[phase] = max(peaks.get(phase, 0), kept.peak)

    work.watch(watch)
    with kept.counted():
        for _ in range(steps):
            work.run()
    return peaks


_OPTIMISATION = "optimisation"


def _phase(place: str) -> str | None:
    if place in (OPTIMIZE_GENERATORS, OPTIMIZE_DISCRIMINATORS, AVERAGE):
        return _OPTIMISATION
    return place.removeprefix(PHASE) if place.startswith(PHASE) else None
