"""Dropout with masks that depend on the sample, not on the order of the samples.

A training step may run its passes one by one, as one batch, in parts, a second time to save memory, or on several
devices. torch's dropout draws from a generator, so each of these choices would give other masks. Here each sample has a
key, and (key, layer, element) determines whether an element is dropped.

The hash is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, doi 10.1145/2660193.2660195), in integer arithmetic that wraps
around. Its counter runs over the elements of a layer. The sample's key and the layer give its start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 24
"""Number of random bits that `random_bits` takes from a hash."""


def _signed(word: int) -> int:
    """Return the int64 with the same bits as a 64-bit word."""
    return (word + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_KEYS = _signed(0xD1342543DE82EF95)
"""Multiplier that spreads consecutive keys over all 64-bit words (from Steele and Vigna, arXiv 2001.05304)."""


class Dropout(nn.Module):
    """Dropout on (N, C, H, W): zeroes elements, or with `spatial` whole planes, with probability `p`.

    The other elements are multiplied by 1/(1−p). It acts only in training mode. `layer` is the number of this dropout
    in its network. It gives each dropout its own masks.
    """

    takes_keys = True

    def __init__(self, p: float, layer: int, spatial: bool = False) -> None:
        super().__init__()
        self.p, self.layer, self.spatial = p, layer, spatial

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return x with dropout. `keys`: (N,) int64, one per sample. Without them, torch's generator draws the mask."""
        if not self.training or self.p == 0:
            return x
        if keys is None:
            return F.dropout2d(x, self.p) if self.spatial else F.dropout(x, self.p)
        shape = (*x.shape[:2], 1, 1) if self.spatial else x.shape
        kept = random_bits(keys, self.layer, shape[1] * shape[2] * shape[3]) >= int(self.p * 2**BITS)
        return x * (kept.view(shape) / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}, spatial={self.spatial}"


def through(modules: nn.Module, x: Tensor, keys: Tensor | None) -> Tensor:
    """Run x through the children of `modules` in turn, and pass the keys to those with `takes_keys`."""
    for module in modules.children():
        x = module(x, keys) if getattr(module, "takes_keys", False) else module(x)
    return x


def random_bits(keys: Tensor, layer: int, count: int) -> Tensor:
    """Return `count` random numbers from 0 to 2²⁴ − 1 for each of the `keys` (N,): (N, count) int64.

    `layer` chooses one of 2³¹ independent rows of numbers. It is the number of a dropout, or another use of the keys.
    """
    first = keys * _KEYS + (layer << 32)
    # Multiply last. Inductor would turn arange · factor into an index, and its vector code (torch 2.13, CPU) computes
    # this index wrongly for so large a factor.
    hashed = _mixed((first[:, None] + torch.arange(count, device=keys.device)) * _GOLDEN)
    return _shifted(hashed, 64 - BITS)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FACTORS[0]
    z = (z ^ _shifted(z, 27)) * _FACTORS[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right logically, with zeros from the left instead of the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
