"""The memory that autograd keeps for the backward, counted while a step runs. Meta tensors work too."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn


class SavedTensors:
    """Counter of the bytes that autograd holds: `now`, and at the `peak`.

    Each storage counts once. The parameters of `ignored` do not count.
    """

    def __init__(self, ignored: nn.Module) -> None:
        self.now = self.peak = 0
        self._ignored = {parameter.untyped_storage()._cdata for parameter in ignored.parameters()}
        self._holders: Counter[int] = Counter()

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return a context. Tensors that autograd saves in it are counted as long as they are held."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Holder:
        return tensor if tensor.untyped_storage()._cdata in self._ignored else _Holder(tensor, self)

    def count(self, tensor: Tensor, holders: int) -> None:
        """Add one holder of the tensor's storage, or remove one: `holders` is 1 or −1."""
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
