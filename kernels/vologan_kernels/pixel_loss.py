"""Losses between images that show the same scene: weighted L1 and L2, and the global structural similarity.

For a pair of images (a, b), a channel c, and the valid pixels of one image of the batch:

    l1 = mean |a − b|        l2 = mean (a − b)²        ssim = 1 − l · q

    l = (2 μₐμ_b + C₁) / (μₐ² + μ_b² + C₁)        q = (2 σₐ_b + C₂) / (σₐ² + σ_b² + C₂)

each averaged over the images of the batch; the loss is their sum with weights w[metric, c]. l · q is the SSIM of Wang
et al. (IEEE TIP 2004, doi 10.1109/TIP.2003.819861) taken from the moments of all pixels instead of a sliding window
(`windowed_ssim.py` has that one), with C₁ = 0.01², C₂ = 0.03². Their third factor (σₐ_b + C₃) / (σₐσ_b + C₃) with
C₃ = C₂/2 cancels the standard deviations, and with them the square root whose gradient is infinite at the variance of
a constant image. With n valid pixels in each of N images, Dₗ and D_q the denominators of l and q,

    ∂loss/∂a = (w₁ · sign(a − b) + 2 w₂ · (a − b) − w₃ · ∂(l·q)/∂a) / (N n)
    ∂(l·q)/∂a = 2 q (μ_b − μₐ l) / Dₗ + 2 l ((b − μ_b) − q (a − μₐ)) / D_q

**Bytes and launches.** One launch reads every pair of a training step once, one more reads it again and writes the
gradient (`pixel_loss_triton.py`). Images of four channels are small: what is won is the dozens of launches.

Sums are float32 (float64 for float64) whatever the images' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from vologan_kernels.dispatch import check_implementation, implementation
from vologan_kernels.precision import to_accumulator

C1 = 0.01**2
C2 = 0.03**2
METRICS = ("l1", "l2", "ssim")
"""The rows of weights and values; "ssim" is 1 − SSIM."""

Statistics = Literal["image", "batch"]

# ---- reference: plain PyTorch, on any device ------------------------------------------------------------------------


def reference_forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), the metrics (T, 3, C), and the moments (T, 6, N or 1, C) of T pairs.

    `masks`: T masks of the images' shape, or none. `weights`: of the metrics, T · 3 · C numbers. `batch`: moments over
    the whole batch. The moments are the number of pixels, means and biased variances of prediction and target, and
    their covariance.
    """
    values, moments = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        a, b, valid = _masked(prediction, target, masks[i] if masks else None)
        mean, count = _mean_over(a, valid, batch)
        mean_a, mean_b = mean(a), mean(b)
        apart_a, apart_b = a - mean_a, b - mean_b
        variance_a, variance_b, covariance = mean(apart_a.square()), mean(apart_b.square()), mean(apart_a * apart_b)
        l1, l2 = mean((a - b).abs()), mean((a - b).square())
        luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
        similarity = (2 * covariance + C2) / (variance_a + variance_b + C2)
        rows = torch.stack([l1, l2, 1 - luminance * similarity])  # (3, images, C, 1, 1)
        values.append(rows.sum((1, 3, 4)) / max(rows.shape[1], 1))
        of_planes = [count, mean_a, mean_b, variance_a, variance_b, covariance]
        moments.append(torch.stack([plane.flatten(1).expand_as(mean_a.flatten(1)) for plane in of_planes]))
    metrics = torch.stack(values)
    return (metrics.new_tensor(weights).view_as(metrics) * metrics).sum(), metrics, torch.stack(moments)


