"""Pixel and adversarial losses against their formulas in float64."""

import math

import pytest
import torch
from torch.nn import functional as F
from vologan_kernels import adversarial_loss, cycle_loss, global_ssim, weighted_l1, weighted_l2

WEIGHTS = (1.0, 1.0, 1.0, 3.0)


def images(n=2, dtype=torch.float32):
    return torch.rand(n, 4, 9, 7).to(dtype), torch.rand(n, 4, 9, 7).to(dtype)


def ssim_as_published(a, b, statistics):
    """Σ_c w_c (1 − l k s) with the three factors and their square roots, in float64."""
    a, b = a.double(), b.double()
    if statistics == "batch":
        a, b = (t.transpose(0, 1).flatten(1).unsqueeze(0) for t in (a, b))
    else:
        a, b = a.flatten(2), b.flatten(2)
    c1, c2 = 0.01**2, 0.03**2
    mu1, mu2 = a.mean(2), b.mean(2)
    s1, s2 = a.std(2, correction=0), b.std(2, correction=0)
    s12 = ((a - mu1.unsqueeze(2)) * (b - mu2.unsqueeze(2))).mean(2)
    luminance = (2 * mu1 * mu2 + c1) / (mu1**2 + mu2**2 + c1)
    contrast = (2 * s1 * s2 + c2) / (s1**2 + s2**2 + c2)
    structure = (s12 + c2 / 2) / (s1 * s2 + c2 / 2)
    return ((1 - luminance * contrast * structure).mean(0) * torch.tensor(WEIGHTS).double()).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixel_losses_weigh_depth_like_the_colours_together(dtype):
    a, b = images(dtype=dtype)
    difference = (a.double() - b.double()).mul(torch.tensor(WEIGHTS).view(1, 4, 1, 1))
    l1 = difference.abs().mean((0, 2, 3)).sum()
    l2 = ((a.double() - b.double()).square().mean((0, 2, 3)) * torch.tensor(WEIGHTS)).sum()
    assert weighted_l1(a, b, WEIGHTS).dtype == torch.float32
    torch.testing.assert_close(weighted_l1(a, b, WEIGHTS).double(), l1, rtol=1e-6, atol=0)
    torch.testing.assert_close(weighted_l2(a, b, WEIGHTS).double(), l2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("statistics", ["image", "batch"])
def test_ssim_is_the_published_product(statistics):
    a, b = images()
    ours = global_ssim(a, b, WEIGHTS, statistics)
    torch.testing.assert_close(ours.double(), ssim_as_published(a, b, statistics), rtol=1e-5, atol=0)


def test_ssim_of_an_image_with_itself_is_no_loss():
    a, _ = images()
    assert global_ssim(a, a, WEIGHTS).abs() < 1e-6


def test_ssim_of_constant_images_has_finite_gradients():
    a = torch.full((2, 4, 8, 8), 0.3, requires_grad=True)
    global_ssim(a, torch.zeros(2, 4, 8, 8), WEIGHTS).backward()
    assert torch.isfinite(a.grad).all()


def test_ssim_of_a_batch_is_the_mean_over_its_images():
    a, b = images(3)
    alone = torch.stack([global_ssim(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(global_ssim(a, b), alone.mean())


@pytest.mark.parametrize("loss", [weighted_l1, weighted_l2, global_ssim])
def test_pixel_loss_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\) and \(1, 4, 2, 3\)"):
        loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3))
    with pytest.raises(ValueError, match="4 numbers, found 3"):
        loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), (1, 1, 1))


def test_cycle_loss_is_the_weighted_sum():
    a, b = images()
    expected = 10 * weighted_l1(a, b, WEIGHTS) + 1 * global_ssim(a, b, WEIGHTS)
    torch.testing.assert_close(cycle_loss(a, b, channel_weight=WEIGHTS), expected)


FORMULAS = {
    ("mse", "real"): lambda z: (z - 1) ** 2,
    ("mse", "fake"): lambda z: z**2,
    ("mse", "generator"): lambda z: (z - 1) ** 2,
    ("bce", "real"): lambda z: -torch.log(torch.sigmoid(z)),
    ("bce", "fake"): lambda z: -torch.log(1 - torch.sigmoid(z)),
    ("bce", "generator"): lambda z: -torch.log(torch.sigmoid(z)),
    ("hinge", "real"): lambda z: F.relu(1 - z),
    ("hinge", "fake"): lambda z: F.relu(1 + z),
    ("hinge", "generator"): lambda z: -z,
}


@pytest.mark.parametrize(("kind", "role"), sorted(FORMULAS))
def test_adversarial_loss_averages_each_output_and_sums_them(kind, role):
    logits = [torch.randn(2, 8, 4, 4), torch.randn(2, 5, 1, 1), torch.randn(2, 1, 3, 3)]
    expected = sum(FORMULAS[kind, role](z.double()).mean() for z in logits)
    torch.testing.assert_close(adversarial_loss(logits, role, kind).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("role", ["real", "fake", "generator"])
def test_bce_survives_extreme_logits(role):
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = adversarial_loss([logits], role, "bce")
    loss.backward()
    assert math.isclose(loss.item(), 5e3) and torch.isfinite(logits.grad).all()


def test_adversarial_loss_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="one of mse, bce, hinge, found 'wgan'"):
        adversarial_loss([torch.zeros(1)], "real", "wgan")
    with pytest.raises(ValueError, match="one of real, fake, generator"):
        adversarial_loss([torch.zeros(1)], "maybe")
    with pytest.raises(ValueError, match="at least one"):
        adversarial_loss([], "real")
