"""Statistics of a depth sensor's faults, measured on sets of RGB-D images that need not be paired.

Images are (N, 4, H, W) float tensors in [0, 1], with the channels R, G, B and depth. A pixel belongs to the *figure* if
any channel is above `distances.FOREGROUND_LEVEL`. A *hole* is a pixel of the figure whose depth is below HOLE, which is
the value that `vologan_fast.translate` writes as missing. Other pixels of the figure are *measured*.

The *surface* is the depth without noise: the median of the measured pixels in a window of 5 × 5. In holes it is the
mean of the measured pixels around. An *edge* is a step of the surface by more than EDGE between neighbours, or the
outline of the figure against the background. The border of the image is no edge.

Each statistic is a *curve* of ratios, one for each bin k:

    c_k = Σ over images of a_k  /  Σ over images of b_k

Only the sums a and b of each image are kept, so a set is measured once for all resamples of the bootstrap. A bin that
is almost empty tells nothing. So 0.1 % of the total of a and b is added to each bin, which draws such a bin to the
ratio of all bins. The distance of a set X from the real set T has the unit of the statistic:

    distance = √( Σ_k w_k (c_k(X) − c_k(T))² )        w_k = b_k(T) / Σ b(T)

Bins of depth and of slope hold equal numbers of T's pixels. Bins of distance to an edge are given in pixels.
`statistics` lists all of them. Statistics of several images of one scene are in `sequences`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vologan_fast.evaluation.distances import foreground

HOLE = 1 / 2048
"""Depth below this value is a hole."""
EDGE = 0.03
"""Smallest step of the surface between neighbours that is an edge, as a fraction of near … far."""
TAIL_STEP = 0.05
"""Smallest step between two surfaces whose tail is measured, as a fraction of near … far."""
TAIL_ENDS = 0.15
"""Fraction of a step, from both ends, that still counts as one of the two surfaces."""
TAIL_FLAT = 0.1
"""Largest change between neighbours on the two surfaces, as a fraction of the step. An even slope has 1/7."""
LARGEST_RESIDUAL = 0.03
"""Residuals are clamped to ± this value, so that a few wrong pixels do not outweigh the others."""
BINS = 6
"""Number of bins of depth and of slope."""
DISTANCES = (0, 1, 2, 3, 5, 9)
"""Lower ends of the bins of distance to an edge, in pixels."""
LAGS = 4
"""Largest lag of the autocorrelation, in pixels."""
_CHUNK = 1 << 18  # windows that are sorted at a time
_PIXELS = 1 << 22  # pixels that are looked at at a time


@dataclass(frozen=True)
class Unit:
    """The meaning of normalised depth: depth = near + span · value."""

    name: str = "of near … far"
    near: float = 0.0
    span: float = 1.0


@dataclass(frozen=True)
class Bins:
    """The inner ends of the bins, found on T."""

    depth: Tensor
    """(BINS − 1,): quantiles of the surface's depth."""
    slope: Tensor
    """(BINS − 1,): quantiles of the surface's slope."""


@dataclass(frozen=True)
class View:
    """What is known about each pixel of some images. All are (N, H, W)."""

    depth: Tensor
    figure: Tensor
    measured: Tensor
    surface: Tensor
    """Depth without noise and holes. Meaningful on the figure."""
    slope: Tensor
    """Change of the surface over the width of the image, in units of near … far."""
    edge_distance: Tensor
    """Steps (of 8 directions) to the nearest edge: 0 to 9. 9 stands for 9 or more."""

    @property
    def residual(self) -> Tensor:
        """Depth minus surface, clamped to ± LARGEST_RESIDUAL. 0 where nothing is measured."""
        return ((self.depth - self.surface) * self.measured).clamp(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)

    @property
    def smooth(self) -> Tensor:
        """True for measured pixels whose whole window lies in the image and on the figure, without an edge in it."""
        inside = torch.zeros_like(self.measured)
        inside[:, 2:-2, 2:-2] = True
        return inside & self.measured & (self.edge_distance > 2)


