"""Adversarial losses over any number of discriminator outputs.

With z the logits of one output, averaged over all its elements, weighted, and summed over the outputs:

| kind  | real                | fake                | generator           |
|-------|---------------------|---------------------|---------------------|
| lsgan | (z − 1)²            | z²                  | (z − 1)²            |
| bce   | softplus(−z)        | softplus(z)         | softplus(−z)        |
| hinge | max(0, 1 − z)       | max(0, 1 + z)       | −z                  |
| wgan  | −z                  | z                   | −z                  |

lsgan: Mao et al. (arXiv 1611.04076); bce: the non-saturating loss of Goodfellow et al. (arXiv 1406.2661), where
softplus(x) = max(x, 0) + log(1 + e^−|x|) neither overflows nor loses the small terms; hinge: Lim and Ye
(arXiv 1705.02894); wgan: the critic of Arjovsky et al. (arXiv 1701.07875), whose Lipschitz bound is the caller's.

All outputs of all discriminators take one launch forward and one backward (`adversarial_loss_triton.py`): each reads
the logits once, the backward writes as much. Sums are float32 (float64 for float64) whatever the logits' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.dispatch import check_implementation, implementation
from vologan_kernels.precision import to_accumulator

Role = Literal["real", "fake", "generator"]
ROLES = ("real", "fake", "generator")
KINDS = ("lsgan", "bce", "hinge", "wgan")

# ---- reference: plain PyTorch, on any device ------------------------------------------------------------------------

_LOSSES: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("lsgan", "real"): lambda z: (z - 1).square(),
    ("lsgan", "fake"): torch.square,
    ("bce", "real"): lambda z: F.softplus(-z),
    ("bce", "fake"): F.softplus,
    ("hinge", "real"): lambda z: F.relu(1 - z),
    ("hinge", "fake"): lambda z: F.relu(1 + z),
    ("hinge", "generator"): torch.neg,
    ("wgan", "real"): torch.neg,
    ("wgan", "fake"): lambda z: z,
}
_LOSSES |= {(kind, "generator"): _LOSSES[kind, "real"] for kind in ("lsgan", "bce", "wgan")}

_GRADIENTS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("lsgan", "real"): lambda z: 2 * (z - 1),
    ("lsgan", "fake"): lambda z: 2 * z,
    ("bce", "real"): lambda z: -torch.sigmoid(-z),
    ("bce", "fake"): torch.sigmoid,
    ("hinge", "real"): lambda z: -(z < 1).to(z.dtype),
    ("hinge", "fake"): lambda z: (z > -1).to(z.dtype),
    ("hinge", "generator"): lambda z: -torch.ones_like(z),
    ("wgan", "real"): lambda z: -torch.ones_like(z),
    ("wgan", "fake"): torch.ones_like,
}
_GRADIENTS |= {(kind, "generator"): _GRADIENTS[kind, "real"] for kind in ("lsgan", "bce", "wgan")}


def reference_forward(
    logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> tuple[Tensor, Tensor]:
    """The loss () and the mean of each output (K,), unweighted; `roles` are indices of `ROLES`."""
    means = []
    for z, role in zip(logits, roles, strict=True):
        means.append(_LOSSES[kind, ROLES[role]](to_accumulator(z)).sum() / max(z.numel(), 1))
    values = torch.stack(means)
    return (values.new_tensor(weights) * values).sum(), values


def reference_backward(
    grad: Tensor, logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> list[Tensor]:
    """The gradient of each output, in its dtype."""
    gradients = []
    for z, role, weight in zip(logits, roles, weights, strict=True):
        slope = _GRADIENTS[kind, ROLES[role]](to_accumulator(z))
        gradients.append(torch.empty_like(z).copy_(grad * (weight / max(z.numel(), 1)) * slope))
    return gradients


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
    run = implementation(_NAME, impl, logits[0], reference_forward, lambda: _kernels().forward)
    return run(logits, *arguments)


def _backward(grad: Tensor, logits: list[Tensor], *arguments: Any) -> list[Tensor]:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, logits[0], reference_backward, lambda: _kernels().backward)
    return run(grad, logits, *arguments)


def _kernels() -> Any:
    from vologan_kernels import adversarial_loss_triton

    return adversarial_loss_triton


def _fake_forward(logits: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    return logits[0].new_empty((), dtype=dtype), logits[0].new_empty(len(logits), dtype=dtype)


def _fake_backward(grad: Tensor, logits: list[Tensor], *arguments: Any) -> list[Tensor]:
    return [torch.empty_like(z) for z in logits]


_library.impl("adversarial_losses", _forward, "CompositeExplicitAutograd")
_library.impl("adversarial_losses_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::adversarial_losses", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::adversarial_losses_backward", _fake_backward, lib=_library)

# ---- autograd -------------------------------------------------------------------------------------------------------


class _AdversarialLosses(torch.autograd.Function):
    @staticmethod
    def forward(roles: list[int], weights: list[float], kind: str, impl: str, *logits: Tensor) -> Any:
        return torch.ops.vologan_kernels.adversarial_losses(list(logits), roles, weights, kind, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *ctx.options, ctx.impl = inputs[:4]
        _, values = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[4:])
        ctx.mark_non_differentiable(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: None) -> Any:
        before = 4  # arguments before the logits
        logits = list(ctx.saved_tensors)
        if grad is None:
            return (*[None] * before, *[None] * len(logits))
        gradients: list[Tensor | None] = [None] * len(logits)
        wanted = [i for i in range(len(logits)) if ctx.needs_input_grad[before + i]]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True: by the plain form
            logits = [z.view_as(z) for z in logits]  # one that is there twice gets two gradients
            loss, _ = reference_forward(logits, *ctx.options)
            found = torch.autograd.grad(loss, [logits[i] for i in wanted], grad, create_graph=True)
        else:
            roles, weights, kind = ctx.options
            found = torch.ops.vologan_kernels.adversarial_losses_backward(
                grad, [logits[i] for i in wanted], [roles[i] for i in wanted], [weights[i] for i in wanted], kind,
                ctx.impl,
            )  # fmt: skip
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return (*[None] * before, *gradients)


# ---- what users call ------------------------------------------------------------------------------------------------


def adversarial_losses(
    logits: Sequence[Tensor],
    roles: Sequence[Role],
    kind: str = "lsgan",
    *,
    weights: Sequence[float] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The table's losses of all `logits`, weighted and summed, and each of them, in one launch.

    `logits` are tensors of any shapes and floating dtypes, one a discriminator output; `roles` say for each whether it
    judges "real" images, "fake" ones for the discriminator, or the generator's; `weights` are numbers, None for 1.
    An output without elements has no loss. `impl` as in `instance_norm_act`.

    Returns the loss, a scalar that can be differentiated twice, and the K means, unweighted, for logging: they carry
    no gradient and stay on the device. Both float32, float64 for float64 logits. Raises ValueError for arguments that
    do not fit.
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
    options = [ROLES.index(role) for role in roles], weights, kind, impl
    if torch.is_grad_enabled() and any(z.requires_grad for z in logits):
        return _AdversarialLosses.apply(*options, *logits)
    # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
    return torch.ops.vologan_kernels.adversarial_losses(logits, *options)


def adversarial_loss(logits: Sequence[Tensor], role: Role, kind: str = "lsgan", *, impl: str = "auto") -> Tensor:
    """The loss of one discriminator's outputs in one role, a scalar; arguments as those of `adversarial_losses`."""
    logits = list(logits)
    return adversarial_losses(logits, [role] * len(logits), kind, impl=impl)[0]


def _refuse(sentence: str) -> NoReturn:
    raise ValueError(f"{_NAME}: {sentence}")
