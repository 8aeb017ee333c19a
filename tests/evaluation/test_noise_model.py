"""The parametric noise model finds the parameters with which images were made, and keeps what it must not change."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from vologan_fast.evaluation.noise_model import NoiseModel, fit_noise_model

KINECT = NoiseModel(sigma=0.002, sigma_growth=1.0, jitter=0.5)
TIME_OF_FLIGHT = NoiseModel(
    gain=(0.9, 1.0, 0.8, 1.08),
    offset=(0.05, 0.0, 0.02, -0.03),
    intensity_bias=0.04,
    footprint=1.2,
    beyond=0.3,
    sigma=0.002,
    sigma_growth=0.5,
    sigma_dark=1.0,
    correlation=0.8,
    hole_weights=(-9.0, 2.0, 4.0, 4.0, 0.0, 2.0, 0.0),
    hole_correlation=1.0,
)
DARK = NoiseModel(
    gain=(1.0, 1.0, 1.0, 0.95),
    offset=(0.0, 0.0, 0.0, 0.05),
    footprint=1.0,
    beyond=0.2,
    jitter=0.2,
    sigma=0.001,
    sigma_growth=1.5,
    sigma_dark=2.0,
    intensity_bias=-0.05,
    correlation=0.5,
    hole_weights=(-12.0, 0.0, 12.0, 0.0, 0.0, 3.0, 0.0),
)
SENSORS = {"kinect": KINECT, "time of flight": TIME_OF_FLIGHT, "dark": DARK}


def scenes(count: int, seed: int, size: int = 48) -> Tensor:
    """Return clean images of bumpy bodies, whose clothes have patches of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    images = torch.zeros(count, 4, size, size)
    for image in images:
        a, b, c, d, e, f = torch.rand(6, generator=generator).tolist()
        rows, columns = (y - 0.3 * (a - 0.5)) / (0.6 + 0.3 * b), (x - 0.3 * (c - 0.5)) / (0.5 + 0.3 * d)
        inside = rows**2 + columns**2 < 1
        depth = 0.25 + 0.4 * e + 0.12 * (rows**2 + columns**2) + 0.15 * (f - 0.5) * rows
        depth = depth + 0.004 * torch.sin(9 * x + 6 * a) * torch.sin(7 * y + 6 * b)
        patches = torch.rand(1, 3, 6, 6, generator=generator)
        colour = torch.nn.functional.interpolate(patches, size=(size, size), mode="nearest")[0] * 0.9 + 0.05
        image[:] = torch.cat([colour, depth[None]]) * inside
    return images


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return scenes(48, 0)


@pytest.fixture(scope="module")
def fitted(clean: Tensor) -> dict[str, NoiseModel]:
    """Return the models that are fitted to other scenes, seen through each of the sensors."""
    return {name: fit_noise_model(clean, sensor(scenes(48, 1), seed=5)) for name, sensor in SENSORS.items()}


def neighbour_correlation(blur: float) -> float:
    """Return the correlation of neighbours in white noise after a blur with weights w: Σ w(i) w(i + 1) / Σ w(i)²."""
    weights = [math.exp(-0.5 * (i / max(blur, 1e-3)) ** 2) for i in range(-10, 11)]
    return sum(a * b for a, b in itertools.pairwise(weights)) / sum(a * a for a in weights)


