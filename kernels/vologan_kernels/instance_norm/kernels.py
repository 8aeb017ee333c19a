"""Triton kernels of the instance norm. The docstring of `vologan_kernels.instance_norm` states the mathematics.

**Two tiers.** If a plane fits the registers of a program, one kernel makes the forward (`single_fwd_kernel`) and one
makes the backward (`single_bwd_kernel`). They read the plane once; a forward with padding reads it twice. A larger
plane is cut into parts. Then the forward and the backward have two kernels each:

1. `statistics_kernel` or `sums_kernel` reads each part and writes its sums to a workspace;
2. `apply_fwd_kernel` or `apply_bwd_kernel` merges the sums of a plane, reads the plane again and writes the result.

In the second kernel every program of a plane merges the sums of all parts for itself. There are few parts, and a third
launch would take longer. It walks through its part backwards, because the L2 cache holds what was read last. There are
no atomics: the same input gives the same bits on the same GPU.

**Loads in flight.** A loop reads its tiles by asynchronous copies to shared memory, STAGES tiles ahead. Without them, a
load would wait until the tile before it is used.

**Reflection padding** only maps indices. In the forward, each position of the output reads one position of the input.
In the backward, each position of the input adds up the gradients of up to nine positions of the output.

**Arithmetic** is in the type ACC, which is float32 or float64. ε and the other numbers are compile-time constants,
which Triton converts to ACC. Each lane computes the variance of its values by Welford's algorithm, and so does each
lane that merges parts. Then Chan's formula merges the lanes (Chan, Golub, LeVeque, 1983). The rounded mean leaves a
rest, which is the mean of the deviations. It is added too. So no digits are lost if the mean is far larger than the
deviation, and a constant plane gives β.

**Arguments.** An image is a `layouts.View`: a pointer and three strides. Names in capital letters are sizes and
compile-time constants. A tile is a block of values (positions, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.activations_triton import activate, gradient, invert
from vologan_kernels.device import multiprocessors, on_device_of
from vologan_kernels.launch import ADD_CHANNELS, ADD_LANES, MOST_REGISTERS, Stream, single_tile, stream
from vologan_kernels.layouts import View, maker, output_layout, view_like
from vologan_kernels.planned import BoundLaunch, planned
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
    inside: Any  # (CHANNELS,): whether the channel exists


class Norm(NamedTuple):
    """The numbers of each channel of a tile, as rows (1, CHANNELS) of type ACC."""

    mean: Any
    rstd: Any
    gamma: Any
    beta: Any
    slope: Any


# ---- parts that the kernels share -----------------------------------------------------------------------------------


@triton.jit
def _place(C, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """The place of this program. Programs with neighbouring numbers work on neighbouring channels of one part."""
    blocks = tl.cdiv(C, CHANNELS)
    pid = tl.program_id(0)
    channel = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return Place((pid // (blocks * SPLITS)).to(tl.int64), pid // blocks % SPLITS, channel, channel < C)


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


@triton.jit
def _merge_lanes(seen, mean, squares, total):
    """The mean and the squared deviations of all values: (CHANNELS,).

    Each lane has seen some of the `total` values: `seen` (lanes, 1). It has their mean and their squared deviations
    from it: (lanes, CHANNELS).
    """
    merged = tl.sum(seen * mean, axis=0) / total
    apart = tl.where(seen > 0, mean - merged[None, :], 0.0)
    rest = tl.sum(seen * apart, axis=0) / total
    return merged + rest, tl.sum(squares + seen * apart * apart, axis=0)  # rest² is far below their digits


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
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute y at the output positions from `begin` to `end`. x is read tile by tile, the last tile first."""
    lane = tl.arange(0, POSITIONS)
    tiles = tl.cdiv(end - begin, POSITIONS)
    for i in tl.range(0, tiles, num_stages=STAGES):
        position = begin + (tiles - 1 - i) * POSITIONS + lane
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
    place = _place(C, 1, CHANNELS)
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
        _write_outputs(x, residual, y, place, norm, 0, outputs, H, W, ACTIVATION, PAD, POSITIONS, 1, ACC)


