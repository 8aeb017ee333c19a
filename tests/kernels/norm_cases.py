"""Cases of the instance norm: its arguments, how an implementation computes them, and how exact it must be."""

import torch
from exactness import assert_as_exact
from torch.nn import functional as F
from vologan_kernels.instance_norm import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OPS = torch.ops.vologan_kernels


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def formula(x, weight, bias, slope, residual, *, eps, activation, reflection_pad=0):
    """The definition, in the precision of its arguments."""
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    u = (x - mean) / (variance + eps).sqrt()
    if weight is not None:
        u = u * weight.view(1, -1, 1, 1)
    if bias is not None:
        u = u + bias.view(1, -1, 1, 1)
    if residual is not None:
        u = u + residual
    y = {
        "identity": lambda: u,
        "relu": lambda: F.relu(u),
        "leaky_relu": lambda: F.leaky_relu(u, slope),
        "prelu": lambda: F.prelu(u, slope),
        "silu": lambda: F.silu(u),
        "gelu": lambda: F.gelu(u),
        "elu": lambda: F.elu(u),
        "tanh": lambda: torch.tanh(u),
    }[activation]()
    return F.pad(y, (reflection_pad,) * 4, mode="reflect") if reflection_pad else y


class Case:
    """Arguments of both operations, as they are and in float64."""

    def __init__(
        self,
        x,
        *,
        activation="leaky_relu",
        affine=True,
        residual=False,
        pad=0,
        from_output=False,
        min_scale=0.0,
        grad=None,
        weight=None,
        bias=None,
    ):
        c = x.shape[1]
        self.x = x
        self.weight = weight if weight is not None else (randn(c, seed=1) if affine else None)
        self.bias = bias if bias is not None else (randn(c, seed=2) if affine else None)
        self.slope = randn(c, seed=3) if activation == "prelu" else None
        self.residual = randn(*x.shape, dtype=x.dtype, seed=4) if residual else None
        self.options = {
            "activation": activation,
            "negative_slope": 0.3,
            "reflection_pad": pad,
            "min_scale": min_scale,
        }
        self.from_output = from_output
        shape = (*x.shape[:2], x.shape[2] + 2 * pad, x.shape[3] + 2 * pad)
        self.grad = grad if grad is not None else randn(*shape, dtype=x.dtype, seed=5)

    @property
    def parameters(self):
        return self.weight, self.bias, self.slope, self.residual

    def forward(self, impl):
        return OPS.instance_norm_act(self.x, *self.parameters, 1e-3, *self.options.values(), impl)

    def backward(self, impl):
        """The gradients of one form. Both forms get the same saved tensors: float64 statistics and the plain output."""
        saved, mean, rstd = self.saved()
        rest = (*self.parameters, *self.options.values(), self.from_output, impl)
        outputs = OPS.instance_norm_act_backward(self.grad, saved, mean, rstd, *rest)
        return self.used(outputs)

    def saved(self):
        y, mean, rstd = self.forward("reference")
        return (y if self.from_output else self.x), mean, rstd

    def true_forward(self):
        x, *parameters = (double(t) for t in (self.x, *self.parameters))
        y, mean, rstd = reference.forward(x, *parameters, eps=1e-3, **self.options)
        return y, mean, rstd

    def true_backward(self):
        saved = [double(t) for t in self.saved()]
        parameters = [double(t) for t in self.parameters]
        outputs = reference.backward(
            double(self.grad), *saved, *parameters, **self.options, from_output=self.from_output
        )
        return self.used(outputs)

    def used(self, outputs):
        """dx, and the gradients of the arguments that are not None."""
        return [outputs[0], *[o for o, p in zip(outputs[1:], self.parameters, strict=True) if p is not None]]

    def check(self, impl, roundings=0):
        """An implementation agrees with the plain form, forward and backward.

        `roundings` are more of them in y and dx than usual.
        """
        largest = self.x.double().abs().max() if self.x.numel() else None
        scales = None, largest, None  # a mean's rounding follows the terms of its sum
        for found, plain, truth, scale in zip(
            self.forward(impl), self.forward("reference"), self.true_forward(), scales, strict=True
        ):
            assert found.dtype == plain.dtype and found.stride() == plain.stride()
            assert_as_exact(found, plain, truth, ulps=2 + roundings, scale=scale)
        for found, plain, truth in zip(
            self.backward(impl), self.backward("reference"), self.true_backward(), strict=True
        ):
            assert found.dtype == plain.dtype and found.stride() == plain.stride()
            assert_as_exact(found, plain, truth, ulps=4, scale=self.terms() if truth.dim() == 1 else None)

    def terms(self):
        """The largest sum of magnitudes among the channels of ∂L/∂γ, ∂L/∂β and ∂L/∂slope."""
        saved = [double(t) for t in self.saved()]
        parameters = [double(t) for t in self.parameters]
        x_hat, u = reference.normalised(*saved, *parameters, **self.options, from_output=self.from_output)
        upstream = self.grad.double().abs().sum() / max(1, x_hat.numel())
        return (torch.stack([x_hat.abs(), u.abs(), torch.ones_like(u)]).sum((1, 3, 4)) * upstream).max()


def double(tensor):
    return None if tensor is None else tensor.double()


STRIDED = {
    "channels of a channels_last tensor": lambda: randn(2, 9, 6, 5).to(memory_format=torch.channels_last)[:, 2:7],
    "every other channel": lambda: randn(2, 10, 6, 5)[:, ::2],
    "rows and columns swapped": lambda: randn(2, 5, 5, 6).transpose(2, 3),
    "some columns": lambda: randn(2, 5, 6, 9)[..., 2:7],
    "every other sample": lambda: randn(4, 5, 6, 5)[::2],
    "one sample twice": lambda: randn(1, 5, 6, 5).expand(2, 5, 6, 5),
    "one row repeated": lambda: randn(2, 5, 1, 5).expand(2, 5, 6, 5),
}

SPARSE = {
    "one number for all channels": lambda seed: randn(1, seed=seed).expand(5),
    "a column of a table": lambda seed: randn(5, 3, seed=seed)[:, 1],
    "some of a row": lambda seed: randn(9, seed=seed)[3:8],
}