def check(found: NoiseModel, true: NoiseModel, bodies: int) -> None:
    """Check the parameters of a model that was fitted to two sets of different bodies.

    The bodies of the two sets differ in depth, relief and clothes, which limits what can be found. Depths of bodies are
    uniform over 0.4, with a deviation of 0.12. So the difference of two means of n bodies has 0.12 · √(2 / n). The
    other tolerances are for 192 bodies, about twice the errors of fits to such sets. They grow with √(1 / n) too.
    """
    few = (192 / bodies) ** 0.5
    middle = [model.gain[3] * 0.5 + model.offset[3] for model in (found, true)]
    assert middle[0] == pytest.approx(middle[1], abs=3 * 0.12 * (2 / bodies) ** 0.5)
    assert found.gain[3] == pytest.approx(true.gain[3], abs=0.05 * few)
    for depth, darkness in ((0.3, 0.3), (0.6, 0.3), (0.3, 0.7), (0.6, 0.7)):
        assert found.axial_deviation(depth, darkness) == pytest.approx(
            true.axial_deviation(depth, darkness), rel=0.12 * few
        )
    assert found.jitter == pytest.approx(true.jitter, abs=0.05 * few)
    assert found.intensity_bias == pytest.approx(true.intensity_bias, abs=0.01 * few)
    alike = [neighbour_correlation(model.correlation) for model in (found, true)]
    assert alike[0] == pytest.approx(alike[1], abs=0.05 * few)
    if true.beyond:  # else nothing is mixed at outlines, and a footprint has no effect there
        assert found.footprint == pytest.approx(true.footprint, abs=0.25 * few)
        assert found.beyond == pytest.approx(true.beyond, abs=0.06 * few)
    for channel in range(3):
        at = [model.gain[channel] * 0.5 + model.offset[channel] for model in (found, true)]
        assert at[0] == pytest.approx(at[1], abs=0.02 * few)


@pytest.mark.parametrize("name", SENSORS)
def test_the_parameters_of_a_sensor_are_found(fitted: dict[str, NoiseModel], name: str) -> None:
    check(fitted[name], SENSORS[name], bodies=48)


@pytest.mark.slow
@pytest.mark.parametrize("name", SENSORS)
def test_more_images_find_the_parameters_better(name: str) -> None:
    sensor = SENSORS[name]
    check(fit_noise_model(scenes(192, 0), sensor(scenes(192, 1), seed=5)), sensor, bodies=192)


@pytest.mark.parametrize("name", ["time of flight", "dark"])
def test_holes_are_as_frequent_and_lie_in_the_same_places(
    fitted: dict[str, NoiseModel], clean: Tensor, name: str
) -> None:
    made, aim = fitted[name](clean, seed=9), SENSORS[name](clean, seed=10)
    light = clean[:, :3].mean(1) > 0.5
    for where in (clean.amax(1) > 0, light & (clean[:, 3] > 0), ~light & (clean[:, 3] > 0)):
        shares = [float((images[:, 3][where] == 0).float().mean()) for images in (made, aim)]
        assert shares[0] == pytest.approx(shares[1], rel=0.3, abs=0.003)
    assert float((aim[:, 3] == 0)[clean[:, 3] > 0].float().mean()) > 0.01


def test_a_sensor_without_noise_is_found_to_be_quiet(clean: Tensor) -> None:
    """The relief of other bodies differs by a few per cent of 0.004, which may pass for noise."""
    found = fit_noise_model(clean, scenes(48, 1))
    assert found.axial_deviation(0.5) < 0.0015
    assert found.jitter < 0.1
    assert abs(found.intensity_bias) < 0.005
    assert found(clean)[:, 3].count_nonzero() == clean[:, 3].count_nonzero()  # no holes


@pytest.mark.parametrize(("quantum", "growth"), [(0.01, 0.0), (0.004, 0.0), (0.005, 1.0), (0.008, 0.5)])
def test_levels_of_depth_are_found(clean: Tensor, quantum: float, growth: float) -> None:
    """Growth 0 is a fixed step; 1 is disparity for far = 2 near."""
    sensor = NoiseModel(sigma=0.002, quantum=quantum, quantum_growth=growth)
    found = fit_noise_model(clean[:16], sensor(scenes(24, 1)))
    for depth in (0.35, 0.5, 0.65):
        step = found.quantum * (1 + found.quantum_growth * depth) ** 2
        assert step == pytest.approx(quantum * (1 + growth * depth) ** 2, rel=0.1)
    levels = found(clean)[:, 3].unique()
    assert len(levels) < 1.2 * len(sensor(clean)[:, 3].unique()) + 2


def test_depth_without_levels_has_no_quantum(fitted: dict[str, NoiseModel]) -> None:
    assert all(model.quantum == 0 for model in fitted.values())


