"""How far apart two sets of RGB-D images are, and how far translations are from a known truth.

Images are (N, 4, H, W) float tensors in [0, 1], RGBD, background exactly 0; a hole has depth 0 and keeps its colour.

**Sliced Wasserstein distance** [Rabin et al. 2011, "Wasserstein barycenter and its application to texture mixing"; on
image patches: Karras et al. 2018, "Progressive growing of GANs", section 5, here without the Laplacian pyramid].
For sets A and B of n patches, D numbers each, and a unit vector θ, the squared 2-Wasserstein distance of the
projections is the mean squared difference of the sorted values. The sliced distance is its root mean over θ,

    SW² = mean over θ of  1/n Σᵢ (sort(Aθ)ᵢ − sort(Bθ)ᵢ)²

The θ are whole random orthonormal bases. The squares of a vector's projections on a basis sum to its squared length, so
a shift of every component by c gives SW = |c| exactly: the unit is that of a pixel value.

Patches of 7 × 7 are taken from the images and from the images pooled by 2, around random pixels of the foreground: the
background is most of an image and alike in both sets. Three distances are reported apart:

    colour          3 · 49 numbers
    depth           49 numbers
    depth_gradient  2 · 49 numbers: differences to the right and lower neighbour, 0 unless both are measured, and at
                    most ±0.1: a larger step is an edge between surfaces, and the squares of a few of those (a soft
                    outline is enough) would outweigh the surfaces themselves

Two samples of one distribution are not at distance 0, since every person wears other clothes: `noise_floor` measures
what a set's size cannot resolve. Squares add: a true distance d is seen as about √(d² + floor²).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FOREGROUND_LEVEL = 0.04
"""A pixel is foreground when any of its channels is above this. Not 0: a network's background is only almost 0."""
PATCH = 7
DIRECTIONS = 147
"""At least so many θ, in whole bases: one basis for colour, two for the gradient, three for depth."""
LARGEST_STEP = 0.1
"""Depth differences between neighbours are clamped to this; see above."""


@dataclass(frozen=True)
class Distances:
    """One number for each aspect of RGB-D images, in units of the [0, 1] pixel values."""

    colour: float
    depth: float
    depth_gradient: float

    @property
    def total(self) -> float:
        """Sum of the three."""
        return self.colour + self.depth + self.depth_gradient


@dataclass(frozen=True)
class PairedError:
    """Mean absolute errors per foreground pixel of the truth; `colour` is the mean of the three channels."""

    colour: float
    depth: float

    @property
    def total(self) -> float:
        """Σ_c w_c · error_c with the weights (1, 1, 1, 3) of R, G, B and depth."""
        return 3 * self.colour + 3 * self.depth


def foreground(images: Tensor, level: float = FOREGROUND_LEVEL) -> Tensor:
    """(N, 1, H, W) bool: pixels where any channel exceeds `level`."""
    return images.amax(1, keepdim=True) > level


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    *,
    scales: tuple[int, ...] = (1, 2),
    patches: int = 16384,
    seed: int = 0,
) -> Distances:
    """Sliced Wasserstein distance between the patches of two sets of images, (N, 4, H, W) and (M, 4, H, W).

    `scales`: factors by which images are pooled; the squared distances of the scales are averaged. `patches`: how many
    are drawn from each set and scale, with replacement. Equal seeds give equal numbers; the order of the images only
    changes which patches are drawn.

    Raises ValueError for tensors of another shape, non-finite values, or a set without foreground.
    """
    for name, images in (("a", a), ("b", b)):
        _check(name, images)
    return Distances(*_squared_distances(a, b, scales, patches, seed).sqrt().tolist())


