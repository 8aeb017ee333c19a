"""Triton kernels of the adversarial losses. The docstring of `vologan_kernels.adversarial_loss` states the mathematics.

One launch each way serves all outputs. A mean over all elements does not depend on their order. So logits that lie
densely are read as they lie; others are copied first. Each output gets programs in proportion to its size.

A program writes the sum over its part. The program that arrives last adds up the parts, always in their order. So the
same logits give the same bits, whichever program is the last.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.device import arrivals, constants, multiprocessors
from vologan_kernels.launch import LOGITS_BLOCK, LOGITS_PROGRAMS, LOGITS_WARPS
from vologan_kernels.layouts import is_dense, maker
from vologan_kernels.planned_triton import BoundLaunch, planned
from vologan_kernels.precision import accumulator_of
from vologan_kernels.tiles_triton import TRITON_TYPES, load_flat, pick


@triton.jit
def _loss(z, role, KIND: tl.constexpr):
    """The loss of each logit, by the table. Role 0 is real, 1 fake, 2 generator."""
    toward = tl.where(role == 1, -z, z)  # the role wants it large
    if KIND == "lsgan":
        apart = tl.where(role == 1, z, z - 1)
        return apart * apart
    elif KIND == "bce":
        e = tl.exp(-tl.abs(toward))
        # log(1 + e) to all digits also where 1 + e rounds (Goldberg, ACM Computing Surveys 1991, theorem 4)
        sum = 1 + e
        log1p = tl.where(sum == 1, e, tl.log(sum) * e / tl.where(sum == 1, 1.0, sum - 1))
        return tl.maximum(-toward, 0.0) + log1p
    elif KIND == "hinge":
        return tl.where(role == 2, -z, tl.where(toward >= 1, 0.0, 1 - toward))  # not tl.maximum, which drops NaN
    elif KIND == "hinge_both":
        return tl.where(toward >= 1, 0.0, 1 - toward)
    else:
        tl.static_assert(KIND == "wgan")
        return -toward


@triton.jit
def _slope(z, role, KIND: tl.constexpr):
    """The derivative of the loss in z."""
    toward = tl.where(role == 1, -z, z)
    sign = tl.where(role == 1, 1.0, -1.0).to(z.dtype)  # of the derivative
    if KIND == "lsgan":
        return 2 * tl.where(role == 1, z, z - 1)
    elif KIND == "bce":
        e = tl.exp(-tl.abs(toward))
        return sign * tl.where(toward < 0, 1.0, e) / (1 + e)  # sigmoid(−toward)
    elif KIND == "hinge":
        return tl.where((role != 2) & (toward >= 1), 0.0, sign)
    elif KIND == "hinge_both":
        return tl.where(toward >= 1, 0.0, sign)
    else:
        tl.static_assert(KIND == "wgan")
        return tl.zeros_like(z) + sign


@triton.jit
def _part(firsts, roles, sizes):
    """The output that this program reads, the number of its part, and the output's role and size."""
    pid = tl.program_id(0)
    output, first = tl.full((), 0, tl.int32), tl.full((), firsts[0], tl.int32)
    role, size = tl.full((), roles[0], tl.int32), tl.full((), sizes[0], tl.int64)
    for k in tl.static_range(1, len(sizes)):
        if pid >= firsts[k]:
            output, first = tl.full((), k, tl.int32), tl.full((), firsts[k], tl.int32)
            role, size = tl.full((), roles[k], tl.int32), tl.full((), sizes[k], tl.int64)
    return output, pid - first, role, size


