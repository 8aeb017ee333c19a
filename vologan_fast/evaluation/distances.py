"""The distance between two sets of RGB-D images, and the error of translations against a known truth.

Images are (N, 4, H, W) float tensors in [0, 1], with the channels R, G, B and depth. The background is exactly 0. A
hole has depth 0 and keeps its colour.

**Sliced Wasserstein distance** [Rabin et al. 2011, "Wasserstein barycenter and its application to texture mixing"; on
image patches: Karras et al. 2018, "Progressive growing of GANs", section 5, here without the Laplacian pyramid].
Let A and B be sets of n patches with D numbers each, and θ a unit vector. The squared 2-Wasserstein distance of the
projections on θ is the mean squared difference of the sorted values. The sliced distance is the root of its mean over
θ,

    SW² = mean over θ of  1/n Σᵢ (sort(Aθ)ᵢ − sort(Bθ)ᵢ)²

The θ are the vectors of random orthonormal bases. The squared projections of a vector on a basis sum to its squared
length. So a shift of every component by c gives exactly SW = |c|, and SW has the unit of a pixel value.

Patches of 7 × 7 are taken from the images, and from the images pooled by 2. Their centres are random pixels of the
foreground, because the background covers most of an image and is alike in both sets. Three distances are reported
separately:

    colour          3 · 49 numbers
    depth           49 numbers
    depth_gradient  2 · 49 numbers: differences to the right and lower neighbour, 0 unless both are measured, clamped
                    to ±0.1. A larger step is an edge between surfaces. Without the clamp, the squares of a few edges,
                    for example at a soft outline, would outweigh the surfaces.

Two samples of one distribution are not at distance 0, because every person wears other clothes. `noise_floor` measures
this distance for the size of a set. Squares add, so for a true distance d the measured one is about √(d² + floor²).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FOREGROUND_LEVEL = 0.04
"""A pixel is foreground if any of its channels is above this level. It is not 0, because the background of a network's
image is only close to 0."""
PATCH = 7
"""Side of a patch, in pixels."""
DIRECTIONS = 147
"""Smallest number of θ, which come in whole bases: one basis for colour, two for the gradient, three for depth."""
NEAREST = 1 / 1024
"""The smallest measured depth, as in `data.pixels`."""
LARGEST_STEP = 0.1
"""Depth differences between neighbours are clamped to ± this value."""


@dataclass(frozen=True)
class Distances:
    """Distances of three aspects of RGB-D images, in units of the [0, 1] pixel values."""

    colour: float
    depth: float
    depth_gradient: float

    @property
    def total(self) -> float:
        """Sum of the three distances."""
        return self.colour + self.depth + self.depth_gradient


@dataclass(frozen=True)
class PairedError:
    """Mean absolute errors per foreground pixel of the truth. `colour` is the mean over the three channels."""

    colour: float
    depth: float

    @property
    def total(self) -> float:
        """Weighted sum Σ_c w_c · error_c, with the weights (1, 1, 1, 3) for R, G, B and depth."""
        return 3 * self.colour + 3 * self.depth


def foreground(images: Tensor, level: float = FOREGROUND_LEVEL) -> Tensor:
    """Return (N, 1, H, W) bool: True at pixels where any channel exceeds `level`."""
    return images.amax(1, keepdim=True) > level


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    *,
    scales: tuple[int, ...] = (1, 2),
    patches: int = 16384,
    seed: int = 0,
) -> Distances:
    """Return the sliced Wasserstein distance between the patches of two sets of images.

    The sets are (N, 4, H, W) and (M, 4, H, W). `scales` are the factors by which the images are pooled; the squared
    distances of the scales are averaged. `patches` is the number of patches per set and scale, drawn with replacement.
    Equal seeds give equal numbers. The order of the images only changes which patches are drawn.

    Raises ValueError for tensors of another shape, non-finite values, or a set without foreground.
    """
    for name, images in (("a", a), ("b", b)):
        check_images(name, images)
    return Distances(*_squared_distances(a, b, scales, patches, seed).sqrt().tolist())


def _squared_distances(a: Tensor, b: Tensor, scales: tuple[int, ...], patches: int, seed: int) -> Tensor:
    """Return (3,) squares of the colour, depth and gradient distances. They are differentiable."""
    squares = torch.zeros(3)
    for scale in scales:
        features = []
        for name, images in (("a", a), ("b", b)):
            generator = torch.Generator().manual_seed(seed)  # the same for both: equal sets have distance 0
            features.append(_patches(name, _pool(images.float().cpu(), scale), patches, generator)[1])
        generator = torch.Generator().manual_seed(seed + 1)
        each = [_squared_distance(of_a, of_b, generator) for of_a, of_b in zip(*features, strict=True)]
        squares = squares + torch.stack(each) / len(scales)
    return squares


def noise_floor(images: Tensor, *, splits: int = 4, seed: int = 0) -> Distances:
    """Return the distance between random halves of one set, as root mean square over `splits` splits.

    Smaller distances cannot be resolved with sets of this size. The halves are smaller than the set: two whole sets of
    one distribution have about √½ of this distance.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = torch.zeros(3, dtype=torch.float64)
    for _ in range(splits):
        order = torch.randperm(len(images), generator=generator)
        half = len(images) // 2
        found = sliced_wasserstein(images[order[:half]], images[order[half : 2 * half]], seed=seed)
        squares += torch.tensor([found.colour, found.depth, found.depth_gradient]).double() ** 2 / splits
    return Distances(*squares.sqrt().tolist())


