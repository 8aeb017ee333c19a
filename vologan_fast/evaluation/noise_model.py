"""A parametric model of a depth sensor, fitted to two unpaired sets of images: a baseline for translations.

Images are (N, 4, H, W) float tensors in [0, 1], with the channels R, G, B and depth. The background is exactly 0 in all
channels. A hole has depth 0 and keeps its colour. Depth d is z in metres, stretched from near..far to 0..1. So noise
is in units of far − near. Lengths across the image are in pixels.

The model changes a clean image in these steps. Each parameter is a field of `NoiseModel`.

1. **Colour**: the affine map per channel of `quantile_affine`. Colour gets no noise.
2. **Bias**: d ← gain · d + offset + intensity_bias · (darkness − ½). Darkness is 1 − luminance of the new colour.
   Time-of-flight cameras measure dark surfaces at a wrong distance [Lindner, Schiller, Kolb, Koch 2010, "Time-of-Flight
   sensor calibration for accurate range sensing"].
3. **Mixed pixels**: a point of the sensor averages over a footprint, a Gaussian of `footprint` pixels. At an outline it
   mixes the surface with a background that lies `beyond` behind the mean depth of the foreground. This makes the tails
   at edges [Keller, Kolb 2009, "Real-time simulation of time-of-flight sensors"].
4. **Lateral jitter**: depth is read at (x, y) + n, n ~ N(0, jitter²), with bilinear interpolation [Barron, Malik 2013,
   "Intrinsic scene properties from a single RGB-D image"; Handa, Whelan, McDonald, Davison 2014, "A benchmark for RGB-D
   visual odometry, 3D reconstruction and SLAM"]. On a slope g it adds noise of deviation jitter · g. This stands for
   the growth with the surface's angle in the formula of Nguyen, Izadi, Lovell 2012, "Modeling Kinect sensor noise for
   improved 3D reconstruction and tracking", who measured a jitter of 0.8 pixels.
5. **Axial noise**: N(0, σ²), σ = sigma · (1 + sigma_growth · d)² · exp(sigma_dark · darkness). The square is the law of
   triangulation, σ ∝ z² [Khoshelham, Oude Elberink 2012, "Accuracy and resolution of Kinect depth data"]. It means
   sigma_growth = (far − near) / near. Nguyen et al. measured σ = 0.0012 + 0.0019 · (z − 0.4)² metres, which this form
   approximates. Noise of neighbours is correlated: it is white noise after a Gaussian blur of `correlation` pixels.
6. **Quantisation**: d is rounded to levels that are quantum · (1 + quantum_growth · d)² apart. Growth 0 is a fixed
   step, as in files of integers. Otherwise the levels are equal steps of disparity, as in the model of Barron, Malik,
   z = 35130 / ⌊35130 / z + n + ½⌋. A quantum of 0 means no levels.
7. **Holes**: their probability is a logistic function of depth, darkness, its square, slope and distance to an edge.
   Neighbours drop out together: white noise after a blur of `hole_correlation` pixels decides.

The outline of the foreground stays. Bias and colour are fitted to the quantiles of both sets, and holes by logistic
regression on the real set. The other parameters are fitted by the *simulated method of moments* [McFadden 1989, "A
method of simulated moments for estimation of discrete response models without numerical integration"]. They are changed
until the statistics of the model's images are those of the real images. So the relief of surfaces, which both sets
have, is not taken for noise. A weak prior (`FITTED`) decides what the images leave open.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vologan_fast.evaluation.distances import quantile_affine

SMALLEST = 1 / 1024
"""Smallest depth that is not a hole, as in the data sets."""
STEP = 0.1
"""A larger difference between neighbours is an edge between two surfaces. As `distances.LARGEST_STEP`."""
FITTED = {
    "footprint": (1.0, 1.0, 0.05, 4.0),
    "beyond": (0.2, 0.3, -0.5, 1.0),
    "intensity_bias": (0.0, 0.1, -0.5, 0.5),
    "jitter": (0.2, 0.3, 0.0, 2.0),
    "sigma": (0.002, 0.002, 1e-5, 0.1),
    "sigma_growth": (0.5, 1.0, -0.5, 4.0),
    "sigma_dark": (0.5, 1.0, -3.0, 6.0),
    "correlation": (0.7, 0.5, 0.0, 3.0),
}
"""The parameters that are fitted by moments: usual value, its deviation between sensors, and limits. The usual values
are a prior. It decides where the images say little: blurred relief and smooth noise look alike."""
ENOUGH, LEAST = 1 << 19, 16
"""Pixels of each set that are fitted to, but no fewer images than `LEAST`. More take longer and change little."""
HOLE_FEATURES = ("one", "depth", "darkness", "darkness²", "slope", "edge 1 px", "edge 2 px")
"""Names of the features that `_hole_features` finds, in their order."""


@dataclass(frozen=True)
class NoiseModel:
    """The parameters of a sensor. The module's docstring defines them."""

    gain: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Gains of R, G, B and depth."""
    offset: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Offsets of R, G, B and depth."""
    intensity_bias: float = 0.0
    footprint: float = 0.0
    """Pixels."""
    beyond: float = 0.0
    jitter: float = 0.0
    """Pixels."""
    sigma: float = 0.0
    sigma_growth: float = 0.0
    sigma_dark: float = 0.0
    correlation: float = 0.0
    """Pixels."""
    quantum: float = 0.0
    quantum_growth: float = 0.0
    hole_weights: tuple[float, ...] = (-30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """Weights of the logistic function, for `HOLE_FEATURES`. The default makes no holes."""
    hole_correlation: float = 0.0
    """Pixels."""

    def __call__(self, images: Tensor, seed: int = 0) -> Tensor:
        """Return the images as the sensor would see them: (N, 4, H, W) in [0, 1] → the same shape.

        Background stays exactly 0, and holes stay holes. Equal images and seeds give equal results. Raises ValueError
        for another shape and for values that are not finite.
        """
        _check("images", images)
        generator = torch.Generator().manual_seed(seed)
        seen, measured = _seen(images), images[:, 3:] > 0
        colour, depth = self._sense(images, generator)
        chance = (_hole_features(depth, seen, _darkness(colour)) * self._weights(images)).sum(1, keepdim=True).sigmoid()
        draw = torch.special.ndtr(_field(depth, self.hole_correlation, generator))
        return torch.cat([colour, depth * (measured & (draw >= chance))], 1)

    def _sense(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return colour (N, 3, H, W) and depth (N, 1, H, W) after steps 1 to 6, with no holes."""
        seen = _seen(images)
        gain, offset = (images.new_tensor(x).view(1, 4, 1, 1) for x in (self.gain, self.offset))
        mapped = torch.cat([images[:, :3], _fill(images[:, 3:], seen)], 1) * gain + offset
        colour = mapped[:, :3].clamp(0, 1) * seen
        darkness = _darkness(colour)
        depth = mapped[:, 3:] + self.intensity_bias * (darkness - 0.5)
        mean = (depth * seen).sum((1, 2, 3), keepdim=True) / seen.sum((1, 2, 3), keepdim=True).clamp_min(1)
        depth = _blur(torch.where(seen, depth, mean + self.beyond), self.footprint)
        depth = _jitter(depth, self.jitter, generator)
        sigma = self.sigma * (1 + self.sigma_growth * depth.clamp(0, 1)) ** 2 * (self.sigma_dark * darkness).exp()
        depth = depth + sigma * _field(depth, self.correlation, generator)
        return colour, _quantise(depth, self.quantum, self.quantum_growth).clamp(SMALLEST, 1) * seen

    def _weights(self, images: Tensor) -> Tensor:
        return images.new_tensor(self.hole_weights).view(1, -1, 1, 1)

    def axial_deviation(self, depth: float, darkness: float = 0.5) -> float:
        """Return σ of the axial noise at a depth in [0, 1], in units of far − near."""
        return self.sigma * (1 + self.sigma_growth * depth) ** 2 * math.exp(self.sigma_dark * darkness)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in dataclasses.asdict(self).items()}


def fit_noise_model(synthetic: Tensor, real: Tensor, *, seed: int = 0) -> NoiseModel:
    """Return the noise model whose images of `synthetic` resemble `real` most.

    Both are (N, 4, H, W) sets of training images, which need not be paired and may differ in N, H and W. Equal
    arguments give equal models, up to rounding. Raises ValueError for another shape, values that are not finite, and a
    set without foreground.
    """
    for name, images in (("synthetic", synthetic), ("real", real)):
        _check(name, images)
    generator = torch.Generator().manual_seed(seed)
    synthetic, real = (images.detach().float().cpu() for images in (synthetic, real))
    some_synthetic, some_real = (_some(images, generator) for images in (synthetic, real))
    quantum, quantum_growth = _find_quantum(some_real)
    model = NoiseModel(quantum=quantum, quantum_growth=quantum_growth)
    usual = torch.tensor([usual for usual, *_ in FITTED.values()])
    model = _fit_colour(_with(model, usual), synthetic, real)
    for _ in range(2):  # the bias changes the noise, and the noise the bias
        model = _fit_bias(model, synthetic, real, seed)
        model = _fit_moments(model, some_synthetic, some_real, seed)
    model = _fit_bias(model, synthetic, real, seed)
    return _fit_holes(model, some_synthetic, some_real, seed)


# --- Pictures ---


def _check(name: str, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 4 or not len(images):
        raise ValueError(f"{name}: found shape {tuple(images.shape)}, expected (N, 4, H, W) with N ≥ 1")
    if not images.is_floating_point():
        raise ValueError(f"{name}: found {images.dtype}, expected a float tensor in [0, 1]")
    if not images.isfinite().all():
        raise ValueError(f"{name}: found NaN or infinite values, expected [0, 1]")


def _some(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, or random ones among them if they have more than `ENOUGH` pixels."""
    count = max(LEAST, ENOUGH // images[0, 0].numel())
    return images if len(images) <= count else images[torch.randperm(len(images), generator=generator)[:count]]


def _seen(images: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool: True on the foreground, holes included."""
    return images.amax(1, keepdim=True) > 0


def _darkness(colour: Tensor) -> Tensor:
    """Return 1 − luminance (ITU-R BT.601): (N, 3, H, W) → (N, 1, H, W)."""
    return 1 - (colour * colour.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _gaussian(sigma: float) -> Tensor:
    """Return the weights of a Gaussian of `sigma` pixels at the integers, to 4 σ. They sum to 1."""
    reach = math.ceil(4 * sigma)
    weights = (-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2).exp()
    return weights / weights.sum()


def _convolve(planes: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (N, 1, H, W) with a row of K weights along both axes. The result is K - 1 smaller."""
    kernel = kernel.to(planes)
    return functional.conv2d(functional.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _blur(planes: Tensor, sigma: float) -> Tensor:
    """Blur (N, 1, H, W) with a Gaussian of `sigma` pixels. The border repeats."""
    kernel = _gaussian(sigma)
    return _convolve(functional.pad(planes, (len(kernel) // 2,) * 4, "replicate"), kernel)


def _field(like: Tensor, correlation: float, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of the shape of `like`, white noise blurred by `correlation` pixels."""
    kernel = _gaussian(correlation)
    height, width = (side + len(kernel) - 1 for side in like.shape[2:])
    white = torch.randn(len(like), 1, height, width, generator=generator).to(like)
    return _convolve(white, kernel / kernel.square().sum().sqrt())


def _jitter(depth: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Read each pixel of (N, 1, H, W) at a place that is normally distributed around it, bilinearly."""
    shift = torch.randn(len(depth), *depth.shape[2:], 2, generator=generator).to(depth) * jitter
    height, width = depth.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], -1).to(depth) + shift
    place = (2 * place + 1) / depth.new_tensor([width, height]) - 1
    return functional.grid_sample(depth, place, padding_mode="border", align_corners=False)


def _quantise(depth: Tensor, quantum: float, growth: float) -> Tensor:
    """Round to levels that are s(d) = quantum · (1 + growth · d)² apart.

    The number of a level is ∫ dd / s(d) = d / (quantum · (1 + growth · d)).
    """
    if not quantum:
        return depth
    level = (depth / (quantum * (1 + growth * depth).clamp_min(1e-3))).round()
    return quantum * level / (1 - growth * quantum * level)


def _fill(depth: Tensor, seen: Tensor) -> Tensor:
    """Fill the holes of (N, 1, H, W) depth from their edges inwards, with the mean of the measured neighbours."""
    known = (depth > 0) & seen
    depth = depth * known
    for _ in range(max(depth.shape[2:])):
        missing = seen & ~known
        if not missing.any():
            break
        weight = functional.avg_pool2d(known.to(depth), 3, 1, 1)
        mean = functional.avg_pool2d(depth, 3, 1, 1) / weight.clamp_min(1e-6)
        found = missing & (weight > 0)
        depth, known = torch.where(found, mean, depth), known | found
    return depth


def _grow(mask: Tensor, pixels: int = 1) -> Tensor:
    """Dilate a bool mask (N, 1, H, W) by some pixels, with squares."""
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0


def _edges(depth: Tensor, seen: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool: True outside of the foreground, and on the farther side of a step between surfaces."""
    smallest = -functional.max_pool2d(-torch.where(seen, depth, torch.ones_like(depth)), 3, 1, 1)
    return ~seen | (depth - smallest > STEP)


def _slope(depth: Tensor, seen: Tensor) -> Tensor:
    """Return the slope (N, 1, H, W) per pixel of the depth's mean over 3 × 3 foreground pixels, limited to `STEP`."""
    weight = functional.avg_pool2d(seen.to(depth), 3, 1, 1)
    mean = functional.avg_pool2d(depth * seen, 3, 1, 1) / weight.clamp_min(1e-6)
    wide = functional.pad(mean, (1, 1, 1, 1), "replicate")
    x, y = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2], wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    return ((x**2 + y**2).sqrt() / 2 * ~_grow(~seen)).clamp(max=STEP)


def _hole_features(depth: Tensor, seen: Tensor, darkness: Tensor) -> Tensor:
    """Return (N, 7, H, W), the values of `HOLE_FEATURES`. Slope is in units of `STEP`; edges are 0 or 1."""
    edges = _edges(depth, seen)
    near, next_to = _grow(edges, 1), _grow(edges, 2)
    slope = _slope(depth, seen) / STEP
    planes = [torch.ones_like(depth), depth, darkness, darkness**2, slope, near.to(depth), (next_to & ~near).to(depth)]
    return torch.cat(planes, 1)


# --- Fit ---


@dataclass(frozen=True)
class _Statistics:
    """Statistics of the depth of a set of images, each the mean of some quantity over some pixels.

    Which pixels belong to which statistic is found once, from depth as it is before the noise. The statistics are:

    - the |second difference| of depth on surfaces by depth (3 bins), by darkness (3) and by slope (3), which measures
      the noise, and over 2 and 3 pixels, which measures how the noise is correlated;
    - the difference between a pixel and the surface deeper inside, 1, 2, 3 and 4 pixels from the outline: edge tails;
    - the rise of depth with darkness between pixels 3 apart: the bias on dark surfaces.
    """

    rough: tuple[tuple[int, int, Tensor], ...]
    """Lag, axis and places of the second differences. A place is an index into the flattened images."""
    rings: tuple[Tensor, ...]
    """Places 1, 2, 3 and 4 pixels from the outline."""
    deep: Tensor
    """(N, 1, H, W): 1 where a pixel is further inside, and not a hole."""
    weight: Tensor
    """(N, 1, H, W): the mean of `deep` over 11 × 11 pixels."""
    steps: tuple[tuple[int, Tensor, Tensor], ...]
    """Axis, places, and difference in darkness over its mean square, at pairs of pixels 3 apart."""

    @classmethod
    def find(cls, colour: Tensor, depth: Tensor, holes: Tensor, limits: tuple[Tensor, Tensor, Tensor]) -> _Statistics:
        """Find the pixels. `limits` are the two limits of the bins of depth, darkness and slope."""
        seen, darkness = depth > 0, _darkness(colour)
        trusted = ~_grow(_edges(depth, seen), 2) & ~_grow(holes)
        trusted &= functional.pad(torch.ones_like(trusted[..., 3:-3, 3:-3]), (3,) * 4)  # roll wraps around
        rough = []
        for lag, axis in itertools.product((1, 2, 3), (2, 3)):
            usable = trusted & trusted.roll(lag, axis) & trusted.roll(-lag, axis)
            if lag > 1:
                rough.append((lag, axis, _places(usable)))
                continue
            for plane, edges in zip((depth, darkness, _slope(depth, seen)), limits, strict=True):
                bins = torch.bucketize(plane, edges)
                rough += [(lag, axis, _places(usable & (bins == i))) for i in range(3)]
        reach = [~seen]
        for _ in range(5):
            reach.append(_grow(reach[-1]))
        deep = (seen & ~reach[5] & ~holes).to(depth)
        weight = _box(deep)
        rings = tuple(_places(reach[k] & ~reach[k - 1] & (weight > 0.05) & ~holes) for k in range(1, 5))
        steps = []
        for axis in (2, 3):
            places = _places(trusted & trusted.roll(3, axis))
            darker = (darkness - darkness.roll(3, axis)).flatten()[places]
            steps.append((axis, places, darker / darker.square().mean().clamp_min(1e-6)))
        return cls(tuple(rough), rings, deep, weight.clamp_min(1e-6), tuple(steps))

    def values(self, depth: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the places and the values of each statistic, for depth (N, 1, H, W) without holes."""
        found = []
        planes: dict[tuple[int, int], Tensor] = {}
        for lag, axis, places in self.rough:
            if (lag, axis) not in planes:
                planes[lag, axis] = (depth.roll(lag, axis) - 2 * depth + depth.roll(-lag, axis)).abs().flatten()
            found.append((places, planes[lag, axis][places]))
        tail = depth - _box(depth * self.deep) / self.weight
        found += [(places, tail.flatten()[places]) for places in self.rings]
        for axis, places, darker in self.steps:
            rise = (depth - depth.roll(3, axis)).clamp(-STEP, STEP).flatten()[places]
            found.append((places, rise * darker))
        return found


def _box(planes: Tensor) -> Tensor:
    """Return the mean over 11 × 11 pixels of (N, 1, H, W), where the outside counts as 0."""
    return _convolve(functional.pad(planes, (5,) * 4), torch.full((11,), 1 / 11))


def _places(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def _fit_moments(model: NoiseModel, synthetic: Tensor, real: Tensor, seed: int) -> NoiseModel:
    """Return the model with the parameters of `FITTED` for which its statistics are those of `real`.

    Levenberg and Marquardt's method with finite differences and common random numbers. Each statistic counts by its
    standard error over the images of both sets.
    """
    seen = _seen(real)
    depth, holes = _fill(real[:, 3:], seen), seen & (real[:, 3:] == 0)
    thirds = torch.tensor([1 / 3, 2 / 3])
    by_depth, by_darkness = (_quantiles(plane[seen], thirds) for plane in (depth, _darkness(real[:, :3])))
    limits = by_depth, by_darkness, torch.tensor([0.004, 0.012])
    aim, error = _means(_Statistics.find(real[:, :3], depth, holes, limits).values(depth), depth)

    colour, clean = replace(model, sigma=0.0, jitter=0.0)._sense(synthetic, torch.Generator())
    statistics = _Statistics.find(colour, clean, torch.zeros_like(clean, dtype=torch.bool), limits)
    _, other_error = _means(statistics.values(clean), clean)
    error = (error**2 + other_error**2 + (0.01 * aim) ** 2 + 1e-12).sqrt()

    usual, deviation, low, high = torch.tensor(list(FITTED.values()), dtype=torch.float64).T

    def misfit(values: Tensor) -> Tensor:
        _, depth = _with(model, values)._sense(synthetic, torch.Generator().manual_seed(seed))
        found = torch.stack([v.double().mean() for _, v in statistics.values(depth)])
        # A statistic without pixels is NaN and says nothing.
        return torch.cat([((found - aim) / error).nan_to_num(0), (values - usual) / deviation])

    return _with(model, _least_squares(misfit, usual, low, high))


def _means(statistics: list[tuple[Tensor, Tensor]], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (M,) of each statistic, and the standard error (M,) over the images of these means."""
    means, errors = [], []
    for places, values in statistics:
        image = places // images[0].numel()
        count = torch.bincount(image, minlength=len(images)).double()
        total = torch.bincount(image, values.double(), minlength=len(images))
        means.append(total.sum() / count.sum().clamp_min(1))
        errors.append((total - means[-1] * count).square().sum().sqrt() / count.sum().clamp_min(1))
    return torch.stack(means), torch.stack(errors)


def _with(model: NoiseModel, values: Tensor) -> NoiseModel:
    """Return the model with other values of the parameters of `FITTED`."""
    return replace(model, **dict(zip(FITTED, values.tolist(), strict=True)))


def _least_squares(
    misfit: Callable[[Tensor], Tensor], values: Tensor, low: Tensor, high: Tensor, iterations: int = 10
) -> Tensor:
    """Minimise |misfit(values)|² between two limits, by Levenberg and Marquardt's method."""
    scale = (high - low) / 20
    residual, damping = misfit(values), 1e-2
    for _ in range(iterations):
        columns = []
        for i in range(len(values)):
            step = max(0.05 * abs(float(values[i])), 0.02 * float(scale[i]))
            moved = values.clone()
            moved[i] += step if values[i] + step <= high[i] else -step
            columns.append((misfit(moved) - residual) / (moved[i] - values[i]) * scale[i])
        jacobian = torch.stack(columns, 1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        before = float(residual @ residual)
        for _ in range(6):
            damped = normal + damping * torch.diag(normal.diagonal() + 1e-3 * normal.diagonal().max() + 1e-9)
            tried = (values - torch.linalg.solve(damped, gradient) * scale).clamp(low, high)
            found = misfit(tried)
            if found @ found < before:
                values, residual, damping = tried, found, damping / 5
                break
            damping *= 5
        if float(residual @ residual) > 0.99 * before:
            break
    return values


def _fit_colour(model: NoiseModel, synthetic: Tensor, real: Tensor) -> NoiseModel:
    """Return the model with the best affine map of colour."""
    affine = quantile_affine(synthetic, real)
    (red, green, blue, _), (dark_red, dark_green, dark_blue, _) = affine.gain.tolist(), affine.offset.tolist()
    return replace(
        model, gain=(red, green, blue, model.gain[3]), offset=(dark_red, dark_green, dark_blue, model.offset[3])
    )


def _fit_bias(model: NoiseModel, synthetic: Tensor, real: Tensor, seed: int) -> NoiseModel:
    """Return the model with the gain and offset of depth that bring its quantiles onto those of `real`.

    Pixels near the outline do not count. Mixed pixels have other depths there.
    """
    colour, depth = model._sense(synthetic, torch.Generator().manual_seed(seed))
    rest = quantile_affine(_core(torch.cat([colour, depth], 1)), _core(real))
    gain, offset = float(rest.gain[3]), float(rest.offset[3])
    return replace(
        model,
        gain=(*model.gain[:3], gain * model.gain[3]),
        offset=(*model.offset[:3], gain * model.offset[3] + offset),
    )


def _core(images: Tensor) -> Tensor:
    """Return the images without the 2 pixels next to the outline, if something is left of them."""
    kept = images * ~_grow(~_seen(images), 2)
    return kept if kept[:, 3].any() else images


def _fit_holes(model: NoiseModel, synthetic: Tensor, real: Tensor, seed: int) -> NoiseModel:
    """Return the model with holes as frequent and as large as those of `real`."""
    seen = _seen(real)
    holes = seen & (real[:, 3:] == 0)
    share = float(holes.sum() / seen.sum())
    if not share:
        return model
    features = _hole_features(_fill(real[:, 3:], seen), seen, _darkness(real[:, :3]))
    weights = _logistic(features.permute(0, 2, 3, 1)[seen[:, 0]], holes[seen], seed)

    def with_share(correlation: float) -> tuple[NoiseModel, float]:
        """Return the model with this correlation and the share of holes of `real`, and its share of pairs."""
        tried = replace(model, hole_weights=tuple(weights.tolist()), hole_correlation=correlation)
        for _ in range(3):
            result = tried(synthetic, seed)
            made = _seen(result) & (result[:, 3:] == 0)
            found = float(made.sum() / _seen(result).sum())
            shift = math.log((share + 1e-6) / (found + 1e-6))
            tried = replace(tried, hole_weights=(tried.hole_weights[0] + shift, *tried.hole_weights[1:]))
        return tried, _pairs(made)

    aim = _pairs(holes)
    candidates = [with_share(correlation) for correlation in (0.0, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)]
    return min(candidates, key=lambda candidate: abs(candidate[1] - aim))[0]


def _pairs(holes: Tensor) -> float:
    """Return the share of holes whose right neighbour is also a hole."""
    return float((holes[..., 1:] & holes[..., :-1]).sum() / holes.sum().clamp_min(1))


def _logistic(features: Tensor, outcome: Tensor, seed: int, pixels: int = 1 << 18) -> Tensor:
    """Return the weights (K,) of a logistic regression of `outcome` (n,) on `features` (n, K), by Newton's method.

    A small penalty on the squares of the weights, except the first one, keeps the weights finite.
    """
    if len(features) > pixels:
        chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:pixels]
        features, outcome = features[chosen], outcome[chosen]
    x, y = features.double(), outcome.double()
    penalty = torch.ones(x.shape[1], dtype=torch.float64)
    penalty[0] = 1e-3
    weights = torch.zeros_like(penalty)
    share = float(y.mean().clamp(1e-6, 1 - 1e-6))
    weights[0] = math.log(share / (1 - share))
    for _ in range(25):
        chance = (x @ weights).sigmoid()
        gradient = x.T @ (chance - y) + penalty * weights
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step.clamp(-3, 3)
        if float(step.abs().max()) < 1e-6:
            break
    return weights


def _find_quantum(real: Tensor) -> tuple[float, float]:
    """Return quantum and growth of the levels of depth, or (0, 0) if there are none.

    Between levels there is nothing. So the gaps between the sorted distinct values are the steps, wherever values are
    dense. √step = √quantum · (1 + growth · d) is linear. It is fitted to the median gaps of 8 parts of the range. If
    most gaps are within a quarter of the fit, these are levels.
    """
    measured = real[:, 3][(real[:, 3] > SMALLEST) & (real[:, 3] < 1)].double()
    if len(measured) < 1000:
        return 0.0, 0.0
    values = measured.unique()
    gaps, places = values.diff(), (values[1:] + values[:-1]) / 2
    low, high = (float(q) for q in _quantiles(measured, torch.tensor([0.1, 0.9])))
    used = (gaps > 1e-6) & (places > low) & (places < high)
    gaps, places = gaps[used], places[used]
    if len(gaps) < 16 or len(measured) < 20 * len(values):
        return 0.0, 0.0
    parts = [(p.mean(), g.median()) for p, g in zip(places.chunk(8), gaps.chunk(8), strict=True)]
    place, gap = (torch.stack(column) for column in zip(*parts, strict=True))
    line = torch.linalg.lstsq(torch.stack([torch.ones_like(place), place], 1), gap.sqrt()[:, None]).solution[:, 0]
    quantum, growth = float(line[0] ** 2), float(line[1] / line[0])
    expected = quantum * (1 + growth * places) ** 2
    if float(((gaps / expected - 1).abs() < 0.25).double().mean()) < 0.5:
        return 0.0, 0.0
    return quantum, growth


def _quantiles(values: Tensor, u: Tensor) -> Tensor:
    """Return the quantiles of the values (n,) at the fractions `u`."""
    ordered = values.sort().values
    return ordered[(u * (len(ordered) - 1)).round().long()]
