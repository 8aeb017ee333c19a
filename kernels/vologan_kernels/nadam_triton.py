"""Triton kernels of `nadam.py`, which states the mathematics: two launches, whatever the number of parameters.

`coefficients_kernel` computes what depends on t alone, a parameter a thread; `update_kernel` changes the parameters, a
piece of one a program. Both find the tensors by their addresses in a table (`pointer_table.py`), which holds the
options of their groups as well: a new learning rate is a new number in the table, and nothing is compiled anew. Only
`update_kernel` writes what outlives the step, so that a compiler that fails at either leaves the optimiser as it was.

A row of the table is int64, numbers being the bits of a float64:

    0 … 5    addresses of θ, g, m, v, t, Π
    6        elements of θ
    7        address of the learning rate η, float32; 0 if it is the number in column 8
    8 … 10   η, ψ ln 0.96, ln β₂
    11 … 13  −1 to maximize or 1, λ, λ of the decoupled decay
    14 … 16  β₁, β₂, ε
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.nadam import Tables, Update
from vologan_kernels.pointer_table import lying_as, pieces
from vologan_kernels.tiles_triton import TRITON_TYPES, on_device_of

COLUMNS = tl.constexpr(17)
COEFFICIENTS = tl.constexpr(8)
"""t, Π, the factor of decoupled decay, 1 / √(1 − β₂^t), the factors of g and m with their minus signs; two unused."""
LANES = 128
"""Parameters of a program of `coefficients_kernel`: one a thread."""
BLOCK = 1024
"""Elements at a time: 8 a thread, two 16-byte loads of each of four float32 tensors. Half as many of float64."""
LENGTH = 4096
"""Elements of a piece: 115 kB to move, which outweigh the three loads in a row that find a piece's tensors."""


@triton.jit
def _number(place):
    return tl.load(place).to(tl.float64, bitcast=True)


@triton.jit
def _pointer(place, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(place).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=["count"])
def coefficients_kernel(
    rows,  # (count, COLUMNS)
    coefficients,  # (count, COEFFICIENTS) ACC
    count,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < count
    row = rows + tl.minimum(lane, count - 1) * COLUMNS
    t = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32))) + 1
    product = tl.load(tl.load(row + 5).to(tl.pointer_type(tl.float32)))
    rate = tl.load(row + 7)
    given = tl.load(rate.to(tl.pointer_type(tl.float32)), mask=rate != 0, other=0.0).to(tl.float64)
    rate = tl.where(rate != 0, given, _number(row + 8))
    beta1 = _number(row + 14)
    steps = t.to(tl.float64)
    mu = beta1 * (1 - 0.5 * tl.exp(steps * _number(row + 9)))
    mu_next = beta1 * (1 - 0.5 * tl.exp((steps + 1) * _number(row + 9)))
    product = (product * mu.to(tl.float32)).to(tl.float64)
    found = coefficients + lane * COEFFICIENTS
    TYPE: tl.constexpr = coefficients.dtype.element_ty
    tl.store(found, t.to(TYPE), mask=inside)
    tl.store(found + 1, product.to(TYPE), mask=inside)
    tl.store(found + 2, (1 - rate * _number(row + 13)).to(TYPE), mask=inside)
    tl.store(found + 3, (1 / tl.sqrt(1 - tl.exp(steps * _number(row + 10)))).to(TYPE), mask=inside)
    tl.store(found + 4, (-rate * (1 - mu) / (1 - product)).to(TYPE), mask=inside)
    tl.store(found + 5, (-rate * mu_next / (1 - product * mu_next)).to(TYPE), mask=inside)


@triton.jit
def _update_block(parameter, grad, moment, square, numbers, offset, mask, ACC: tl.constexpr):
    sign, decay, beta1, beta2, rest1, rest2, eps, shrink, scale, of_grad, of_moment = numbers
    theta = tl.load(parameter + offset, mask=mask).to(ACC)
    m = tl.load(moment + offset, mask=mask).to(ACC)
    v = tl.load(square + offset, mask=mask).to(ACC)
    g = tl.load(grad + offset, mask=mask).to(ACC) * sign + theta * decay
    m = m * beta1 + g * rest1
    v = v * beta2 + g * g * rest2
    theta = theta * shrink + (of_grad * g + of_moment * m) / (tl.sqrt(v) * scale + eps)
    tl.store(parameter + offset, theta.to(parameter.dtype.element_ty), mask=mask)
    tl.store(moment + offset, m.to(moment.dtype.element_ty), mask=mask)
    tl.store(square + offset, v.to(square.dtype.element_ty), mask=mask)


