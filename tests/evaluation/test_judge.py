"""The judge: what a floor, a score and a difference mean, on images that are made for it."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from sensor_images import sensor_images, with_depth
from torch import Tensor

from vologan_fast.evaluation import tables
from vologan_fast.evaluation.distances import best_affine
from vologan_fast.evaluation.judge import Interval, Judge, as_written, mean_errors
from vologan_fast.evaluation.sensor import Unit


def rendered(count: int, seed: int) -> Tensor:
    """Return images without faults, darker and nearer than those of the sensor."""
    images = sensor_images(count, 32, seed, noise=0, holes=0)
    return torch.cat([images[:, :3] * 0.7, images[:, 3:] * 0.8], 1)


def sensed(images: Tensor, seed: int) -> Tensor:
    """Return rendered images as the sensor would see them."""
    generator = torch.Generator().manual_seed(seed)
    depth = images[:, 3] / 0.8
    noisy = depth + 0.004 * torch.randn(depth.shape, generator=generator)
    lost = torch.rand(depth.shape, generator=generator) < 0.02
    seen = torch.where((depth > 0) & ~lost, noisy.clamp(0.01, 1), 0)
    return with_depth(torch.cat([images[:, :3] / 0.7, images[:, 3:]], 1), seen)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(rendered(10, 0), sensor_images(12, 32, 1), unit=Unit("m", 0.5, 4.0), resamples=60)


def test_the_sensor_itself_reaches_the_floor_and_beats_the_affine_map(judge: Judge) -> None:
    perfect = judge.row("perfect", sensed(judge.synthetic, 0))
    affine = judge.row("affine", best_affine(rendered(10, 5), sensor_images(10, 32, 6), steps=10)(judge.synthetic))
    assert perfect.score.value < affine.score.value < judge.untranslated.score.value == 1
    difference = perfect.minus(affine)
    assert difference["score"].high < 0 and difference["sensor"].high < 0 and difference["depth gradient"].value < 0
    for measure in ("noise by depth", "holes by depth"):
        value = perfect.values[measure]
        assert value.change.high < 0
        assert value.distance.value < 3 * judge.real.values[measure].distance.value
        assert affine.values[measure].change.value > -0.3 * judge.untranslated.values[measure].distance.value


def test_depth_has_the_unit_of_the_judge(judge: Judge) -> None:
    plain = Judge(judge.synthetic, sensor_images(12, 32, 1), resamples=0)
    for measure in ("noise by depth", "bias by depth"):
        metric, normalised = (j.untranslated.values[measure] for j in (judge, plain))
        assert metric.distance.value == pytest.approx(4 * normalised.distance.value)
        assert metric.number.value == pytest.approx(4 * normalised.number.value)
    metric, normalised = (j.real.values["mean depth"].number.value for j in (judge, plain))
    assert metric == pytest.approx(0.5 + 4 * normalised)
    share = [j.untranslated.values["holes by depth"].distance.value for j in (judge, plain)]
    assert share[0] == share[1]


def test_scores_do_not_depend_on_resamples_or_the_unit(judge: Judge) -> None:
    plain = Judge(judge.synthetic, sensor_images(12, 32, 1), resamples=0)
    candidate = sensed(judge.synthetic, 3)
    with_intervals, without = judge.row("x", candidate), plain.row("x", candidate)
    assert without.score.value == pytest.approx(with_intervals.score.value, rel=0.2)  # the floors differ a little
    assert math.isnan(without.score.low) and not math.isnan(with_intervals.score.low)
    assert with_intervals.score.low <= with_intervals.score.value <= with_intervals.score.high
    again = judge.row("x", candidate)
    assert tables.as_json(again) == tables.as_json(with_intervals)


@pytest.mark.parametrize("measure", ["colour", "depth", "holes by depth", "mean depth"])
def test_no_single_measure_decides(judge: Judge, measure: str) -> None:
    """A candidate that is like S but for one measure has a score of at least √½ · …, however good this measure is."""
    images = judge.synthetic.clone()
    perfect = sensed(images, 0)
    if measure == "colour":
        images[:, :3] = perfect[:, :3]
    elif measure == "holes by depth":
        images[:, 3] = images[:, 3] * (perfect[:, 3] > 0)
    else:
        images[:, 3] = images[:, 3] / 0.8
    row = judge.row("one", images)
    assert row.values[measure].change.value < 0
    assert judge.row("all", perfect).score.value < row.score.value


def test_outputs_are_judged_as_they_are_written(judge: Judge) -> None:
    grown = judge.synthetic + 0.3 * (judge.synthetic.amax(1, keepdim=True) == 0)
    assert tables.as_json(judge.row("grown", grown)) == tables.as_json(judge.untranslated)
    faint = torch.full((1, 4, 4, 4), 0.5)
    faint[0, 3, 0, 0] = 1e-4
    assert as_written(faint, torch.ones(1, 4, 4, 4))[0, 3, 0, 0] == 0


@pytest.mark.parametrize(
    ("synthetic", "real", "message"),
    [
        (rendered(1, 0), rendered(4, 0), "synthetic: found 1 image, expected at least 2"),
        (rendered(4, 0), rendered(1, 0), "real: found 1 image"),
        (rendered(4, 0), torch.zeros(4, 4, 32, 32), "no foreground"),
        (rendered(4, 0), rendered(4, 0)[:, :3], "expected \\(N, 4, H, W\\)"),
        (rendered(4, 0) / 0, rendered(4, 0), "NaN"),
    ],
)
def test_sets_that_cannot_be_judged_are_named(synthetic: Tensor, real: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Judge(synthetic, real, resamples=0)


def test_a_candidate_of_another_shape_is_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"x: found shape \(9, 4, 32, 32\), expected \(10, 4, 32, 32\)"):
        judge.row("x", judge.synthetic[:9])


@pytest.mark.parametrize("span", [1.0, 3.0])
def test_mean_errors_are_those_per_foreground_pixel(span: float) -> None:
    truth = rendered(6, 0)
    off = truth.clone()
    off[:, :3] += 0.1 * (truth[:, :3] > 0)
    off[:, 3] += 0.02 * (truth[:, 3] > 0)
    found = mean_errors(off, truth, Unit("m", 0, span), resamples=30)
    assert found["colour"].value == pytest.approx(0.1, rel=1e-4)
    assert found["depth"].value == pytest.approx(0.02 * span, rel=1e-4)
    assert found["depth"].low == pytest.approx(found["depth"].high, rel=1e-4)  # the same in each image


def test_tables_and_json_hold_all_measures(judge: Judge) -> None:
    row = judge.row("G", sensed(judge.synthetic, 0))
    table = tables.measures_table([judge.real, judge.untranslated, row], judge.unit, [judge.untranslated])
    assert len(table.rows) == len(row.values) + 3
    assert "noise by depth (m)" in [line[0] for line in table.rows]
    assert table.markdown().count("\n") == len(table.rows) + 4
    record = json.loads(json.dumps(tables.as_json(row), allow_nan=False))
    assert record["measures"]["noise by depth"]["distance"][0] == row.values["noise by depth"].distance.value


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Interval(0.123456, 0.1, 0.2), "0.12 [0.10, 0.20]"),
        (Interval(12.3456, 10, 20), "12 [10, 20]"),
        (Interval(0.5), "0.50"),
        (Interval(0.0, 0.0, 0.0), "0 [0, 0]"),
        (Interval(math.nan), "–"),
    ],
)
def test_numbers_have_as_many_digits_as_their_interval_allows(found: Interval, expected: str) -> None:
    assert tables.in_digits(found) == expected


def test_beyond_zero() -> None:
    for low, high in itertools.product((-1.0, 1.0), (-0.5, 2.0)):
        assert Interval(0, low, high).beyond_zero() == (low > 0 or high < 0)
    assert not Interval(0).beyond_zero()


def flat(images: Tensor) -> Tensor:
    """Return the images with one depth for each figure: no relief, no noise, no edges between surfaces."""
    depth = images[:, 3]
    mean = depth.sum((1, 2), keepdim=True) / (depth > 0).sum((1, 2), keepdim=True)
    return with_depth(images, torch.where(images.amax(1) > 0, mean, 0))


def test_a_statistic_that_s_lacks_does_not_count() -> None:
    """Without relief there is no residual, so its autocorrelation is 0 / 0."""
    clean = rendered(10, 0)
    judge = Judge(flat(clean), sensor_images(12, 32, 1), resamples=20)
    assert "autocorrelation" not in judge.untranslated.values
    perfect = judge.row("perfect", sensed(clean, 0))
    assert "autocorrelation" in perfect.values
    assert perfect.scores["sensor"].value < 1


def test_a_candidate_that_loses_a_statistic_is_no_better_for_it(judge: Judge) -> None:
    lost = judge.row("all holes", with_depth(judge.synthetic, torch.zeros_like(judge.synthetic[:, 3])))
    assert "noise by depth" not in lost.values and "noise by depth" in judge.untranslated.values
    assert lost.score.value > 2


@pytest.mark.parametrize("scenes", [1, 4])
def test_a_floor_takes_scenes_in_both_halves(scenes: int) -> None:
    """One scene is never in both halves of T. Then its number is shown, but it does not enter the score."""
    names = [f"scene{i}_shot{k}" for i in range(scenes) for k in (1, 2)] + [f"room{i}" for i in range(12 - 2 * scenes)]
    real, synthetic = sensor_images(12, 32, 1), rendered(12, 0)
    with_shots = Judge(synthetic, real, synthetic_names=names, real_names=names, resamples=40)
    value = with_shots.real.values["repeatability"]
    assert math.isfinite(value.number.value)
    assert math.isnan(value.distance.value) == (scenes == 1)
    candidate = sensed(synthetic, 0)
    score = with_shots.row("x", candidate).score.value
    without = Judge(synthetic, real, resamples=40).row("x", candidate).score.value
    assert (score == without) == (scenes == 1)