@triton.jit
def adversarial_fwd_kernel(
    logits,  # K dense tensors
    weights,  # (K,)
    workspace,  # (programs,), written: the sum of each part
    arrived,  # (): the number of programs that have written their sum; 0 before and after
    loss,  # (), written
    values,  # (K,), written: the means
    firsts,  # K numbers: the first program of each output
    roles,  # K numbers
    sizes,  # K numbers: elements
    length,  # elements of a part
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    output, part, role, size = _part(firsts, roles, sizes)
    z = pick(logits, output)
    begin = part.to(tl.int64) * length
    end = tl.minimum(begin + length, size)
    total = tl.zeros((BLOCK,), ACC)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.where(at < end, _loss(load_flat(z, at, at < end, ACC), role, KIND), 0.0)
    tl.store(workspace + tl.program_id(0), tl.sum(total, axis=0))

    tl.debug_barrier()
    if tl.atomic_add(arrived, 1) == tl.num_programs(0) - 1:
        sum = tl.zeros((1,), ACC)
        for k in tl.static_range(len(sizes)):
            begin_k = tl.full((), firsts[k], tl.int32)
            end_k = tl.num_programs(0)
            if k < len(sizes) - 1:
                end_k = tl.full((), firsts[k + 1], tl.int32)
            parts = tl.zeros((BLOCK,), ACC)
            for first_k in range(begin_k, end_k, BLOCK):
                at_k = first_k + tl.arange(0, BLOCK)
                parts += tl.load(workspace + at_k, mask=at_k < end_k, other=0.0, cache_modifier=".cg")
            mean = tl.sum(parts, axis=0) / tl.maximum(tl.full((), sizes[k], tl.int64), 1).to(ACC)
            tl.store(values + k, mean)
            sum += mean * tl.load(weights + k)
        tl.store(loss + tl.arange(0, 1), sum)
        tl.store(arrived, 0)


@triton.jit
def adversarial_bwd_kernel(
    grad,  # ()
    logits,  # K dense tensors
    weights,  # (K,)
    gradients,  # as logits, written
    firsts,  # K numbers: the first program of each output
    roles,  # K numbers
    sizes,  # K numbers: elements
    length,  # elements of a part
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    output, part, role, size = _part(firsts, roles, sizes)
    z, gradient = pick(logits, output), pick(gradients, output)
    share = tl.load(grad).to(ACC) * tl.load(weights + output) / tl.maximum(size, 1).to(ACC)
    begin = part.to(tl.int64) * length
    end = tl.minimum(begin + length, size)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        slope = _slope(load_flat(z, at, at < end, ACC), role, KIND)
        tl.store(gradient + at, (share * slope).to(gradient.dtype.element_ty), mask=at < end)


# ---- launches -------------------------------------------------------------------------------------------------------


def forward(
    logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> tuple[Tensor, Tensor]:
    """The same as `reference.forward`."""
    return _forward(*logits, roles=tuple(roles), weights=tuple(weights), kind=kind)


@planned()
def _forward(
    *logits: Tensor, roles: tuple[int, ...], weights: tuple[float, ...], kind: str
) -> Callable[..., tuple[Tensor, Tensor]]:
    device, accumulator = logits[0].device, accumulator_of(logits[0])
    read, programs, parts, options = _launch(logits, roles, kind)
    launch = BoundLaunch(programs, parts, options)
    new_loss, new_values, new_workspace = (
        maker(shape, accumulator, device) for shape in ((), (len(logits),), (programs,))
    )

    def run(*logits):
        loss, values = new_loss(), new_values()
        scale = constants(weights, device, accumulator)
        launch(adversarial_fwd_kernel, read(logits), scale, new_workspace(), arrivals(device), loss, values)
        return loss, values

    return run


def backward(
    grad: Tensor, logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> list[Tensor]:
    """The same as `reference.backward`."""
    return _backward(grad, *logits, roles=tuple(roles), weights=tuple(weights), kind=kind)


@planned()
def _backward(
    grad: Tensor, *logits: Tensor, roles: tuple[int, ...], weights: tuple[float, ...], kind: str
) -> Callable[..., list[Tensor]]:
    device, accumulator = logits[0].device, accumulator_of(logits[0])
    read, programs, parts, options = _launch(logits, roles, kind)
    launch = BoundLaunch(programs, parts, options)
    dtypes = [z.dtype for z in logits]

    def run(grad, *logits):
        dense = read(logits)
        gradients = tuple([torch.empty_like(z) for z in dense])
        launch(adversarial_bwd_kernel, grad, dense, constants(weights, device, accumulator), gradients)
        return [
            gradient if gradient.dtype == dtype else gradient.to(dtype)
            for gradient, dtype in zip(gradients, dtypes, strict=True)
        ]

    return run


def _launch(
    logits: Sequence[Tensor], roles: tuple[int, ...], kind: str
) -> tuple[Callable[[Sequence[Tensor]], tuple[Tensor, ...]], int, tuple[Any, ...], dict[str, Any]]:
    """A function of the logits to what both kernels read; the programs; their arguments about parts; options."""
    dtype = functools.reduce(torch.promote_types, (z.dtype for z in logits))
    sizes = tuple(z.numel() for z in logits)
    # Parts consist of whole blocks, and there are so many that all programs run at once. An empty output has one part,
    # which adds nothing.
    programs = LOGITS_PROGRAMS * multiprocessors(logits[0].device)
    length = max(1, triton.cdiv(sum(sizes), programs * LOGITS_BLOCK)) * LOGITS_BLOCK
    ends = list(itertools.accumulate(max(1, triton.cdiv(size, length)) for size in sizes))
    options = {
        "KIND": kind,
        "BLOCK": LOGITS_BLOCK,
        "ACC": TRITON_TYPES[accumulator_of(logits[0])],
        "num_warps": LOGITS_WARPS,
    }
    return _dense(logits, dtype), ends[-1], ((0, *ends[:-1]), roles, sizes, length), options


def _dense(logits: Sequence[Tensor], dtype: torch.dtype) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function that gives logits one dtype, and lets them lie densely."""
    dense = [is_dense(z.shape, z.stride()) for z in logits]
    if all(dense) and all(z.dtype == dtype for z in logits):
        return tuple
    return lambda logits: tuple(
        [
            z.to(dtype) if lies_densely else z.to(dtype).contiguous()
            for z, lies_densely in zip(logits, dense, strict=True)
        ]
    )
