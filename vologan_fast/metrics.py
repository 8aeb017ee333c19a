"""How far apart two sets of RGB-D images are, and how far translations are from a known truth.

Images are (N, 4, H, W) float tensors in [0, 1], RGBD, background exactly 0; a hole has depth 0 and keeps its colour.

**Sliced Wasserstein distance** [Rabin et al. 2011; on image patches: Karras et al. 2018, section 5, here without the
Laplacian pyramid]. For two sets of n patches of D numbers each and a unit vector θ, the squared 2-Wasserstein distance
of the projections is the mean square difference of the sorted values, W²(θ) = 1/n Σᵢ (sort(Aθ)ᵢ − sort(Bθ)ᵢ)². Reported is

    SW = √( mean over θ of W²(θ) · D )  /  √D   with the θ from random orthonormal bases,

so that it is in the units of a pixel: if B is A shifted by c in every component then SW = |c| exactly, since
Σ over a basis of (θ·v)² is |v|². Patches of 7 × 7 are taken at full size and from images pooled by 2, around pixels of
the foreground only: the background is most of an image and alike in both sets. Apart for

    colour          3 · 49 numbers
    depth           49 numbers
    depth_gradient  2 · 49 numbers: differences to the right and lower neighbour, 0 unless both are measured

**What the distance cannot resolve**: two samples of one distribution are not at distance 0. `noise_floor` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FOREGROUND_LEVEL = 0.04
"""A pixel is foreground when any of its channels is above this. Not 0: a network's background is only almost 0."""
CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 3.0)
PATCH = 7


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
    bases: int = 2,
    seed: int = 0,
) -> Distances:
    """Sliced Wasserstein distance between the patches of two sets of images, (N, 4, H, W) and (M, 4, H, W).

    `scales`: factors by which images are pooled; the squared distances of the scales are averaged. `patches`: how many
    are drawn from each set and scale, with replacement. `bases`: orthonormal bases of directions. The same seed gives
    the same number; the order of the images does not matter beyond which patches are drawn.

    Raises ValueError for tensors of another shape, non-finite values, or a set without foreground.
    """
    for name, images in (("a", a), ("b", b)):
        _check(name, images)
    squares = torch.zeros(3, dtype=torch.float64)
    for scale in scales:
        features = []
        for name, images in (("a", a), ("b", b)):
            generator = torch.Generator().manual_seed(
                seed
            )  # the same draw for both: equal sets have distance 0
            features.append(_patches(name, _pool(images.float(), scale), patches, generator))
        for i, (of_a, of_b) in enumerate(zip(*features, strict=True)):
            generator = torch.Generator().manual_seed(seed + 1)
            squares[i] += _squared_distance(of_a, of_b, bases, generator) / len(scales)
    return Distances(*squares.sqrt().tolist())


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


def _patches(
    name: str, images: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
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
    return tuple(patches[..., part].flatten(1) for part in (slice(0, 3), slice(3, 4), slice(4, 6)))  # type: ignore[return-value]


def _gradient(depth: Tensor) -> Tensor:
    """(N, 1, H, W) → (N, 2, H, W): difference to the right and lower neighbour, 0 unless both are measured."""
    measured = depth > FOREGROUND_LEVEL
    right = (depth[..., 1:] - depth[..., :-1]) * (measured[..., 1:] & measured[..., :-1])
    down = (depth[..., 1:, :] - depth[..., :-1, :]) * (measured[..., 1:, :] & measured[..., :-1, :])
    return torch.cat([functional.pad(right, (0, 1)), functional.pad(down, (0, 0, 0, 1))], 1)


def _squared_distance(a: Tensor, b: Tensor, bases: int, generator: torch.Generator) -> float:
    """Mean over `bases` orthonormal bases of directions of W²(θ), for two (n, D) sets."""
    size = a.shape[1]
    directions = torch.cat(
        [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(bases)], 1
    )
    sorted_a, sorted_b = ((patches @ directions).sort(0).values for patches in (a, b))
    return float((sorted_a - sorted_b).double().square().mean())


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


def best_affine(source: Tensor, target: Tensor) -> ChannelMap:
    """The map that a translation has to beat: per channel, give `source` the mean and deviation of `target`.

    From unpaired sets, over the foreground. In one dimension the optimal transport between distributions of one
    location-scale family is affine, x → σ_t/σ_s · (x − μ_s) + μ_t, and matching the two moments minimises the
    2-Wasserstein distance over all increasing affine maps up to the correlation of the quantile functions, which is
    almost 1 for distributions of similar shape.
    """
    gains, offsets = [], []
    for channel in range(4):
        values = [images[:, channel][_measured(images)[:, channel]].double() for images in (source, target)]
        (mean_s, std_s), (mean_t, std_t) = ((v.mean(), v.std()) for v in values)
        gain = std_t / std_s.clamp_min(1e-6)
        gains.append(gain)
        offsets.append(mean_t - gain * mean_s)
    return ChannelMap(torch.stack(gains).float(), torch.stack(offsets).float())


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
