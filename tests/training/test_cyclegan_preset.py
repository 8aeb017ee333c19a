"""The preset `cyclegan-256` beside a CycleGAN that is written down here from the paper, for images in [-1, 1]."""

import dataclasses
import itertools
import sys
from pathlib import Path

import pytest
import torch
from test_step import SGD, step_of
from torch.nn import functional as F

from vologan_fast.config import PRESETS, DataConfig, check
from vologan_fast.networks import Networks
from vologan_fast.training.build import build_step
from vologan_fast.training.optimizers import build_optimizer
from vologan_fast.training.schedules import learning_rate_factor

sys.path.append(str(Path(__file__).parents[1] / "networks"))
from plain_gans import copy_weights, zhu_patch, zhu_resnet

PRESET = PRESETS["cyclegan-256"]
SMALL = dataclasses.replace(
    PRESET,
    generator=dataclasses.replace(PRESET.generator, width=4, max_width=16, residual_blocks=2),
    discriminator=dataclasses.replace(PRESET.discriminator, width=4),
)


def plain_twin(network, make, *arguments):
    plain = make(*arguments).double()
    copy_weights(network, plain)
    return plain


@pytest.mark.parametrize("step_kind", ["plain", "fast"])
def test_a_step_has_the_gradients_of_the_paper(step_kind):
    """λ is 10 and 5, the adversarial loss is least squares, and the discriminators' losses are halved."""
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, step=step_kind, batch=2))
    step = step_of(config, SGD)
    networks = step.networks
    st, ts = (plain_twin(network, zhu_resnet, 3, 3, 4, 2) for network in networks.generators)
    d_s, d_t = (plain_twin(network, zhu_patch, 3, 4) for network in networks.discriminators)
    s, t = torch.rand(2, 2, 3, 32, 40, dtype=torch.float64).unbind()
    terms = step(s, t, 0).terms()
    found = [[p.grad for p in network.parameters()] for network in networks.learning]

    a, b = 2 * s - 1, 2 * t - 1
    fake_b, fake_a = st(a), ts(b)

    def target(logits, value):
        return F.mse_loss(logits, torch.full_like(logits, value))

    of_generators = (
        target(d_t(fake_b), 1.0)
        + target(d_s(fake_a), 1.0)
        + 10 * F.l1_loss(ts(fake_b), a)
        + 10 * F.l1_loss(st(fake_a), b)
        + 5 * F.l1_loss(ts(a), a)
        + 5 * F.l1_loss(st(b), b)
    )
    of_s = 0.5 * (target(d_s(a), 1.0) + target(d_s(fake_a.detach()), 0.0))
    of_t = 0.5 * (target(d_t(b), 1.0) + target(d_t(fake_b.detach()), 0.0))
    losses = (of_generators, of_generators, of_s, of_t)
    for network, loss, gradients in zip((st, ts, d_s, d_t), losses, found, strict=True):
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        scale = max(float(gradient.abs().max()) for gradient in expected)
        assert scale > 0
        for gradient, truth in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-8, atol=1e-9 * scale)
    total = terms["generator_st/total"] + terms["generator_ts/total"]
    torch.testing.assert_close(total, of_generators.detach(), rtol=1e-9, atol=1e-12)


def test_the_rates_are_those_of_the_paper():
    """2e-4 for 100 epochs, then in equal steps to 0 after the 200th."""
    factors = [learning_rate_factor(epoch, PRESET.schedule) for epoch in range(200)]
    assert factors[:100] == [1.0] * 100
    steps = [before - after for before, after in itertools.pairwise(factors[99:])]
    assert steps == pytest.approx([1 / 101] * 100) and factors[-1] == pytest.approx(1 / 101)
    for optimizer in (PRESET.generator_optimizer, PRESET.discriminator_optimizer):
        made = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optimizer)
        assert type(made) is torch.optim.Adam
        assert (made.defaults["lr"], made.defaults["betas"]) == (2e-4, (0.5, 0.999))


def test_the_initial_weights_have_the_deviation_of_the_paper():
    networks = Networks(SMALL)
    weights = torch.cat([p.detach().flatten() for p in networks.parameters() if p.dim() == 4])
    # The relative error of a deviation from n numbers is sqrt(1 / 2n). Five of them are allowed.
    assert abs(float(weights.std()) / 0.02 - 1) < 5 * (2 * len(weights)) ** -0.5
    assert all(not p.any() for p in networks.parameters() if p.dim() == 1)


@pytest.mark.parametrize("channels", ["rgbd", "rgb", "depth", "grey+depth", "grey"])
def test_any_channels(channels):
    config = dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, channels=channels))
    check(config)
    number = config.data.channel_sets["real"].number
    networks = Networks(config)
    step = build_step(
        config,
        networks,
        build_optimizer(networks.generators.parameters(), config.generator_optimizer),
        build_optimizer(networks.discriminators.parameters(), config.discriminator_optimizer),
    )
    terms = step(torch.rand(1, number, 32, 32), torch.rand(1, number, 32, 32), 0).terms()
    assert all(torch.isfinite(value) for value in terms.values())


def test_images_are_loaded_at_286_pixels_and_cropped():
    augment = PRESET.data.augment
    assert (PRESET.data.size, round(256 * (1 + augment.crop)), augment.flip, augment.shift) == (256, 286, 0.5, 0.0)
    assert isinstance(PRESET.data, DataConfig) and PRESET.loss.pool == 50 and PRESET.train.batch == 1
