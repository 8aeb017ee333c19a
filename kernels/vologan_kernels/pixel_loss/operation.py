"""The image losses as an operation of torch.library, with its gradient, and the functions that users call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from vologan_kernels.dispatch import (
    check_implementation,
    distinct,
    implementation,
    is_batched,
    launches_directly,
    only_standard_operations,
)
from vologan_kernels.pixel_loss import reference
from vologan_kernels.pixel_loss.reference import METRICS, Moments
from vologan_kernels.precision import accumulator_of

Statistics = Literal["image", "batch"]

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
    run = implementation(_NAME, impl, predictions[0], reference.forward, lambda: _kernels().forward)
    return run(predictions, *arguments)


def _backward(grad: Tensor, predictions: list[Tensor], *arguments: Any) -> list[Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, predictions[0], reference.backward, lambda: _kernels().backward)
    return run(grad, predictions, *arguments)


@functools.cache  # an import statement in each call would take as long as a small operation
def _kernels() -> Any:
    from vologan_kernels.pixel_loss import kernels

    return kernels


def _fake_forward(
    predictions: list[Tensor], targets: list[Tensor], masks: list[Tensor], weights: list[float], batch: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    pairs, (n, c) = len(predictions), predictions[0].shape[:2]
    dtype = accumulator_of(predictions[0])
    shapes = (), (pairs, len(METRICS), c), (pairs, len(Moments._fields), 1 if batch else n, c)
    loss, metrics, moments = (predictions[0].new_empty(shape, dtype=dtype) for shape in shapes)
    return loss, metrics, moments


def _fake_backward(grad: Tensor, predictions: list[Tensor], targets: list[Tensor], *arguments: Any) -> list[Tensor]:
    *_, of_targets, _ = arguments
    return [torch.empty_like(image) for image in [*predictions, *(targets if of_targets else [])]]


_library.impl("pixel_losses", _forward, "CompositeExplicitAutograd")
_library.impl("pixel_losses_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::pixel_losses", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::pixel_losses_backward", _fake_backward, lib=_library)


def _operate(predictions: list[Tensor], targets: list[Tensor], masks: list[Tensor], *options: Any) -> Any:
    """The operation, or what it would do. `options` are its last arguments, of which the last is `impl`."""
    if launches_directly(options[-1], *predictions, *targets, *masks):
        return _forward(predictions, targets, masks, *options)
    return torch.ops.vologan_kernels.pixel_losses(predictions, targets, masks, *options)


def _operate_backward(
    grad: Tensor, predictions: list[Tensor], targets: list[Tensor], masks: list[Tensor], *options: Any
) -> list[Tensor]:
    """The operation of the backward, or what it would do."""
    if launches_directly(options[-1], *predictions, *targets, *masks, grad):
        return _backward(grad, predictions, targets, masks, *options)
    return torch.ops.vologan_kernels.pixel_losses_backward(grad, predictions, targets, masks, *options)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Images(NamedTuple):
    """The images of T pairs; there are T masks or none."""

    predictions: list[Tensor]
    targets: list[Tensor]
    masks: list[Tensor]


def _split(pairs: int, images: Sequence[Tensor]) -> _Images:
    """The images, which follow each other in `images`."""
    return _Images(list(images[:pairs]), list(images[pairs : 2 * pairs]), list(images[2 * pairs :]))


class _PixelLosses(torch.autograd.Function):
    """(loss, metrics, moments) of T pairs as a function with a gradient. The images come last, as in `_Images`."""

    @staticmethod
    def forward(ctx: Any, pairs: int, weights: list[float], batch: bool, impl: str, *images: Tensor) -> Any:
        loss, metrics, moments = _operate(*_split(pairs, images), weights, batch, impl)
        ctx.pairs, ctx.weights, ctx.batch, ctx.impl = pairs, weights, batch, impl
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*images, moments)
        ctx.mark_non_differentiable(metrics, moments)
        return loss, metrics, moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: None) -> Any:
        *images, moments = ctx.saved_tensors
        before = 4  # arguments before the images
        if grad is None:
            return (*[None] * before, *[None] * len(images))
        wanted = [i for i in range(2 * ctx.pairs) if ctx.needs_input_grad[before + i]]
        gradients: list[Tensor | None] = [None] * len(images)
        create_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if create_graph or is_batched(grad) or only_standard_operations():
            with torch.enable_grad():
                images = [image.view_as(image) for image in images]  # one that is there twice gets two gradients
                loss = reference.differentiable_loss(*_split(ctx.pairs, images), ctx.weights, ctx.batch)
            inputs = [images[i] for i in wanted]
            found = list(torch.autograd.grad(loss, inputs, grad, create_graph=create_graph))
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        else:
            of_targets = any(i >= ctx.pairs for i in wanted)
            found = _operate_backward(
                grad, *_split(ctx.pairs, images), ctx.weights, moments, ctx.batch, of_targets, ctx.impl
            )
            gradients[: len(found)] = found
        return (*[None] * before, *gradients)


# ---- functions for users --------------------------------------------------------------------------------------------


def pixel_losses(
    pairs: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[tuple[float, float, float]],
    channel_weight: Sequence[float] | Sequence[Sequence[float]] | None = None,
    *,
    masks: Sequence[Tensor | None] | None = None,
    statistics: Statistics = "image",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the metrics of all (prediction, target) pairs, and the metrics themselves, in one launch.

    All images have one shape (N, C, H, W), and any floating dtype and layout. The constants of SSIM suit values in
    [0, 1].

    - `weights` has three numbers for each of T pairs: the weights of l1, l2 and ssim.
    - `channel_weight` has C numbers that multiply them, or C numbers for each of l1, l2 and ssim; None stands for 1.
    - `masks` has for each pair a bool tensor that expands to the images, or None for all pixels. A pixel counts where
      it is True. An image without a valid pixel has no loss, and neither has an empty batch.
    - `statistics` says where means and moments are taken: over each "image", and then averaged over the images; or over
      the whole "batch".
    - `impl` is as in `instance_norm_act`.

    Returns the loss and the metrics. The loss is a scalar that can be differentiated twice with respect to both images
    of a pair. The metrics (T, 3, C), in the order of `METRICS`, are unweighted and for logging: they need no further
    pass, carry no gradient, and stay on the device. Both are float32, or float64 for float64 images. Raises ValueError
    for arguments that do not fit.
    """
    pairs = list(pairs)
    if not pairs:
        _refuse("expected at least one pair, found none")
    if statistics not in ("image", "batch"):
        _refuse(f"statistics must be 'image' or 'batch', found {statistics!r}")
    channels = _check_images(pairs)
    scales = _channel_weights(channel_weight, channels)
    if len(weights) != len(pairs) or any(len(of_pair) != len(METRICS) for of_pair in weights):
        _refuse(f"weights must have {len(METRICS)} numbers for each of {len(pairs)} pairs, found {weights!r}")
    masks = [None] * len(pairs) if masks is None else list(masks)
    if len(masks) != len(pairs):
        _refuse(f"masks must be as many as pairs ({len(pairs)}), found {len(masks)}")
    check_implementation(_NAME, impl, pairs[0][0])
    table = [
        float(weight) * of_channel
        for of_pair in weights
        for weight, scale in zip(of_pair, scales, strict=True)
        for of_channel in scale
    ]
    predictions, targets = (list(images) for images in zip(*pairs, strict=True))
    images = [*predictions, *targets, *_expanded(masks, predictions[0])]
    batch = statistics == "batch"
    if only_standard_operations():
        of_pairs = _split(len(pairs), images)
        _, metrics, _ = reference.forward(*of_pairs, table, batch)
        return reference.differentiable_loss(*of_pairs, table, batch), metrics.detach()
    arguments = table, batch, impl
    if torch.is_grad_enabled() and any(image.requires_grad for image in images):
        loss, metrics, _ = _PixelLosses.apply(len(pairs), *arguments, *distinct(images))
    else:  # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
        loss, metrics, _ = _operate(*_split(len(pairs), images), *arguments)
    return loss, metrics


