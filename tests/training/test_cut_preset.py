"""The preset `cut-256` beside a step of CUT that is written down here from the paper, for images in [-1, 1]."""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from test_step import SGD
from torch.nn import functional as F

from vologan_fast.config import PRESETS, check
from vologan_fast.networks import Networks
from vologan_fast.training.build import build_step
from vologan_fast.training.optimizers import build_optimizer
from vologan_fast.training.schedules import learning_rate_factor

sys.path.append(str(Path(__file__).parents[1] / "networks"))
from plain_gans import copy_weights, cut_patch, cut_resnet

PRESET = PRESETS["cut-256"]
SMALL = dataclasses.replace(
    PRESET,
    generator=dataclasses.replace(PRESET.generator, width=4, max_width=16),
    discriminator=dataclasses.replace(PRESET.discriminator, width=4),
    contrast=dataclasses.replace(PRESET.contrast, patches=10**6, width=8),  # all positions, so none has to be drawn
)
COMPARED = (4, 8, 12, 16)
"""Layers of the generator whose results are compared, beside the image."""


def step_of(config):
    torch.manual_seed(0)
    networks = Networks(config).double()
    optimizers = [build_optimizer(of.parameters(), SGD) for of in networks.optimized.values()]
    return build_step(config, networks, *optimizers)


@pytest.mark.parametrize("step_kind", ["plain", "fast"])
def test_a_step_has_the_gradients_of_the_paper(step_kind):
    """Least squares, halved in the discriminator, and the mean of the contrasts of S and of T."""
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, step=step_kind, batch=2))
    step = step_of(config)
    networks = step.networks
    g, d = cut_resnet(3, 3, 4, 9).double(), cut_patch(3, 4).double()
    copy_weights(networks.generator_st, g)
    copy_weights(networks.discriminator_t, d)
    s, t = torch.rand(2, 2, 3, 32, 36, dtype=torch.float64).unbind()
    mlps = [[p.detach().clone().requires_grad_() for p in mlp.parameters()] for mlp in networks.projector.levels]
    terms = step(s, t, 0).terms()
    found = [[p.grad for p in of.parameters()] for of in networks.learning]

    def features(x):
        results = [(x + 1) / 2]  # ours are of images in [0, 1]
        for number, layer in enumerate(g):
            x = layer(x)
            if number in COMPARED:
                results.append(x)
        return results

    def vectors(of_level, mlp):
        w1, b1, w2, b2 = mlp
        rows = of_level.flatten(2).transpose(1, 2)
        y = F.relu(rows @ w1.T + b1) @ w2.T + b2
        return y / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    def contrast(original, translation):
        of_levels = []
        for k, q, mlp in zip(features(original), features(translation), mlps, strict=True):
            similar = vectors(q, mlp) @ vectors(k, mlp).detach().transpose(1, 2) / 0.07
            own = torch.arange(similar.shape[1]).expand(len(similar), -1)
            of_levels.append(F.cross_entropy(similar.transpose(1, 2), own))
        return sum(of_levels) / 5

    a, b = 2 * s - 1, 2 * t - 1
    fake, same = g(a), g(b)
    judged = d(fake)
    loss = F.mse_loss(judged, torch.ones_like(judged)) + (contrast(a, fake) + contrast(b, same)) / 2
    real, fake = d(b), d(fake.detach())
    of_d = 0.5 * (F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake)))
    torch.testing.assert_close(terms["generator_st/total"], loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(terms["discriminator_t/total"], of_d.detach(), rtol=1e-9, atol=0)
    of_networks = (list(g.parameters()), [p for mlp in mlps for p in mlp], list(d.parameters()))  # as in `learning`
    for parameters, of, gradients in zip(of_networks, (loss, loss, of_d), found, strict=True):
        expected = torch.autograd.grad(of, parameters, retain_graph=True)
        scale = max(float(gradient.abs().max()) for gradient in expected)
        assert scale > 0
        for gradient, truth in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-8, atol=1e-9 * scale)


def test_the_settings_are_those_of_the_paper():
    """256 positions of each level, and rates of 2e-4 for 200 epochs, then in equal steps to 0 after the 400th."""
    check(PRESET)
    factors = [learning_rate_factor(epoch, PRESET.schedule) for epoch in range(400)]
    steps = [before - after for before, after in itertools.pairwise(factors[199:])]
    assert factors[:200] == [1.0] * 200 and steps == pytest.approx([1 / 201] * 200)
    for settings in (PRESET.generator_optimizer, PRESET.discriminator_optimizer):
        made = build_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)
        assert type(made) is torch.optim.Adam
        assert (made.defaults["lr"], made.defaults["betas"], made.defaults["eps"]) == (2e-4, (0.5, 0.999), 1e-8)
    assert (PRESET.contrast.patches, PRESET.contrast.width, PRESET.contrast.temperature) == (256, 256, 0.07)
    assert PRESET.loss.pool == 0 and PRESET.train.batch == 1 and PRESET.data.size == 256


def test_the_initial_weights_have_002_of_glorots_deviation():
    """The relative error of a deviation from n numbers is sqrt(1 / 2n). Five of them are allowed."""
    torch.manual_seed(0)
    networks = Networks(PRESET)
    for network in networks.learning:
        large = [p for p in network.parameters() if p.dim() in (2, 4) and p.numel() > 10**4]
        assert large
        for weight in large:
            area = math.prod(weight.shape[2:])
            deviation = 0.02 * math.sqrt(2 / (area * sum(weight.shape[:2])))
            assert abs(float(weight.detach().std()) / deviation - 1) < 5 * (2 * weight.numel()) ** -0.5
    assert all(not p.any() for p in networks.parameters() if p.dim() == 1)
