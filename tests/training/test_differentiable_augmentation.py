"""DiffAugment against its definition, written out image by image and pixel by pixel, in float64."""

import dataclasses

import pytest
import torch
from test_step import CONFIG, batch, step_of

from vologan_fast.config import LossConfig, TrainConfig
from vologan_fast.training import step as step_module
from vologan_fast.training.differentiable_augmentation import augmented
from vologan_fast.training.sample_random import COLOR, CUTOUT, TRANSLATION, uniform
from vologan_fast.training.step import D_S, D_T, FAKE, PENALTY, REAL

ALL = ("color", "translation", "cutout")
KEYS = torch.arange(12) * 2**30 + 5


def images(n=12, channels=4, height=17, width=24):
    return torch.rand(n, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def color(x, numbers, colours):
    brightness, saturation, contrast = numbers
    out = x.clone()
    for i in range(colours):
        out[i] += -0.25 + 0.5 * brightness
    grey = sum(out[i] for i in range(colours)) / colours
    for i in range(colours):
        out[i] = grey + (out[i] - grey) * 2 * saturation
    mean = out[:colours].sum() / out[:colours].numel()
    for i in range(colours):
        out[i] = mean + (out[i] - mean) * (0.5 + contrast)
    return out


def translation(x, numbers):
    out = torch.zeros_like(x)
    (height, width) = x.shape[1:]
    down, right = (
        int(number * (2 * most + 1)) - most
        for number, most in zip(numbers, (int(height / 8 + 0.5), int(width / 8 + 0.5)), strict=True)
    )
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = x[:, row - down, column - right]
    return out


def cutout(x, numbers):
    out = x.clone()
    spans = []
    for number, side in zip(numbers, x.shape[1:], strict=True):
        length = int(side / 2 + 0.5)
        first = int(number * (side + (length % 2 == 0))) - length // 2
        spans.append(slice(max(first, 0), max(first + length, 0)))
    out[:, spans[0], spans[1]] = 0
    return out


@pytest.mark.parametrize("names", [("color",), ("translation",), ("cutout",), ALL, ALL[::-1], ()], ids=str)
@pytest.mark.parametrize(("channels", "colours"), [(4, 3), (3, 3), (2, 1), (1, 0)])
def test_it_is_what_the_paper_says(names, channels, colours):
    x = images(channels=channels)
    expected = list(x)
    if "color" in names and colours:
        expected = [color(y, u.tolist(), colours) for y, u in zip(expected, uniform(KEYS, COLOR, 3), strict=True)]
    if "translation" in names:
        expected = [translation(y, u.tolist()) for y, u in zip(expected, uniform(KEYS, TRANSLATION, 2), strict=True)]
    if "cutout" in names:
        expected = [cutout(y, u.tolist()) for y, u in zip(expected, uniform(KEYS, CUTOUT, 2), strict=True)]
    found = augmented(x, KEYS, names, colours)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-14)
    assert bool(names and (colours or names != ("color",))) == (not torch.equal(found, x))


def test_color_leaves_depth_as_it_is():
    x = images()
    found = augmented(x, KEYS, ("color",), 3)
    assert torch.equal(found[:, 3], x[:, 3]) and not torch.equal(found[:, :3], x[:, :3])


def test_all_shifts_and_all_places_of_the_cut_occur():
    """5,000 images of 16²: shifts from −2 to 2, and cuts of 8 whose centre is at each of 17 places."""
    keys = torch.arange(5000)
    ramp = torch.arange(1.0, 17).view(1, 1, 16, 1).expand(5000, 1, 16, 16)
    shifted = augmented(ramp, keys, ("translation",), 0)
    shifts = {int(9 - value) for value in shifted[:, 0, 8, 8]}
    assert shifts == {-2, -1, 0, 1, 2}
    cut = augmented(torch.ones(5000, 1, 16, 16), keys, ("cutout",), 0)
    missing = (cut == 0).any(3)[:, 0].sum(1)  # rows with a cut
    assert set(missing.tolist()) == {4, 5, 6, 7, 8}
    assert {int(rows.int().argmax()) for rows in (cut == 0).any(3)[:, 0]} == set(range(13))


def test_an_image_is_changed_alike_in_every_batch():
    x = images()
    order = torch.randperm(len(x))
    found = augmented(x[order], KEYS[order], ALL, 3)
    torch.testing.assert_close(found, augmented(x, KEYS, ALL, 3)[order], rtol=1e-14, atol=1e-15)


def test_it_has_first_and_second_derivatives():
    x = images(2, height=5, width=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmented(x, KEYS[:2], ALL, 3), x)
    assert torch.autograd.gradgradcheck(lambda x: augmented(x, KEYS[:2], ALL, 3).square(), x)


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_in_training_the_discriminators_judge_nothing_else(kind, monkeypatch):
    """Real images, translations and the images of the penalty are augmented by their own keys; held-out ones never."""
    seen = []

    def recorded(images, keys, names, colours):
        assert names == ALL and colours == 3
        seen.append(keys)
        return augmented(images, keys, names, colours)

    monkeypatch.setattr(step_module, "augmented", recorded)
    loss, train = LossConfig(diffaugment=ALL, penalty="r1"), TrainConfig(step=kind)
    step = step_of(dataclasses.replace(CONFIG, loss=loss, train=train))
    step(*batch(), 3)
    keys = step._keys(batch()[0])
    passes = [(network, of_pass) for network in (D_S, D_T) for of_pass in (FAKE, REAL, FAKE, PENALTY)]
    expected = torch.cat([keys.of(*one) for one in passes])
    assert torch.equal(torch.cat(seen).sort()[0], expected.sort()[0])
    seen.clear()
    step.evaluate(*batch())
    assert not seen
