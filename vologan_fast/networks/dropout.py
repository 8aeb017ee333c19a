"""Dropout whose mask is a pure function of the sample, not of the order in which samples come.

A training step may run its passes one by one or several as one batch, in parts, again for lack of memory, or spread
over several devices. Torch's dropout draws from a generator, so every such choice would draw other masks. Here each
sample has a key, and whether an element is dropped follows from (key, layer, element). It is SplitMix64 (Steele, Lea,
Flood, OOPSLA 2014, doi 10.1145/2660193.2660195) in integer arithmetic that wraps around: the elements of a layer count
up, a sample's key says from where.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BITS = 24  # of the hash that are compared with p


def _signed(word: int) -> int:
    """A 64-bit word as the int64 of the same bits."""
    return (word + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_KEYS = _signed(0xD1342543DE82EF95)
"""Spreads keys that follow each other over all 64-bit words (a multiplier of Steele and Vigna, arXiv 2001.05304)."""


class Dropout(nn.Module):
    """Zeroes elements of (N, C, H, W), or with `spatial` whole planes, with probability `p`; the rest grows by 1/(1−p).

    In training mode only. `layer` numbers the dropouts of a network: each has masks of its own.
    """

    def __init__(self, p: float, layer: int, spatial: bool = False) -> None:
        super().__init__()
        self.p, self.layer, self.spatial = p, layer, spatial

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """`keys`: (N,) int64, one a sample. Without them torch's generator draws."""
        if not self.training or self.p == 0:
            return x
        if keys is None:
            return F.dropout2d(x, self.p) if self.spatial else F.dropout(x, self.p)
        shape = (*x.shape[:2], 1, 1) if self.spatial else x.shape
        size = shape[1] * shape[2] * shape[3]
        first = keys * _KEYS + (self.layer << 32)
        # The factor comes last: Inductor makes an index of arange · factor, and its vector code (torch 2.13, CPU)
        # computes that wrongly for a factor of this size.
        hashed = _mixed((first[:, None] + torch.arange(size, device=x.device)) * _GOLDEN)
        kept = _shifted(hashed, 64 - _BITS) >= int(self.p * 2**_BITS)
        return x * (kept.view(shape) / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}, spatial={self.spatial}"


def through(modules: nn.Module, x: Tensor, keys: Tensor | None) -> Tensor:
    """`modules(x)`, where its dropouts get the keys."""
    for module in modules.children():
        x = module(x, keys) if isinstance(module, Dropout) else module(x)
    return x


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FACTORS[0]
    z = (z ^ _shifted(z, 27)) * _FACTORS[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
