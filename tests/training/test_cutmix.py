"""CutMix: the rectangle, the mask and the loss beside formulas written out here, and both steps."""

import dataclasses

import pytest
import torch
from test_fast_step import assert_equal, gradients
from test_step import CONFIG, batch, step_of
from vologan_kernels.adversarial_loss import KINDS

from vologan_fast.config import Config, ConfigError, LossConfig, ScheduleConfig, TrainConfig, check, from_dict
from vologan_fast.training.build import with_ramp
from vologan_fast.training.cutmix import Mixture, cutmix_loss, mixture
from vologan_fast.training.losses import losses_at
from vologan_fast.training.sample_random import CUTMIX, uniform

KEYS = torch.arange(400, dtype=torch.int64) * 7919 + 3
SMALL = dataclasses.replace(
    CONFIG,
    discriminator=dataclasses.replace(
        CONFIG.discriminator, network="unet", width=4, max_width=8, levels=2, dropout=0.3
    ),
    loss=LossConfig(cutmix=0.9, cutmix_ramp=0.0),
)


def images(n=400, side=(12, 20)):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, n, 4, *side, dtype=torch.float64, generator=generator).clamp(min=0.01).unbind()


def test_the_rectangle_is_the_one_of_cutmix():
    """Each pixel is compared with the rectangle's edges, which follow from the sample's random numbers."""
    real, fake = images()
    mixed = mixture(real, fake, KEYS, 1.0)
    height, width = real.shape[2:]
    for i, (_, area, row, column, which) in enumerate(uniform(KEYS, CUTMIX, 5).tolist()):
        ratio = area**0.5  # λ from Beta(1, 1) is uniform, and so is 1 − λ
        for y in range(height):
            for x in range(0, width, 3):
                inside = (
                    abs(y + 0.5 - row * height) < ratio * height / 2
                    and abs(x + 0.5 - column * width) < ratio * width / 2
                )
                from_real = inside != (which < 0.5)
                assert mixed.real[i, 0, y, x] == from_real
                assert torch.equal(mixed.images[i, :, y, x], (real if from_real else fake)[i, :, y, x])
        if i == 40:
            break


def test_the_numbers_of_mixtures_are_those_of_the_distributions():
    real, fake = images()
    mixed = mixture(real, fake, KEYS, 0.5)
    # 400 draws with probability 1/2 lie within 5 standard deviations, 5 · 10 = 50. A few rectangles are empty or full.
    assert 150 <= int(mixed.counts.sum()) <= 250
    assert 150 <= int((uniform(KEYS, CUTMIX, 5)[:, 4] < 0.5).sum()) <= 250
    assert not mixture(real, fake, KEYS, 0.0).counts.any()
    everywhere = mixture(real, fake, KEYS, 1.0)
    for counts, mask in zip(everywhere.counts, everywhere.real, strict=True):
        assert bool(counts) == bool(mask.any() and not mask.all())


def test_background_stays_background():
    """Only pixels at which an image shows something are labelled as fake. A mixture of background does not count."""
    real, fake = images(100)
    real[:, :, :, :10] = 0
    fake[:, :, :6] = 0
    plain = mixture(real, fake, KEYS[:100], 1.0)
    kept = mixture(real, fake, KEYS[:100], 1.0, keep_background=True)
    background = (real == 0).all(1, keepdim=True) & (fake == 0).all(1, keepdim=True)
    assert background.any() and (plain.real & background).any() and (~plain.real & background).any()
    assert kept.real[background].all()
    assert torch.equal(kept.real[~background], plain.real[~background])
    assert torch.equal(kept.images, plain.images)
    assert not mixture(0 * real, 0 * fake, KEYS[:100], 1.0, keep_background=True).counts.any()


def as_formula(kind, z, real):
    """The loss of one logit, from the table of the kernels' page."""
    z = torch.as_tensor(z, dtype=torch.float64)
    return {
        "lsgan": (z - 1) ** 2 if real else z**2,
        "bce": torch.log(1 + torch.exp(-z if real else z)),
        "wgan": -z if real else z,
    }.get(kind, torch.clamp(1 - z if real else 1 + z, min=0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formula(kind):
    """Value and gradients in float64, sample by sample and pixel by pixel."""
    generator = torch.Generator().manual_seed(1)
    whole, *pixels = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((3, 1, 1, 1), (3, 1, 4, 5), (3, 1, 4, 5), (3, 1, 4, 5))
    )
    mask = torch.rand(3, 1, 4, 5, generator=generator) < 0.6
    mixed = Mixture(torch.zeros(0), mask, torch.tensor([True, False, True]))
    loss, parts = cutmix_loss(kind, mixed, whole, *pixels, consistency=0.3)
    labels = consistency = 0
    for i in (0, 2):
        labels = labels + as_formula(kind, whole[i, 0, 0, 0], real=False)
        for y in range(4):
            for x in range(5):
                z, of_real, of_fake = (t[i, 0, y, x] for t in pixels)
                real = bool(mask[i, 0, y, x])
                labels = labels + as_formula(kind, z, real) / 20
                consistency = consistency + (z - (of_real if real else of_fake)) ** 2 / 20
    expected = 0.5 * labels / 3 + 0.3 * consistency / 3
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts, torch.stack((labels / 3, consistency / 3)).detach(), rtol=1e-12, atol=1e-12)
    inputs = [whole, *pixels]
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("micro_batch", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"adversarial": "bce", "cutmix_keeps_background": True, "penalty": "r1"}])
def test_the_fast_step_is_the_plain_one(micro_batch, options):
    config = dataclasses.replace(SMALL, loss=dataclasses.replace(SMALL.loss, **options))
    assert_equal(config, n=3, micro_batch=micro_batch)
    terms, _ = gradients(config, n=3)
    assert terms["discriminator_s/cutmix"] > 0 and terms["discriminator_t/consistency"] > 0


