"""The bootstrap: its counts, its intervals, and the parts of other measures that use counts of images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fidelity import import_fidelity
from torch import Tensor

from vologan_fast.evaluation import components
from vologan_fast.evaluation.bootstrap import centred, centring, halves, interval, resample
from vologan_fast.evaluation.distances import Projections
from vologan_fast.evaluation.features import fid, kid


def ones(count: int) -> Tensor:
    return torch.ones(1, count, dtype=torch.float64)


def repeated(rows: Tensor, counts: Tensor) -> Tensor:
    """Return the set of a resample: each row as often as its count says."""
    return rows.repeat_interleave(counts.long(), 0)


def test_counts_of_resamples_and_halves() -> None:
    counts = resample(50, 7, seed=3)
    assert counts.shape == (50, 7) and (counts.sum(1) == 7).all() and (counts >= 0).all()
    assert torch.equal(counts, resample(50, 7, seed=3)) and not torch.equal(counts, resample(50, 7, seed=4))
    for size in (6, 7):
        a, b = halves(20, size, seed=0)
        assert (a.sum(1) == size // 2).all() and (b.sum(1) == size // 2).all() and (a * b == 0).all()


@pytest.mark.parametrize("size", [20, 60])
def test_intervals_of_a_mean_hold_it_in_about_95_of_100_cases(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    held = 0
    for trial in range(300):
        values = torch.randn(size, generator=generator).double()
        low, high = interval((resample(200, size, trial) @ values) / size)
        held += low <= 0 <= high
    assert 0.88 < held / 300 < 0.98


def test_intervals_without_resamples_are_nan() -> None:
    assert all(math.isnan(end) for end in interval(torch.empty(0)))
    assert all(math.isnan(end) for end in interval(torch.full((3,), torch.nan)))


def test_centred_replicates_have_the_square_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    replicates = (3 + 0.1 * torch.randn(1000, 2, generator=generator)).abs().double()
    found = centred(replicates, torch.tensor([2.0, 0.0]).double())
    assert float(found[:, 0].square().mean()) == pytest.approx(4, rel=1e-6)
    assert (found[:, 1] == 0).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_the_overlap_of_components_is_that_of_two_subspaces(seed: int) -> None:
    """Counts give the same as a set in which the images are repeated, and as NumPy's principal components."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(12, 30, generator=generator).double() * torch.linspace(3, 0.1, 30)
    b = torch.randn(15, 30, generator=generator).double() * torch.linspace(3, 0.1, 30)
    counts_a, counts_b = resample(4, 12, seed), resample(4, 15, seed)
    found = components.overlap(a, counts_a, b, counts_b)
    for i in range(4):
        bases = []
        for rows, counts in ((a, counts_a[i]), (b, counts_b[i])):
            whole = repeated(rows, counts).numpy()
            bases.append(np.linalg.svd(whole - whole.mean(0), full_matrices=False)[2][:5])
        expected = np.square(np.linalg.svd(bases[0] @ bases[1].T, compute_uv=False)).mean()
        assert float(found[i]) == pytest.approx(expected, abs=1e-9)
    assert float(components.overlap(a, ones(12), a, ones(12))) == pytest.approx(1)


def test_the_overlap_of_orthogonal_sets_is_zero_and_of_few_images_nan() -> None:
    a, b = torch.zeros(8, 40).double(), torch.zeros(8, 40).double()
    a[:, :20], b[:, 20:] = torch.randn(8, 20).double(), torch.randn(8, 20).double()
    assert float(components.overlap(a, ones(8), b, ones(8))) == pytest.approx(0, abs=1e-12)
    assert components.overlap(a[:5], ones(5), b, ones(8)).isnan().all()


@pytest.mark.parametrize(("n", "m", "size"), [(12, 12, 8), (9, 14, 40)])
def test_kid_and_fid_of_counts_are_those_of_repeated_features(n: int, m: int, size: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, size, generator=generator).double()
    y = (0.5 + 1.5 * torch.randn(m, size, generator=generator)).double()
    counts_x, counts_y = resample(3, n, 0), resample(3, m, 1)
    for measure in (kid, fid):
        found = measure(x, counts_x, y, counts_y)
        for i in range(3):
            each = repeated(x, counts_x[i]), repeated(y, counts_y[i])
            expected = measure(each[0], ones(n), each[1], ones(m))
            assert float(found[i]) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("size", [8, 40])
def test_kid_and_fid_are_those_of_torch_fidelity(size: int) -> None:
    metric_fid, metric_kid = import_fidelity("metric_fid"), import_fidelity("metric_kid")
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(20, size, generator=generator).double()
    y = (0.3 + 1.2 * torch.randn(20, size, generator=generator)).double()
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (x, y)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert float(fid(x, ones(20), y, ones(20))) == pytest.approx(expected, rel=1e-6)
    # A subset of all samples is the whole set.
    options = {"kid_subsets": 1, "kid_subset_size": 20, "verbose": False}
    expected = metric_kid.kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"]
    assert float(kid(x, ones(20), y, ones(20))) == pytest.approx(expected, rel=1e-6)


def test_centring_gives_the_covariance_of_a_resample() -> None:
    rows = torch.randn(6, 3).double()
    counts = resample(1, 6, 0)
    centred_rows = centring(counts)[0] @ rows
    expected = torch.cov(repeated(rows, counts[0]).T, correction=0) * 6
    assert torch.allclose(centred_rows.T @ centred_rows, expected)


def test_projections_of_equal_sets_are_equal_and_of_shifted_ones_shifted() -> None:
    images = torch.rand(6, 4, 24, 24) * 0.3 + 0.2
    counts = resample(5, 6, 0)
    a, b = Projections(images).quantiles(counts), Projections(images.clone()).quantiles(counts)
    assert (Projections.distances(a, b) == 0).all()
    shifted = images.clone()
    shifted[:, 3] += 0.2
    found = Projections.distances(a, Projections(shifted).quantiles(counts))
    assert (found[:, 0] == 0).all() and (found[:, 1] > 0.1).all() and (found[:, 2] < 0.02).all()
