"""Random numbers of samples, for all random choices of a training step but dropout.

A number depends on the sample's key, so on (seed, step, network, pass, sample), as dropout masks do
(`networks/dropout.py`). So micro-batches, several processes and a resumed run draw the same numbers.
"""

from __future__ import annotations

from torch import Tensor

from vologan_fast.networks.dropout import BITS, random_bits

INTERPOLATION, POOL, COLOR, TRANSLATION, CUTOUT, CUTMIX = range(2**16, 2**16 + 6)
"""Uses of a sample's key. Each has its own numbers. Smaller numbers belong to the dropouts of the networks."""
POSITIONS = 2**17
"""The use for the first level of features. Each further level has the next number. From 2¹⁸ on, they belong to
`networks/stochastic.py`."""


def uniform(keys: Tensor, use: int, count: int) -> Tensor:
    """Return `count` random numbers in [0, 1) for each of the `keys` (N,): (N, count) float64, multiples of 2⁻²⁴."""
    return random_bits(keys, use, count).double() / 2**BITS
