"""The sensor statistics: their values on images whose faults are known, and the curves and distances made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sensor_images import sensor_images, with_depth
from torch import Tensor
from torch.nn import functional

from vologan_fast.evaluation import sensor
from vologan_fast.evaluation.sensor import Statistic

BY_NAME = {statistic.name: statistic for statistic in sensor.STATISTICS}


def level(depth: Tensor) -> Tensor:
    """Return (N, 4, H, W) images without background, of this depth (N, H, W)."""
    return with_depth(torch.full((len(depth), 4, *depth.shape[1:]), 0.5), depth)


def sums(name: str, images: Tensor) -> Tensor:
    return sensor.measure(images, sensor.find_bins(images))[name].sum(0)


def number(name: str, images: Tensor) -> float:
    return float(BY_NAME[name].number(sums(name, images)))


@pytest.mark.parametrize("size", [24, 33])
@pytest.mark.parametrize("sigma", [0.001, 0.004])
def test_noise_is_proportional_to_its_deviation(size: int, sigma: float) -> None:
    """A median of 25 leaves about 0.97 of white noise, on a plane of any slope."""
    noise = torch.randn(8, size, size, generator=torch.Generator().manual_seed(size))
    plane = 0.5 + 0.001 * torch.arange(size)
    assert number("noise by depth", level(plane + sigma * noise)) == pytest.approx(sigma, rel=0.06)
    assert number("noise by depth", level(plane + 0 * noise)) < 1e-6


def test_noise_that_grows_with_depth_has_a_rising_curve() -> None:
    noise = torch.randn(8, 48, 48, generator=torch.Generator().manual_seed(0))
    plane = torch.linspace(0.2, 0.9, 48).expand(48, 48)
    curve = BY_NAME["noise by depth"].curve(sums("noise by depth", level(plane + 0.002 * plane * 5 * noise)))
    assert (curve.diff() > 0).all()
    assert float(curve[-1] / curve[0]) == pytest.approx(0.84 / 0.26, rel=0.15)  # the middles of the bins


@pytest.mark.parametrize("blur", [1, 3])
def test_autocorrelation_of_white_and_of_blurred_noise(blur: int) -> None:
    noise = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    blurred = functional.avg_pool2d(noise, (1, blur), 1, (0, blur // 2))[:, 0]  # along x only
    curve = BY_NAME["autocorrelation"].curve(sums("autocorrelation", level(0.5 + 0.003 * blurred)))
    in_x, in_y = curve[: sensor.LAGS], curve[sensor.LAGS :]
    assert float(in_x[0]) == pytest.approx(1 - 1 / blur, abs=0.12)  # (blur − lag) / blur
    assert float(in_y[0]) < 0.1  # below 0 where the median of the window takes away a part of the blurred noise


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("step", [0.1, -0.3])
@pytest.mark.parametrize("between", [0, 1, 2, 4])
def test_tails_have_the_width_of_the_step(between: int, step: float, vertical: bool) -> None:
    """A step in which `between` pixels lie between the surfaces has a tail of this width, in both directions."""
    profile = torch.full((40,), 0.6)
    profile[20:] += step
    if between:
        profile[20 - between // 2 : 20 - between // 2 + between] = 0.6 + step * (
            0.2 + 0.6 * (torch.arange(between) + 0.5) / between
        )
    depth = profile.expand(3, 40, 40)
    depth = depth.transpose(1, 2) if vertical else depth
    assert number("edge tails", level(depth.contiguous())) == between


def test_a_slope_is_no_tail() -> None:
    depth = torch.linspace(0.1, 0.9, 40).expand(2, 40, 40)
    assert float(sums("edge tails", level(depth))[1]) == 0


def test_holes_by_edge_distance_and_slope() -> None:
    """Holes at an edge are found there, and a steep surface with holes has them in the bin of the largest slope."""
    depth = torch.full((2, 40, 40), 0.4)
    depth[:, :, 20:] = 0.7
    depth[:, :, 20] = 0  # the column behind the step
    found = BY_NAME["holes by edge distance"].curve(sums("holes by edge distance", level(depth)))
    assert found[0] == pytest.approx(1 / 3, rel=0.02) and (found[3:] < 0.01).all()  # of three columns, one
    steep = torch.cat([torch.full((30,), 0.3), 0.3 + 0.02 * torch.arange(20)]).expand(2, 50, 50).clone()
    steep[:, ::2, 35:45] = 0
    found = BY_NAME["holes by slope"].curve(sums("holes by slope", level(steep)))
    assert found[-1] > 0.3 and found[0] < 0.05


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_share_of_holes(share: float) -> None:
    images = sensor_images(8, 40, 3, holes=share)
    assert number("holes by depth", images) == pytest.approx(share, abs=0.02)
    for name in ("holes by slope", "holes by edge distance"):
        assert number(name, images) == pytest.approx(number("holes by depth", images))


@pytest.mark.parametrize("step", [1 / 4000, 1 / 1000, 1 / 333, 0.01])
@pytest.mark.parametrize("seed", [0, 1])
def test_steps_of_quantised_values(step: float, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.3, 0.3 + 60 * step, 1000)
    levels = (np.round(values / step) * step).astype(np.float32)
    assert sensor.step_size(levels) == pytest.approx(step, rel=0.02)
    assert sensor.step_size(values.astype(np.float32)) == 0
    assert sensor.step_size(levels[:10]) == 0  # too few


def test_levels_of_disparity_are_wider_far_away() -> None:
    near, span = 0.5, 4.0
    depth = torch.rand(6, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    metres = near + span * depth
    quantised = 30 / torch.round(30 / metres * 4) * 4
    curve = BY_NAME["quantisation by depth"].curve(sums("quantisation by depth", level((quantised - near) / span)))
    assert (curve > 0).all() and (curve.diff() > 0).all()


def test_tails_towards_the_background_are_a_bias_at_edges() -> None:
    clean = sensor_images(6, 48, 0, noise=0, holes=0)
    of = sensor.view(clean)
    tail = with_depth(clean, torch.where(of.figure & (of.edge_distance == 0), of.depth + 0.02, of.depth))
    bins = sensor.find_bins(clean)
    bias = BY_NAME["bias by edge distance"]
    before, after = (bias.curve(sensor.measure(x, bins)[bias.name].sum(0)) for x in (clean, tail))
    assert float(after[0] - before[0]) > 0.005
    assert float((after[3:] - before[3:]).abs().max()) < 1e-6


def test_curves_of_empty_bins_are_the_ratio_of_all() -> None:
    statistic = Statistic("x", "depth", "share")
    found = torch.tensor([[3.0, 0, 5], [30, 0, 10]]).double()
    curve = statistic.curve(found)
    assert curve[0] == pytest.approx(0.1, rel=0.01) and curve[2] == pytest.approx(0.5, rel=0.01)
    assert curve[1] == pytest.approx(8 / 40) and float(statistic.number(found)) == pytest.approx(8 / 40)
    assert statistic.curve(torch.zeros(2, 3)).isnan().all()


def test_the_distance_of_two_curves() -> None:
    statistic = Statistic("x", "depth", "share")
    x, t = torch.tensor([[10.0, 30], [100, 100]]).double(), torch.tensor([[10.0, 30], [100, 300]]).double()
    assert statistic.distance(x, x) == 0
    assert float(statistic.distance(x, t)) == pytest.approx((0.75 * 0.2**2) ** 0.5, rel=0.01)
    assert float(statistic.distance(x * 7, t * 3)) == pytest.approx(float(statistic.distance(x, t)))


def test_images_are_measured_one_by_one() -> None:
    """The sums of each image do not depend on the other images, whatever is measured at a time."""
    images = sensor_images(5, 32, 0)
    bins = sensor.find_bins(images)
    whole = sensor.measure(images, bins)
    for n in range(5):
        alone = sensor.measure(images[n : n + 1], bins)
        assert all(torch.equal(alone[name][0], whole[name][n]) for name in whole)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_images_that_are_all_alike_give_finite_numbers_or_none(depth: float) -> None:
    images = level(torch.full((3, 32, 32), depth))
    found = sensor.measure(images, sensor.find_bins(images))
    for name, statistic in BY_NAME.items():
        assert not statistic.curve(found[name].sum(0)).isinf().any(), name