def test_a_step_is_the_formula_of_its_images():
    """The discriminators' gradients with CutMix, minus those without, are those of the loss of the mixtures."""
    config = dataclasses.replace(
        SMALL,
        discriminator=dataclasses.replace(SMALL.discriminator, dropout=0.0),
        loss=dataclasses.replace(SMALL.loss, cutmix=1.0),
    )
    terms, found = gradients(config, step="plain")
    _, without = gradients(dataclasses.replace(config, loss=LossConfig()), step="plain")
    step = step_of(config)
    synthetic, real = batch()
    step.prepare(7, synthetic)
    step.networks.train()
    with step._normalised(step.networks.generators):
        translations = step.networks.generator_ts(real).detach()
        discriminator = step.networks.discriminator_s
        keys = step._keys(synthetic).of(2, 2)
        mixed = mixture(synthetic, translations, keys, 1.0)
        whole, pixels = discriminator(mixed.images)
        of_real, of_fake = discriminator(synthetic)[1], discriminator(translations)[1]
        mask = mixed.real.double()
        labels = (whole**2).flatten(1).mean(1) + (mask * (pixels - 1) ** 2 + (1 - mask) * pixels**2).mean((1, 2, 3))
        apart = ((pixels - mask * of_real - (1 - mask) * of_fake) ** 2).mean((1, 2, 3))
        weight = mixed.counts.double() / len(synthetic)
        loss = (weight * (0.5 * labels + apart)).sum()
        expected = torch.autograd.grad(loss, list(discriminator.parameters()))
    assert mixed.counts.any()
    torch.testing.assert_close(terms["discriminator_s/cutmix"], 0.5 * (weight * labels).sum(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms["discriminator_s/consistency"], (weight * apart).sum(), rtol=1e-9, atol=1e-12)
    for (name, _), gradient in zip(discriminator.named_parameters(), expected, strict=True):
        of_mixtures = found[f"discriminator_s.{name}"] - without[f"discriminator_s.{name}"]
        torch.testing.assert_close(of_mixtures, gradient, rtol=1e-7, atol=1e-9)


def test_the_generators_and_evaluation_have_no_mixtures():
    _, found = gradients(SMALL, step="fast")
    _, without = gradients(dataclasses.replace(SMALL, loss=LossConfig()), step="fast")
    assert all(torch.equal(found[name], without[name]) for name in found if name.startswith("generator"))
    losses, _ = step_of(SMALL).evaluate(*batch())
    assert "discriminator_s/cutmix" not in losses.terms()


def test_the_probability_rises_in_the_warm_up():
    config = Config(loss=LossConfig(cutmix=0.5), schedule=ScheduleConfig(epochs=20, warmup_epochs=5))
    found = [losses_at(with_ramp(config), epoch / 20).cutmix for epoch in range(20)]
    assert found == pytest.approx([0.5 * min(1, epoch / 5) for epoch in range(20)])
    assert losses_at(with_ramp(Config(loss=LossConfig(cutmix=0.5, cutmix_ramp=0.0))), 0.0).cutmix == 0.5
    step = step_of(dataclasses.replace(SMALL, loss=LossConfig(cutmix=0.5), train=TrainConfig()))
    assert "discriminator_s/cutmix" not in step(*batch(), 0, 0.0).terms()
    assert "discriminator_s/cutmix" in step(*batch(), 1, 0.1).terms()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"loss": {"cutmix": 0.5}}, "0, or --discriminator.network unet, as one_shot has no logits"),
        ({"loss": {"cutmix": 1.5}, "discriminator": {"network": "unet"}}, "a probability from 0 to 1"),
        ({"loss": {"cutmix_ramp": 2.0}}, "--loss.cutmix-ramp is 2.0"),
        ({"loss": {"cutmix_consistency": -1.0}}, "--loss.cutmix-consistency is -1.0"),
        (
            {"loss": {"cutmix": 0.5, "diffaugment": ["translation"]}, "discriminator": {"network": "unet"}},
            "which moves pixels",
        ),
    ],
)
def test_what_cannot_work_is_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(from_dict(values))
