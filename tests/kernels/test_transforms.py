"""Every operation under every transform, tracer and exporter of PyTorch: right, or an error. Never a silent zero.

`TABLE` says which. `docs/kernels.md` shows the same table, and a test compares the two. The truth is a plain
composition of PyTorch's operations, written out here, in float64.
"""

import io
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from vologan_kernels import (
    InstanceNormAct2d,
    adversarial_losses,
    instance_norm_act,
    pixel_losses,
    spectral_norm,
    windowed_ssim,
)

OPS = torch.ops.vologan_kernels


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the operations, and the same from plain parts ------------------------------------------------------------------


def plain_norm(x, weight=None, bias=None):
    mean = x.mean((2, 3), keepdim=True)
    x_hat = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    if weight is not None:
        x_hat = x_hat * weight[:, None, None] + bias[:, None, None]
    return x_hat


class Norm(nn.Module):
    """`instance_norm_act` with all that it can do."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(rand(2, seed=1) + 0.5), nn.Parameter(rand(2, seed=2))

    def forward(self, x):
        return instance_norm_act(x, self.weight, self.bias, activation="silu", residual=x, reflection_pad=1)

    def plain(self, x):
        return F.pad(F.silu(plain_norm(x, self.weight, self.bias) + x), (1, 1, 1, 1), mode="reflect")


class NormModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = InstanceNormAct2d(2, affine=True, activation="leaky_relu", negative_slope=0.2, min_scale=0.1)
        self.norm.double()

    def forward(self, x):
        return self.norm(x)

    def plain(self, x):
        return F.leaky_relu(plain_norm(x, self.norm.weight, self.norm.bias), 0.2)


class Pixel(nn.Module):
    def __init__(self):
        super().__init__()
        self.target, self.mask = rand(1, 2, 4, 4, seed=1), rand(1, 1, 4, 4, seed=2) > 0.3

    def forward(self, x):
        pairs = [(x, self.target), (x.square(), self.target)]
        return pixel_losses(pairs, [(2.0, 1.0, 3.0), (0.5, 1.0, 2.0)], [1.0, 3.0], masks=[None, self.mask])[0]

    def plain(self, x):
        every = torch.ones_like(self.mask)
        of_first = self._loss(x, every, (2.0, 1.0, 3.0))
        return of_first + self._loss(x.square(), self.mask, (0.5, 1.0, 2.0))

    def _loss(self, a, valid, weights):
        b, valid = self.target, valid.to(a.dtype)

        def mean(values):
            return (values * valid).sum((2, 3)) / valid.sum((2, 3))

        def centred(image):
            return image - mean(image)[..., None, None]

        covariance, energy = mean(centred(a) * centred(b)), mean(centred(a).square()) + mean(centred(b).square())
        luminance = (2 * mean(a) * mean(b) + 1e-4) / (mean(a).square() + mean(b).square() + 1e-4)
        ssim = luminance * (2 * covariance + 9e-4) / (energy + 9e-4)
        of_channel = weights[0] * mean((a - b).abs()) + weights[1] * mean((a - b).square()) + weights[2] * (1 - ssim)
        return (of_channel.mean(0) * torch.tensor([1.0, 3.0], dtype=a.dtype)).sum()


class Adversarial(nn.Module):
    def forward(self, x):
        total = 0
        for kind in ("lsgan", "bce", "hinge", "hinge_both", "wgan"):
            logits, roles = [x, 2 * x, x.flatten()], ["real", "fake", "generator"]
            total = total + adversarial_losses(logits, roles, kind, weights=[1.0, 2.0, 0.5])[0]
        return total

    def plain(self, x):
        y = 2 * x
        lsgan = (x - 1).square().mean() * 1.5 + 2 * y.square().mean()
        bce = torch.log1p(torch.exp(-x)).mean() * 1.5 + 2 * torch.log1p(torch.exp(y)).mean()
        discriminator = F.relu(1 - x).mean() + 2 * F.relu(1 + y).mean()
        hinge, hinge_both = discriminator - 0.5 * x.mean(), discriminator + 0.5 * F.relu(1 - x).mean()
        return lsgan + bce + hinge + hinge_both - x.mean() * 1.5 + 2 * y.mean()


class Windowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.target = rand(1, 2, 4, 4, seed=1)

    def forward(self, x):
        return windowed_ssim(x, self.target, window=3, padding="same")

    def plain(self, x):
        weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype) / (2 * 1.5**2))
        window = torch.outer(weights, weights) / weights.sum() ** 2

        def mean(image):
            planes = F.pad(image, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
            return F.conv2d(planes, window[None, None])

        a, b = x, self.target
        variances = mean(a * a) - mean(a).square() + mean(b * b) - mean(b).square()
        luminance = (2 * mean(a) * mean(b) + 1e-4) / (mean(a).square() + mean(b).square() + 1e-4)
        return (luminance * (2 * (mean(a * b) - mean(a) * mean(b)) + 9e-4) / (variances + 9e-4)).mean()


class Spectral(nn.Module):
    """A layer outside of `spectral_norm_step`; u and v are constants there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = spectral_norm(nn.Conv2d(2, 3, 3).double())
        self.eval()

    def forward(self, x):
        return self.layer(x).tanh()

    def plain(self, x):
        parametrization = self.layer.parametrizations.weight
        weight, u, v = parametrization.original, parametrization[0]._u, parametrization[0]._v
        return F.conv2d(x, weight / (u @ weight.flatten(1) @ v), self.layer.bias).tanh()


OPERATIONS = {
    "instance_norm_act": Norm,
    "InstanceNormAct2d": NormModule,
    "pixel_losses": Pixel,
    "adversarial_losses": Adversarial,
    "windowed_ssim": Windowed,
    "spectral_norm": Spectral,
}


