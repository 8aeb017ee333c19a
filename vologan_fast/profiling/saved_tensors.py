"""What autograd keeps for the backward: counted while a step runs, also on meta tensors."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn


class SavedTensors:
    """Bytes that autograd holds now, and at the peak; each storage once, those of `ignored`'s parameters not at all."""

    def __init__(self, ignored: nn.Module) -> None:
        self.now = self.peak = 0
        self._ignored = {parameter.untyped_storage()._cdata for parameter in ignored.parameters()}
        self._holders: Counter[int] = Counter()

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Inside, what autograd saves is counted until nothing holds it."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Holder:
        return tensor if tensor.untyped_storage()._cdata in self._ignored else _Holder(tensor, self)

    def count(self, tensor: Tensor, holders: int) -> None:
        """One holder of the tensor's storage more, or fewer."""
        storage = tensor.untyped_storage()
        before = self._holders[storage._cdata]
        self._holders[storage._cdata] = before + holders
        self.now += storage.nbytes() * (bool(before + holders) - bool(before))
        self.peak = max(self.peak, self.now)


class _Holder:
    def __init__(self, tensor: Tensor, kept: SavedTensors) -> None:
        self.tensor, self.kept = tensor, kept
        kept.count(tensor, 1)

    def __del__(self) -> None:
        self.kept.count(self.tensor, -1)


def _unpack(saved: Tensor | _Holder) -> Tensor:
    return saved.tensor if isinstance(saved, _Holder) else saved
