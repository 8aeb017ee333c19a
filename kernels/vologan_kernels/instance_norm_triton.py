"""Triton kernels of `instance_norm.py`, which states the mathematics.

Two tiers. A plane that fits a program's registers takes one kernel each way (`single_fwd_kernel`, `single_bwd_kernel`):
it is read once. A larger plane is cut into parts: a first kernel (`statistics_kernel`, `sums_kernel`) writes what it
finds in each part to a workspace (N, parts, 2 or 3, C); a small one (`merge_…_kernel`) merges the parts; the last
(`apply_fwd_kernel`, `apply_bwd_kernel`) reads the plane again. They run in turn over groups of planes small enough for
the second reading to come from the L2 cache. There are no atomics: the same input gives the same bits.

Reflection padding is an index map: output positions gather from the input, input positions gather the gradients of up
to nine output positions.

Arithmetic is in ACC, float32 or float64; ε and the other numbers are compile-time constants, which take either
precision. Variance is Welford's, lane by lane, merged by Chan's formula: a mean far larger
than the deviation costs no digits (Chan, Golub, LeVeque, 1983).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.instance_norm import output_layout
from vologan_kernels.launch import MERGE_CHANNELS, MOST_REGISTERS, groups, is_channels_last, single_tile, stream
from vologan_kernels.tiles_triton import (
    TRITON_TYPES,
    accumulator_of,
    addressable,
    load_tile,
    on_device_of,
    store_tile,
    strides_of,
)

# ---- activations: the table of activations.py -----------------------------------------------------------------------


@triton.jit
def _tanh(u):
    """Cephes' rational approximation near 0 (S. Moshier, tanh.c), where the exponentials would cancel."""
    z = u * u
    p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
    q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
    e = tl.exp(-2 * tl.abs(u))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(u) < 0.625, u + u * z * p / q, tl.where(u < 0, -far, far))


@triton.jit
def _sigmoid(u):
    return 1 / (1 + tl.exp(-u))


@triton.jit
def _activate(u, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, u)
    elif ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(u > 0, u, u * slope)
    elif ACTIVATION == "silu":
        return u * _sigmoid(u)
    elif ACTIVATION == "gelu":
        return 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "elu":  # expm1(u) = 2 tanh(u/2) / (1 − tanh(u/2))
        t = _tanh(0.5 * tl.where(u > 0, 0.0, u))
        return tl.where(u > 0, u, 2 * t / (1 - t))
    elif ACTIVATION == "tanh":
        return _tanh(u)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return u