def _squared_distances(a: Tensor, b: Tensor, scales: tuple[int, ...], patches: int, seed: int) -> Tensor:
    """(3,) squares of the colour, depth and gradient distances; differentiable."""
    squares = torch.zeros(3)
    for scale in scales:
        features = []
        for name, images in (("a", a), ("b", b)):
            generator = torch.Generator().manual_seed(seed)  # the same draw for both: equal sets have distance 0
            features.append(_patches(name, _pool(images.float().cpu(), scale), patches, generator))
        generator = torch.Generator().manual_seed(seed + 1)
        each = [_squared_distance(of_a, of_b, generator) for of_a, of_b in zip(*features, strict=True)]
        squares = squares + torch.stack(each) / len(scales)
    return squares


def noise_floor(images: Tensor, *, splits: int = 4, seed: int = 0) -> Distances:
    """Distance between random halves of one set, root mean square over `splits`: what the set's size cannot resolve.

    The halves are smaller than the set: two whole sets of this size are about √½ of it apart.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = torch.zeros(3, dtype=torch.float64)
    for _ in range(splits):
        order = torch.randperm(len(images), generator=generator)
        half = len(images) // 2
        found = sliced_wasserstein(images[order[:half]], images[order[half : 2 * half]], seed=seed)
        squares += torch.tensor([found.colour, found.depth, found.depth_gradient]).double() ** 2 / splits
    return Distances(*squares.sqrt().tolist())


def _check(name: str, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 4 or not len(images):
        raise ValueError(f"{name}: found shape {tuple(images.shape)}, expected (N, 4, H, W) with N ≥ 1")
    if not images.isfinite().all():
        raise ValueError(f"{name}: found NaN or infinite values, expected [0, 1]")


def _pool(images: Tensor, scale: int) -> Tensor:
    """Average pooling where each pixel is the mean of what is not background (or, for depth, not missing)."""
    if scale == 1:
        return images
    seen = torch.cat([foreground(images).expand(-1, 3, -1, -1), images[:, 3:] > FOREGROUND_LEVEL], 1)
    share = functional.avg_pool2d(seen.to(images.dtype), scale)
    return functional.avg_pool2d(images * seen, scale) / share.clamp_min(1e-6) * (share >= 0.5)


def _patches(name: str, images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`count` patches around random foreground pixels: colour (count, 147), depth (count, 49), gradient (count, 98)."""
    margin = PATCH // 2
    centres = foreground(images)[:, 0].nonzero()
    if not len(centres):
        raise ValueError(f"{name}: found no foreground, expected images that are not all 0")
    chosen = centres[torch.randint(len(centres), (count,), generator=generator)]
    everything = functional.pad(torch.cat([images, _gradient(images[:, 3:])], 1), (margin,) * 4)
    offset = torch.arange(PATCH)
    n, y, x = (chosen[:, i, None, None] for i in range(3))
    patches = everything[n, :, y + offset[:, None], x + offset]  # (count, 7, 7, 6)
    return patches[..., :3].flatten(1), patches[..., 3:4].flatten(1), patches[..., 4:].flatten(1)


def _gradient(depth: Tensor) -> Tensor:
    """(N, 1, H, W) → (N, 2, H, W): clamped difference to the right and lower neighbour, 0 unless both are measured."""
    measured = depth > FOREGROUND_LEVEL
    right = (depth[..., 1:] - depth[..., :-1]) * (measured[..., 1:] & measured[..., :-1])
    down = (depth[..., 1:, :] - depth[..., :-1, :]) * (measured[..., 1:, :] & measured[..., :-1, :])
    both = torch.cat([functional.pad(right, (0, 1)), functional.pad(down, (0, 0, 0, 1))], 1)
    return both.clamp(-LARGEST_STEP, LARGEST_STEP)