def test_noise_grows_with_depth() -> None:
    plane = torch.full((2, 4, 64, 64), 0.5)
    plane[0, 3], plane[1, 3] = 0.2, 0.8
    sensor = NoiseModel(sigma=0.002, sigma_growth=1.0)
    near, far = sensor(plane)[:, 3].flatten(1).std(1).tolist()
    # The standard error of a deviation over n values is 1 / √(2n) of it, 1.1 % here.
    assert near == pytest.approx(sensor.axial_deviation(0.2), rel=0.05)
    assert far == pytest.approx(sensor.axial_deviation(0.8), rel=0.05)
    assert far / near == pytest.approx((1.8 / 1.2) ** 2, rel=0.07)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0, 2.0])
def test_correlation_does_not_change_the_deviation(correlation: float) -> None:
    plane = torch.full((64, 4, 64, 64), 0.5)
    noise = NoiseModel(sigma=0.01, correlation=correlation)(plane)[:, 3] - 0.5
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.var())
    assert neighbours == pytest.approx(neighbour_correlation(correlation), abs=0.01)


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 17, 23), (1, 5, 40), (1, 1, 1)])
@pytest.mark.parametrize("name", SENSORS)
def test_background_and_holes_stay(name: str, shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    images = torch.rand(count, 4, height, width, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    images[:, :, : height // 2, : width // 3] = 0
    images[:, 3, height // 2 :, : width // 3] = 0  # holes
    result = SENSORS[name](images)
    assert result.shape == images.shape and result.dtype == images.dtype
    assert bool((result[(images == 0).all(1, keepdim=True).expand_as(images)] == 0).all())
    assert bool((result[:, 3][images[:, 3] == 0] == 0).all())
    assert bool((result[:, :3].amax(1)[images.amax(1) > 0] > 0).all())  # a hole keeps its colour
    assert float(result.min()) >= 0 and float(result.max()) <= 1
    measured = result[:, 3][result[:, 3] > 0]
    assert not len(measured) or float(measured.min()) >= 1 / 1024


def test_equal_seeds_give_equal_images(fitted: dict[str, NoiseModel], clean: Tensor) -> None:
    sensor, before = fitted["time of flight"], clean.clone()
    torch.rand(3)  # the global generator has no effect
    assert torch.equal(sensor(clean, seed=3), sensor(clean, seed=3))
    assert not torch.equal(sensor(clean, seed=3), sensor(clean, seed=4))
    assert torch.equal(clean, before)


def test_equal_sets_give_equal_models(clean: Tensor) -> None:
    first, second = (fit_noise_model(clean[:8], KINECT(scenes(8, 1), seed=5)) for _ in range(2))
    for name, value in first.to_dict().items():
        assert second.to_dict()[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_no_parameters_change_nothing(clean: Tensor) -> None:
    torch.testing.assert_close(NoiseModel()(clean), clean, rtol=0, atol=1e-6)


def test_parameters_survive_json(fitted: dict[str, NoiseModel]) -> None:
    for model in fitted.values():
        read = json.loads(json.dumps(model.to_dict()))
        again = NoiseModel(**{name: tuple(x) if isinstance(x, list) else x for name, x in read.items()})
        assert again == model


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "(2, 3, 8, 8)"),
        (torch.zeros(4, 8, 8), "(4, 8, 8)"),
        (torch.zeros(0, 4, 8, 8), "N ≥ 1"),
        (torch.full((1, 4, 8, 8), torch.nan), "NaN"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_errors_name_what_was_found(clean: Tensor, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="images: found") as error:
        NoiseModel()(images)
    assert message in str(error.value)
    with pytest.raises(ValueError, match="real: found"):
        fit_noise_model(clean, images)
    with pytest.raises(ValueError, match="synthetic: found"):
        fit_noise_model(images, clean)


def test_a_set_without_foreground_is_an_error(clean: Tensor) -> None:
    with pytest.raises(ValueError, match="no foreground"):
        fit_noise_model(clean, torch.zeros(4, 4, 48, 48))


def test_the_sets_may_differ_in_number_and_size(clean: Tensor) -> None:
    found = fit_noise_model(clean[:20], KINECT(scenes(30, 1, size=40)))
    assert found.axial_deviation(0.5) == pytest.approx(KINECT.axial_deviation(0.5), rel=0.5)
