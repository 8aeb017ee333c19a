"""Triton kernels of the instance norm. The docstring of `vologan_kernels.instance_norm` states the mathematics.

**Two tiers.** If a plane fits the registers of a program, one kernel makes the forward (`single_fwd_kernel`) and one
makes the backward (`single_bwd_kernel`). They read the plane once; a forward with padding reads it twice. A larger
plane is cut into parts. Then the forward and the backward have three kernels each:

1. `statistics_kernel` or `sums_kernel` reads each part and writes its sums to a workspace (N, parts, 2 or 3, C);
2. `merge_statistics_kernel` or `merge_sums_kernel` merges the parts, and takes little time;
3. `apply_fwd_kernel` or `apply_bwd_kernel` reads the plane again and writes the result.

The three run in turn over groups of planes. A group is so small that the second reading comes from the L2 cache. There
are no atomics: the same input gives the same bits.

**Reflection padding** only maps indices. In the forward, each position of the output reads one position of the input.
In the backward, each position of the input adds up the gradients of up to nine positions of the output.

**Arithmetic** is in the type ACC, which is float32 or float64. ε and the other numbers are compile-time constants,
which Triton converts to ACC. Each lane computes the variance of its values by Welford's algorithm. Then Chan's formula
merges the lanes (Chan, Golub, LeVeque, 1983). The rounded mean leaves a rest, which is the mean of the deviations. It
is subtracted too. So no digits are lost if the mean is far larger than the deviation, and a constant plane gives β.

**Arguments.** An image is a `layouts.View`: a pointer and three strides. Names in capital letters are sizes and
compile-time constants. A tile is a block of values (positions, channels).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.activations_triton import activate, gradient, invert
from vologan_kernels.device import on_device_of
from vologan_kernels.launch import MERGE_CHANNELS, MOST_REGISTERS, Stream, groups, single_tile, stream
from vologan_kernels.layouts import View, addressable, output_layout, view_of
from vologan_kernels.precision import accumulator_of
from vologan_kernels.tiles_triton import TRITON_TYPES, load_tile, store_tile


class Statistics(NamedTuple):
    """Two tensors (N, C) of type ACC: the mean and rstd of each plane."""

    mean: Any
    rstd: Any


class Affine(NamedTuple):
    """Three tensors (C,), each of which may be None: γ, β, and the slopes of prelu."""

    weight: Any
    bias: Any
    slopes: Any


class Place(NamedTuple):
    """The work of one program: a part of the planes of some channels of one sample."""

    sample: Any  # int64
    split: Any  # number of the part
    channel: Any  # (CHANNELS,)
    inside: Any  # (CHANNELS,): whether the channel exists, and belongs to the group


class Norm(NamedTuple):
    """The numbers of each channel of a tile, as rows (1, CHANNELS) of type ACC."""

    mean: Any
    rstd: Any
    gamma: Any
    beta: Any
    slope: Any


# ---- parts that the kernels share -----------------------------------------------------------------------------------


@triton.jit
def _place(n_first, c_first, c_end, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """The place of this program in its group of planes.

    The group starts at sample n_first and channel c_first, and ends before channel c_end.
    """
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    pid = tl.program_id(0)
    sample = (n_first + pid // (blocks * SPLITS)).to(tl.int64)
    split = pid // blocks % SPLITS
    channel = c_first + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return Place(sample, split, channel, channel < c_end)


@triton.jit
def _affine(affine, place, SLOPE: tl.constexpr, MIN_SCALE: tl.constexpr, ACC: tl.constexpr):
    """γ, β and the slope of each channel, as rows (1, CHANNELS)."""
    channel, inside = place.channel, place.inside
    gamma = tl.full(channel.shape, 1.0, ACC)
    beta = tl.full(channel.shape, 0.0, ACC)
    if affine.weight is not None:
        gamma = tl.load(affine.weight + channel, mask=inside, other=1.0).to(ACC)
        least = tl.full(channel.shape, MIN_SCALE, ACC)  # tl.where of two constants would be float32
        gamma = tl.where(tl.abs(gamma) < least, tl.where(gamma < 0, -least, least), gamma)
    if affine.bias is not None:
        beta = tl.load(affine.bias + channel, mask=inside, other=0.0).to(ACC)
    if affine.slopes is not None:
        slope = tl.load(affine.slopes + channel, mask=inside, other=0.0).to(ACC)
    else:
        slope = tl.full(channel.shape, SLOPE, ACC)
    return gamma[None, :], beta[None, :], slope[None, :]


@triton.jit
def _norm(statistics, affine, place, C, SLOPE: tl.constexpr, MIN_SCALE: tl.constexpr, ACC: tl.constexpr):
    """The numbers of the channels of this program."""
    row = place.sample * C  # 64 bits; it is added to the pointer first, so the channels' offsets can have 32
    mean = tl.load(statistics.mean + row + place.channel, mask=place.inside, other=0.0)[None, :]
    rstd = tl.load(statistics.rstd + row + place.channel, mask=place.inside, other=0.0)[None, :]
    gamma, beta, slope = _affine(affine, place, SLOPE, MIN_SCALE, ACC)
    return Norm(mean, rstd, gamma, beta, slope)


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def _source(position, H, W, PAD: tl.constexpr):
    """The position in the input whose value the padded output has at `position`."""
    if PAD == 0:
        return position
    else:
        row = position // (W + 2 * PAD)
        column = tl.abs(position - row * (W + 2 * PAD) - PAD)
        row = tl.abs(row - PAD)
        row = H - 1 - tl.abs(H - 1 - row)
        column = W - 1 - tl.abs(W - 1 - column)
        return row * W + column


@triton.jit
def _write_outputs(
    x,
    residual,
    y,
    place,
    norm,
    begin,
    end,
    H,
    W,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute y at the output positions from `begin` to `end`. x is read tile by tile."""
    lane = tl.arange(0, POSITIONS)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        source = _source(position, H, W, PAD)
        mask = (position[:, None] < end) & place.inside[None, :]
        values = load_tile(x, place.sample, source, place.channel, mask, ACC)
        u = (values - norm.mean) * norm.rstd * norm.gamma + norm.beta
        if residual is not None:
            u += load_tile(residual, place.sample, source, place.channel, mask, ACC)
        store_tile(y, place.sample, position, place.channel, mask, activate(u, norm.slope, ACTIVATION))


