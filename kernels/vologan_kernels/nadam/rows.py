"""The table that the kernels and the native library read: a row of addresses and numbers for each parameter.

A row is int64. A number in it is the bits of a float64:

    0 … 5    addresses of θ, g, m, v, t, Π
    6        elements of θ
    7        address of the learning rate η, a float32; 0 if η is the number in column 8
    8 … 10   η, ψ ln 0.96, ln β₂
    11 … 13  −1 to maximize, else 1; λ; λ of the decoupled decay
    14 … 16  β₁, β₂, ε
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels.layouts import lying_as
from vologan_kernels.nadam.reference import Update


class Rows(NamedTuple):
    """The rows, and the tensors whose addresses they hold. Some of these are copies that nothing else keeps."""

    table: list[tuple[int, ...]]
    tensors: list[tuple[Tensor, ...]]


def rows_of(updates: Sequence[Update]) -> Rows:
    """Return the rows of parameters on one device. A gradient or moment that lies otherwise than θ is copied.

    Raises ValueError for a gradient or moment of another shape than its parameter, or for a moment elsewhere.
    """
    device = updates[0].parameter.device
    groups = {id(update.group): update.group for update in updates}
    rates = {key: _rate(group["lr"], device) for key, group in groups.items()}
    numbers = {key: _numbers(group, rates[key]) for key, group in groups.items()}
    tensors = [_tensors(update) for update in updates]
    table = [
        (*[tensor.data_ptr() for tensor in six], six[0].numel(), *numbers[id(update.group)])
        for six, update in zip(tensors, updates, strict=True)
    ]
    return Rows(table, [*tensors, tuple(rate for rate in rates.values() if isinstance(rate, Tensor))])


def _tensors(update: Update) -> tuple[Tensor, ...]:
    """θ, g, m, v, t and Π. The elements of the first four lie in the same order.

    Whoever can write into the state or exchange `parameter.data` may have changed any of them. The kernels would read
    beyond their ends, or take their bits for other numbers, so each is looked at.
    """
    parameter, grad, state, _ = update
    shape, stride, dtype, device = parameter.shape, parameter.stride(), parameter.dtype, parameter.device
    if grad.shape != shape:
        raise ValueError(f"NAdam: grad has shape {tuple(grad.shape)}: expected {tuple(shape)}, as its parameter")
    for name in ("exp_avg", "exp_avg_sq"):
        moment = state[name]
        if moment.shape != shape:
            found = tuple(moment.shape)
            raise ValueError(f"NAdam: {name} has shape {found}: expected {tuple(shape)}, as its parameter")
        if moment.device != device:
            raise ValueError(f"NAdam: {name} is on {moment.device}: expected {device}, as its parameter")
        state[name] = lying_as(moment, stride, dtype)
    for name in ("step", "mu_product"):
        number = state[name]
        if type(number) is not Tensor or number.dtype != torch.float32 or number.device != device:
            state[name] = torch.as_tensor(number, dtype=torch.float32, device=device)
    grad = lying_as(grad, stride, dtype)
    return parameter, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], state["mu_product"]


def _rate(rate: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor if the kernels can read it, else a number. The host waits for a tensor on another GPU.

    A float64 tensor on a CPU is a number, because the kernels would round it.
    """
    if not isinstance(rate, Tensor) or rate.device != device or (rate.is_cpu and rate.dtype != torch.float32):
        return float(rate)
    return rate.to(torch.float32)


def _numbers(group: dict[str, Any], rate: float | Tensor) -> tuple[int, ...]:
    """The columns of a row from 7 on."""
    beta1, beta2 = group["betas"]
    decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    address, number = (rate.data_ptr(), 0.0) if isinstance(rate, Tensor) else (0, rate)
    values = (
        number,
        group["momentum_decay"] * math.log(0.96),
        math.log(beta2) if beta2 else -math.inf,
        -1.0 if group["maximize"] else 1.0,
        0.0 if decoupled else decay,
        decay if decoupled else 0.0,
        beta1,
        beta2,
        group["eps"],
    )
    return address, *struct.unpack("9q", struct.pack("9d", *values))