@triton.jit
def statistics_kernel(
    x,  # view (N, C, H, W)
    workspace,  # (N, SPLITS, 2, C), written: mean and sum of squared deviations of each part
    C,
    H,
    W,
    length,  # positions of a part
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(C, SPLITS, CHANNELS)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    count = tl.maximum(end - begin, 0)
    whole = begin + count // POSITIONS * POSITIONS
    mean = tl.zeros((POSITIONS, CHANNELS), ACC)
    squares = tl.zeros((POSITIONS, CHANNELS), ACC)
    seen = tl.zeros((1, 1), ACC)
    everywhere = (lane >= 0)[:, None] & place.inside[None, :]
    for first in tl.range(begin, whole, POSITIONS, num_stages=STAGES):
        values = load_tile(x, place.sample, first + lane, place.channel, everywhere, ACC)
        seen += 1.0
        deviation = values - mean
        mean += deviation * (1 / seen)
        squares += deviation * (values - mean)
    if whole < end:  # the last tile is not full
        mask = (whole + lane < end)[:, None] & place.inside[None, :]
        values = load_tile(x, place.sample, whole + lane, place.channel, mask, ACC)
        deviation = tl.where(mask, values - mean, 0.0)
        mean += deviation * (1 / (seen + 1.0))
        squares += tl.where(mask, deviation * (values - mean), 0.0)
    seen_by_lane = ((tl.maximum(count - lane, 0) + POSITIONS - 1) // POSITIONS).to(ACC)[:, None]
    mean_of_part, squares_of_part = _merge_lanes(seen_by_lane, mean, squares, tl.maximum(count, 1).to(ACC))
    offset = (place.sample * SPLITS + place.split) * 2 * C + place.channel
    tl.store(workspace + offset, mean_of_part, mask=place.inside)
    tl.store(workspace + offset + C, squares_of_part, mask=place.inside)


@triton.jit
def _merge_parts(
    workspace,  # of statistics_kernel
    place,
    C,
    size,
    length,
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """The mean and rstd of the planes of this program: (CHANNELS,). Parts without positions, at the end, have none."""
    lane = tl.arange(0, LANES)
    seen = tl.zeros((LANES, 1), ACC)
    mean = tl.zeros((LANES, CHANNELS), ACC)
    squares = tl.zeros((LANES, CHANNELS), ACC)
    for first in range(0, SPLITS, LANES):
        part = first + lane
        count = tl.maximum(tl.minimum(size - part * length, length), 0).to(ACC)[:, None]
        there = (count > 0) & (part < SPLITS)[:, None] & place.inside[None, :]
        offset = (place.sample * SPLITS + part[:, None]) * 2 * C + place.channel[None, :]
        mean_of_part = tl.load(workspace + offset, mask=there, other=0.0)
        seen += count
        deviation = tl.where(there, mean_of_part - mean, 0.0)
        mean += deviation * (count / tl.maximum(seen, 1.0))
        squares += tl.where(there, count * deviation * (mean_of_part - mean), 0.0)
        squares += tl.load(workspace + offset + C, mask=there, other=0.0)
    merged, deviations = _merge_lanes(seen, mean, squares, size.to(ACC))
    return merged, 1 / tl.sqrt(deviations / size.to(ACC) + EPS)


@triton.jit
def apply_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,  # written
    workspace,  # of statistics_kernel
    C,
    H,
    W,
    length,  # positions of a part of x
    outputs,  # positions of the padded output
    outputs_length,  # positions of a part of it
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(C, SPLITS, CHANNELS)
    size = tl.full((), H * W, tl.int32)
    mean, rstd = _merge_parts(workspace, place, C, size, length, EPS, SPLITS, LANES, CHANNELS, ACC)
    if place.split == 0:
        tl.store(statistics.mean + place.sample * C + place.channel, mean, mask=place.inside)
        tl.store(statistics.rstd + place.sample * C + place.channel, rstd, mask=place.inside)
    gamma, beta, slope = _affine(affine, place, SLOPE, MIN_SCALE, ACC)
    norm = Norm(mean[None, :], rstd[None, :], gamma, beta, slope)
    begin = place.split * outputs_length
    end = tl.minimum(begin + outputs_length, outputs)
    _write_outputs(x, residual, y, place, norm, begin, end, H, W, ACTIVATION, PAD, POSITIONS, STAGES, ACC)


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
def _load_upstream(
    grad, place, first, position, mask, H, W, PAD: tl.constexpr, POSITIONS: tl.constexpr, ACC: tl.constexpr
):
    """The gradient of the unpadded output: for each position, the sum over its copies in the padded output.

    `first` is the tile's first position. Only positions near the border have copies. So most tiles of a large image
    load one gradient instead of nine. A load in a branch is not made ahead.
    """
    if PAD == 0:
        return load_tile(grad, place.sample, position, place.channel, mask, ACC)
    else:
        row, column = position // W, position % W
        inner = (row + PAD) * (W + 2 * PAD) + column + PAD
        total = load_tile(grad, place.sample, inner, place.channel, mask, ACC)
        first_row, first_column = first // W, first % W
        has_copies = (first_row <= PAD) | (first_row >= H - 1 - PAD)
        has_copies = has_copies | (first_column <= PAD) | (first_column + POSITIONS >= W - PAD)
        if has_copies:
            for copy in tl.static_range(1, 9):
                r, row_shown = _mirror(row, H, copy // 3, PAD)
                c, column_shown = _mirror(column, W, copy % 3, PAD)
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
def _store_rows(to_g, to_gx, to_slope, sum_g, sum_gx, of_slope, channel, inside, ROWS: tl.constexpr):
    """Store Σg, Σg·x̂ and, if there are three rows, the sum of the slope's gradient."""
    tl.store(to_g + channel, sum_g, mask=inside)
    tl.store(to_gx + channel, sum_gx, mask=inside)
    if ROWS == 3:
        tl.store(to_slope + channel, of_slope, mask=inside)


@triton.jit
def _add_parts(
    parts,  # (parts, C)
    first,
    end,
    place,
    C,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """The sum of the parts from `first` to `end`, for the channels of this program: (CHANNELS,)."""
    total = tl.zeros((LANES, CHANNELS), ACC)
    for start in range(first, end, LANES):
        part = start + tl.arange(0, LANES)
        there = (part < end)[:, None] & place.inside[None, :]
        total += tl.load(parts + part.to(tl.int64)[:, None] * C + place.channel[None, :], mask=there, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _add_samples(
    gradients,  # of `affine`, written
    sums,  # (ROWS, parts, C)
    parts,
    place,
    C,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Add the sums of all parts of all samples, for the channels of this program."""
    plane = parts.to(tl.int64) * C
    d_bias = _add_parts(sums, 0, parts, place, C, LANES, CHANNELS, ACC)
    d_weight = _add_parts(sums + plane, 0, parts, place, C, LANES, CHANNELS, ACC)
    d_slopes = d_bias
    if ROWS == 3:
        d_slopes = _add_parts(sums + 2 * plane, 0, parts, place, C, LANES, CHANNELS, ACC)
    rows = gradients
    _store_rows(rows.bias, rows.weight, rows.slopes, d_bias, d_weight, d_slopes, place.channel, place.inside, ROWS)


@triton.jit
def add_samples_kernel(
    gradients,  # of `affine`, written
    sums,  # (ROWS, N, C), of single_bwd_kernel
    N,
    C,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    _add_samples(gradients, sums, tl.full((), N, tl.int32), _place(C, 1, CHANNELS), C, ROWS, LANES, CHANNELS, ACC)


@triton.jit
def single_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    gradients,  # of `affine`, written if N is 1
    sums,  # (ROWS, N, C), written if N is not 1: Σg, Σg·x̂ and, for prelu, the sum of the slope's gradient
    N,
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
    place = _place(C, 1, CHANNELS)
    sample, channel, inside = place.sample, place.channel, place.inside
    position = tl.arange(0, POSITIONS)
    mask = (position[:, None] < H * W) & inside[None, :]
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
    upstream = _load_upstream(grad, place, 0, position, mask, H, W, PAD, POSITIONS, ACC)
    g = tl.where(mask, gradient(upstream, u, norm.slope, ACTIVATION), 0.0)
    sum_g = tl.sum(g, axis=0)
    sum_gx = tl.sum(tl.where(mask, g * x_hat, 0.0), axis=0)
    below = sum_g
    if ROWS == 3:
        below = tl.sum(tl.where(mask, tl.where(u > 0, 0.0, upstream * u), 0.0), axis=0)
    if N == 1:  # which is a compile-time constant then
        _store_rows(gradients.bias, gradients.weight, gradients.slopes, sum_g, sum_gx, below, channel, inside, ROWS)
    else:
        plane = tl.full((), N, tl.int64) * C
        row = sums + sample * C
        _store_rows(row, row + plane, row + 2 * plane, sum_g, sum_gx, below, channel, inside, ROWS)
    count = tl.full((), H * W, ACC)
    centred = g - (sum_g / count)[None, :] - x_hat * (sum_gx / count)[None, :]
    store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
    if d_residual is not None:
        of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
        store_tile(of_residual, sample, position, channel, mask, g)


@triton.jit
def sums_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    affine,
    statistics,
    sums,  # (ROWS, N · SPLITS, C), written: the sums of single_bwd_kernel over each part
    parts,  # N · SPLITS
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
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(C, SPLITS, CHANNELS)
    inside = place.inside
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    sum_g = tl.zeros((POSITIONS, CHANNELS), ACC)
    sum_gx = tl.zeros((POSITIONS, CHANNELS), ACC)
    below = tl.zeros((POSITIONS, CHANNELS), ACC)
    for first in tl.range(begin, end, POSITIONS, num_stages=STAGES):
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = _load_upstream(grad, place, first, position, mask, H, W, PAD, POSITIONS, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        sum_g += tl.where(mask, g, 0.0)
        sum_gx += tl.where(mask, g * x_hat, 0.0)
        if ROWS == 3:
            below += tl.where(mask, tl.where(u > 0, 0.0, upstream * u), 0.0)
    row = sums + (place.sample * SPLITS + place.split) * C
    plane = tl.full((), parts, tl.int64) * C
    of_g, of_gx, of_slope = tl.sum(sum_g, axis=0), tl.sum(sum_gx, axis=0), tl.sum(below, axis=0)
    _store_rows(row, row + plane, row + 2 * plane, of_g, of_gx, of_slope, place.channel, inside, ROWS)


@triton.jit
def apply_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    gradients,  # of `affine`, written
    sums,  # of sums_kernel
    parts,  # N · SPLITS
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
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = _place(C, SPLITS, CHANNELS)
    sample, channel, inside = place.sample, place.channel, place.inside
    count = tl.full((), H * W, ACC)
    all_parts = tl.full((), parts, tl.int32)
    first_part = sample * SPLITS
    sum_g = _add_parts(sums, first_part, first_part + SPLITS, place, C, LANES, CHANNELS, ACC)
    of_gx = sums + all_parts.to(tl.int64) * C
    sum_gx = _add_parts(of_gx, first_part, first_part + SPLITS, place, C, LANES, CHANNELS, ACC)
    mean_g, mean_gx = (sum_g / count)[None, :], (sum_gx / count)[None, :]
    if (sample == 0) & (place.split == 0):
        _add_samples(gradients, sums, all_parts, place, C, ROWS, LANES, CHANNELS, ACC)
    norm = _norm(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    tiles = tl.cdiv(end - begin, POSITIONS)
    for i in tl.range(0, tiles, num_stages=STAGES):
        first = begin + (tiles - 1 - i) * POSITIONS
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = _load_upstream(grad, place, first, position, mask, H, W, PAD, POSITIONS, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        centred = g - mean_g - x_hat * mean_gx
        store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
        if d_residual is not None:
            of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
            store_tile(of_residual, sample, position, channel, mask, g)


# ---- launches -------------------------------------------------------------------------------------------------------


@planned(tensors=5)
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The same as `reference.forward`."""
    n, c, h, w = x.shape
    layout, accumulator = output_layout(x), accumulator_of(x)
    shape = n, c, h + 2 * reflection_pad, w + 2 * reflection_pad
    new_y = maker(shape, x.dtype, x.device, layout)
    new_statistic = maker((n, c), accumulator, x.device)
    written = torch.empty(shape, device="meta", memory_format=layout)
    view_x, view_residual, view_y = (view_like(image, layout) for image in (x, residual, written))
    affine = _affine_like(weight, bias, slopes)
    empty = x.numel() == 0

    options: dict[str, Any] = {
        "ACTIVATION": activation,
        "EPS": eps,
        "SLOPE": negative_slope,
        "MIN_SCALE": min_scale,
        "PAD": reflection_pad,
        "ACC": TRITON_TYPES[accumulator],
    }
    channels_last, itemsize = layout == torch.channels_last, x.element_size()
    if tile := single_tile(h * w, c, channels_last, itemsize):
        options |= {"POSITIONS": tile.positions, "CHANNELS": tile.channels, "num_warps": tile.warps}
        single = BoundLaunch(n * triton.cdiv(c, tile.channels), (c, h, w), options)
    elif not empty:
        cut = stream(n * c, h * w, c, channels_last, itemsize, multiprocessors=multiprocessors(x.device))
        programs, cutting = _streaming(cut, n, c)
        new_workspace = maker((n, cut.splits, 2, c), accumulator, x.device)
        sizes, outputs = (c, h, w, cut.length(h * w)), shape[2] * shape[3]
        statistics = BoundLaunch(programs, sizes, {"ACC": options["ACC"], "STAGES": cut.stages(1)} | cutting)
        options |= {"LANES": cut.lanes, "STAGES": cut.stages(1 if residual is None else 2)} | cutting
        apply = BoundLaunch(programs, (*sizes, outputs, cut.length(outputs)), options)

    def run(x, weight, bias, slopes, residual):
        y, mean, rstd = new_y(), new_statistic(), new_statistic()
        if empty:
            return y, mean, rstd
        images = view_x(x), view_residual(residual), view_y(y)
        parameters = affine(weight, bias, slopes), Statistics(mean, rstd)
        with on_device_of(x):
            if tile:
                single(single_fwd_kernel, *images, *parameters)
            else:
                workspace = new_workspace()
                statistics(statistics_kernel, images[0], workspace)
                apply(apply_fwd_kernel, *images, *parameters, workspace)
        return y, mean, rstd

    return run


@planned(tensors=8)
def backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The same as `reference.backward`, but the gradients of x and of the residual have x's dtype."""
    n, c, h, w = grad.shape
    h, w = h - 2 * reflection_pad, w - 2 * reflection_pad
    layout, accumulator = output_layout(saved), accumulator_of(saved)
    new_dx = maker((n, c, h, w), saved.dtype, saved.device, layout)
    new_gradient = maker((c,), accumulator, saved.device)
    written = torch.empty((n, c, h, w), device="meta", memory_format=layout)
    view_grad, view_saved, view_residual, view_dx = (
        view_like(image, layout) for image in (grad, saved, residual, written)
    )
    affine = _affine_like(weight, bias, slopes)
    rows, empty = 2 if slopes is None else 3, n * c * h * w == 0

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
    if tile := single_tile(h * w, c, channels_last, itemsize, backward=True, pad=reflection_pad):
        options |= {"POSITIONS": tile.positions, "CHANNELS": tile.channels, "num_warps": tile.warps}
        single = BoundLaunch(n * triton.cdiv(c, tile.channels), (n, c, h, w), options)
        adding = {"ROWS": rows, "LANES": ADD_LANES, "CHANNELS": ADD_CHANNELS, "ACC": options["ACC"]}
        add = BoundLaunch(triton.cdiv(c, ADD_CHANNELS), (n, c), adding)
        new_sums = maker((rows, n, c), accumulator, saved.device)
    elif not empty:
        heavy = reflection_pad > 0 or activation in ("prelu", "gelu")
        count = multiprocessors(saved.device)
        cut = stream(n * c, h * w, c, channels_last, itemsize, heavy=heavy, multiprocessors=count)
        programs, cutting = _streaming(cut, n, c)
        parts = n * cut.splits
        new_sums = maker((rows, parts, c), accumulator, saved.device)
        sizes = parts, c, h, w, cut.length(h * w)
        options |= {"STAGES": cut.stages(2 if residual is None else 3), "maxnreg": MOST_REGISTERS} | cutting
        sums_of_parts = BoundLaunch(programs, sizes, options)
        apply = BoundLaunch(programs, sizes, options | {"LANES": cut.lanes})

    def run(grad, saved, mean, rstd, weight, bias, slopes, residual):
        dx, d_residual = new_dx(), None if residual is None else new_dx()
        gradients = Affine(new_gradient(), new_gradient(), None if slopes is None else new_gradient())
        if empty:
            for gradient in gradients:
                if gradient is not None:
                    gradient.zero_()
        else:
            read = view_grad(grad), view_saved(saved), view_residual(residual)
            written = view_dx(dx), d_residual
            parameters = affine(weight, bias, slopes), Statistics(mean.contiguous(), rstd.contiguous())
            with on_device_of(saved):
                if tile:
                    sums = None if n == 1 else new_sums()
                    single(single_bwd_kernel, *read, *written, *parameters, gradients, sums)
                    if n > 1:
                        add(add_samples_kernel, gradients, sums)
                else:
                    sums = new_sums()
                    sums_of_parts(sums_kernel, *read, *parameters, sums)
                    apply(apply_bwd_kernel, *read, *written, *parameters, gradients, sums)
        return dx, *gradients, d_residual

    return run


def _affine_like(*parameters: Tensor | None) -> Callable[..., Affine]:
    """A function of γ, β and slopes that lie as `parameters`. The kernels read dense ones."""
    if all(parameter is None or parameter.is_contiguous() for parameter in parameters):
        return Affine
    return lambda *given: Affine(*(None if parameter is None else parameter.contiguous() for parameter in given))


def _streaming(cut: Stream, n: int, c: int) -> tuple[int, dict[str, int]]:
    """The programs of a streaming kernel, one for each part of the planes of some channels, and its shape."""
    tile = cut.tile
    return n * cut.splits * triton.cdiv(c, tile.channels), {
        "SPLITS": cut.splits,
        "POSITIONS": tile.positions,
        "CHANNELS": tile.channels,
        "num_warps": tile.warps,
    }