@triton.jit
def single_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,  # written
    C,
    H,
    W,
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(0, 0, C, 1, CHANNELS)
    sample, channel = place.sample, place.channel
    position = tl.arange(0, POSITIONS)
    mask = (position[:, None] < H * W) & place.inside[None, :]
    values = load_tile(x, sample, position, channel, mask, ACC)
    count = tl.full((), H * W, ACC)
    mean = (tl.sum(values, axis=0) / count)[None, :]
    deviation = tl.where(mask, values - mean, 0.0)
    rest = (tl.sum(deviation, axis=0) / count)[None, :]  # of the mean: what rounding left out
    mean += rest
    deviation = tl.where(mask, deviation - rest, 0.0)
    rstd = (1 / tl.sqrt(tl.sum(deviation * deviation, axis=0) / count + EPS))[None, :]
    plane = (sample * C + channel)[None, :]
    tl.store(statistics.mean + plane, mean, mask=place.inside[None, :])
    tl.store(statistics.rstd + plane, rstd, mask=place.inside[None, :])

    gamma, beta, slope = _affine(affine, place, SLOPE, MIN_SCALE, ACC)
    if PAD == 0:
        u = deviation * rstd * gamma + beta
        if residual is not None:
            u += load_tile(residual, sample, position, channel, mask, ACC)
        store_tile(y, sample, position, channel, mask, activate(u, slope, ACTIVATION))
    else:  # the borders need values that other threads hold: read the plane again
        outputs = (H + 2 * PAD) * (W + 2 * PAD)
        norm = Norm(mean, rstd, gamma, beta, slope)
        _write_outputs(x, residual, y, place, norm, 0, outputs, H, W, ACTIVATION, PAD, POSITIONS, ACC)


