"""The adversarial losses as an operation of torch.library, with its gradient, and the functions that users call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from vologan_kernels.adversarial_loss import reference
from vologan_kernels.adversarial_loss.reference import KINDS, ROLES, Role
from vologan_kernels.dispatch import (
    check_implementation,
    distinct,
    implementation,
    is_batched,
    launches_directly,
    only_standard_operations,
)
from vologan_kernels.precision import accumulator_of

# ---- operations, opaque to torch.compile ----------------------------------------------------------------------------

_NAME = "adversarial_losses"
_library = torch.library.Library("vologan_kernels", "FRAGMENT")
_library.define(
    "adversarial_losses(Tensor[] logits, int[] roles, float[] weights, str kind, str impl) -> (Tensor, Tensor)"
)
_library.define(
    "adversarial_losses_backward(Tensor grad, Tensor[] logits, int[] roles, float[] weights, str kind, str impl) "
    "-> Tensor[]"
)


def _forward(logits: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, logits[0], reference.forward, lambda: _kernels().forward)
    return run(logits, *arguments)


def _backward(grad: Tensor, logits: list[Tensor], *arguments: Any) -> list[Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, logits[0], reference.backward, lambda: _kernels().backward)
    return run(grad, logits, *arguments)


@functools.cache  # an import statement in each call would take as long as a small operation
def _kernels() -> Any:
    from vologan_kernels.adversarial_loss import kernels

    return kernels


def _fake_forward(logits: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator_of(logits[0])
    return logits[0].new_empty((), dtype=dtype), logits[0].new_empty(len(logits), dtype=dtype)


def _fake_backward(grad: Tensor, logits: list[Tensor], *arguments: Any) -> list[Tensor]:
    return [torch.empty_like(z) for z in logits]


_library.impl("adversarial_losses", _forward, "CompositeExplicitAutograd")
_library.impl("adversarial_losses_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::adversarial_losses", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::adversarial_losses_backward", _fake_backward, lib=_library)


def _operate(logits: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    """The operation, or what it would do. `options` are its last arguments, of which the last is `impl`."""
    if launches_directly(options[-1], *logits):
        return _forward(logits, *options)
    return torch.ops.vologan_kernels.adversarial_losses(logits, *options)


def _operate_backward(grad: Tensor, logits: list[Tensor], *options: Any) -> list[Tensor]:
    """The operation of the backward, or what it would do."""
    if launches_directly(options[-1], *logits, grad):
        return _backward(grad, logits, *options)
    return torch.ops.vologan_kernels.adversarial_losses_backward(grad, logits, *options)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _AdversarialLosses(torch.autograd.Function):
    """(loss, means) as a function with a gradient. The logits come last."""

    @staticmethod
    def forward(ctx: Any, roles: list[int], weights: list[float], kind: str, impl: str, *logits: Tensor) -> Any:
        loss, values = _operate(list(logits), roles, weights, kind, impl)
        ctx.roles, ctx.weights, ctx.kind, ctx.impl = roles, weights, kind, impl
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*logits)
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: None) -> Any:
        before = 4  # arguments before the logits
        logits = list(ctx.saved_tensors)
        if grad is None:
            return (*[None] * before, *[None] * len(logits))
        gradients: list[Tensor | None] = [None] * len(logits)
        wanted = [i for i in range(len(logits)) if ctx.needs_input_grad[before + i]]
        create_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if create_graph or is_batched(grad) or only_standard_operations():
            with torch.enable_grad():
                logits = [z.view_as(z) for z in logits]  # one that is there twice gets two gradients
                loss, _ = reference.forward(logits, ctx.roles, ctx.weights, ctx.kind)
            inputs = [logits[i] for i in wanted]
            found = list(torch.autograd.grad(loss, inputs, grad, create_graph=create_graph))
        else:
            found = _operate_backward(
                grad,
                [logits[i] for i in wanted],
                [ctx.roles[i] for i in wanted],
                [ctx.weights[i] for i in wanted],
                ctx.kind,
                ctx.impl,
            )
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return (*[None] * before, *gradients)


# ---- functions for users --------------------------------------------------------------------------------------------


def adversarial_losses(
    logits: Sequence[Tensor],
    roles: Sequence[Role],
    kind: str = "lsgan",
    *,
    weights: Sequence[float] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The losses of all `logits`, weighted and summed, and the mean of each, in one launch.

    `logits` are K discriminator outputs: tensors of any shapes and floating dtypes. `roles` says for each output which
    column of the table holds: "real" and "fake" for the discriminator's loss, "generator" for the generator's.
    `weights` are K numbers; None stands for 1. An output without elements has no loss. `impl` is as in
    `instance_norm_act`.

    Returns the loss, a scalar that can be differentiated twice, and the K unweighted means. The means are for logging:
    they carry no gradient and stay on the device. Both are float32, or float64 for float64 logits. Raises ValueError
    for arguments that do not fit.
    """
    logits, roles = list(logits), list(roles)
    if kind not in KINDS:
        _refuse(f"kind must be one of {', '.join(KINDS)}, found {kind!r}")
    if not logits:
        _refuse("expected at least one discriminator output, found none")
    for role in roles:
        if role not in ROLES:
            _refuse(f"a role must be one of {', '.join(ROLES)}, found {role!r}")
    for name, found in (("roles", roles), ("weights", weights)):
        if found is not None and len(found) != len(logits):
            _refuse(f"{name} must be as many as logits ({len(logits)}), found {len(found)}")
    for z in logits:
        if not z.is_floating_point() or z.device != logits[0].device:
            _refuse(f"logits must be floating-point on one device, found {z.dtype} on {z.device}")
        if (z.dtype == torch.float64) != (logits[0].dtype == torch.float64):
            _refuse(f"logits must all be float64 or none, found {logits[0].dtype} and {z.dtype}")
    check_implementation(_NAME, impl, logits[0])
    weights = [1.0] * len(logits) if weights is None else [float(weight) for weight in weights]
    indices = [ROLES.index(role) for role in roles]
    if only_standard_operations():
        loss, means = reference.forward(logits, indices, weights, kind)
        return loss, means.detach()
    options = indices, weights, kind, impl
    if torch.is_grad_enabled() and any(z.requires_grad for z in logits):
        return _AdversarialLosses.apply(*options, *distinct(logits))
    # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
    return _operate(logits, *options)


def adversarial_loss(logits: Sequence[Tensor], role: Role, kind: str = "lsgan", *, impl: str = "auto") -> Tensor:
    """The loss of one discriminator's outputs in one role, a scalar. Arguments are as in `adversarial_losses`."""
    logits = list(logits)
    return adversarial_losses(logits, [role] * len(logits), kind, impl=impl)[0]


def _refuse(sentence: str) -> NoReturn:
    raise ValueError(f"{_NAME}: {sentence}")
