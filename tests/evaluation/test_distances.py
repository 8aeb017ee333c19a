"""The metrics of translations: their units, known distances, and robustness against misleading images."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from vologan_fast.evaluation.distances import (
    ChannelMap,
    best_affine,
    foreground,
    noise_floor,
    paired_error,
    quantile_affine,
    sliced_wasserstein,
)


def figures(count: int = 24, seed: int = 0) -> Tensor:
    """Return (count, 4, 32, 32) images: a textured rectangle of random size and depth on background."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 4, 32, 32)
    for image in images:
        top, left = torch.randint(2, 8, (2,), generator=generator).tolist()
        height, width = torch.randint(14, 22, (2,), generator=generator).tolist()
        level = 0.3 + 0.3 * torch.rand(4, 1, 1, generator=generator)
        image[:, top : top + height, left : left + width] = level + 0.1 * torch.rand(
            4, height, width, generator=generator
        )
    return images


def filled(value: float, count: int = 4) -> Tensor:
    """Return (count, 4, 32, 32) images that are all foreground."""
    return torch.full((count, 4, 32, 32), value)


def test_equal_sets_are_at_distance_zero() -> None:
    found = sliced_wasserstein(figures(), figures())
    assert (found.colour, found.depth, found.depth_gradient) == (0, 0, 0)


def test_distance_is_symmetric() -> None:
    a, b = figures(seed=0), figures(seed=1) * 0.7
    there, back = sliced_wasserstein(a, b), sliced_wasserstein(b, a)
    assert there.total == pytest.approx(back.total, rel=1e-6)


def test_a_constant_shift_is_its_own_distance() -> None:
    """A shift is measured in the units of a pixel value, up to the effect of the padding at the border."""
    centre = (slice(None), slice(None), slice(8, 24), slice(8, 24))
    noise = 0.4 + 0.1 * torch.rand(16, 4, 32, 32)
    shift = torch.tensor([0.2, 0.2, 0.2, 0.05]).view(1, 4, 1, 1)
    inner = torch.zeros(16, 4, 32, 32, dtype=torch.bool)
    inner[centre] = True
    found = sliced_wasserstein(noise[centre], noise[centre] + shift, scales=(1,))
    # Patches at the border contain padding, which does not shift. Of 7 x 7 patches on 16 x 16 pixels, 83 % shifts.
    assert 0.8 * 0.2 < found.colour < 0.2
    assert 0.8 * 0.05 < found.depth < 0.05
    assert found.colour / found.depth == pytest.approx(4, rel=0.02)
    assert found.depth_gradient < 1e-6


def test_two_gaussians() -> None:
    """For independent pixels N(m, s²), the mean W² over the projections on a basis is (Δm)² + (Δs)²."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 8, 4, 96, 96, generator=generator)
    a, b = 0.5 + 0.01 * noise[0], 0.53 + 0.025 * noise[1]
    found = sliced_wasserstein(a, b, scales=(1,))
    expected = (0.03**2 + 0.015**2) ** 0.5
    assert found.depth == pytest.approx(expected, rel=0.06)
    assert found.colour == pytest.approx(expected, rel=0.06)
    # Differences of neighbours have standard deviation √2 s, and mean 0.
    assert found.depth_gradient == pytest.approx(2**0.5 * 0.015, rel=0.1)


def test_order_of_the_images_hardly_matters() -> None:
    a, b = figures(64, seed=0), figures(64, seed=1) * 0.8
    straight, shuffled = sliced_wasserstein(a, b), sliced_wasserstein(a[torch.randperm(64)], b)
    assert shuffled.total == pytest.approx(straight.total, rel=0.03)


def test_equal_seeds_give_equal_numbers() -> None:
    a, b = figures(seed=0), figures(seed=1)
    assert sliced_wasserstein(a, b, seed=3) == sliced_wasserstein(a, b, seed=3)
    assert sliced_wasserstein(a, b, seed=3) != sliced_wasserstein(a, b, seed=4)


def test_more_background_changes_little() -> None:
    """Patches are taken around foreground pixels, so a large background does not fill them with zeros."""
    a, b = figures(seed=0), figures(seed=0) * 0.7
    wide_a, wide_b = (torch.nn.functional.pad(x, (32, 32, 32, 32)) for x in (a, b))
    assert sliced_wasserstein(wide_a, wide_b).total == pytest.approx(sliced_wasserstein(a, b).total, rel=0.02)


def test_blur_of_depth_is_seen_by_its_gradient_only() -> None:
    sharp = figures()
    blurred = sharp.clone()
    smooth = torch.nn.functional.avg_pool2d(sharp[:, 3:], 3, 1, 1, count_include_pad=False)
    blurred[:, 3:] = torch.where(foreground(sharp), smooth, 0)
    found = sliced_wasserstein(sharp, blurred)
    assert found.colour == 0
    assert found.depth_gradient > 0.01


def test_a_hole_is_no_edge_of_the_depth() -> None:
    """A step from measured to missing depth is no difference of the surface, so it must not count."""
    flat = filled(0.5)
    holes = flat.clone()
    holes[:, 3, 8:12, 8:12] = 0
    assert sliced_wasserstein(flat, holes).depth_gradient == 0
    assert sliced_wasserstein(flat, holes).depth > 0.01


def test_a_soft_outline_does_not_outweigh_the_surface() -> None:
    """A network's outline has pixels with half the depth. Such steps of the depth count only up to the clamp."""
    sharp = filled(0.6)
    soft = sharp.clone()
    soft[:, 3, 16, 16] = 0.3
    softer = sharp.clone()
    softer[:, 3, 16, 16] = 0.1
    found, as_found = (sliced_wasserstein(sharp, x, scales=(1,)).depth_gradient for x in (soft, softer))
    assert found == pytest.approx(as_found)
    assert found > 0


