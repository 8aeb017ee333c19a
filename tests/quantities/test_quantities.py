"""The quantities of a report against known answers: histograms, depth, clouds, components, judgements and weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from vologan_kernels import InstanceNormAct2d, spectral_norm

from vologan_fast.config import DepthSpec
from vologan_fast.evaluation.components import flattened
from vologan_fast.quantities import warnings
from vologan_fast.quantities.clouds import cloud, focal_length
from vologan_fast.quantities.depth import DepthScale, clamped, holes, measured, profile, profile_row
from vologan_fast.quantities.histograms import histogram
from vologan_fast.quantities.judgements import border, judgements, separation, sure_and_right
from vologan_fast.quantities.principal import pooled, project
from vologan_fast.quantities.warnings import Certainty, painted, spread
from vologan_fast.quantities.weights import spectral_norm_of, weights_of


def test_a_histogram_counts_values_beyond_its_ends_in_the_end_bins_and_leaves_nan_out():
    found = histogram(np.array([[-1.0, 0.1], [0.3, np.nan], [0.5, 9.0]]), 0, 1, 4)
    assert found.counts.tolist() == [2, 1, 1, 1]
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.centres.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert found.shares.tolist() == [0.4, 0.2, 0.2, 0.2]
    assert found.total == pytest.approx(-1 + 0.1 + 0.3 + 0.5 + 9)
    assert found.squares == pytest.approx(1 + 0.01 + 0.09 + 0.25 + 81)
    assert histogram(np.empty(0), 0, 1, 4).shares.tolist() == [0] * 4


def test_histograms_of_parts_add_up_to_that_of_the_whole():
    values = np.random.default_rng(0).random(1000)
    whole, parts = histogram(values, 0, 1, 16), histogram(values[:300], 0, 1, 16) + histogram(values[300:], 0, 1, 16)
    assert np.array_equal(whole.counts, parts.counts)
    assert (parts.total, parts.squares) == pytest.approx((whole.total, whole.squares))
    with pytest.raises(ValueError, match="equal edges"):
        _ = whole + histogram(values, 0, 2, 16)


def test_normalised_depth_in_metres_and_without_a_unit():
    metres = DepthScale.of(DepthSpec("mm", None, 0.5, 4.5))
    assert metres.unit == "m" and metres.distance(np.array([0.0, 0.25, 1.0])).tolist() == [0.5, 1.5, 4.5]
    without = DepthScale.of(DepthSpec("normalized", None, -1, 1))
    assert without.unit == "" and without.distance(np.array([0.0, 1.0])).tolist() == [2, 3]


def test_holes_are_pixels_of_the_figure_without_depth():
    depth = np.array([[0.0, 1 / 1024, 0.5], [0.0, 0.0, 1.0]])
    figure = np.array([[True, True, True], [False, True, True]])
    assert measured(depth).tolist() == [[False, True, True], [False, False, True]]
    assert holes(depth, figure).tolist() == [[True, False, False], [False, True, False]]


def test_a_profile_follows_a_full_row_near_the_middle_and_has_gaps_at_holes():
    depth = np.zeros((9, 4))
    depth[2] = 0.5
    depth[3, :3] = 0.5
    depth[6] = [0.0, 0.25, 0.5, 1.0]
    depth[7] = 0.5
    assert profile_row(depth) == 2  # as many pixels as row 7, nearer to the middle; rows 3 and 6 have too few
    found = profile(depth, 6, DepthScale(1, 3, "m"))
    assert math.isnan(found[0]) and found[1:].tolist() == [1.5, 2, 3]
    assert profile_row(np.zeros((5, 4))) == 2


def test_the_shares_of_clamped_depth_are_of_the_measured_pixels():
    depth = np.array([0.0, 0.0, 1 / 1024, 0.5, 0.5, 1.0, 1.0, 1.0])
    assert clamped(depth) == (1 / 6, 3 / 6)
    assert clamped(np.zeros((2, 2))) == (0, 0)


def test_a_point_cloud_undoes_a_pinhole():
    """Points that a pinhole projects into the middle of pixels come back, to the right, down and forward."""
    height, width, fov = 6, 8, 60.0
    f = focal_length(height, width, fov)
    assert f == pytest.approx(4 / math.tan(math.radians(30)))
    depth, colors = np.zeros((height, width)), np.zeros((height, width, 3), np.uint8)
    depth[1, 6], colors[1, 6] = 0.5, (9, 8, 7)  # right of the centre and above it
    depth[5, 0], colors[5, 0] = 1.0, (1, 2, 3)
    found = cloud(depth, colors, DepthScale(1, 3, "m"), fov)
    (x, y, z), (left, below, far) = found.points.tolist()
    assert (z, far) == (2, 3) and x > 0 > y and left < 0 < below
    assert (f * x / z + width / 2 - 0.5, f * y / z + height / 2 - 0.5) == pytest.approx((6, 1), abs=1e-5)
    assert (f * left / far + width / 2 - 0.5, f * below / far + height / 2 - 0.5) == pytest.approx((0, 5), abs=1e-5)
    assert found.colors.tolist() == [[9, 8, 7], [1, 2, 3]]


def test_a_large_cloud_keeps_a_lattice_of_its_points():
    depth, colors = np.full((100, 100), 0.5), np.zeros((100, 100, 3), np.uint8)
    colors[..., 0] = np.arange(100)
    found = cloud(depth, colors, DepthScale(0, 1, "m"), limit=1000)
    assert len(found.points) == 25 * 25
    assert sorted(set(found.colors[:, 0].tolist())) == list(range(0, 100, 4))
    assert len(cloud(np.zeros((4, 4)), colors[:4, :4], DepthScale(0, 1, "m")).points) == 0


def test_components_of_points_on_a_line_and_the_pooling_of_evaluate():
    direction = torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 4, 1, 1) / 5
    s, t = (torch.tensor(places).view(-1, 1, 1, 1) * direction for places in ([-3.0, -1.0], [1.0, 3.0]))
    found = project({"S": s, "T": t, "G(S)": 2 * direction})
    assert found is not None and found.variances.tolist() == pytest.approx([1.0])
    assert found.places["S"].ravel().tolist() == pytest.approx([-3, -1])
    assert found.places["T"].ravel().tolist() == pytest.approx([1, 3])
    assert found.places["G(S)"].ravel().tolist() == pytest.approx([2], abs=1e-6)
    assert project({"S": s[:1], "T": s[:1]}) is None
    images = torch.rand(2, 4, 64, 64)
    assert torch.allclose(pooled(images).flatten(1).double(), flattened(images))


def test_components_are_orthonormal_and_sorted():
    images = torch.randn(40, 4, 3, 3) * torch.linspace(1, 5, 9).view(1, 1, 3, 3)
    found = project({"S": images[:20], "T": images[20:]})
    assert found is not None and found.places["S"].shape == (20, 5)
    both = np.concatenate([found.places["S"], found.places["T"]])
    covariance = both.T @ both
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-8)
    assert found.variances.tolist() == sorted(found.variances, reverse=True)


def test_judgements_are_means_over_channels_and_only_outputs_with_places_are_maps():
    output = torch.arange(16.0).view(2, 2, 2, 2)
    one = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    first, second = judgements([output, one])
    assert len(first.maps) == 1 and first.maps[0].tolist() == [[2, 3], [4, 5]]
    assert (first.means, second.means) == ((3.5, 1), (11.5, -1))
    assert (first.score, second.score) == (2.25, 5.25)


@pytest.mark.parametrize(
    ("adversarial", "middle", "values", "real", "share"),
    [
        ("hinge", 0.0, [1.0, 0.9, -2.0, 5.0], True, 0.5),
        ("hinge_both", 0.0, [-1.0, -1.1, -0.9, 5.0], False, 0.5),
        ("mse", 0.5, [0.91, 1.0, 0.8, 0.0], True, 0.5),
        ("mse", 0.5, [0.05, 0.0, 0.2, 1.0], False, 0.5),
        ("bce", 0.0, [3.0, 2.9, -3.0, 0.0], True, 0.25),
        ("wgan", None, [100.0] * 4, True, 0.0),
    ],
)
def test_a_discriminator_is_sure_where_its_loss_has_nearly_ended(adversarial, middle, values, real, share):
    assert border(adversarial) == middle
    assert sure_and_right([torch.tensor(values).view(1, 1, 2, 2)], real, adversarial) == share


def test_the_separation_is_the_area_under_the_roc_curve():
    assert separation([2, 3], [0, 1]) == 1
    assert separation([0, 1], [2, 3]) == 0
    assert separation([1, 1], [1, 1]) == 0.5
    assert separation([0, 2], [1]) == 0.5


@pytest.mark.parametrize("shape", [(5, 3), (3, 20), (8, 4, 3, 3), (1, 7), (7, 1)])
def test_the_spectral_norm_is_the_largest_singular_value(shape):
    for seed in range(5):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        exact = float(torch.linalg.matrix_norm(weight.flatten(1).double(), 2))
        found = spectral_norm_of(weight)
        assert 0.995 * exact <= found <= exact * (1 + 1e-5)
    assert spectral_norm_of(torch.zeros(shape)) == 0


def test_the_weights_of_a_network():
    network = nn.Sequential(
        spectral_norm(nn.Conv2d(2, 3, 3)),
        InstanceNormAct2d(3, affine=True),
        nn.ConvTranspose2d(3, 5, 1),
        nn.BatchNorm2d(5),
    )
    network[1].weight.data = torch.tensor([0.5, 2.0, 1.0])
    network[2].weight.data = torch.zeros(3, 5, 1, 1)
    network[2].weight.data[1, 4] = -7.0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = weights_of(network)
    assert [(s.layer, s.low, s.median, s.high) for s in found.gammas] == [("1", 0.5, 1, 2), ("3", 1, 1, 1)]
    assert [(s.layer, s.normalised) for s in found.spectra] == [("0", True), ("2", False)]
    assert found.spectra[1].sigma == pytest.approx(7)
    assert found.histogram.counts.sum() == 2 * 3 * 9 + 15
    assert (found.histogram.edges[0], found.histogram.edges[-1]) == pytest.approx((-7, 7))
    assert found.histogram.counts[0] == 1  # the -7
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_spread_is_the_mean_difference_of_two_images():
    images = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert spread(images) == pytest.approx((1 + 2 + 3) / 3)
    assert spread(images[:1]) == 0


def test_painted_background_is_what_is_visible_in_any_channel():
    background = torch.tensor([[True, True], [True, False]]).view(1, 1, 2, 2)
    translation = torch.zeros(1, 4, 2, 2)
    translation[0, 1, 0, 0], translation[0, 3, 0, 1], translation[0, :, 1, 1] = 0.5, 0.04, 1.0
    assert painted(background, translation) == (1, 3)


def test_each_warning_comes_at_its_limit_and_says_what_to_try():
    spreads = {"S": 0.2, "T": 0.4, "G(S)": 0.049}
    (sentence,) = warnings.collapse("G(S)", spreads, "S", "T")
    assert "collapsed" in sentence and "0.0490" in sentence and "--loss.cycle" in sentence
    assert warnings.collapse("G(S)", spreads | {"G(S)": 0.05}, "S", "T") == []
    (sentence,) = warnings.saturation("D_T", {"D_T": Certainty(0.95, 0.9)})
    assert "95%" in sentence and "--loss.penalty r1" in sentence
    assert warnings.saturation("D_T", {"D_T": Certainty(0.95, 0.89)}) == []
    (sentence,) = warnings.bleeding("G(S)", "S", 0.02)
    assert "2% of the background of S" in sentence and "--generator.keep-background" in sentence
    assert warnings.bleeding("G(S)", "S", 0.019) == []
    near, far = warnings.clamping("S", "synthetic", (0.05, 0.3), False)
    assert "30%" in far and "a larger --data.synthetic.far" in far and "a smaller --data.synthetic.near" in near
    assert warnings.clamping("S", "synthetic", (0.049, 0.049), False) == []
    (sentence,) = warnings.lost_depth("G(S)", "T", {"G(S)": 0.2, "T": 0.1}, hole_head=True)
    assert "20% of its figure" in sentence and "--loss.hole-share" in sentence
    assert warnings.lost_depth("G(S)", "T", {"G(S)": 0.19, "T": 0.1}, hole_head=True) == []