def reference_backward(
    grad: Tensor,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    moments: Tensor,
    batch: bool,
    of_targets: bool,
) -> list[Tensor]:
    """The gradients of the predictions, then with `of_targets` those of the targets, each in its image's dtype."""
    gradients: list[list[Tensor]] = [[], []]
    table = moments.new_tensor(weights).view(len(predictions), len(METRICS), -1)
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        a, b, valid = _masked(prediction, target, masks[i] if masks else None)
        count, mean_a, mean_b, variance_a, variance_b, covariance = moments[i][..., None, None]
        w1, w2, w3 = table[i][..., None, None]
        d_luminance = mean_a.square() + mean_b.square() + C1
        d_similarity = variance_a + variance_b + C2
        luminance = (2 * mean_a * mean_b + C1) / d_luminance
        similarity = (2 * covariance + C2) / d_similarity
        share = grad / (max(moments.shape[2], 1) * count)
        towards = w1 * (a - b).sign() + 2 * w2 * (a - b)  # and with the other sign for the target
        apart_a, apart_b = a - mean_a, b - mean_b
        for side, (own, other, apart, apart_other) in enumerate(
            [(mean_a, mean_b, apart_a, apart_b), (mean_b, mean_a, apart_b, apart_a)][: 1 + of_targets]
        ):
            through_means = 2 * similarity * (other - own * luminance) / d_luminance
            through_moments = 2 * luminance / d_similarity * (apart_other - similarity * apart)
            sign = 1 if side == 0 else -1
            gradient = share * (sign * towards - w3 * (through_means + through_moments))
            if valid is not None:
                gradient = torch.where(valid, gradient, 0)
            gradients[side].append(torch.empty_like((prediction, target)[side]).copy_(gradient))
    return gradients[0] + gradients[1]


