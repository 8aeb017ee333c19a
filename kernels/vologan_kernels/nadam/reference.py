"""NAdam in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.nadam import nadam

from vologan_kernels.pointer_table import Tables


class Update(NamedTuple):
    """A parameter to update, with its gradient, its state, and the options of its group."""

    parameter: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]


def update(updates: Sequence[Update], tables: Tables | None = None) -> None:
    """Update all parameters by torch's function, in float32 or wider. It needs no tables."""
    for _, members in groupby(updates, key=lambda update: id(update.group)):
        parameters, grads, states, (group, *_) = map(list, zip(*members, strict=True))
        kept = [*parameters, *(state[name] for name in ("exp_avg", "exp_avg_sq") for state in states)]
        work = [_in_float32(tensor) for tensor in kept]
        count = len(parameters)
        nadam(
            work[:count],
            [_in_float32(grad) for grad in grads],
            work[count : 2 * count],
            work[2 * count :],
            [state["mu_product"] for state in states],
            [state["step"] for state in states],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            capturable=parameters[0].is_cuda,  # t and Π are on the GPU, and nothing must wait for them
            has_complex=parameters[0].is_complex(),
            maximize=group["maximize"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum_decay=group["momentum_decay"],
            eps=group["eps"],
        )
        for tensor, result in zip(kept, work, strict=True):
            if tensor is not result:
                tensor.copy_(result)


def _in_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 as float32, in which ε = 1e-8 does not vanish; other types as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