def test_noise_floor_falls_with_the_size_of_the_set() -> None:
    few, many = noise_floor(figures(16), splits=2), noise_floor(figures(256), splits=2)
    assert 0 < many.total < 0.6 * few.total


@pytest.mark.parametrize("fit", [partial(best_affine, steps=4), quantile_affine])
def test_a_fit_recovers_an_affine_map(fit: Callable[[Tensor, Tensor], ChannelMap]) -> None:
    source = figures(64)
    wanted = ChannelMap(torch.tensor([1.2, 0.8, 0.5, 0.9]), torch.tensor([-0.05, 0.1, 0.3, 0.08]))
    found = fit(source, wanted(source).flip(0))
    torch.testing.assert_close(found.gain, wanted.gain, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.offset, wanted.offset, atol=5e-3, rtol=0)


@pytest.mark.slow
def test_best_affine_beats_the_one_for_single_pixels() -> None:
    """If depth is blurred, patches and gradients have another best gain than single values."""
    source, target = figures(32), figures(32, seed=1)
    blurred = torch.nn.functional.avg_pool2d(target, 5, 1, 2)
    target = torch.where(foreground(target), blurred + 0.1, 0)
    best, simple = (
        sliced_wasserstein(fit(source, target)(source), target)
        for fit in (partial(best_affine, steps=10), quantile_affine)
    )
    assert best.total < 0.98 * simple.total


def test_quantile_affine_is_the_best_for_single_pixels() -> None:
    """No neighbouring map gives a smaller 1-D 2-Wasserstein distance to the values of a curved target."""
    source = figures(64)
    target = torch.where(source > 0, source**2 + 0.1, 0)
    best = quantile_affine(source, target)

    def distance(gain: float, offset: float) -> float:
        mapped, wanted = (x[:, 0][foreground(x)[:, 0]].sort().values for x in (source, target))
        return float(((mapped * gain + offset) - wanted).square().mean())

    gain, offset = float(best.gain[0]), float(best.offset[0])
    least = distance(gain, offset)
    for change in (-0.02, 0.02):
        assert least < distance(gain + change, offset)
        assert least < distance(gain, offset + change)
        assert least < distance(gain + change, offset - 0.45 * change)


def test_channel_map_leaves_background_and_holes_alone() -> None:
    images = figures()
    images[:, 3, 12:14, 12:14] = 0
    mapped = ChannelMap(torch.ones(4), torch.full((4,), 0.2))(images)
    assert (mapped[:, 3, 12:14, 12:14] == 0).all()
    assert (mapped * ~foreground(images) == 0).all()
    assert mapped.max() <= 1


def test_paired_error_by_hand() -> None:
    truth = torch.zeros(1, 4, 8, 8)
    truth[..., 2:4, 2:4] = 0.5
    wrong = truth.clone()
    wrong[:, 0, 2:4, 2:4] += 0.3  # red
    wrong[:, 3, 2:4, 2:4] -= 0.1  # depth
    found = paired_error(wrong, truth)
    assert found.colour == pytest.approx(0.1)
    assert found.depth == pytest.approx(0.1)
    assert found.total == pytest.approx(0.3 + 3 * 0.1)


def test_painting_the_background_never_lowers_the_paired_error() -> None:
    truth = figures()
    wrong = (truth * 0.9).clamp(0, 1)
    painted = torch.where(foreground(truth), wrong, torch.full_like(wrong, 0.05))
    assert paired_error(painted, truth).total > paired_error(wrong, truth).total


def test_what_cannot_be_compared_is_named() -> None:
    images = figures()
    with pytest.raises(ValueError, match=r"a: found shape \(24, 3, 32, 32\), expected \(N, 4, H, W\)"):
        sliced_wasserstein(images[:, :3], images)
    with pytest.raises(ValueError, match="b: found NaN"):
        sliced_wasserstein(images, images * float("nan"))
    with pytest.raises(ValueError, match="b: found no foreground"):
        sliced_wasserstein(images, torch.zeros_like(images))
    with pytest.raises(ValueError, match="translated: found shape"):
        paired_error(images[:1], images)


def test_an_affine_map_makes_no_holes() -> None:
    images = torch.full((1, 4, 4, 4), 0.2)
    images[0, 3, 0, 0] = 0
    mapped = ChannelMap(torch.ones(4), torch.tensor([0, 0, 0, -0.3]))(images)[0, 3]
    assert mapped[0, 0] == 0 and (mapped.flatten()[1:] == 1 / 1024).all()