def _masked(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both images in the accumulator's dtype, 0 where the mask is: what is invalid may be NaN."""
    a, b = to_accumulator(prediction), to_accumulator(target)
    if mask is None:
        return a, b, None
    valid = mask.expand_as(a)
    return torch.where(valid, a, 0), torch.where(valid, b, 0), valid


def _mean_over(a: Tensor, valid: Tensor | None, batch: bool) -> tuple[Any, Tensor]:
    """The mean over the valid pixels of each image or of the batch as a function, and their number, at least 1."""
    dims = (0, 2, 3) if batch else (2, 3)
    if valid is None:
        pixels = a.numel() // max(a.shape[1], 1) if batch else a.shape[2] * a.shape[3]
        count = a.new_full((1, 1, 1, 1), max(pixels, 1))
        return lambda x: x.sum(dims, keepdim=True) / count, count
    count = valid.sum(dims, keepdim=True).clamp(min=1).to(a.dtype)
    return lambda x: torch.where(valid, x, 0).sum(dims, keepdim=True) / count, count


# ---- operations, opaque to torch.compile ----------------------------------------------------------------------------

_NAME = "pixel_losses"
_library = torch.library.Library("vologan_kernels", "FRAGMENT")
_library.define(
    "pixel_losses(Tensor[] predictions, Tensor[] targets, Tensor[] masks, float[] weights, bool batch, str impl) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "pixel_losses_backward(Tensor grad, Tensor[] predictions, Tensor[] targets, Tensor[] masks, float[] weights, "
    "Tensor moments, bool batch, bool of_targets, str impl) -> Tensor[]"
)


def _forward(predictions: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, predictions[0], reference_forward, lambda: _kernels().forward)
    return run(predictions, *arguments)


def _backward(grad: Tensor, predictions: list[Tensor], *arguments: Any) -> list[Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, predictions[0], reference_backward, lambda: _kernels().backward)
    return run(grad, predictions, *arguments)


def _kernels() -> Any:
    from vologan_kernels import pixel_loss_triton

    return pixel_loss_triton


def _fake_forward(
    predictions: list[Tensor], targets: list[Tensor], masks: list[Tensor], weights: list[float], batch: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    pairs, (n, c) = len(predictions), predictions[0].shape[:2]
    dtype = torch.float64 if predictions[0].dtype == torch.float64 else torch.float32
    shapes = (), (pairs, len(METRICS), c), (pairs, 6, 1 if batch else n, c)
    loss, metrics, moments = (predictions[0].new_empty(shape, dtype=dtype) for shape in shapes)
    return loss, metrics, moments


def _fake_backward(grad: Tensor, predictions: list[Tensor], targets: list[Tensor], *arguments: Any) -> list[Tensor]:
    *_, of_targets, _ = arguments
    return [torch.empty_like(image) for image in [*predictions, *(targets if of_targets else [])]]


_library.impl("pixel_losses", _forward, "CompositeExplicitAutograd")
_library.impl("pixel_losses_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::pixel_losses", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::pixel_losses_backward", _fake_backward, lib=_library)

# ---- autograd -------------------------------------------------------------------------------------------------------


class _PixelLosses(torch.autograd.Function):
    """(loss, metrics, moments) of T pairs. The images come last: T predictions, T targets, T masks or none."""

    @staticmethod
    def forward(pairs: int, weights: list[float], batch: bool, impl: str, *images: Tensor) -> Any:
        return torch.ops.vologan_kernels.pixel_losses(*_split(pairs, images), weights, batch, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.pairs, ctx.weights, ctx.batch, ctx.impl, *images = inputs
        _, metrics, moments = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(moments, *images)
        ctx.mark_non_differentiable(metrics, moments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: None) -> Any:
        moments, *images = ctx.saved_tensors
        before = 4  # arguments before the images
        if grad is None:
            return (*[None] * before, *[None] * len(images))
        wanted = [i for i in range(2 * ctx.pairs) if ctx.needs_input_grad[before + i]]
        gradients: list[Tensor | None] = [None] * len(images)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True: by the plain form
            images = [image.view_as(image) for image in images]  # one that is there twice gets two gradients
            loss, _, _ = reference_forward(*_split(ctx.pairs, images), ctx.weights, ctx.batch)
            found = torch.autograd.grad(loss, [images[i] for i in wanted], grad, create_graph=True)
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        else:
            of_targets = any(i >= ctx.pairs for i in wanted)
            found = torch.ops.vologan_kernels.pixel_losses_backward(
                grad, *_split(ctx.pairs, images), ctx.weights, moments, ctx.batch, of_targets, ctx.impl
            )
            gradients[: len(found)] = found
        return (*[None] * before, *gradients)


def _split(pairs: int, images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return list(images[:pairs]), list(images[pairs : 2 * pairs]), list(images[2 * pairs :])


# ---- what users call ------------------------------------------------------------------------------------------------


def pixel_losses(
    pairs: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[tuple[float, float, float]],
    channel_weight: Sequence[float] | None = None,
    *,
    masks: Sequence[Tensor | None] | None = None,
    statistics: Statistics = "image",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the metrics of all (prediction, target) pairs, and the metrics themselves, in one launch.

    Images are (N, C, H, W), of one shape, of any floating dtype and layout; SSIM's constants suit values in [0, 1].
    `weights`: for each pair those of (l1, l2, ssim); `channel_weight`: C numbers that multiply them, None for 1.
    `masks`: for each pair a bool tensor that expands to the images, True where a pixel counts, or None for all. An
    image without a valid pixel, or an empty batch, has no loss. `statistics`: means and moments over each image,
    averaged over the images, or over the whole "batch". `impl` as in `instance_norm_act`.

    Returns the loss, a scalar that can be differentiated, twice if need be, with respect to both images of a pair, and
    the metrics (T, 3, C) of `METRICS`, unweighted, for logging: they need no further pass, carry no gradient, and stay
    on the device. Both are float32, float64 for float64 images. Raises ValueError for arguments that do not fit.
    """
    pairs = list(pairs)
    if not pairs:
        _refuse("expected at least one pair, found none")
    if statistics not in ("image", "batch"):
        _refuse(f"statistics must be 'image' or 'batch', found {statistics!r}")
    channels = _check_images(pairs)
    if channel_weight is not None and len(channel_weight) != channels:
        _refuse(f"channel_weight must have {channels} numbers, found {len(channel_weight)}")
    if len(weights) != len(pairs) or any(len(of_pair) != len(METRICS) for of_pair in weights):
        _refuse(f"weights must have {len(METRICS)} numbers for each of {len(pairs)} pairs, found {weights!r}")
    masks = [None] * len(pairs) if masks is None else list(masks)
    if len(masks) != len(pairs):
        _refuse(f"masks must be as many as pairs ({len(pairs)}), found {len(masks)}")
    check_implementation(_NAME, impl, pairs[0][0])
    scale = [1.0] * channels if channel_weight is None else [float(weight) for weight in channel_weight]
    table = [float(weight) * of_channel for of_pair in weights for weight in of_pair for of_channel in scale]
    predictions, targets = (list(images) for images in zip(*pairs, strict=True))
    images = [*predictions, *targets, *_expanded(masks, predictions[0])]
    arguments = table, statistics == "batch", impl
    if torch.is_grad_enabled() and any(image.requires_grad for image in images):
        loss, metrics, _ = _PixelLosses.apply(len(pairs), *arguments, *images)
    else:  # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
        loss, metrics, _ = torch.ops.vologan_kernels.pixel_losses(*_split(len(pairs), images), *arguments)
    return loss, metrics


def weighted_l1(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Σ_c w_c · mean |prediction − target|, a scalar; arguments as those of `pixel_losses`."""
    return pixel_losses([(prediction, target)], [(1, 0, 0)], channel_weight, masks=[mask], impl=impl)[0]


def weighted_l2(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Σ_c w_c · mean (prediction − target)², a scalar; arguments as those of `pixel_losses`."""
    return pixel_losses([(prediction, target)], [(0, 1, 0)], channel_weight, masks=[mask], impl=impl)[0]


def global_ssim(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    statistics: Statistics = "image",
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Σ_c w_c · (1 − SSIM_c) of images in [0, 1], a scalar in [0, 2 Σ w]; arguments as those of `pixel_losses`."""
    return pixel_losses(
        [(prediction, target)], [(0, 0, 1)], channel_weight, masks=[mask], statistics=statistics, impl=impl
    )[0]


def cycle_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    channel_weight: Sequence[float] | None = None,
    l1_weight: float = 10.0,
    ssim_weight: float = 1.0,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """`l1_weight` · weighted_l1 + `ssim_weight` · global_ssim per image, from one reading of the images."""
    weights = [(l1_weight, 0.0, ssim_weight)]
    return pixel_losses([(prediction, target)], weights, channel_weight, masks=[mask], impl=impl)[0]


def _check_images(pairs: list[tuple[Tensor, Tensor]]) -> int:
    """The number of channels."""
    shape = pairs[0][0].shape
    for prediction, target in pairs:
        for name, image in (("prediction", prediction), ("target", target)):
            if image.dim() != 4 or not image.is_floating_point():
                _refuse(
                    f"{name} must be a floating-point (N, C, H, W) tensor, found {image.dtype} {tuple(image.shape)}"
                )
            if image.device != pairs[0][0].device:
                _refuse(f"all images must be on one device, found {pairs[0][0].device} and {image.device}")
            if (image.dtype == torch.float64) != (pairs[0][0].dtype == torch.float64):
                _refuse(f"images must all be float64 or none, found {pairs[0][0].dtype} and {image.dtype}")
        if prediction.shape != target.shape or prediction.shape != shape:
            other = target.shape if prediction.shape == shape else prediction.shape
            _refuse(f"predictions and targets must have one shape, found {tuple(shape)} and {tuple(other)}")
    return shape[1]


def _expanded(masks: list[Tensor | None], image: Tensor) -> list[Tensor]:
    """The masks as views of the images' shape; none where no pair has one."""
    if all(mask is None for mask in masks):
        return []
    views = []
    for mask in masks:
        if mask is None:
            mask = torch.ones((), dtype=torch.bool, device=image.device)
        if mask.dtype != torch.bool or mask.device != image.device:
            _refuse(f"a mask must be bool on {image.device}, found {mask.dtype} on {mask.device}")
        try:
            views.append(mask.expand(image.shape))
        except RuntimeError:
            _refuse(f"a mask must expand to the images' shape {tuple(image.shape)}, found {tuple(mask.shape)}")
    return views


def _refuse(sentence: str) -> NoReturn:
    raise ValueError(f"{_NAME}: {sentence}")
