"""One look at networks whose answers are known: what adds up, what is ranked, what is left out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vologan_fast.config import PRESETS, Config, DepthSpec
from vologan_fast.evaluation.inputs import Images
from vologan_fast.quantities.observation import Observation, observe

SIDE = 8


class Shift(nn.Module):
    """Adds a number to all pixels, the background too, and clamps the result."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        assert keys.shape == (len(x),)
        return (x + self.by).clamp(0, 1)


class Mean(nn.Module):
    """A discriminator with an output of one place, which is the mean, and one of four places."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((1, 2, 3), keepdim=True), nn.functional.adaptive_avg_pool2d(x, 2)


class Known(nn.Module):
    """Stands for the networks of a CycleGAN. G adds 1/4, F subtracts 1/4."""

    def __init__(self) -> None:
        super().__init__()
        self.generator_st, self.generator_ts = Shift(0.25), Shift(-0.25)
        self.discriminator_s, self.discriminator_t = Mean(), Mean()

    @property
    def translators(self) -> list[nn.Module]:
        return [self.generator_st, self.generator_ts]


def images(values: list[float], hole: bool = False) -> Images:
    """Return an image for each value: its right half is the figure with this colour and depth, the rest background."""
    pixels = torch.zeros(len(values), 4, SIDE, SIDE)
    for image, value in zip(pixels, values, strict=True):
        image[:, :, SIDE // 2 :] = value
    if hole:
        pixels[0, 3, 0, -1] = 0
    return Images(pixels, [f"image {value}" for value in values])


@pytest.fixture(scope="module")
def found() -> Observation:
    config = PRESETS["demo"]
    metres = DepthSpec("m", None, 1.0, 3.0, (0.0,), None, None, "float")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, size=SIDE, synthetic=metres, real=metres),
        discriminator=dataclasses.replace(config.discriminator, depth_gradient=0.0),
        loss=dataclasses.replace(config.loss, adversarial="mse"),
    )
    assert isinstance(config, Config)
    networks = Known()
    before = torch.get_rng_state()
    both = {"synthetic": images([0.125, 0.25, 0.375, 0.5, 0.9]), "real": images([0.625, 0.75, 0.8], hole=True)}
    observation = observe(networks, config, both, 7)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    return observation


def test_histograms_are_of_the_figure_and_of_measured_depth(found: Observation) -> None:
    assert found.step == 7 and found.counts == {"S": 5, "T": 3}
    assert list(found.histograms) == ["red", "green", "blue", "depth"]
    half = SIDE * SIDE // 2
    for channel in found.histograms.values():
        assert list(channel) == ["S", "T", "G(S)", "F(T)"]
        assert channel["S"].counts.sum() == channel["G(S)"].counts.sum() == 5 * half
        shifted = [int(i) + 16 for i in np.flatnonzero(channel["S"].counts)]  # 1/4 is 16 of 64 bins
        assert np.flatnonzero(channel["G(S)"].counts).tolist() == [min(i, 63) for i in shifted]
    assert found.histograms["red"]["T"].counts.sum() == 3 * half
    assert found.histograms["depth"]["T"].counts.sum() == 3 * half - 1


def test_hole_maps_are_shares_of_the_images(found: Observation) -> None:
    assert found.hole_maps["T"][0, -1] == pytest.approx(1 / 3) and found.hole_maps["T"].sum() == pytest.approx(1 / 3)
    assert found.hole_shares["T"] == pytest.approx(1 / (3 * SIDE * SIDE / 2))
    assert found.hole_shares["S"] == found.hole_shares["G(S)"] == 0


def test_images_are_ranked_by_their_cycle_and_shown_without_what_is_painted_on_the_background(
    found: Observation,
) -> None:
    there, back = found.directions
    assert (there.labels, back.labels) == (("S", "G(S)", "F(G(S))"), ("T", "F(T)", "G(F(T))"))
    # Only 0.9 + 1/4 is clamped: its cycle is 0.15 too dark on the figure, which is half of the image.
    (worst, *_), (best, *_) = there.worst, there.best
    assert worst.name == "image 0.9" and worst.error == pytest.approx(0.15 / 2)
    assert best.error == pytest.approx(0, abs=1e-7)
    assert {e.name for e in there.best}.isdisjoint(e.name for e in there.worst)
    _, translation, _ = best.images
    assert translation[:, :, : SIDE // 2].max() == 0 and translation[:, :, SIDE // 2 :].min() >= 0.375
    assert [example.name for example in there.examples] == ["image 0.125", "image 0.25", "image 0.5"]
    assert there.scale.unit == "m" and (there.scale.near, there.scale.far) == (1, 3)


def test_discriminators_judge_translations_as_the_generators_make_them(found: Observation) -> None:
    of_s, of_t = sorted(found.verdicts, key=lambda verdict: verdict.name)
    assert (of_s.name, of_t.name, of_t.border) == ("D_S", "D_T", 0.5)
    assert of_t.scores["G(S)"][0] == pytest.approx(0.25 + 0.125 / 2)  # with the background, which G paints
    assert of_t.scores["T"][1] == pytest.approx(0.75 / 2)
    # T has 0.312, 0.375 and 0.4; G(S) has 0.3125, 0.375 and more: one tie, and 3 of 15 pairs in the right order.
    assert of_t.separation == pytest.approx(3.5 / 15)
    image, judgement = of_t.examples["T"][1]
    assert image.shape == (4, SIDE, SIDE) and judgement.maps[0] == pytest.approx(np.array([[0, 0.75]] * 2))
    assert len(judgement.maps) == 1 and len(judgement.means) == 2


def test_the_warnings_are_about_what_was_built_in(found: Observation) -> None:
    assert [sentence for sentence in found.warnings if "background" in sentence] == [
        "G(S) paints 100% of the background of S. `translate` removes this, but the discriminator judges it. Try "
        "--generator.keep-background."
    ]
    (clamped,) = [sentence for sentence in found.warnings if "clamped" in sentence]
    assert clamped.startswith("G(S): 20% of the measured depth is clamped at the far end.")
    assert len(found.warnings) == 2


def test_components_and_weights_are_there(found: Observation) -> None:
    assert list(found.projections) == ["image and depth", "image", "depth"]
    assert found.projections["image"].variances[0] == pytest.approx(
        1, abs=1e-6
    )  # the images differ in brightness alone
    assert {name: len(places) for name, places in found.projections["depth"].places.items()} == {
        "S": 5,
        "T": 3,
        "G(S)": 5,
        "F(T)": 3,
    }
    assert list(found.weights) == ["generator_st", "generator_ts", "discriminator_s", "discriminator_t"]
    assert len(found.weights["discriminator_t"].spectra) == 1 and not found.weights["generator_st"].spectra
