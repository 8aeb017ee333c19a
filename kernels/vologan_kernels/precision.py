"""The precision that sums and statistics are made in."""

import torch
from torch import Tensor


def to_accumulator(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()