@triton.jit(do_not_specialize=["n_first"])
def statistics_kernel(
    x,  # view (N, C, H, W)
    workspace,  # (N, SPLITS, 2, C), written: mean and sum of squared deviations of each part
    n_first,
    c_first,
    c_end,
    C,
    size,  # H · W
    length,  # positions of a part
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(n_first, c_first, c_end, SPLITS, CHANNELS)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, size)
    mean = tl.zeros((POSITIONS, CHANNELS), ACC)
    squares = tl.zeros((POSITIONS, CHANNELS), ACC)
    seen = tl.zeros((1, 1), ACC)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & place.inside[None, :]
        values = load_tile(x, place.sample, position, place.channel, mask, ACC)
        seen += 1.0
        deviation = tl.where(mask, values - mean, 0.0)
        mean += deviation * (1 / seen)
        squares += tl.where(mask, deviation * (values - mean), 0.0)
    # Each lane has seen some positions. Merge the lanes. The rounded mean leaves a rest.
    count = tl.maximum(end - begin, 0)
    seen_by_lane = ((tl.maximum(count - lane, 0) + POSITIONS - 1) // POSITIONS).to(ACC)[:, None]
    total = tl.maximum(count, 1).to(ACC)
    merged = tl.sum(seen_by_lane * mean, axis=0) / total
    apart = tl.where(lane[:, None] < count, mean - merged[None, :], 0.0)
    rest = tl.sum(seen_by_lane * apart, axis=0) / total
    squares = tl.sum(squares + seen_by_lane * apart * apart, axis=0)  # rest² is far below their digits
    merged += rest
    offset = (place.sample * SPLITS + place.split) * 2 * C + place.channel
    tl.store(workspace + offset, merged, mask=place.inside)
    tl.store(workspace + offset + C, squares, mask=place.inside)


@triton.jit(do_not_specialize=["n_first"])
def merge_statistics_kernel(
    workspace,  # of statistics_kernel
    statistics,  # written
    n_first,
    c_first,
    c_end,
    C,
    size,  # H · W
    length,  # positions of a part
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Merge the parts by Chan's formula: first the mean of all, then the squared deviations from it.

    Means are differences to the first part's mean, whose sums keep their digits. Parts without positions, at the end,
    have no mean.
    """
    place = _place(n_first, c_first, c_end, 1, CHANNELS)
    inside = place.inside
    parts = tl.arange(0, 16)
    first_mean = tl.load(workspace + place.sample * SPLITS * 2 * C + place.channel, mask=inside, other=0.0)
    sums = tl.zeros((16, CHANNELS), ACC)
    for first in range(0, SPLITS, 16):
        part = first + parts
        count = tl.maximum(tl.minimum(size - part * length, length), 0).to(ACC)[:, None]
        offset = (place.sample * SPLITS + part[:, None]) * 2 * C + place.channel[None, :]
        there = (part[:, None] < SPLITS) & (count > 0) & inside[None, :]
        sums += tl.where(there, count * (tl.load(workspace + offset, mask=there, other=0.0) - first_mean[None, :]), 0.0)
    rest = tl.sum(sums, axis=0) / size.to(ACC)
    squares = tl.zeros((16, CHANNELS), ACC)
    for first in range(0, SPLITS, 16):
        part = first + parts
        count = tl.maximum(tl.minimum(size - part * length, length), 0).to(ACC)[:, None]
        offset = (place.sample * SPLITS + part[:, None]) * 2 * C + place.channel[None, :]
        there = (part[:, None] < SPLITS) & (count > 0) & inside[None, :]
        apart = tl.load(workspace + offset, mask=there, other=0.0) - first_mean[None, :] - rest[None, :]
        squares += tl.where(there, count * apart * apart, 0.0) + tl.load(workspace + offset + C, mask=there, other=0.0)
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / size.to(ACC) + EPS)
    tl.store(statistics.mean + place.sample * C + place.channel, first_mean + rest, mask=inside)
    tl.store(statistics.rstd + place.sample * C + place.channel, rstd, mask=inside)


@triton.jit(do_not_specialize=["n_first"])
def apply_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    outputs,  # positions of the padded output
    length,  # positions of a part of it
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(n_first, c_first, c_end, SPLITS, CHANNELS)
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    begin = place.split * length
    end = tl.minimum(begin + length, outputs)
    _write_outputs(x, residual, y, place, norm, begin, end, H, W, ACTIVATION, PAD, POSITIONS, ACC)


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def _mirror(i, size, image: tl.constexpr, PAD: tl.constexpr):
    """The row of the padded output that has the values of input row i, and whether there is such a row.

    `image` selects a part of the output: 0 the inside, 1 the border above the first row, 2 the border below the last.
    Columns work in the same way.
    """
    if image == 0:
        return i + PAD, i == i
    elif image == 1:
        return PAD - i, (i >= 1) & (i <= PAD)
    else:
        return 2 * (size - 1) - i + PAD, (i >= size - 1 - PAD) & (i <= size - 2)


@triton.jit
def _load_upstream(grad, place, position, mask, H, W, PAD: tl.constexpr, ACC: tl.constexpr):
    """The gradient of the unpadded output: for each position, the sum over its copies in the padded output."""
    if PAD == 0:
        return load_tile(grad, place.sample, position, place.channel, mask, ACC)
    else:
        row, column = position // W, position % W
        total = tl.zeros(mask.shape, ACC)
        for vertical in tl.static_range(3):
            for horizontal in tl.static_range(3):
                r, row_shown = _mirror(row, H, vertical, PAD)
                c, column_shown = _mirror(column, W, horizontal, PAD)
                shown = mask & (row_shown & column_shown)[:, None]
                total += load_tile(grad, place.sample, r * (W + 2 * PAD) + c, place.channel, shown, ACC)
        return total


@triton.jit
def _normalised(
    saved,
    residual,
    place,
    norm,
    position,
    mask,
    W,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """x̂ and u of a tile, from the saved tensors."""
    shift = norm.beta
    if residual is not None:
        shift = norm.beta + load_tile(residual, place.sample, position, place.channel, mask, ACC)
    if FROM_OUTPUT:
        shown = position
        if PAD > 0:
            shown = (position // W + PAD) * (W + 2 * PAD) + position % W + PAD
        y = load_tile(saved, place.sample, shown, place.channel, mask, ACC)
        u = invert(y, norm.slope, ACTIVATION)
        return (u - shift) / norm.gamma, u
    else:
        x = load_tile(saved, place.sample, position, place.channel, mask, ACC)
        x_hat = (x - norm.mean) * norm.rstd
        return x_hat, x_hat * norm.gamma + shift


@triton.jit
def single_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    sums,  # (N, ROWS, C), written: Σg, Σg·x̂ and, for prelu, the sum of the slope's gradient
    C,
    H,
    W,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(0, 0, C, 1, CHANNELS)
    sample, channel, inside = place.sample, place.channel, place.inside
    position = tl.arange(0, POSITIONS)
    mask = (position[:, None] < H * W) & inside[None, :]
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
    upstream = _load_upstream(grad, place, position, mask, H, W, PAD, ACC)
    g = tl.where(mask, gradient(upstream, u, norm.slope, ACTIVATION), 0.0)
    sum_g = tl.sum(g, axis=0)
    sum_gx = tl.sum(tl.where(mask, g * x_hat, 0.0), axis=0)
    row = sample * ROWS * C + channel
    tl.store(sums + row, sum_g, mask=inside)
    tl.store(sums + row + C, sum_gx, mask=inside)
    if ROWS == 3:
        below = tl.sum(tl.where(mask, tl.where(u > 0, 0.0, upstream * u), 0.0), axis=0)
        tl.store(sums + row + 2 * C, below, mask=inside)
    count = tl.full((), H * W, ACC)
    centred = g - (sum_g / count)[None, :] - x_hat * (sum_gx / count)[None, :]
    store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
    if d_residual is not None:
        of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
        store_tile(of_residual, sample, position, channel, mask, g)


@triton.jit(do_not_specialize=["n_first"])
def sums_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    affine,
    statistics,
    workspace,  # (N, SPLITS, ROWS, C), written: the sums of single_bwd_kernel over each part
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    length,  # positions of a part
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(n_first, c_first, c_end, SPLITS, CHANNELS)
    inside = place.inside
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    sum_g = tl.zeros((POSITIONS, CHANNELS), ACC)
    sum_gx = tl.zeros((POSITIONS, CHANNELS), ACC)
    below = tl.zeros((POSITIONS, CHANNELS), ACC)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = _load_upstream(grad, place, position, mask, H, W, PAD, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        sum_g += tl.where(mask, g, 0.0)
        sum_gx += tl.where(mask, g * x_hat, 0.0)
        if ROWS == 3:
            below += tl.where(mask, tl.where(u > 0, 0.0, upstream * u), 0.0)
    row = (place.sample * SPLITS + place.split) * ROWS * C + place.channel
    tl.store(workspace + row, tl.sum(sum_g, axis=0), mask=inside)
    tl.store(workspace + row + C, tl.sum(sum_gx, axis=0), mask=inside)
    if ROWS == 3:
        tl.store(workspace + row + 2 * C, tl.sum(below, axis=0), mask=inside)


@triton.jit(do_not_specialize=["n_first"])
def merge_sums_kernel(
    workspace,  # of sums_kernel
    sums,  # (N, ROWS, C), written
    n_first,
    c_first,
    c_end,
    C,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Add up the sums of the parts."""
    place = _place(n_first, c_first, c_end, 1, CHANNELS)
    parts = tl.arange(0, 16)
    for row in tl.static_range(ROWS):
        total = tl.zeros((16, CHANNELS), ACC)
        for first in range(0, SPLITS, 16):
            part = first + parts
            offset = ((place.sample * SPLITS + part[:, None]) * ROWS + row) * C + place.channel[None, :]
            there = (part[:, None] < SPLITS) & place.inside[None, :]
            total += tl.load(workspace + offset, mask=there, other=0.0)
        tl.store(sums + (place.sample * ROWS + row) * C + place.channel, tl.sum(total, axis=0), mask=place.inside)


@triton.jit(do_not_specialize=["n_first"])
def apply_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    sums,  # of merge_sums_kernel
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    length,  # positions of a part
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(n_first, c_first, c_end, SPLITS, CHANNELS)
    sample, channel, inside = place.sample, place.channel, place.inside
    count = tl.full((), H * W, ACC)
    row = sample * ROWS * C + channel
    mean_g = tl.load(sums + row, mask=inside, other=0.0)[None, :] / count
    mean_gx = tl.load(sums + row + C, mask=inside, other=0.0)[None, :] / count
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = _load_upstream(grad, place, position, mask, H, W, PAD, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        centred = g - mean_g - x_hat * mean_gx
        store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
        if d_residual is not None:
            of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
            store_tile(of_residual, sample, position, channel, mask, g)


# ---- launches -------------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.forward`."""
    n, c, h, w = x.shape
    layout, accumulator = output_layout(x), accumulator_of(x)
    height, width = h + 2 * reflection_pad, w + 2 * reflection_pad
    y = torch.empty((n, c, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
    mean, rstd = (torch.empty((n, c), dtype=accumulator, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return y, mean, rstd
    images = _view(x, layout), _view(residual, layout), view_of(y)
    parameters = _affine_of(weight, bias, slopes), Statistics(mean, rstd)
    options: dict[str, Any] = {
        "ACTIVATION": activation,
        "SLOPE": negative_slope,
        "MIN_SCALE": min_scale,
        "PAD": reflection_pad,
        "ACC": TRITON_TYPES[accumulator],
    }
    channels_last, itemsize = layout == torch.channels_last, x.element_size()
    with on_device_of(x):
        if tile := single_tile(h * w, c, channels_last, itemsize):
            options |= {"EPS": eps, "POSITIONS": tile.positions, "CHANNELS": tile.channels, "num_warps": tile.warps}
            grid = (n * triton.cdiv(c, tile.channels),)
            single_fwd_kernel[grid](*images, *parameters, c, h, w, **options)
            return y, mean, rstd
        cut = stream(n * c, h * w, c, channels_last, itemsize)
        workspace = torch.empty((n, cut.splits, 2, c), dtype=accumulator, device=x.device)
        plane, padded = (h * w, cut.length(h * w)), (height * width, cut.length(height * width))
        parts = {"SPLITS": cut.splits, "ACC": options["ACC"]}
        shape = {"POSITIONS": cut.tile.positions, "CHANNELS": cut.tile.channels, "num_warps": cut.tile.warps}
        merge = {"EPS": eps, "CHANNELS": MERGE_CHANNELS}
        for group in groups(n, c, h * w * itemsize, cut.tile.channels):
            grid, merge_grid, where = _group_launch(group, cut, c)
            statistics_kernel[grid](images[0], workspace, *where, *plane, **parts, **shape)
            merge_statistics_kernel[merge_grid](workspace, parameters[1], *where, *plane, **parts, **merge)
            apply_fwd_kernel[grid](*images, *parameters, *where, h, w, *padded, **options | parts, **shape)
    return y, mean, rstd


def backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    *,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as `reference.backward`, but the gradients of x and of the residual have x's dtype."""
    n, c, h, w = grad.shape
    h, w = h - 2 * reflection_pad, w - 2 * reflection_pad
    layout, accumulator = output_layout(saved), accumulator_of(saved)
    dx = torch.empty((n, c, h, w), dtype=saved.dtype, device=saved.device, memory_format=layout)
    d_residual = None if residual is None else torch.empty_like(dx)
    rows = 3 if slopes is not None else 2
    sums = torch.empty((n, rows, c), dtype=accumulator, device=saved.device)
    if dx.numel():
        read = _view(grad, layout), _view(saved, layout), _view(residual, layout)
        written = view_of(dx), d_residual
        parameters = _affine_of(weight, bias, slopes), Statistics(mean.contiguous(), rstd.contiguous())
        options: dict[str, Any] = {
            "ACTIVATION": activation,
            "SLOPE": negative_slope,
            "MIN_SCALE": min_scale,
            "FROM_OUTPUT": from_output,
            "PAD": reflection_pad,
            "ROWS": rows,
            "ACC": TRITON_TYPES[accumulator],
        }
        channels_last, itemsize = layout == torch.channels_last, saved.element_size()
        with on_device_of(saved):
            if tile := single_tile(h * w, c, channels_last, itemsize, backward=True, pad=reflection_pad):
                options |= {"POSITIONS": tile.positions, "CHANNELS": tile.channels, "num_warps": tile.warps}
                grid = (n * triton.cdiv(c, tile.channels),)
                single_bwd_kernel[grid](*read, *written, *parameters, sums, c, h, w, **options)
            else:
                heavy = reflection_pad > 0 or slopes is not None
                cut = stream(n * c, h * w, c, channels_last, itemsize, heavy=heavy)
                workspace = torch.empty((n, cut.splits, rows, c), dtype=accumulator, device=saved.device)
                options |= {"POSITIONS": cut.tile.positions, "CHANNELS": cut.tile.channels, "SPLITS": cut.splits}
                options |= {"num_warps": cut.tile.warps, "maxnreg": MOST_REGISTERS}
                merge = {name: options[name] for name in ("ROWS", "SPLITS", "ACC")} | {"CHANNELS": MERGE_CHANNELS}
                plane = h, w, cut.length(h * w)
                for group in groups(n, c, 2 * h * w * itemsize, cut.tile.channels):
                    grid, merge_grid, where = _group_launch(group, cut, c)
                    sums_kernel[grid](*read, *parameters, workspace, *where, *plane, **options)
                    merge_sums_kernel[merge_grid](workspace, sums, *where, **merge)
                    apply_bwd_kernel[grid](*read, *written, *parameters, sums, *where, *plane, **options)
    d_bias, d_weight = sums[:, 0].sum(0), sums[:, 1].sum(0)
    d_slope = dx.new_empty(0) if slopes is None else sums[:, 2].sum(0)
    return dx, d_weight, d_bias, d_slope, dx.new_empty(0) if d_residual is None else d_residual


def _view(image: Tensor | None, layout: torch.memory_format) -> View | None:
    return None if image is None else view_of(addressable(image, layout))


def _affine_of(*parameters: Tensor | None) -> Affine:
    return Affine(*(None if parameter is None else parameter.contiguous() for parameter in parameters))


def _group_launch(
    group: tuple[int, int, int, int], cut: Stream, c: int
) -> tuple[tuple[int], tuple[int], tuple[int, int, int, int]]:
    """The grids for a group, and its arguments (n_first, c_first, c_end, C).

    The first grid is for the kernels that read the planes, the second for the kernel that merges the parts.
    """
    n_first, samples, c_first, channels = group
    grid = (samples * cut.splits * triton.cdiv(channels, cut.tile.channels),)
    merge_grid = (samples * triton.cdiv(channels, MERGE_CHANNELS),)
    return grid, merge_grid, (n_first, c_first, c_first + channels, c)