def check_images(name: str, images: Tensor) -> None:
    """Raise ValueError unless the images are (N, 4, H, W) with N ≥ 1, and finite."""
    if images.ndim != 4 or images.shape[1] != 4 or not len(images):
        raise ValueError(f"{name}: found shape {tuple(images.shape)}, expected (N, 4, H, W) with N ≥ 1")
    if not images.isfinite().all():
        raise ValueError(f"{name}: found NaN or infinite values, expected [0, 1]")


def _pool(images: Tensor, scale: int) -> Tensor:
    """Return the images pooled by `scale`: each pixel is the mean of its foreground (for depth: measured) pixels.

    It is 0 if less than half of them are foreground (for depth: measured).
    """
    if scale == 1:
        return images
    seen = torch.cat([foreground(images).expand(-1, 3, -1, -1), images[:, 3:] > FOREGROUND_LEVEL], 1)
    share = functional.avg_pool2d(seen.to(images.dtype), scale)
    return functional.avg_pool2d(images * seen, scale) / share.clamp_min(1e-6) * (share >= 0.5)


def _patches(
    name: str, images: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return patches around random foreground pixels: colour (count, 147), depth (count, 49), gradient (count, 98).

    The first tensor (count,) has the index of each patch's image.
    """
    margin = PATCH // 2
    centres = foreground(images)[:, 0].nonzero()
    if not len(centres):
        raise ValueError(f"{name}: found no foreground, expected images that are not all 0")
    chosen = centres[torch.randint(len(centres), (count,), generator=generator)]
    everything = functional.pad(torch.cat([images, _gradient(images[:, 3:])], 1), (margin,) * 4)
    offset = torch.arange(PATCH)
    n, y, x = (chosen[:, i, None, None] for i in range(3))
    patches = everything[n, :, y + offset[:, None], x + offset]  # (count, 7, 7, 6)
    aspects = patches[..., :3].flatten(1), patches[..., 3:4].flatten(1), patches[..., 4:].flatten(1)
    return chosen[:, 0], aspects


def _gradient(depth: Tensor) -> Tensor:
    """Return the clamped differences to the right and lower neighbour, 0 unless both are measured.

    The shapes are (N, 1, H, W) → (N, 2, H, W).
    """
    measured = depth > FOREGROUND_LEVEL
    right = (depth[..., 1:] - depth[..., :-1]) * (measured[..., 1:] & measured[..., :-1])
    down = (depth[..., 1:, :] - depth[..., :-1, :]) * (measured[..., 1:, :] & measured[..., :-1, :])
    both = torch.cat([functional.pad(right, (0, 1)), functional.pad(down, (0, 0, 0, 1))], 1)
    return both.clamp(-LARGEST_STEP, LARGEST_STEP)


def _squared_distance(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean of W²(θ) over the directions θ of random orthonormal bases, for two (n, D) sets."""
    bases = torch.randn(-(-DIRECTIONS // a.shape[1]), a.shape[1], a.shape[1], generator=generator)
    directions = torch.linalg.qr(bases)[0].flatten(0, 1)
    return (_sorted(directions @ a.T) - _sorted(directions @ b.T)).square().mean()


def _sorted(rows: Tensor) -> Tensor:
    """Sort every row in ascending order. NumPy is several times faster than torch."""
    if rows.requires_grad:
        return rows.gather(1, torch.from_numpy(np.argsort(rows.detach().numpy(), 1)))
    return torch.from_numpy(np.sort(rows.numpy(), 1))


class Projections:
    """Projected patches of a set of images (N, 4, H, W), for the bootstrap over images.

    `quantiles` gives the distribution of the projections for any numbers of occurrences of the images. It has fewer
    patches and directions than `sliced_wasserstein`. So it tells how much the distance varies with the choice of the
    images. The distance itself is better taken from `sliced_wasserstein`.
    """

    PATCHES, DIRECTIONS, LEVELS = 4096, 16, 128

    def __init__(self, images: Tensor, seed: int = 0) -> None:
        check_images("images", images)
        self._sorted: list[tuple[Tensor, Tensor]] = []
        for scale in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            owner, aspects = _patches("images", _pool(images.float().cpu(), scale), self.PATCHES, generator)
            for patches in aspects:
                generator = torch.Generator().manual_seed(seed + 1)
                basis = torch.linalg.qr(torch.randn(patches.shape[1], patches.shape[1], generator=generator))[0]
                values, order = (basis[: self.DIRECTIONS] @ patches.T).sort(1)
                self._sorted.append((values, owner[order]))

    def quantiles(self, counts: Tensor) -> Tensor:
        """Return (B, 6, directions, levels) for counts (B, N). The six are two scales with three aspects each."""
        levels = (torch.arange(self.LEVELS) + 0.5) / self.LEVELS
        found = torch.empty(len(counts), len(self._sorted), self.DIRECTIONS, self.LEVELS)
        for i, (values, owners) in enumerate(self._sorted):
            for k in range(self.DIRECTIONS):
                below = counts.float()[:, owners[k]].cumsum(1)
                wanted = levels * below[:, -1:]
                found[:, i, k] = values[k][torch.searchsorted(below, wanted).clamp_max(self.PATCHES - 1)]
        return found

    @staticmethod
    def distances(a: Tensor, b: Tensor) -> Tensor:
        """Return the distances of colour, depth and depth gradient for two results of `quantiles`: (B, 3)."""
        squares = (a - b).square().mean((2, 3)).double()
        return ((squares[:, :3] + squares[:, 3:]) / 2).sqrt()


@dataclass(frozen=True)
class ChannelMap:
    """The map x → gain · x + offset per channel, on the foreground, clamped to [0, 1]. Background and holes stay 0.

    Measured depth stays measured: its least value is NEAREST.
    """

    gain: Tensor
    """(4,)"""
    offset: Tensor
    """(4,)"""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the mapped images: (N, 4, H, W) → the same shape."""
        mapped = (images * self.gain.view(1, 4, 1, 1) + self.offset.view(1, 4, 1, 1)).clamp(0, 1)
        mapped = torch.cat([mapped[:, :3], mapped[:, 3:].clamp_min(NEAREST)], 1)
        return torch.where(_measured(images), mapped, torch.zeros_like(mapped))


def _measured(images: Tensor) -> Tensor:
    """Return (N, 4, H, W) bool: True on the foreground, and for depth only where it is measured."""
    return torch.cat([foreground(images).expand(-1, 3, -1, -1), images[:, 3:] > FOREGROUND_LEVEL], 1)


def best_affine(source: Tensor, target: Tensor, *, steps: int = 60, images: int = 64, seed: int = 0) -> ChannelMap:
    """Return the best affine map per channel from `source` to `target`, a baseline for translations.

    Both are (N, 4, H, W) sets, which need not be paired. The map minimises the sum of the three sliced Wasserstein
    distances by gradient descent (Adam), and starts from `quantile_affine`. Each step draws new patches, from at most
    `images` random images of each set. Fit it on training images, and judge it on others.
    """
    start = quantile_affine(source, target)
    parameters = torch.stack([start.gain, start.offset]).requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=4e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    generator = torch.Generator().manual_seed(seed)

    def some(of: Tensor) -> Tensor:
        return of if len(of) <= images else of[torch.randperm(len(of), generator=generator)[:images]]

    for step in range(steps):
        mapped = ChannelMap(*parameters)(some(source))
        loss = (_squared_distances(mapped, some(target), (1, 2), 4096, seed + step) + 1e-12).sqrt().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return ChannelMap(*parameters.detach())


def quantile_affine(source: Tensor, target: Tensor) -> ChannelMap:
    """Return the affine map per channel that is best for single pixels, in closed form.

    `source` and `target` are (N, 4, H, W) sets, which need not be paired. Per channel, the map minimises the
    2-Wasserstein distance between the foreground values of a · source + b and of target. In one dimension, the square
    of this distance is ∫ (a · Q_s(u) + b − Q_t(u))² du, with the quantile functions Q. So (a, b) is the least-squares
    line of Q_t over Q_s: a = ρ · σ_t / σ_s and b = μ_t − a · μ_s, where ρ is the correlation of the two quantile
    functions. For distributions of one location-scale family, ρ = 1 and the line is the optimal transport.

    A channel of one value becomes the mean. Without measured depth in both sets, depth stays as it is. Raises
    ValueError for tensors of another shape, non-finite values, or a set without foreground.
    """
    for name, images in (("source", source), ("target", target)):
        check_images(name, images)
    u = torch.linspace(0, 1, 4096)
    gains, offsets = [], []
    for channel in range(4):
        if channel == 3 and not all(_measured(images)[:, 3].any() for images in (source, target)):
            gains.append(torch.tensor(1.0))
            offsets.append(torch.tensor(0.0))
            continue
        q_s, q_t = (_quantiles(images[:, channel][_measured(images)[:, channel]], u) for images in (source, target))
        if q_s[0] == q_s[-1]:  # one value everywhere
            gains.append(torch.tensor(0.0))
            offsets.append(q_t.mean())
            continue
        spread = (q_s - q_s.mean()).square().sum().clamp_min(1e-12)
        gains.append(((q_s - q_s.mean()) * q_t).sum() / spread)
        offsets.append(q_t.mean() - gains[-1] * q_s.mean())
    return ChannelMap(torch.stack(gains), torch.stack(offsets))


def _quantiles(values: Tensor, u: Tensor) -> Tensor:
    """Return the quantiles of the values at the fractions `u`. (torch.quantile refuses more than 16 million values.)"""
    if not len(values):
        raise ValueError("found no foreground, expected images that are not all 0")
    ordered = values.float().sort().values
    return ordered[(u * (len(ordered) - 1)).round().long()]


def paired_error(translated: Tensor, truth: Tensor) -> PairedError:
    """Return the absolute error of translations against their truth, both (N, 4, H, W).

    The errors are summed over all pixels and divided by the number of the truth's foreground pixels. So errors in the
    background count, and a large background does not dilute the result. Raises ValueError for tensors of another shape
    or non-finite values.
    """
    errors, pixels = (sums.sum(0) for sums in error_sums(translated, truth))
    colour, depth = (errors / pixels.clamp_min(1)).tolist()
    return PairedError(colour, depth)


def error_sums(translated: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of `paired_error` for each image: absolute errors of colour and depth (N, 2), and pixels (N,).

    The error of colour is the mean over its three channels. Raises ValueError as `paired_error` does.
    """
    for name, images in (("translated", translated), ("truth", truth)):
        check_images(name, images)
    if translated.shape != truth.shape:
        raise ValueError(
            f"translated: found shape {tuple(translated.shape)}, expected the truth's {tuple(truth.shape)}"
        )
    by_channel = (translated - truth).abs().double().sum((2, 3))
    return torch.stack([by_channel[:, :3].mean(1), by_channel[:, 3]], 1), foreground(truth).sum((1, 2, 3)).double()