def weighted_l1(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Σ_c w_c · mean |prediction − target|, a scalar. Arguments are as in `pixel_losses`."""
    return pixel_losses([(prediction, target)], [(1, 0, 0)], channel_weight, masks=[mask], impl=impl)[0]


def weighted_l2(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Σ_c w_c · mean (prediction − target)², a scalar. Arguments are as in `pixel_losses`."""
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
    """Σ_c w_c · (1 − SSIM_c) of images in [0, 1], a scalar in [0, 2 Σ w]. Arguments are as in `pixel_losses`."""
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
    """`l1_weight` · weighted_l1 + `ssim_weight` · global_ssim of each image, from one reading of the images.

    Arguments are as in `pixel_losses`.
    """
    weights = [(l1_weight, 0.0, ssim_weight)]
    return pixel_losses([(prediction, target)], weights, channel_weight, masks=[mask], impl=impl)[0]


def _channel_weights(given: Sequence[float] | Sequence[Sequence[float]] | None, channels: int) -> list[list[float]]:
    """The weights of the channels for each metric. Raises ValueError for weights that do not fit."""
    if given is None:
        return [[1.0] * channels] * len(METRICS)
    rows: list[Sequence[Any]] = [row for row in given if isinstance(row, Sequence)]
    if not rows:
        rows = [given] * len(METRICS)
    if len(rows) != len(METRICS):
        _refuse(f"channel_weight must have a row for each of {', '.join(METRICS)}, found {len(rows)}")
    for row in rows:
        if len(row) != channels:
            _refuse(f"channel_weight must have {channels} numbers, found {len(row)}")
    return [[float(weight) for weight in row] for row in rows]


def _check_images(pairs: list[tuple[Tensor, Tensor]]) -> int:
    """Raise ValueError for images that do not fit; return the number of channels."""
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
    """The masks as views of the images' shape, or an empty list if no pair has one."""
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