@triton.jit
def _derivative(u, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(u > 0, 1.0, 0.0).to(u.dtype)
    elif ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(u > 0, 1.0, slope).to(u.dtype)
    elif ACTIVATION == "silu":
        s = _sigmoid(u)
        return s * (1 + u * (1 - s))
    elif ACTIVATION == "gelu":
        return 0.5 * (1 + tl.erf(u * 0.7071067811865476)) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    elif ACTIVATION == "elu":
        return tl.exp(tl.where(u > 0, 0.0, u))
    elif ACTIVATION == "tanh":
        t = _tanh(u)
        return 1 - t * t
    else:
        tl.static_assert(ACTIVATION == "identity")
        return tl.full(u.shape, 1.0, u.dtype)


@triton.jit
def _invert(y, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "leaky_relu":
        return tl.where(y > 0, y, y / slope)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return y


# ---- parts of kernels -----------------------------------------------------------------------------------------------


@triton.jit
def _affine(weight, bias, slopes, channel, c_end, SLOPE: tl.constexpr, MIN_SCALE: tl.constexpr, ACC: tl.constexpr):
    """γ, β and the slope of each channel, as rows (1, channels)."""
    inside = channel < c_end
    gamma = tl.full(channel.shape, 1.0, ACC)
    beta = tl.full(channel.shape, 0.0, ACC)
    if weight is not None:
        gamma = tl.load(weight + channel, mask=inside, other=1.0).to(ACC)
        gamma = tl.where(tl.abs(gamma) < MIN_SCALE, tl.where(gamma < 0, -MIN_SCALE, MIN_SCALE), gamma).to(ACC)
    if bias is not None:
        beta = tl.load(bias + channel, mask=inside, other=0.0).to(ACC)
    if slopes is not None:
        leak = tl.load(slopes + channel, mask=inside, other=0.0).to(ACC)
    else:
        leak = tl.full(channel.shape, SLOPE, ACC)
    return gamma[None, :], beta[None, :], leak[None, :]


@triton.jit
def _source(position, H, W, PAD: tl.constexpr):
    """The input position that the padded output shows at `position`."""
    if PAD == 0:
        return position
    else:
        row = tl.abs(position // (W + 2 * PAD) - PAD)
        column = tl.abs(position % (W + 2 * PAD) - PAD)
        row = H - 1 - tl.abs(H - 1 - row)
        column = W - 1 - tl.abs(W - 1 - column)
        return row * W + column


@triton.jit
def _mirror(i, size, image: tl.constexpr, PAD: tl.constexpr):
    """Where the padded output shows row i (image 0: inside, 1: in the near border, 2: in the far one), and whether."""
    if image == 0:
        return i + PAD, i == i
    elif image == 1:
        return PAD - i, (i >= 1) & (i <= PAD)
    else:
        return 2 * (size - 1) - i + PAD, (i >= size - 1 - PAD) & (i <= size - 2)


@triton.jit
def _load_upstream(
    grad, sample, position, channel, stride_n, stride_p, stride_c, H, W, mask, PAD: tl.constexpr, ACC: tl.constexpr
):
    """The gradient of the unpadded output: the sum over the places where the padded output shows a position."""
    if PAD == 0:
        return load_tile(grad, sample, position, channel, stride_n, stride_p, stride_c, mask, ACC)
    else:
        row, column = position // W, position % W
        total = tl.zeros(mask.shape, ACC)
        for vertical in tl.static_range(3):
            for horizontal in tl.static_range(3):
                r, row_shown = _mirror(row, H, vertical, PAD)
                c, column_shown = _mirror(column, W, horizontal, PAD)
                shown = mask & (row_shown & column_shown)[:, None]
                place = r * (W + 2 * PAD) + c
                total += load_tile(grad, sample, place, channel, stride_n, stride_p, stride_c, shown, ACC)
        return total


@triton.jit
def _normalised(
    saved,
    residual,
    sample,
    position,
    channel,
    saved_n,
    saved_p,
    saved_c,
    residual_n,
    residual_p,
    residual_c,
    W,
    mask,
    mean,
    rstd,
    gamma,
    beta,
    leak,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """x̂ and u of a tile, from what was saved."""
    shift = beta
    if residual is not None:
        shift = beta + load_tile(residual, sample, position, channel, residual_n, residual_p, residual_c, mask, ACC)
    if FROM_OUTPUT:
        place = position
        if PAD > 0:
            place = (position // W + PAD) * (W + 2 * PAD) + position % W + PAD
        y = load_tile(saved, sample, place, channel, saved_n, saved_p, saved_c, mask, ACC)
        u = _invert(y, leak, ACTIVATION)
        return (u - shift) / gamma, u
    else:
        x = load_tile(saved, sample, position, channel, saved_n, saved_p, saved_c, mask, ACC)
        x_hat = (x - mean) * rstd
        return x_hat, x_hat * gamma + shift


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def single_fwd_kernel(
    x,  # (N, C, H, W), any strides
    weight,  # (C,) or None
    bias,  # (C,) or None
    slopes,  # (C,) or None
    residual,  # as x, or None
    y,  # (N, C, H + 2·PAD, W + 2·PAD)
    mean_out,  # (N, C)
    rstd_out,  # (N, C)
    C,
    H,
    W,
    x_n,
    x_p,
    x_c,
    residual_n,
    residual_p,
    residual_c,
    y_n,
    y_p,
    y_c,
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    position = tl.arange(0, POSITIONS)
    mask = (position[:, None] < H * W) & (channel[None, :] < C)
    values = load_tile(x, sample, position, channel, x_n, x_p, x_c, mask, ACC)
    count = (H * W).to(ACC)
    mean = (tl.sum(values, axis=0) / count)[None, :]
    deviation = tl.where(mask, values - mean, 0.0)
    rstd = (1 / tl.sqrt(tl.sum(deviation * deviation, axis=0) / count + EPS))[None, :]
    statistics = sample * C + channel
    tl.store(mean_out + statistics[None, :], mean, mask=channel[None, :] < C)
    tl.store(rstd_out + statistics[None, :], rstd, mask=channel[None, :] < C)

    gamma, beta, leak = _affine(weight, bias, slopes, channel, C, SLOPE, MIN_SCALE, ACC)
    if PAD == 0:
        u = deviation * rstd * gamma + beta
        if residual is not None:
            u += load_tile(residual, sample, position, channel, residual_n, residual_p, residual_c, mask, ACC)
        store_tile(y, sample, position, channel, y_n, y_p, y_c, mask, _activate(u, leak, ACTIVATION))
    else:
        outputs = (H + 2 * PAD) * (W + 2 * PAD)
        for first in range(0, outputs, POSITIONS):
            place = first + position
            source = _source(place, H, W, PAD)
            inside = (place[:, None] < outputs) & (channel[None, :] < C)
            u = (load_tile(x, sample, source, channel, x_n, x_p, x_c, inside, ACC) - mean) * rstd * gamma + beta
            if residual is not None:
                u += load_tile(residual, sample, source, channel, residual_n, residual_p, residual_c, inside, ACC)
            store_tile(y, sample, place, channel, y_n, y_p, y_c, inside, _activate(u, leak, ACTIVATION))


@triton.jit(do_not_specialize=["n_first"])
def statistics_kernel(
    x,  # (N, C, H, W), any strides
    workspace,  # (N, SPLITS, 2, C): mean and sum of squared deviations of each part
    n_first,
    c_first,
    c_end,
    C,
    size,  # H · W
    length,  # positions of a part
    x_n,
    x_p,
    x_c,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    pid = tl.program_id(0)
    sample = (n_first + pid // (blocks * SPLITS)).to(tl.int64)
    split = pid // blocks % SPLITS
    channel = c_first + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    lane = tl.arange(0, POSITIONS)
    begin = split * length
    end = tl.minimum(begin + length, size)
    mean = tl.zeros((POSITIONS, CHANNELS), ACC)
    squares = tl.zeros((POSITIONS, CHANNELS), ACC)
    seen = tl.zeros((1, 1), ACC)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & (channel[None, :] < c_end)
        values = load_tile(x, sample, position, channel, x_n, x_p, x_c, mask, ACC)
        seen += 1.0
        deviation = tl.where(mask, values - mean, 0.0)
        mean += deviation * (1 / seen)
        squares += tl.where(mask, deviation * (values - mean), 0.0)
    # What each lane saw, merged over the lanes.
    count = tl.maximum(end - begin, 0)
    of_lane = ((tl.maximum(count - lane, 0) + POSITIONS - 1) // POSITIONS).to(ACC)[:, None]
    total = tl.maximum(count, 1).to(ACC)
    merged = tl.sum(of_lane * mean, axis=0) / total
    apart = mean - merged[None, :]
    squares = tl.sum(squares + of_lane * apart * apart, axis=0)
    offset = (sample * SPLITS + split) * 2 * C + channel
    tl.store(workspace + offset, merged, mask=channel < c_end)
    tl.store(workspace + offset + C, squares, mask=channel < c_end)


@triton.jit(do_not_specialize=["n_first"])
def merge_statistics_kernel(
    workspace,  # of statistics_kernel
    mean_out,  # (N, C), as rstd
    rstd_out,
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
    """Chan's merge of the parts: the mean of all, then the squared deviations from it."""
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    sample = (n_first + tl.program_id(0) // blocks).to(tl.int64)
    channel = c_first + tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < c_end
    parts = tl.arange(0, 16)
    sums = tl.zeros((16, CHANNELS), ACC)
    for first in range(0, SPLITS, 16):
        part = first + parts
        count = tl.maximum(tl.minimum(size - part * length, length), 0).to(ACC)[:, None]
        offset = (sample * SPLITS + part[:, None]) * 2 * C + channel[None, :]
        sums += count * tl.load(workspace + offset, mask=(part[:, None] < SPLITS) & inside[None, :], other=0.0)
    mean = tl.sum(sums, axis=0) / size.to(ACC)
    squares = tl.zeros((16, CHANNELS), ACC)
    for first in range(0, SPLITS, 16):
        part = first + parts
        count = tl.maximum(tl.minimum(size - part * length, length), 0).to(ACC)[:, None]
        offset = (sample * SPLITS + part[:, None]) * 2 * C + channel[None, :]
        there = (part[:, None] < SPLITS) & inside[None, :]
        apart = tl.load(workspace + offset, mask=there, other=0.0) - mean[None, :]
        squares += tl.where(there, count * apart * apart, 0.0) + tl.load(workspace + offset + C, mask=there, other=0.0)
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / size.to(ACC) + EPS)
    tl.store(mean_out + sample * C + channel, mean, mask=inside)
    tl.store(rstd_out + sample * C + channel, rstd, mask=inside)


@triton.jit(do_not_specialize=["n_first"])
def apply_fwd_kernel(
    x,
    weight,
    bias,
    slopes,
    residual,
    y,
    mean_in,  # (N, C), as rstd
    rstd_in,
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    length,  # positions of a part of the padded output
    x_n,
    x_p,
    x_c,
    residual_n,
    residual_p,
    residual_c,
    y_n,
    y_p,
    y_c,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    pid = tl.program_id(0)
    sample = (n_first + pid // (blocks * SPLITS)).to(tl.int64)
    split = pid // blocks % SPLITS
    channel = c_first + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < c_end
    mean = tl.load(mean_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    gamma, beta, leak = _affine(weight, bias, slopes, channel, c_end, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = split * length
    end = tl.minimum(begin + length, (H + 2 * PAD) * (W + 2 * PAD))
    for first in range(begin, end, POSITIONS):
        place = first + lane
        source = _source(place, H, W, PAD)
        mask = (place[:, None] < end) & inside[None, :]
        u = (load_tile(x, sample, source, channel, x_n, x_p, x_c, mask, ACC) - mean) * rstd * gamma + beta
        if residual is not None:
            u += load_tile(residual, sample, source, channel, residual_n, residual_p, residual_c, mask, ACC)
        store_tile(y, sample, place, channel, y_n, y_p, y_c, mask, _activate(u, leak, ACTIVATION))


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def single_bwd_kernel(
    grad,  # (N, C, H + 2·PAD, W + 2·PAD), any strides
    saved,  # x, or y if FROM_OUTPUT
    mean_in,  # (N, C)
    rstd_in,  # (N, C)
    weight,
    bias,
    slopes,
    residual,
    dx,  # (N, C, H, W)
    d_residual,  # as dx, or None
    sums,  # (N, ROWS, C): Σg, Σg·x̂ and, for prelu, Σ of the slope's gradient
    C,
    H,
    W,
    grad_n,
    grad_p,
    grad_c,
    saved_n,
    saved_p,
    saved_c,
    residual_n,
    residual_p,
    residual_c,
    dx_n,
    dx_p,
    dx_c,
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
    blocks = tl.cdiv(C, CHANNELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    position = tl.arange(0, POSITIONS)
    inside = channel < C
    mask = (position[:, None] < H * W) & inside[None, :]
    mean = tl.load(mean_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    gamma, beta, leak = _affine(weight, bias, slopes, channel, C, SLOPE, MIN_SCALE, ACC)
    x_hat, u = _normalised(
        saved, residual, sample, position, channel, saved_n, saved_p, saved_c, residual_n, residual_p, residual_c,
        W, mask, mean, rstd, gamma, beta, leak, ACTIVATION, FROM_OUTPUT, PAD, ACC,
    )  # fmt: skip
    upstream = _load_upstream(grad, sample, position, channel, grad_n, grad_p, grad_c, H, W, mask, PAD, ACC)
    g = tl.where(mask, upstream * _derivative(u, leak, ACTIVATION), 0.0)
    sum_g = tl.sum(g, axis=0)
    sum_gx = tl.sum(tl.where(mask, g * x_hat, 0.0), axis=0)
    row = sample * ROWS * C + channel
    tl.store(sums + row, sum_g, mask=inside)
    tl.store(sums + row + C, sum_gx, mask=inside)
    if ROWS == 3:
        below = tl.sum(tl.where(mask & (u <= 0), upstream * u, 0.0), axis=0)
        tl.store(sums + row + 2 * C, below, mask=inside)
    count = (H * W).to(ACC)
    centred = g - (sum_g / count)[None, :] - x_hat * (sum_gx / count)[None, :]
    store_tile(dx, sample, position, channel, dx_n, dx_p, dx_c, mask, gamma * rstd * centred)
    if d_residual is not None:
        store_tile(d_residual, sample, position, channel, dx_n, dx_p, dx_c, mask, g)


@triton.jit(do_not_specialize=["n_first"])
def sums_kernel(
    grad,
    saved,
    mean_in,
    rstd_in,
    weight,
    bias,
    slopes,
    residual,
    workspace,  # (N, SPLITS, ROWS, C): Σg, Σg·x̂, and for prelu Σ of the slope's gradient, of each part
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    length,
    grad_n,
    grad_p,
    grad_c,
    saved_n,
    saved_p,
    saved_c,
    residual_n,
    residual_p,
    residual_c,
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
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    pid = tl.program_id(0)
    sample = (n_first + pid // (blocks * SPLITS)).to(tl.int64)
    split = pid // blocks % SPLITS
    channel = c_first + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < c_end
    mean = tl.load(mean_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    gamma, beta, leak = _affine(weight, bias, slopes, channel, c_end, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = split * length
    end = tl.minimum(begin + length, H * W)
    sum_g = tl.zeros((POSITIONS, CHANNELS), ACC)
    sum_gx = tl.zeros((POSITIONS, CHANNELS), ACC)
    below = tl.zeros((POSITIONS, CHANNELS), ACC)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(
            saved, residual, sample, position, channel, saved_n, saved_p, saved_c, residual_n, residual_p, residual_c,
            W, mask, mean, rstd, gamma, beta, leak, ACTIVATION, FROM_OUTPUT, PAD, ACC,
        )  # fmt: skip
        upstream = _load_upstream(grad, sample, position, channel, grad_n, grad_p, grad_c, H, W, mask, PAD, ACC)
        g = upstream * _derivative(u, leak, ACTIVATION)
        sum_g += tl.where(mask, g, 0.0)
        sum_gx += tl.where(mask, g * x_hat, 0.0)
        if ROWS == 3:
            below += tl.where(mask & (u <= 0), upstream * u, 0.0)
    row = (sample * SPLITS + split) * ROWS * C + channel
    tl.store(workspace + row, tl.sum(sum_g, axis=0), mask=inside)
    tl.store(workspace + row + C, tl.sum(sum_gx, axis=0), mask=inside)
    if ROWS == 3:
        tl.store(workspace + row + 2 * C, tl.sum(below, axis=0), mask=inside)


@triton.jit(do_not_specialize=["n_first"])
def merge_sums_kernel(
    workspace,  # of sums_kernel
    sums,  # (N, ROWS, C)
    n_first,
    c_first,
    c_end,
    C,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    sample = (n_first + tl.program_id(0) // blocks).to(tl.int64)
    channel = c_first + tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < c_end
    parts = tl.arange(0, 16)
    for row in tl.static_range(ROWS):
        total = tl.zeros((16, CHANNELS), ACC)
        for first in range(0, SPLITS, 16):
            part = first + parts
            offset = ((sample * SPLITS + part[:, None]) * ROWS + row) * C + channel[None, :]
            total += tl.load(workspace + offset, mask=(part[:, None] < SPLITS) & inside[None, :], other=0.0)
        tl.store(sums + (sample * ROWS + row) * C + channel, tl.sum(total, axis=0), mask=inside)


@triton.jit(do_not_specialize=["n_first"])
def apply_bwd_kernel(
    grad,
    saved,
    mean_in,
    rstd_in,
    weight,
    bias,
    slopes,
    residual,
    dx,
    d_residual,
    sums,  # (N, ROWS, C)
    n_first,
    c_first,
    c_end,
    C,
    H,
    W,
    length,
    grad_n,
    grad_p,
    grad_c,
    saved_n,
    saved_p,
    saved_c,
    residual_n,
    residual_p,
    residual_c,
    dx_n,
    dx_p,
    dx_c,
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
    blocks = tl.cdiv(c_end - c_first, CHANNELS)
    pid = tl.program_id(0)
    sample = (n_first + pid // (blocks * SPLITS)).to(tl.int64)
    split = pid // blocks % SPLITS
    channel = c_first + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < c_end
    count = (H * W).to(ACC)
    row = sample * ROWS * C + channel
    mean_g = tl.load(sums + row, mask=inside, other=0.0)[None, :] / count
    mean_gx = tl.load(sums + row + C, mask=inside, other=0.0)[None, :] / count
    mean = tl.load(mean_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    rstd = tl.load(rstd_in + sample * C + channel, mask=inside, other=0.0)[None, :]
    gamma, beta, leak = _affine(weight, bias, slopes, channel, c_end, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = split * length
    end = tl.minimum(begin + length, H * W)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = _normalised(
            saved, residual, sample, position, channel, saved_n, saved_p, saved_c, residual_n, residual_p, residual_c,
            W, mask, mean, rstd, gamma, beta, leak, ACTIVATION, FROM_OUTPUT, PAD, ACC,
        )  # fmt: skip
        upstream = _load_upstream(grad, sample, position, channel, grad_n, grad_p, grad_c, H, W, mask, PAD, ACC)
        g = upstream * _derivative(u, leak, ACTIVATION)
        store_tile(dx, sample, position, channel, dx_n, dx_p, dx_c, mask, gamma * rstd * (g - mean_g - x_hat * mean_gx))
        if d_residual is not None:
            store_tile(d_residual, sample, position, channel, dx_n, dx_p, dx_c, mask, g)


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
    """As `instance_norm.reference_forward`."""
    n, c, h, w = x.shape
    layout, accumulator = output_layout(x), accumulator_of(x)
    x = addressable(x, layout)
    residual = None if residual is None else addressable(residual, layout)
    pad = reflection_pad
    y = torch.empty((n, c, h + 2 * pad, w + 2 * pad), dtype=x.dtype, device=x.device, memory_format=layout)
    mean, rstd = (torch.empty((n, c), dtype=accumulator, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return y, mean, rstd
    weight, bias, slopes = (None if p is None else p.contiguous() for p in (weight, bias, slopes))
    tensors = (x, weight, bias, slopes, residual, y, mean, rstd)
    strides = (*strides_of(x), *strides_of(residual), *strides_of(y))
    options: dict[str, Any] = {
        "ACTIVATION": activation,
        "EPS": eps,
        "SLOPE": negative_slope,
        "MIN_SCALE": min_scale,
        "PAD": pad,
        "ACC": TRITON_TYPES[accumulator],
    }
    channels_last, itemsize = is_channels_last(layout), x.element_size()
    with on_device_of(x):
        if single := single_tile(h * w, c, channels_last, itemsize):
            options |= {"POSITIONS": single.positions, "CHANNELS": single.channels, "num_warps": single.warps}
            grid = (n * triton.cdiv(c, single.channels),)
            single_fwd_kernel[grid](*tensors, c, h, w, *strides, **options)
            return y, mean, rstd
        cut = stream(n * c, h * w, c, channels_last, itemsize)
        workspace = torch.empty((n, cut.splits, 2, c), dtype=accumulator, device=x.device)
        shape = {"POSITIONS": cut.tile.positions, "CHANNELS": cut.tile.channels, "num_warps": cut.tile.warps}
        parts = {"SPLITS": cut.splits, "ACC": options["ACC"]}
        eps_of_merge = options.pop("EPS")
        length, length_out = cut.length(h * w), cut.length(y.shape[2] * y.shape[3])
        for n_first, samples, c_first, channels in groups(n, c, h * w * itemsize, cut.tile.channels):
            grid = (samples * cut.splits * triton.cdiv(channels, cut.tile.channels),)
            merging = (samples * triton.cdiv(channels, MERGE_CHANNELS),)
            piece = (n_first, c_first, c_first + channels, c)
            statistics_kernel[grid](x, workspace, *piece, h * w, length, *strides_of(x), **parts, **shape)
            merge_statistics_kernel[merging](
                workspace, mean, rstd, *piece, h * w, length, EPS=eps_of_merge, CHANNELS=MERGE_CHANNELS, **parts
            )
            apply_fwd_kernel[grid](*tensors, *piece, h, w, length_out, *strides, SPLITS=cut.splits, **options, **shape)
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
    """As `instance_norm.reference_backward`, with the gradients of x and of the residual in x's dtype."""
    n, c, h, w = grad.shape
    h, w = h - 2 * reflection_pad, w - 2 * reflection_pad
    layout, accumulator = output_layout(saved), accumulator_of(saved)
    grad, saved = addressable(grad, layout), addressable(saved, layout)
    residual = None if residual is None else addressable(residual, layout)
    dx = torch.empty((n, c, h, w), dtype=saved.dtype, device=saved.device, memory_format=layout)
    d_residual = None if residual is None else torch.empty_like(dx)
    rows = 3 if slopes is not None else 2
    sums = torch.empty((n, rows, c), dtype=accumulator, device=saved.device)
    if dx.numel():
        weight, bias, slopes = (None if p is None else p.contiguous() for p in (weight, bias, slopes))
        read = (grad, saved, mean.contiguous(), rstd.contiguous(), weight, bias, slopes, residual)
        strides = (*strides_of(grad), *strides_of(saved), *strides_of(residual))
        options: dict[str, Any] = {
            "ACTIVATION": activation,
            "SLOPE": negative_slope,
            "MIN_SCALE": min_scale,
            "FROM_OUTPUT": from_output,
            "PAD": reflection_pad,
            "ROWS": rows,
            "ACC": TRITON_TYPES[accumulator],
        }
        channels_last, itemsize = is_channels_last(layout), saved.element_size()
        with on_device_of(saved):
            if single := single_tile(h * w, c, channels_last, itemsize, backward=True, pad=reflection_pad):
                options |= {"POSITIONS": single.positions, "CHANNELS": single.channels, "num_warps": single.warps}
                grid = (n * triton.cdiv(c, single.channels),)
                single_bwd_kernel[grid](*read, dx, d_residual, sums, c, h, w, *strides, *strides_of(dx), **options)
            else:
                heavy = reflection_pad > 0 or slopes is not None
                cut = stream(n * c, h * w, c, channels_last, itemsize, heavy=heavy)
                workspace = torch.empty((n, cut.splits, rows, c), dtype=accumulator, device=saved.device)
                options |= {"POSITIONS": cut.tile.positions, "CHANNELS": cut.tile.channels, "SPLITS": cut.splits}
                options |= {"num_warps": cut.tile.warps, "maxnreg": MOST_REGISTERS}
                parts = {name: options[name] for name in ("ROWS", "SPLITS", "ACC")}
                for n_first, samples, c_first, channels in groups(n, c, 2 * h * w * itemsize, cut.tile.channels):
                    grid = (samples * cut.splits * triton.cdiv(channels, cut.tile.channels),)
                    merging = (samples * triton.cdiv(channels, MERGE_CHANNELS),)
                    piece = (n_first, c_first, c_first + channels, c)
                    plane = (h, w, cut.length(h * w))
                    sums_kernel[grid](*read, workspace, *piece, *plane, *strides, **options)
                    merge_sums_kernel[merging](workspace, sums, *piece, CHANNELS=MERGE_CHANNELS, **parts)
                    apply_bwd_kernel[grid](
                        *read, dx, d_residual, sums, *piece, *plane, *strides, *strides_of(dx), **options
                    )
    d_bias, d_weight = sums[:, 0].sum(0), sums[:, 1].sum(0)
    d_slope = dx.new_empty(0) if slopes is None else sums[:, 2].sum(0)
    return dx, d_weight, d_bias, d_slope, dx.new_empty(0) if d_residual is None else d_residual
