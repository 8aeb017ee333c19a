"""Gradient penalties against formulas that are written out here, and against finite differences, in float64."""

import dataclasses

import pytest
import torch
from test_step import CONFIG, batch, make_step
from torch import nn
from vologan_kernels import adversarial_loss

from vologan_fast.config import DiscriminatorConfig, LossConfig
from vologan_fast.networks import OneShotDiscriminator
from vologan_fast.training.penalty import gradient_penalty
from vologan_fast.training.sample_random import INTERPOLATION, uniform
from vologan_fast.training.step import D_S, D_T, PENALTY

KEYS = torch.tensor([3, 2**40, 5])


class Quadratic(nn.Module):
    """Two outputs of different sizes: x² a, of as many values as the image has, and the sum of x times b."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.7, 1.3]).double()), nn.Parameter(torch.tensor(-0.4).double())

    def forward(self, x):
        return x.square() * self.a.view(1, 2, 1, 1), self.b * x.sum((1, 2, 3), keepdim=True)


def images(n=3, channels=2):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, n, channels, 4, 6, dtype=torch.float64, generator=generator)


def test_r1_of_a_quadratic_discriminator():
    """∇D = 2 a x / 48 + b, since an image has 48 values. So R1 and its derivative are sums of squares."""
    real, fake = images()
    network = Quadratic()
    found = gradient_penalty("r1", network, real, fake, KEYS)
    found.backward()
    a, b = network.a.detach().view(1, 2, 1, 1), network.b.detach()
    gradient = 2 * a * real / 48 + b
    torch.testing.assert_close(found, 0.5 * gradient.square().sum((1, 2, 3)).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(network.b.grad, gradient.sum((1, 2, 3)).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(network.a.grad, (gradient * 2 * real / 48).sum((2, 3)).mean(0), rtol=1e-12, atol=0)


def test_wgan_gp_of_a_quadratic_discriminator():
    real, fake = images()
    network = Quadratic()
    found = gradient_penalty("wgan-gp", network, real, fake, KEYS)
    found.backward()
    a, b = network.a.detach().view(1, 2, 1, 1), network.b.detach()
    share = uniform(KEYS, INTERPOLATION, 1).view(3, 1, 1, 1)
    assert share.unique().numel() == 3
    gradient = 2 * a * (share * real + (1 - share) * fake) / 48 + b
    norms = gradient.square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(found, ((norms - 1) ** 2).mean(), rtol=1e-12, atol=0)
    slope = (2 * (norms - 1) / norms * gradient.sum((1, 2, 3))).mean()
    torch.testing.assert_close(network.b.grad, slope, rtol=1e-11, atol=0)


def test_wgan_gp_of_a_constant_discriminator_has_no_nan():
    network = Quadratic()
    with torch.no_grad():
        network.a.zero_(), network.b.zero_()
    penalty = gradient_penalty("wgan-gp", network, *images(), KEYS)
    penalty.backward()
    assert penalty == 1 and torch.isfinite(network.a.grad).all()


NETWORKS = {
    "vologan-512": {"padding": "reflection", "first_kernel": 7, "attention": "elementwise", "down": "conv_stride_2"},
    "matrix attention": {"attention": "matrix", "activation": "gelu"},
    "smooth, without spectral norm": {"spectral_norm": False, "activation": "elu", "norm_min_scale": 0.0},
}


@pytest.mark.parametrize("kind", ["r1", "wgan-gp"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_its_derivative_through_our_networks(kind, options):
    """The derivative in a random direction of the weights equals the central difference of penalties.

    A central difference with step h errs by O(h²), and by the rounding of the penalty over h: here both near 1e-8.
    """
    config = DiscriminatorConfig(widths=(4, 4, 8), down_widths=(4, 4, 8), dropout=0.0, **options)
    network = OneShotDiscriminator(config).double()
    real, fake = images(channels=4).repeat_interleave(4, 3).repeat_interleave(3, 4)[..., :16]
    real, fake = real + 0.1 * torch.randn_like(real), fake + 0.1 * torch.randn_like(fake)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    directions = [torch.randn_like(parameter) * parameter.detach().abs().mean() for parameter in parameters]

    def penalty():
        return gradient_penalty(kind, network, real, fake, KEYS)

    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    found = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    step, values = 1e-5, []
    for sign in (1, -2):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data += sign * step * direction
        values.append(float(penalty().detach()))
    difference = (values[0] - values[1]) / (2 * step)
    assert abs(found) > 1e-3 * abs(values[0])
    assert found == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("kind", ["r1", "wgan-gp"])
def test_it_is_added_to_the_discriminators_loss(kind):
    """The discriminators' gradients are those of ½ (real + fake) + weight · every · penalty, each written out."""
    config = LossConfig(penalty=kind, penalty_weight=3.0, penalty_every=2, adversarial="bce")
    step, (s, t), number = make_step(config), batch(), 4
    networks = step.networks
    terms = step(s, t, number).terms()
    for parameter in networks.parameters():  # undo the step of SGD with rate 1
        parameter.data += parameter.grad
    keys = step._keys(s)
    for network, index, real, fake in (
        (networks.discriminator_s, D_S, s, networks.generator_ts(t).detach()),
        (networks.discriminator_t, D_T, t, networks.generator_st(s).detach()),
    ):
        share = uniform(keys.of(index, PENALTY), INTERPOLATION, 1).view(-1, 1, 1, 1)
        x = real if kind == "r1" else share * real + (1 - share) * fake
        x = x.clone().requires_grad_()
        score = sum(output.flatten(1).mean(1).sum() for output in network(x))
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        squares = slope.square().sum((1, 2, 3))
        penalty = {"r1": 0.5 * squares, "wgan-gp": (squares.sqrt() - 1) ** 2}[kind].mean()
        loss = 0.5 * sum(adversarial_loss(network(x), role, "bce") for x, role in ((real, "real"), (fake, "fake")))
        expected = torch.autograd.grad(loss + 3.0 * 2 * penalty, list(network.parameters()))
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11)
        name = "discriminator_s" if index == D_S else "discriminator_t"
        torch.testing.assert_close(terms[f"{name}/penalty"], 3.0 * penalty.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(terms[f"{name}/total"], (loss + 3.0 * penalty).detach(), rtol=1e-9, atol=0)


def test_a_lazy_penalty_comes_every_few_steps():
    step = make_step(LossConfig(penalty="r1", penalty_every=3))
    found = ["discriminator_t/penalty" in step(*batch(), number).terms() for number in range(5)]
    assert found == [True, False, False, True, False]


def test_under_autocast_it_is_float32_and_errs_as_a_gradient_does():
    """If ∇D has the relative error e in bfloat16, then ½ ‖∇D‖² errs by 2 e + e². e comes from an ordinary backward."""
    slopes, penalties = [], []
    for precision in (torch.float32, torch.bfloat16):
        step = make_step(LossConfig(penalty="r1"))
        step.networks.float()
        step.precision = precision
        s, t = (image.float() for image in batch())
        step.prepare(0, s)
        keys = step._keys(s)
        with step._normalised(step.networks.generators):
            loss, penalty = step._penalty(step.networks.discriminator_s, s, t, keys, D_S)
            loss.backward()
            x = s.clone().requires_grad_()
            with step._autocast(x):
                score = sum(z.float().flatten(1).mean(1).sum() for z in step.networks.discriminator_s(x))
        slopes.append(torch.autograd.grad(score, x)[0])
        penalties.append(penalty)
    error = float((slopes[1] - slopes[0]).norm() / slopes[0].norm())
    assert penalties[1].dtype == torch.float32 and 2**-10 < error < 0.5
    assert float(penalties[1]) == pytest.approx(float(penalties[0]), rel=2 * error + error**2)


def test_held_out_images_have_no_penalty():
    step = make_step(dataclasses.replace(CONFIG.loss, penalty="wgan-gp"))
    losses, _ = step.evaluate(*batch())
    assert losses.penalties is None and "discriminator_s/penalty" not in losses.terms()
