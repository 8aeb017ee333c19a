"""Faults that are put into images of a sensor: each moves its own number, beyond the interval of the change.

The candidates are compared with the same images without the fault, so that only the fault is new. The tests are made
for many sizes, strengths and seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sensor_images import sensor_images, with_depth
from torch import Tensor

from vologan_fast.evaluation import sensor
from vologan_fast.evaluation.judge import Judge, Row

QUICK = [(32, 0, 10)]
SLOW = [(32, 1, 12), (48, 1, 12), (48, 2, 12), (64, 3, 8)]


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW)],
    ids=lambda s: f"{s[0]}px-seed{s[1]}",
)
def judge(request: pytest.FixtureRequest) -> Judge:
    size, seed, count = request.param
    images, others = sensor_images(count, size, 10 * seed), sensor_images(count, size, 10 * seed + 1)
    return Judge(images, others, resamples=60, seed=seed)


def holes_filled(images: Tensor, strength: float) -> Tensor:
    """Fill a part of the holes with the depth around."""
    of = sensor.view(images)
    filled = torch.rand(of.depth.shape, generator=torch.Generator().manual_seed(5)) < strength
    return with_depth(images, torch.where(of.figure & ~of.measured & filled, of.surface, of.depth))


def more_noise(images: Tensor, strength: float) -> Tensor:
    """Multiply the differences from the surface, apart from edges."""
    of = sensor.view(images)
    return with_depth(images, torch.where(of.smooth, of.surface + strength * (of.depth - of.surface), of.depth))


def white_noise(images: Tensor, strength: float) -> Tensor:
    """Add noise of another source, `strength` times as strong as the sensor's."""
    noise = strength * 0.004 * torch.randn(images[:, 3].shape, generator=torch.Generator().manual_seed(6))
    return with_depth(images, torch.where(images[:, 3] > 0, (images[:, 3] + noise).clamp(0.01, 1), 0))


def edges_sharpened(images: Tensor, strength: float) -> Tensor:
    """Move depth between two surfaces towards the nearer one of them."""
    depth = images[:, 3]
    far = torch.nn.functional.max_pool2d(depth[:, None], 5, 1, 2)[:, 0]
    near = 1 - torch.nn.functional.max_pool2d((1 - torch.where(depth > 0, depth, 1))[:, None], 5, 1, 2)[:, 0]
    sharp = torch.where((depth - near) < (far - depth), near, far)
    moved = depth + strength * (sharp - depth)
    return with_depth(images, torch.where((depth > 0) & (far - near > 0.08), moved, depth))


def depth_shifted(images: Tensor, strength: float) -> Tensor:
    return with_depth(images, torch.where(images[:, 3] > 0, images[:, 3] + strength, 0))


FAULTS: list[tuple[Callable[[Tensor, float], Tensor], float, str, int]] = [
    *((holes_filled, s, "holes by depth", -1) for s in (0.5, 1.0)),
    *((more_noise, s, "noise by depth", 1) for s in (1.5, 2.0, 4.0)),
    (more_noise, 0.0, "noise by depth", -1),
    *((white_noise, s, "noise by depth", 1) for s in (1.0, 2.0)),
    *((edges_sharpened, s, "edge tails", -1) for s in (0.8, 1.0)),
    *((depth_shifted, s, "mean depth", 1 if s > 0 else -1) for s in (0.01, 0.004, 0.02, -0.01)),
]


@pytest.mark.parametrize(("fault", "strength", "measure", "sign"), FAULTS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_fault_moves_its_number(
    judge: Judge, fault: Callable[[Tensor, float], Tensor], strength: float, measure: str, sign: int
) -> None:
    row = judge.row("faulty", fault(judge.synthetic, strength))
    change = row.values[measure].number_change
    assert change.value * sign > 0 and change.beyond_zero(), change
    if measure == "mean depth":
        assert change.value == pytest.approx(strength, abs=1e-6)
        assert change.high - change.low < 1e-6  # the same shift in every image
    if fault is holes_filled:
        before = judge.untranslated.values[measure].number.value
        assert change.value == pytest.approx(-strength * before, rel=0.25)
    if fault is more_noise:
        before = judge.untranslated.values[measure].number.value
        assert row.values[measure].number.value == pytest.approx(strength * before, rel=0.15, abs=0.2 * before)
    assert_others_stay(row, fault)


def assert_others_stay(row: Row, fault: Callable[[Tensor, float], Tensor]) -> None:
    """Faults of one kind leave the numbers of other kinds exactly as they were, if they do not touch their pixels."""
    change = {name: value.number_change.value for name, value in row.values.items()}
    if fault is depth_shifted:  # up to float32
        assert change["holes by depth"] == 0
        assert abs(change["noise by depth"]) < 1e-6
        assert abs(change["bias by depth"]) < 1e-6
    if fault is not holes_filled:
        assert change["holes by depth"] == 0
    if fault is more_noise:
        assert abs(change["mean depth"]) < 0.002
    if fault is holes_filled:
        assert abs(change["mean depth"]) < 0.002
        assert abs(change["noise by depth"]) < 0.001


def test_a_set_without_a_fault_has_no_change(judge: Judge) -> None:
    row = judge.row("same", judge.synthetic.clone())
    for name, value in row.values.items():
        assert value.change.value == 0, name
        assert not value.number_change.beyond_zero(), name
    assert row.score.value == 1