def _squared_distance(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of W²(θ) over the directions θ of random orthonormal bases, for two (n, D) sets."""
    bases = torch.randn(-(-DIRECTIONS // a.shape[1]), a.shape[1], a.shape[1], generator=generator)
    directions = torch.linalg.qr(bases)[0].flatten(0, 1)
    return (_sorted(directions @ a.T) - _sorted(directions @ b.T)).square().mean()


def _sorted(rows: Tensor) -> Tensor:
    """Every row in ascending order. numpy is several times faster than torch, which also finds the order."""
    return rows.sort(1).values if rows.requires_grad else torch.from_numpy(np.sort(rows.numpy(), 1))


@dataclass(frozen=True)
class ChannelMap:
    """x → gain · x + offset per channel on the foreground, clamped to [0, 1]; background and holes stay 0."""

    gain: Tensor
    """(4,)"""
    offset: Tensor
    """(4,)"""

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) → the same."""
        mapped = (images * self.gain.view(1, 4, 1, 1) + self.offset.view(1, 4, 1, 1)).clamp(0, 1)
        return torch.where(_measured(images), mapped, torch.zeros_like(mapped))


def _measured(images: Tensor) -> Tensor:
    """(N, 4, H, W) bool: foreground, and for depth only where it is not missing."""
    return torch.cat([foreground(images).expand(-1, 3, -1, -1), images[:, 3:] > FOREGROUND_LEVEL], 1)


def best_affine(source: Tensor, target: Tensor, *, steps: int = 60, seed: int = 0) -> ChannelMap:
    """The map that a translation has to beat: the best affine one per channel, from unpaired (N, 4, H, W) sets.

    Minimises the sum of the three sliced Wasserstein distances by gradient descent (Adam, fresh patches each step),
    starting from `quantile_affine`. Fit it on training images, judge it on others.
    """
    start = quantile_affine(source, target)
    parameters = torch.stack([start.gain, start.offset]).requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=4e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        mapped = ChannelMap(*parameters)(source)
        loss = (_squared_distances(mapped, target, (1, 2), 4096, seed + step) + 1e-12).sqrt().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return ChannelMap(*parameters.detach())


def quantile_affine(source: Tensor, target: Tensor) -> ChannelMap:
    """The affine map per channel that is best for single pixels, in closed form, from unpaired (N, 4, H, W) sets.

    Per channel it minimises the 2-Wasserstein distance between the foreground values of a · source + b and of target.
    In one dimension that distance is the one between quantile functions, ∫ (a · Q_s(u) + b − Q_t(u))² du, so (a, b) is
    the least-squares line of Q_t over Q_s: a = ρ · σ_t / σ_s and b = μ_t − a · μ_s, with ρ the correlation of the two
    quantile functions. For distributions of one location-scale family ρ = 1, and the line is the optimal transport.

    Raises ValueError for tensors of another shape, non-finite values, or a set without foreground.
    """
    for name, images in (("source", source), ("target", target)):
        _check(name, images)
    u = torch.linspace(0, 1, 4096)
    gains, offsets = [], []
    for channel in range(4):
        q_s, q_t = (_quantiles(images[:, channel][_measured(images)[:, channel]], u) for images in (source, target))
        spread = (q_s - q_s.mean()).square().sum().clamp_min(1e-12)
        gains.append(((q_s - q_s.mean()) * q_t).sum() / spread)
        offsets.append(q_t.mean() - gains[-1] * q_s.mean())
    return ChannelMap(torch.stack(gains), torch.stack(offsets))


def _quantiles(values: Tensor, u: Tensor) -> Tensor:
    """Values at the fractions `u` of their order. (torch.quantile refuses more than 16 million.)"""
    if not len(values):
        raise ValueError("found no foreground, expected images that are not all 0")
    ordered = values.float().sort().values
    return ordered[(u * (len(ordered) - 1)).round().long()]


def paired_error(translated: Tensor, truth: Tensor) -> PairedError:
    """Absolute error of translations against their truth, (N, 4, H, W) both.

    Summed over all pixels and divided by the truth's foreground, so that what a translation paints into the background
    counts and never dilutes.
    """
    for name, images in (("translated", translated), ("truth", truth)):
        _check(name, images)
    if translated.shape != truth.shape:
        raise ValueError(
            f"translated: found shape {tuple(translated.shape)}, expected the truth's {tuple(truth.shape)}"
        )
    count = foreground(truth).sum().clamp_min(1)
    errors = (translated - truth).abs().double().sum((0, 2, 3)) / count
    return PairedError(float(errors[:3].mean()), float(errors[3]))