@dataclass(frozen=True)
class Statistic:
    """One curve, and how it is computed from sums over images and shown."""

    name: str
    axis: str
    """What the bins are about. Empty for a single number."""
    unit: str
    """"depth", "share", "pixels" or "correlation"."""
    root: bool = False
    """Whether the curve is the root of the ratio."""

    def curve(self, sums: Tensor) -> Tensor:
        """Return the curve for sums over images: (…, 2, K) → (…, K). NaN if nothing was counted."""
        total = sums.sum(-1, keepdim=True)
        a, b = (sums + 1e-3 * total).unbind(-2)
        ratio = a / b.where(b > 0, torch.nan)
        return ratio.sqrt() if self.root else ratio

    def number(self, sums: Tensor) -> Tensor:
        """Return one number that sums the curve up: the ratio of all bins together, (…, 2, K) → (…)."""
        return self.curve(sums.sum(-1, keepdim=True))[..., 0]

    def distance(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the distance of the curves for sums x and t: two (…, 2, K) → (…)."""
        weights = t[..., 1, :] / t[..., 1, :].sum(-1, keepdim=True)
        return ((self.curve(x) - self.curve(t)).square() * weights).sum(-1).sqrt()


def view(images: Tensor) -> View:
    """Return what the statistics need to know about the images (N, 4, H, W)."""
    images = images.float().cpu()
    depth, figure = images[:, 3], foreground(images)[:, 0]
    measured = figure & (depth >= HOLE)
    surface = _filled(_median(depth, measured), measured, figure)
    edge = torch.zeros_like(figure)
    for axis in (1, 2):
        low, high = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        step = figure[low] & figure[high] & ((surface[low] - surface[high]).abs() > EDGE)
        step |= figure[low] != figure[high]
        edge[low] |= step
        edge[high] |= step
    return View(depth, figure, measured, surface, _slope(surface, figure), _steps_to(edge))


def find_bins(real: Tensor) -> Bins:
    """Return the bins of depth and slope for images of T (N, 4, H, W). Each holds as many of their pixels.

    They are found on at most 32 of the images, evenly spread.
    """
    levels = torch.arange(1, BINS) / BINS
    of_real = view(real[:: -(-len(real) // 32)])
    return Bins(*(_quantiles(values[of_real.figure], levels) for values in (of_real.surface, of_real.slope)))


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    if not len(values):
        return levels
    ordered = values.sort().values
    return ordered[(levels * (len(ordered) - 1)).round().long()].contiguous()


def _median(depth: Tensor, measured: Tensor) -> Tensor:
    """Return the median of the measured pixels in a window of 5 × 5 around each measured pixel, else 0."""
    padded = functional.pad(torch.where(measured, depth, torch.inf)[:, None], (2,) * 4, value=torch.inf)[:, 0]
    windows = padded.unfold(1, 5, 1).unfold(2, 5, 1)
    n, y, x = measured.nonzero(as_tuple=True)
    medians = torch.zeros(len(n))
    for start in range(0, len(n), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = np.sort(windows[n[part], y[part], x[part]].flatten(1).numpy(), 1)
        count = np.isfinite(values).sum(1)
        rows = np.arange(len(values))
        medians[part] = torch.from_numpy((values[rows, (count - 1) // 2] + values[rows, count // 2]) / 2)
    surface = torch.zeros_like(depth)
    surface[n, y, x] = medians
    return surface


def _filled(surface: Tensor, measured: Tensor, figure: Tensor) -> Tensor:
    """Return the surface with its holes filled: by the mean around, in the smallest window that holds a measured pixel.

    The last window is the whole image.
    """
    known = measured.float()
    result, empty = surface, figure & ~measured
    for radius in (1, 2, 4, 8, 16, 32):
        if not empty.any():
            return result
        count = _window_sum(known, radius)
        mean = _window_sum(surface, radius) / count.clamp_min(0.5)
        found = empty & (count > 0.5)
        result, empty = torch.where(found, mean, result), empty & ~found
    mean = surface.sum((1, 2), keepdim=True) / known.sum((1, 2), keepdim=True).clamp_min(1)
    return torch.where(empty, mean, result)


def _window_sum(image: Tensor, radius: int) -> Tensor:
    """Return the sum over a window of 2 · radius + 1 pixels a side, for (N, H, W). Outside of the image is 0."""
    side = 2 * radius + 1
    rows = functional.avg_pool2d(image[:, None], (side, 1), 1, (radius, 0), divisor_override=1)
    return functional.avg_pool2d(rows, (1, side), 1, (0, radius), divisor_override=1)[:, 0]


def _slope(surface: Tensor, figure: Tensor) -> Tensor:
    """Return the length of the gradient, times the width of the image. Neighbours off the figure count as level."""
    square = torch.zeros_like(surface)
    for axis in (1, 2):
        low, high = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        step = (surface[high] - surface[low]) * (figure[high] & figure[low])
        total, count = torch.zeros_like(surface), torch.zeros_like(surface)
        for side in (low, high):
            total[side] += step
            count[side] += (figure[high] & figure[low]).float()
        square += (total / count.clamp_min(1)).square()
    return square.sqrt() * surface.shape[2]


def _steps_to(edge: Tensor) -> Tensor:
    """Return the steps to the nearest edge pixel, at most DISTANCES[-1]."""
    distance = torch.full(edge.shape, DISTANCES[-1])
    near = edge.float()[:, None]
    for step in range(DISTANCES[-1]):
        distance = torch.where((near[:, 0] > 0) & (distance > step), step, distance)
        near = functional.max_pool2d(near, 3, 1, 1)
    return distance


def binned(where: Tensor, values: Tensor, bins: Tensor, count: int) -> Tensor:
    """Return (N, 2, count): for each image and bin, the sum of the values and the number of pixels. All (N, H, W)."""
    n, y, x = where.nonzero(as_tuple=True)
    index = n * count + bins[n, y, x]
    size = len(where) * count
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, index, values[n, y, x].double())
    counts = torch.zeros(size, dtype=torch.float64).index_add_(0, index, torch.ones(len(n), dtype=torch.float64))
    return torch.stack([sums.view(-1, count), counts.view(-1, count)], 1)


def _by_depth(of: View, bins: Bins) -> Tensor:
    return torch.bucketize(of.surface, bins.depth)


def _by_slope(of: View, bins: Bins) -> Tensor:
    return torch.bucketize(of.slope, bins.slope)


def _by_edge(of: View, bins: Bins) -> Tensor:
    return torch.bucketize(of.edge_distance, torch.tensor(DISTANCES[1:]), right=True)


def _holes(by: Callable[[View, Bins], Tensor], count: int) -> Callable[[View, Bins], Tensor]:
    return lambda of, bins: binned(of.figure, (~of.measured).float(), by(of, bins), count)


def _bias(by: Callable[[View, Bins], Tensor], count: int) -> Callable[[View, Bins], Tensor]:
    return lambda of, bins: binned(of.measured, of.residual, by(of, bins), count)


def _noise(of: View, bins: Bins) -> Tensor:
    return binned(of.smooth, of.residual.square(), _by_depth(of, bins), BINS)


def _level(of: View, bins: Bins) -> Tensor:
    return binned(of.measured, of.depth, torch.zeros_like(of.edge_distance), 1)


def _correlation(of: View, bins: Bins) -> Tensor:
    """The sums for lags 1 … LAGS in x, then in y: products of residuals, and their mean squares."""
    sums = []
    for axis in (2, 1):
        for lag in range(1, LAGS + 1):
            low, high = (slice(None),) * axis + (slice(None, -lag),), (slice(None),) * axis + (slice(lag, None),)
            both = of.smooth[low] & of.smooth[high]
            a, b = (of.residual[side].double() * both for side in (low, high))
            sums.append(torch.stack([(a * b).sum((1, 2)), (a.square() + b.square()).sum((1, 2)) / 2], 1))
    return torch.stack(sums, 2)


def _tails(of: View, bins: Bins) -> Tensor:
    """The sums of one bin: pixels between two surfaces, and steps between surfaces."""
    total = torch.zeros(len(of.depth), 2, 1, dtype=torch.float64)
    for depth, measured in (
        (of.depth, of.measured),
        (of.depth.transpose(1, 2), of.measured.transpose(1, 2)),
    ):
        if depth.shape[2] < 10:
            continue
        # A window of ten pixels: two of the first surface, six that may be between, two of the second surface.
        z, known = depth.unfold(2, 10, 1), measured.unfold(2, 10, 1)
        first, last = z[..., 1], z[..., 8]
        step = last - first
        change = (z[..., 0] - first).abs().maximum((z[..., 9] - last).abs())
        there = known[..., [0, 1, 4, 5, 8, 9]].all(-1)
        middle = (first + last) / 2
        crosses = (z[..., 4] < middle) != (z[..., 5] < middle)
        chosen = there & crosses & (step.abs() > TAIL_STEP) & (change <= TAIL_FLAT * step.abs())
        n, y, x = chosen.nonzero(as_tuple=True)
        share = (z[n, y, x, 2:8] - first[n, y, x, None]) / step[n, y, x, None]
        between = (share > TAIL_ENDS) & (share < 1 - TAIL_ENDS) & known[n, y, x, 2:8]
        total[:, 0, 0].index_add_(0, n, between.sum(1).double())
        total[:, 1, 0].index_add_(0, n, torch.ones(len(n), dtype=torch.float64))
    return total


def _quantisation(of: View, bins: Bins) -> Tensor:
    """The sums for each bin of depth: step size of an image's values, and 1 if the image has enough of them."""
    sums = torch.zeros(len(of.depth), 2, BINS, dtype=torch.float64)
    index = _by_depth(of, bins)
    for n in range(len(of.depth)):
        values, place = of.depth[n][of.measured[n]].numpy(), index[n][of.measured[n]].numpy()
        for k in range(BINS):
            found = values[place == k]
            if len(found) >= 32:
                sums[n, :, k] = torch.tensor([step_size(found), 1.0])
    return sums


def step_size(values: npt.NDArray[np.float32]) -> float:
    """Return the most likely step between the levels of quantised values (n,), or 0 if they are not quantised.

    Values are levels if at least half of them repeat another one. The step is the median of the smallest spacings
    between levels, if nine tenths of all spacings are multiples of it, within a fifth of a step. Levels of disparity
    are not evenly spaced. If at least three quarters of the values repeat others, the median spacing is the step then.
    Values at the ends of [0, 1] are ignored, because depth beyond near and far is clamped to them.
    """
    inside = np.sort(values[(values > 2 * HOLE + 1e-6) & (values < 1 - 1e-6)].astype(np.float64))
    if len(inside) < 32:
        return 0.0
    spacings = np.diff(inside)
    spacings = spacings[spacings > 3e-7]  # of float32 values in [0, 1]
    if not 2 <= len(spacings) < len(inside) / 2:
        return 0.0
    step = float(np.median(spacings[spacings <= 1.5 * np.quantile(spacings, 0.1)]))
    multiples = spacings / step
    if np.mean(np.abs(multiples - np.rint(multiples)) < 0.2) >= 0.9:
        return step
    return float(np.median(spacings)) if len(spacings) < len(inside) / 4 else 0.0


Sums = Callable[[View, Bins], Tensor]
"""From a view of N images to (N, 2, K): the sums a and b of each image."""

STATISTICS: Mapping[Statistic, Sums] = {
    Statistic("holes by depth", "depth", "share"): _holes(_by_depth, BINS),
    Statistic("holes by slope", "slope", "share"): _holes(_by_slope, BINS),
    Statistic("holes by edge distance", "pixels to an edge", "share"): _holes(_by_edge, len(DISTANCES)),
    Statistic("bias by depth", "depth", "depth"): _bias(_by_depth, BINS),
    Statistic("bias by edge distance", "pixels to an edge", "depth"): _bias(_by_edge, len(DISTANCES)),
    Statistic("noise by depth", "depth", "depth", root=True): _noise,
    Statistic("autocorrelation", "lag in x, then in y", "correlation"): _correlation,
    Statistic("edge tails", "", "pixels"): _tails,
    Statistic("quantisation by depth", "depth", "depth"): _quantisation,
    Statistic("mean depth", "", "depth"): _level,
}
"""All statistics of single images."""


def measure(images: Tensor, bins: Bins) -> dict[str, Tensor]:
    """Return the sums of all statistics for each of the images (N, 4, H, W): {name: (N, 2, K)}."""
    at_a_time = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
    views = (view(part) for part in images.split(at_a_time))
    parts = [{statistic.name: sums(of, bins) for statistic, sums in STATISTICS.items()} for of in views]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
