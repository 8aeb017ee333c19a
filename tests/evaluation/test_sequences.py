"""Repeatability and flicker: which names belong together, and the numbers of known shots and frames."""

from __future__ import annotations

import pytest
import torch
from sensor_images import sensor_images, with_depth
from torch import Tensor

from vologan_fast.evaluation.sequences import FLICKER, REPEATABILITY, describe, measure, scenes, successive


def number(statistic: object, images: Tensor, names: list[str], *pattern: str) -> float:
    assert statistic in (REPEATABILITY, FLICKER)
    found = REPEATABILITY if statistic is REPEATABILITY else FLICKER
    return float(found.number(measure(images, names, *pattern)[found.name].sum(0)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["desk_shot1", "desk_shot2", "door_shot1"], [[0, 1]]),
        (["a/desk-shot01", "b/desk-shot02", "a/desk-shot02"], [[0, 2]]),
        (["desk-shot1", "desk-shot2", "door_shot1", "door_shot2"], [[0, 1], [2, 3]]),
        (["desk-1", "desk-2"], []),  # often images of different scenes
        (["0001", "0002"], []),
        (["walk0001", "walk0002"], []),
        ([f"img-shot{i}" for i in range(40)], []),  # a sequence
        (["a_1", "a_2"], []),
    ],
)
def test_shots_of_a_scene_are_found_by_their_names(names: list[str], expected: list[list[int]]) -> None:
    assert scenes(names) == expected


def test_another_rule_for_shots() -> None:
    assert scenes(["a_1", "a_2", "b_1", "ab"], r"(.+)_\d+") == [[0, 1]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["walk0009", "walk0010", "walk0012", "run0011"], [(0, 1)]),
        (["7", "8", "9"], [(0, 1), (1, 2)]),
        (["a9", "b10", "c"], []),
        (["b2", "b1"], [(1, 0)]),
    ],
)
def test_successive_frames_are_found_by_their_numbers(names: list[str], expected: list[tuple[int, int]]) -> None:
    assert successive(names) == expected


def shots(count: int, sigma: float, seed: int = 0) -> Tensor:
    """Return several shots of one scene, with noise in the depth."""
    scene = sensor_images(1, 48, seed, noise=0, holes=0).expand(count, -1, -1, -1)
    noise = sigma * torch.randn(count, 48, 48, generator=torch.Generator().manual_seed(seed))
    return with_depth(scene, torch.where(scene[:, 3] > 0, scene[:, 3] + noise, 0))


@pytest.mark.parametrize("sigma", [0.001, 0.005])
@pytest.mark.parametrize("count", [2, 4])
def test_repeatability_is_the_deviation_between_shots(sigma: float, count: int) -> None:
    names = [f"scene_shot{i}" for i in range(count)]
    assert number(REPEATABILITY, shots(count, sigma), names) == pytest.approx(sigma, rel=0.05)
    assert number(REPEATABILITY, shots(count, 0), names) < 1e-6
    assert number(FLICKER, shots(count, sigma), ["x"] * count) != number(FLICKER, shots(count, sigma), names)


@pytest.mark.parametrize("sigma", [0.001, 0.005])
def test_flicker_is_the_mean_difference_between_frames(sigma: float) -> None:
    """The mean absolute difference of two normal numbers is 2 σ / √π."""
    names = ["walk1", "walk2", "walk3"]
    assert number(FLICKER, shots(3, sigma), names) == pytest.approx(2 * sigma / torch.pi**0.5, rel=0.05)


def test_holes_count_in_neither() -> None:
    images = shots(2, 0.002).clone()
    images[1, 3, :, ::2] = 0
    assert number(REPEATABILITY, images, ["a-shot1", "a-shot2"]) == pytest.approx(0.002, rel=0.1)
    assert number(FLICKER, images, ["a1", "a2"]) == pytest.approx(2 * 0.002 / torch.pi**0.5, rel=0.1)


def test_numbered_images_of_different_scenes_are_no_sequence() -> None:
    different = sensor_images(4, 48, 0)
    different[:, :3] *= torch.tensor([0.4, 0.7, 1.0, 1.3]).view(4, 1, 1, 1)
    assert measure(different, [f"{i:04d}" for i in range(4)])["flicker"].sum() == 0


def test_names_that_tell_nothing_give_no_number() -> None:
    for names in ([], ["a", "b"]):
        assert REPEATABILITY.number(measure(shots(2, 0.01), names)["repeatability"].sum(0)).isnan()


def test_what_the_names_tell_is_said() -> None:
    assert describe(["door", "desk_shot1", "desk_shot2", "walk7", "walk8"]) == [
        "shots of one scene, by their names: 1 scenes, such as desk_shot1",
        "perhaps frames of a sequence, by their names: 2 pairs, such as desk_shot1",
    ]
    assert describe(["door", "img-1", "img-3"]) == []