@triton.jit
def update_kernel(
    rows,  # (parameters, COLUMNS)
    pieces,  # (programs, 2): row, first element
    coefficients,  # of coefficients_kernel
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
):
    ACC: tl.constexpr = coefficients.dtype.element_ty
    piece = pieces + 2 * tl.program_id(0)
    index, first = tl.load(piece), tl.multiple_of(tl.load(piece + 1), BLOCK)
    row = rows + index * COLUMNS
    found = coefficients + index * COEFFICIENTS
    parameter = _pointer(row, TYPE, ALIGNED)
    grad = _pointer(row + 1, TYPE, ALIGNED)
    moment = _pointer(row + 2, TYPE, ALIGNED)
    square = _pointer(row + 3, TYPE, ALIGNED)
    beta1, beta2 = _number(row + 14), _number(row + 15)
    numbers = (
        _number(row + 11).to(ACC),
        _number(row + 12).to(ACC),
        beta1.to(ACC),
        beta2.to(ACC),
        (1 - beta1).to(ACC),
        (1 - beta2).to(ACC),
        _number(row + 16).to(ACC),
        tl.load(found + 2),
        tl.load(found + 3),
        tl.load(found + 4),
        tl.load(found + 5),
    )
    lane = tl.arange(0, BLOCK)
    end = tl.minimum(first + LENGTH, tl.load(row + 6))
    whole = first + (end - first) // BLOCK * BLOCK
    for block in range(first, whole, BLOCK):
        _update_block(parameter, grad, moment, square, numbers, block + lane, None, ACC)
    if whole < end:  # apart: a mask would keep the loads above from being 16 bytes wide
        _update_block(parameter, grad, moment, square, numbers, whole + lane, whole + lane < end, ACC)
    if first == 0:
        tl.store(tl.load(row + 4).to(tl.pointer_type(tl.float32)), tl.load(found).to(tl.float32))
        tl.store(tl.load(row + 5).to(tl.pointer_type(tl.float32)), tl.load(found + 1).to(tl.float32))


# ---- launches -------------------------------------------------------------------------------------------------------


def update(updates: Sequence[Update], tables: Tables) -> None:
    """As `nadam.reference_update`, for parameters of one device and dtype."""
    example = updates[0].parameter
    dtype, device = example.dtype, example.device
    tensors = [_tensors(update) for update in updates]
    addresses = [tuple(tensor.data_ptr() for tensor in six) for six in tensors]
    sizes = tuple(update.parameter.numel() for update in updates)
    groups = {id(update.group): update.group for update in updates}
    rates = {key: _rate(group["lr"], device) for key, group in groups.items()}
    numbers = {key: _numbers(group, rates[key]) for key, group in groups.items()}
    table = [
        (*six, size, *numbers[id(update.group)]) for six, size, update in zip(addresses, sizes, updates, strict=True)
    ]
    places = _pieces(sizes)
    coefficients = torch.empty(
        (len(updates), COEFFICIENTS.value),
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        device=device,
    )
    widths = {"COLUMNS": COLUMNS.value, "COEFFICIENTS": COEFFICIENTS.value}
    with on_device_of(example):
        rows = tables.rows(table, device)
        grid = (triton.cdiv(len(updates), LANES),)
        coefficients_kernel[grid](rows, coefficients, len(updates), LANES=LANES, **widths)
        update_kernel[(len(places),)](
            rows,
            tables.pieces(places, device),
            coefficients,
            TYPE=TRITON_TYPES[dtype],
            ALIGNED=all(address % 16 == 0 for six in addresses for address in six[:4]),
            LENGTH=LENGTH,
            BLOCK=BLOCK // 2 if dtype == torch.float64 else BLOCK,
            **widths,
        )
    # Autograd does not see what kernels write: a graph that saved a parameter must not take the new one for it.
    torch.autograd.graph.increment_version([update.parameter for update in updates])


def _tensors(update: Update) -> tuple[Tensor, ...]:
    """θ, g, m, v, t, Π, the first four in one order."""
    parameter, grad, state, _ = update
    for name in ("exp_avg", "exp_avg_sq"):  # of a parameter that has changed its layout, or a checkpoint's
        state[name] = lying_as(state[name], parameter.stride(), parameter.dtype)
    grad = lying_as(grad, parameter.stride(), parameter.dtype)
    return parameter, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], state["mu_product"]


def _rate(rate: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor where the kernels can read it, else a number; a tensor on another GPU has to be waited for."""
    return rate.to(torch.float32) if isinstance(rate, Tensor) and rate.device == device else float(rate)


def _numbers(group: dict[str, Any], rate: float | Tensor) -> tuple[int, ...]:
    """Columns from 7 on."""
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


@functools.lru_cache(maxsize=16)
def _pieces(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """An empty tensor has a piece too: the one that writes its t."""
    return tuple(pieces([max(size, 1) for size in sizes], LENGTH))
