"""Functions that the Triton kernels of the instance norm share: what a program does with a tile or a part of a plane.

`kernels.py` says how the kernels use them. A tile is a block of values (positions, channels). Names in capital letters
are compile-time constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vologan_kernels.activations_triton import activate, gradient, invert
from vologan_kernels.layouts import View
from vologan_kernels.tiles_triton import load_tile, store_tile


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
    inverse: Any  # 1 / γ
    beta: Any
    slope: Any


@triton.jit
def place_of(unit, split, C, CHANNELS: tl.constexpr):
    """A part of the planes of a unit, which is a block of channels of a sample. A sample's blocks follow each other."""
    blocks = tl.cdiv(C, CHANNELS)
    channel = unit % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return Place((unit // blocks).to(tl.int64), split, channel, channel < C)


@triton.jit
def program_place(C, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """The place of this program, if there is one for each part. Neighbours work on neighbouring channels of a part."""
    blocks = tl.cdiv(C, CHANNELS)
    pid = tl.program_id(0)
    return place_of(pid // (blocks * SPLITS) * blocks + pid % blocks, pid // blocks % SPLITS, C, CHANNELS)


@triton.jit
def parameters_of(affine, place, SLOPE: tl.constexpr, MIN_SCALE: tl.constexpr, ACC: tl.constexpr):
    """γ, 1 / γ, β and the slope of each channel, as rows (1, CHANNELS)."""
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
    return gamma[None, :], (1 / gamma)[None, :], beta[None, :], slope[None, :]


@triton.jit
def norm_of(statistics, affine, place, C, SLOPE: tl.constexpr, MIN_SCALE: tl.constexpr, ACC: tl.constexpr):
    """The numbers of the channels of this program."""
    row = place.sample * C  # 64 bits; it is added to the pointer first, so the channels' offsets can have 32
    mean = tl.load(statistics.mean + row + place.channel, mask=place.inside, other=0.0, cache_modifier=".cg")
    rstd = tl.load(statistics.rstd + row + place.channel, mask=place.inside, other=0.0, cache_modifier=".cg")
    return Norm(mean[None, :], rstd[None, :], *parameters_of(affine, place, SLOPE, MIN_SCALE, ACC))


@triton.jit
def store_statistics(statistics, mean, rstd, place, C):
    row = place.sample * C
    tl.store(statistics.mean + row + place.channel, mean, mask=place.inside)
    tl.store(statistics.rstd + row + place.channel, rstd, mask=place.inside)


@triton.jit
def merge_lanes(seen, mean, squares, total):
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
def source_of(position, H, W, PAD: tl.constexpr):
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
def write_outputs(
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
        source = source_of(position, H, W, PAD)
        mask = (position[:, None] < end) & place.inside[None, :]
        values = load_tile(x, place.sample, source, place.channel, mask, ACC)
        u = (values - norm.mean) * (norm.rstd * norm.gamma) + norm.beta
        if residual is not None:
            u += load_tile(residual, place.sample, source, place.channel, mask, ACC)
        store_tile(y, place.sample, position, place.channel, mask, activate(u, norm.slope, ACTIVATION))


@triton.jit
def statistics_of_part(
    x,
    workspace,
    place,
    C,
    size,
    length,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the mean and the squared deviations of a part to the workspace (N, SPLITS, 2, C)."""
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, size)
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
    mean_of_part, squares_of_part = merge_lanes(seen_by_lane, mean, squares, tl.maximum(count, 1).to(ACC))
    row = workspace + (place.sample * SPLITS + place.split) * 2 * C
    tl.store(row + place.channel, mean_of_part, mask=place.inside)
    tl.store(row + C + place.channel, squares_of_part, mask=place.inside)


@triton.jit
def merge_parts(
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
        mean_of_part = tl.load(workspace + offset, mask=there, other=0.0, cache_modifier=".cg")
        seen += count
        deviation = tl.where(there, mean_of_part - mean, 0.0)
        mean += deviation * (count / tl.maximum(seen, 1.0))
        squares += tl.where(there, count * deviation * (mean_of_part - mean), 0.0)
        squares += tl.load(workspace + offset + C, mask=there, other=0.0, cache_modifier=".cg")
    merged, deviations = merge_lanes(seen, mean, squares, size.to(ACC))
    return merged, 1 / tl.sqrt(deviations / size.to(ACC) + EPS)


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def mirror(i, size, image: tl.constexpr, PAD: tl.constexpr):
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
def load_upstream(
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
                r, row_shown = mirror(row, H, copy // 3, PAD)
                c, column_shown = mirror(column, W, copy % 3, PAD)
                shown = mask & (row_shown & column_shown)[:, None]
                total += load_tile(grad, place.sample, r * (W + 2 * PAD) + c, place.channel, shown, ACC)
        return total


@triton.jit
def normalised(
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
        return (u - shift) * norm.inverse, u
    else:
        x = load_tile(saved, place.sample, position, place.channel, mask, ACC)
        x_hat = (x - norm.mean) * norm.rstd
        return x_hat, x_hat * norm.gamma + shift


@triton.jit
def sums_of_part(
    grad,
    saved,
    residual,
    affine,
    statistics,
    sums,
    parts,
    place,
    C,
    H,
    W,
    length,
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
    """Write Σg, Σg·x̂ and, for prelu, the sum of the slope's gradient of a part to `sums` (ROWS, parts, C)."""
    inside = place.inside
    norm = norm_of(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    whole = begin + tl.maximum(end - begin, 0) // POSITIONS * POSITIONS
    sum_g = tl.zeros((POSITIONS, CHANNELS), ACC)
    sum_gx = tl.zeros((POSITIONS, CHANNELS), ACC)
    below = tl.zeros((POSITIONS, CHANNELS), ACC)
    everywhere = (lane >= 0)[:, None] & inside[None, :]
    for first in tl.range(begin, whole, POSITIONS, num_stages=STAGES):
        position = first + lane
        x_hat, u = normalised(saved, residual, place, norm, position, everywhere, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = load_upstream(grad, place, first, position, everywhere, H, W, PAD, POSITIONS, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        sum_g += g
        sum_gx += g * x_hat
        if ROWS == 3:
            below += tl.where(u > 0, 0.0, upstream * u)
    if whole < end:  # the last tile is not full
        position = whole + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = load_upstream(grad, place, whole, position, mask, H, W, PAD, POSITIONS, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        sum_g += tl.where(mask, g, 0.0)
        sum_gx += tl.where(mask, g * x_hat, 0.0)
        if ROWS == 3:
            below += tl.where(mask & (u <= 0), upstream * u, 0.0)
    row = sums + (place.sample * SPLITS + place.split) * C
    plane = tl.full((), parts, tl.int64) * C
    of_g, of_gx, of_slope = tl.sum(sum_g, axis=0), tl.sum(sum_gx, axis=0), tl.sum(below, axis=0)
    store_rows(row, row + plane, row + 2 * plane, of_g, of_gx, of_slope, place.channel, inside, ROWS)


@triton.jit
def write_gradients(
    grad,
    saved,
    residual,
    dx,
    d_residual,
    norm,
    sum_g,
    sum_gx,
    place,
    H,
    W,
    length,
    ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute the gradients of x and of the residual for a part, the last tile first."""
    sample, channel, inside = place.sample, place.channel, place.inside
    count = tl.full((), H * W, ACC)
    mean_g, mean_gx = (sum_g / count)[None, :], (sum_gx / count)[None, :]
    lane = tl.arange(0, POSITIONS)
    begin = place.split * length
    end = tl.minimum(begin + length, H * W)
    tiles = tl.cdiv(end - begin, POSITIONS)
    for i in tl.range(0, tiles, num_stages=STAGES):
        first = begin + (tiles - 1 - i) * POSITIONS
        position = first + lane
        mask = (position[:, None] < end) & inside[None, :]
        x_hat, u = normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
        upstream = load_upstream(grad, place, first, position, mask, H, W, PAD, POSITIONS, ACC)
        g = gradient(upstream, u, norm.slope, ACTIVATION)
        centred = g - mean_g - x_hat * mean_gx
        store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
        if d_residual is not None:
            of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
            store_tile(of_residual, sample, position, channel, mask, g)


@triton.jit
def store_rows(to_g, to_gx, to_slope, sum_g, sum_gx, of_slope, channel, inside, ROWS: tl.constexpr):
    """Store Σg, Σg·x̂ and, if there are three rows, the sum of the slope's gradient."""
    tl.store(to_g + channel, sum_g, mask=inside)
    tl.store(to_gx + channel, sum_gx, mask=inside)
    if ROWS == 3:
        tl.store(to_slope + channel, of_slope, mask=inside)


@triton.jit
def add_parts(
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
        offset = part.to(tl.int64)[:, None] * C + place.channel[None, :]
        total += tl.load(parts + offset, mask=there, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def add_rows(
    sums,
    parts,
    first,
    end,
    place,
    C,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """The rows of `sums` (ROWS, parts, C), each added up over the parts from `first` to `end`. The third may be 0."""
    plane = tl.full((), parts, tl.int64) * C
    sum_g = add_parts(sums, first, end, place, C, LANES, CHANNELS, ACC)
    sum_gx = add_parts(sums + plane, first, end, place, C, LANES, CHANNELS, ACC)
    of_slope = tl.zeros((CHANNELS,), ACC)
    if ROWS == 3:
        of_slope = add_parts(sums + 2 * plane, first, end, place, C, LANES, CHANNELS, ACC)
    return sum_g, sum_gx, of_slope


@triton.jit
def add_samples(
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
    end = tl.full((), parts, tl.int32)
    g, gx, of_slope = add_rows(sums, parts, 0, end, place, C, ROWS, LANES, CHANNELS, ACC)
    to = gradients
    store_rows(to.bias, to.weight, to.slopes, g, gx, of_slope, place.channel, place.inside, ROWS)


# ---- one launch for all: programs that wait for each other ----------------------------------------------------------


@triton.jit
def arrive(counter, PROGRAMS: tl.constexpr):
    """Say that this program has written its part. Return whether all PROGRAMS have.

    The one that gets True sees what all have written. It must `publish` what the others wait for.
    """
    tl.debug_barrier()  # all threads have written
    return tl.atomic_add(counter, 1, sem="acq_rel") == PROGRAMS - 1


@triton.jit
def publish(counter):
    """Let the programs go on that `wait`."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, PROGRAMS: tl.constexpr):
    """Wait until the last program has published. The last one that has waited sets the counter back to 0."""
    while tl.atomic_add(counter, 0, sem="acquire") <= PROGRAMS:
        pass
    if tl.atomic_add(counter, 1, sem="relaxed") == 2 * PROGRAMS:
        tl.atomic_xchg(counter, 0, sem="relaxed")
