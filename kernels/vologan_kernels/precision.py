"""The precision of sums and statistics: float64 for float64 tensors, float32 for all others."""

import torch
from torch import Tensor


def accumulator_of(x: Tensor) -> torch.dtype:
    """The type in which sums over x are made."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_accumulator(x: Tensor) -> Tensor:
    """x in the type of its sums."""
    return x if x.dtype == torch.float64 else x.float()


def refuse_complex(*tensors: Tensor | None) -> None:
    """Raise ValueError for a complex tensor, whose imaginary part a conversion would drop."""
    for tensor in tensors:
        if tensor is not None and tensor.is_complex():
            raise ValueError(
                "instance_norm_act: weight, bias, negative_slope and residual must be real, found a tensor of "
                f"{tensor.dtype} with shape {tuple(tensor.shape)}"
            )
