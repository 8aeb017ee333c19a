"""The precision of sums and statistics: float64 for float64 tensors, float32 for all others."""

import torch
from torch import Tensor


def accumulator_of(x: Tensor) -> torch.dtype:
    """The type in which sums over x are made."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_accumulator(x: Tensor) -> Tensor:
    """x in the type of its sums."""
    return x if x.dtype == torch.float64 else x.float()
