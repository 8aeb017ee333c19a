"""Triton kernels of NAdam. The docstring of `vologan_kernels.nadam` states the mathematics.

There are two launches, for any number of parameters:

1. `coefficients_kernel` computes the numbers that depend only on t; a thread takes one parameter;
2. `update_kernel` changes the parameters; a program takes a piece of one.

Both find the tensors by their addresses in a table (`pointer_table.py`). The table also holds the options of the
groups (`rows.py`). So a new learning rate is a new number in the table, and nothing is compiled again. Only
`update_kernel` writes tensors that outlive the step. So a compiler that fails at either kernel leaves the optimiser as
it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.nadam.reference import Update
from vologan_kernels.nadam.rows import rows_of
from vologan_kernels.planned_triton import BoundLaunch, planned
from vologan_kernels.pointer_table import Tables, pieces
from vologan_kernels.precision import accumulator_of
from vologan_kernels.tiles_triton import TRITON_TYPES

COLUMNS = tl.constexpr(17)
COEFFICIENTS = tl.constexpr(8)
"""Numbers of each parameter: t, Π, the factor of decoupled decay, 1 / √(1 − β₂^t), and the factors of g and of m, which
include the minus sign. The last two are unused."""
LANES = 128
"""Parameters that a program of `coefficients_kernel` takes: one a thread."""
BLOCK = 1024
"""Elements at a time: 8 a thread, which makes two 16-byte loads of each of four float32 tensors. Half as many for
float64."""
LENGTH = 4096
"""Elements of a piece. Its 115 kB take much longer than the three loads, one after the other, that find its tensors."""


class Tensors(NamedTuple):
    """Pointers to the tensors of one parameter: θ, g, m and v."""

    parameter: Any
    grad: Any
    moment: Any
    square: Any


class Numbers(NamedTuple):
    """The numbers of one parameter's update, of type ACC."""

    sign: Any  # of g: −1 to maximize
    decay: Any  # λ, unless it is decoupled
    beta1: Any
    beta2: Any
    rest1: Any  # 1 − β₁
    rest2: Any  # 1 − β₂
    eps: Any
    shrink: Any  # 1 − ηλ of the decoupled decay
    scale: Any  # 1 / √(1 − β₂^t)
    grad_factor: Any  # −η (1 − μ_t) / (1 − Π)
    moment_factor: Any  # −η μ_{t+1} / (1 − Π μ_{t+1})


@triton.jit
def _number(place):
    """A number of a table."""
    return tl.load(place).to(tl.float64, bitcast=True)


@triton.jit
def _pointer(place, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to an address of a table."""
    pointer = tl.load(place).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=["count"])
def coefficients_kernel(
    rows,  # (count, COLUMNS)
    coefficients,  # (count, COEFFICIENTS) of type ACC, written
    count,  # parameters
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
def _update_block(tensors, numbers, offset, mask, ACC: tl.constexpr):
    """The update of the elements at `offset`."""
    theta = tl.load(tensors.parameter + offset, mask=mask).to(ACC)
    m = tl.load(tensors.moment + offset, mask=mask).to(ACC)
    v = tl.load(tensors.square + offset, mask=mask).to(ACC)
    g = tl.load(tensors.grad + offset, mask=mask).to(ACC) * numbers.sign + theta * numbers.decay
    m = m * numbers.beta1 + g * numbers.rest1
    v = v * numbers.beta2 + g * g * numbers.rest2
    change = (numbers.grad_factor * g + numbers.moment_factor * m) / (tl.sqrt(v) * numbers.scale + numbers.eps)
    theta = theta * numbers.shrink + change
    tl.store(tensors.parameter + offset, theta.to(tensors.parameter.dtype.element_ty), mask=mask)
    tl.store(tensors.moment + offset, m.to(tensors.moment.dtype.element_ty), mask=mask)
    tl.store(tensors.square + offset, v.to(tensors.square.dtype.element_ty), mask=mask)


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
    tensors = Tensors(
        parameter=_pointer(row, TYPE, ALIGNED),
        grad=_pointer(row + 1, TYPE, ALIGNED),
        moment=_pointer(row + 2, TYPE, ALIGNED),
        square=_pointer(row + 3, TYPE, ALIGNED),
    )
    beta1, beta2 = _number(row + 14), _number(row + 15)
    numbers = Numbers(
        sign=_number(row + 11).to(ACC),
        decay=_number(row + 12).to(ACC),
        beta1=beta1.to(ACC),
        beta2=beta2.to(ACC),
        rest1=(1 - beta1).to(ACC),
        rest2=(1 - beta2).to(ACC),
        eps=_number(row + 16).to(ACC),
        shrink=tl.load(found + 2),
        scale=tl.load(found + 3),
        grad_factor=tl.load(found + 4),
        moment_factor=tl.load(found + 5),
    )
    lane = tl.arange(0, BLOCK)
    end = tl.minimum(first + LENGTH, tl.load(row + 6))
    whole = first + (end - first) // BLOCK * BLOCK
    for block in range(first, whole, BLOCK):
        _update_block(tensors, numbers, block + lane, None, ACC)
    if whole < end:  # separately, because a mask would keep the loads above from being 16 bytes wide
        _update_block(tensors, numbers, whole + lane, whole + lane < end, ACC)
    if first == 0:
        tl.store(tl.load(row + 4).to(tl.pointer_type(tl.float32)), tl.load(found).to(tl.float32))
        tl.store(tl.load(row + 5).to(tl.pointer_type(tl.float32)), tl.load(found + 1).to(tl.float32))


# ---- launches -------------------------------------------------------------------------------------------------------


def update(updates: Sequence[Update], tables: Tables) -> None:
    """The same as `reference.update`, for parameters of one device and dtype."""
    example = updates[0].parameter
    dtype, device = example.dtype, example.device
    rows = rows_of(updates)
    places = _pieces(tuple(row[6] for row in rows.table))
    coefficients = torch.empty(
        (len(updates), COEFFICIENTS.value),
        dtype=accumulator_of(example),
        device=device,
    )
    aligned = all(address % 16 == 0 for row in rows.table for address in row[:4])
    _update(tables.rows(rows.table, device), tables.pieces(places, device), coefficients, dtype=dtype, aligned=aligned)
    # Autograd does not see the writes of kernels. A graph that saved a parameter must not use the new value instead.
    torch.autograd.graph.increment_version([update.parameter for update in updates])


@planned()
def _update(
    rows: Tensor, pieces: Tensor, coefficients: Tensor, *, dtype: torch.dtype, aligned: bool
) -> Callable[..., None]:
    """The launches of both kernels. `aligned`: whether the addresses of all parameters are multiples of 16."""
    widths = {"COLUMNS": COLUMNS.value, "COEFFICIENTS": COEFFICIENTS.value}
    options = {
        "TYPE": TRITON_TYPES[dtype],
        "ALIGNED": aligned,
        "LENGTH": LENGTH,
        "BLOCK": BLOCK // 2 if dtype == torch.float64 else BLOCK,
    }
    computing = BoundLaunch(triton.cdiv(len(rows), LANES), (len(rows),), {"LANES": LANES} | widths)
    updating = BoundLaunch(len(pieces), (), options | widths)

    def run(rows, pieces, coefficients):
        computing(coefficients_kernel, rows, coefficients)
        updating(update_kernel, rows, pieces, coefficients)

    return run


@functools.lru_cache(maxsize=16)
def _pieces(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The pieces of all tensors. An empty tensor has a piece too, which writes its t."""
    return tuple(pieces([max(size, 1) for size in sizes], LENGTH))
