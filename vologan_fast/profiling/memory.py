"""The most memory that each phase of a step needs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vologan_fast.profiling.parts import AVERAGE, OPTIMIZE_DISCRIMINATORS, OPTIMIZE_GENERATORS, PHASE
from vologan_fast.profiling.workload import Workload


def allocated_by_phase(work: Workload, steps: int) -> dict[str, int]:
    """Of some steps on a GPU: the most bytes that are allocated in each phase, and before the first."""
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

    work.around = watch
    for _ in range(steps):
        work.run()
    return peaks


def kept_by_phase(work: Workload, steps: int) -> dict[str, int]:
    """Of some steps: the most bytes that autograd keeps in each phase."""
    kept = _Kept(work.networks)
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

    work.around = watch
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack):
        for _ in range(steps):
            work.run()
    return peaks


_OPTIMISATION = "optimisation"


def _phase(place: str) -> str | None:
    if place in (OPTIMIZE_GENERATORS, OPTIMIZE_DISCRIMINATORS, AVERAGE):
        return _OPTIMISATION
    return place.removeprefix(PHASE) if place.startswith(PHASE) else None


class _Kept:
    """Bytes that autograd holds now, and at the peak; each storage once, those of `ignored`'s parameters not at all."""

    def __init__(self, ignored: nn.Module) -> None:
        self.now = self.peak = 0
        self._ignored = {parameter.untyped_storage()._cdata for parameter in ignored.parameters()}
        self._holders: Counter[int] = Counter()

    def pack(self, tensor: Tensor) -> Tensor | _Holder:
        return tensor if tensor.untyped_storage()._cdata in self._ignored else _Holder(tensor, self)

    def count(self, tensor: Tensor, holders: int) -> None:
        """One holder of the tensor's storage more, or fewer."""
        storage = tensor.untyped_storage()
        before = self._holders[storage._cdata]
        self._holders[storage._cdata] = before + holders
        self.now += storage.nbytes() * (bool(before + holders) - bool(before))
        self.peak = max(self.peak, self.now)


class _Holder:
    def __init__(self, tensor: Tensor, kept: _Kept) -> None:
        self.tensor, self.kept = tensor, kept
        kept.count(tensor, 1)

    def __del__(self) -> None:
        self.kept.count(self.tensor, -1)


def _unpack(saved: Tensor | _Holder) -> Tensor:
    return saved.tensor if isinstance(saved, _Holder) else saved