# ---- the transforms: (model, its forward or plain form, x) → a tensor, or tensors -----------------------------------


DIRECTION = rand(1, 2, 4, 4, seed=9) - 0.5


class Called(nn.Module):
    """A module that computes one of the two forms."""

    def __init__(self, model, f):
        super().__init__()
        self.model, self.f = model, f.__name__

    def forward(self, x):
        return getattr(self.model, self.f)(x)


def scalar(f):
    return lambda x: f(x).sin().sum()


def by_parameters(model, f, x):
    """The gradient of all parameters by functional_call."""
    module = Called(model, f)
    values = {name: p.detach() for name, p in module.named_parameters()}

    def loss(values, x):
        return scalar(lambda x: torch.func.functional_call(module, values, x))(x)

    return torch.func.grad(loss, argnums=(0, 1))(values, x)


def in_dual_level(model, f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, DIRECTION))).tangent


def traced(model, f, x):
    x = x.requires_grad_()
    module = torch.jit.trace(Called(model, f), (x,))
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    y = torch.jit.load(file)(x)
    return y, torch.autograd.grad(y.sum(), x)[0]


def exported(model, f, x):
    program = torch.export.export(Called(model, f), (x,))
    assert "vologan_kernels" not in program.graph_module.code
    x = x.requires_grad_()
    y = program.module()(x)
    return y, torch.autograd.grad(y.sum(), x)[0]


def symbolically_traced(model, f, x):
    return fx.symbolic_trace(model)(x) if f == model.forward else f(x)


def recorded(mode):
    def transform(model, f, x):
        return make_fx(torch.func.grad(scalar(f)), tracing_mode=mode, _allow_non_fake_inputs=True)(x)(x)

    return transform


def batched_backward(model, f, x):
    """Many gradients of one graph at once, by vmap over the backward."""
    x = x.requires_grad_()
    y = f(x).flatten()
    directions = rand(3, y.numel(), seed=8)
    return torch.autograd.grad(y, x, directions, is_grads_batched=True)[0]


def checkpointed(model, f, x):
    x = x.requires_grad_()
    return torch.autograd.grad(checkpoint(f, x, use_reentrant=False).sum(), x)[0]


def compiled(inner=None):
    def transform(model, f, x):
        torch._dynamo.reset()
        if inner is not None:
            return torch.compile(lambda x: inner(model, f, x), fullgraph=True, backend="aot_eager")(x)
        x = x.requires_grad_()
        y = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    return transform


def jvp(model, f, x):
    return torch.func.jvp(f, (x,), (DIRECTION,))


def vmap(model, f, x):
    return torch.vmap(f)(torch.stack([x, x.square(), 1 - x]))


TRANSFORMS = {
    "backward": lambda model, f, x: torch.autograd.grad(scalar(f)(x.requires_grad_()), x)[0],
    "second backward": lambda model, f, x: torch.autograd.functional.hvp(scalar(f), x, DIRECTION),
    "func.grad": lambda model, f, x: torch.func.grad(scalar(f))(x),
    "func.vjp": lambda model, f, x: torch.func.vjp(scalar(f), x)[1](torch.ones((), dtype=x.dtype)),
    "func.jvp": jvp,
    "func.jacrev": lambda model, f, x: torch.func.jacrev(f)(x),
    "func.jacfwd": lambda model, f, x: torch.func.jacfwd(f)(x),
    "func.hessian": lambda model, f, x: torch.func.hessian(scalar(f))(x),
    "jvp of grad": lambda model, f, x: torch.func.jvp(torch.func.grad(scalar(f)), (x,), (DIRECTION,)),
    "vmap": vmap,
    "vmap of grad": lambda model, f, x: torch.vmap(torch.func.grad(scalar(f)))(torch.stack([x, x.square()])),
    "functional_call": by_parameters,
    "forward_ad": in_dual_level,
    "is_grads_batched": batched_backward,
    "checkpoint": checkpointed,
    "make_fx": recorded("real"),
    "make_fx, fake": recorded("fake"),
    "make_fx, symbolic": recorded("symbolic"),
    "fx.symbolic_trace": symbolically_traced,
    "jit.trace, save": traced,
    "export": exported,
    "compile": compiled(),
    "compile of jvp": compiled(jvp),
    "compile of vmap": compiled(vmap),
}
ERRORS = {(name, "fx.symbolic_trace") for name in ("pixel_losses", "adversarial_losses", "windowed_ssim")}
TABLE = {(name, how): "error" if (name, how) in ERRORS else "right" for name in OPERATIONS for how in TRANSFORMS}


@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cell(name, how):
    model = OPERATIONS[name]()
    x = rand(1, 2, 4, 4)
    if TABLE[name, how] == "error":
        with pytest.raises(fx.proxy.TraceError):
            TRANSFORMS[how](model, model.forward, x)
        return
    found = TRANSFORMS[how](model, model.forward, x.clone())
    expected = TRANSFORMS[how](model, model.plain, x.clone())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    leaves = torch.utils._pytree.tree_leaves(found)
    assert any(leaf.abs().max() > 1e-3 for leaf in leaves)  # that there was something to be wrong


def table():
    """`TABLE` as the guide shows it."""
    rows = [f"| | {' | '.join(f'`{name}`' for name in OPERATIONS)} |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for how in TRANSFORMS:
        rows.append(f"| {how} | {' | '.join(TABLE[name, how] for name in OPERATIONS)} |")
    return "\n".join(rows)


def test_the_guide_shows_this_table():
    assert table() in (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
